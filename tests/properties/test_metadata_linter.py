"""Whatever is done to a sound root: it is never accepted when fewer than two distinct keys could suffice."""

import copy
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, Role, Root

from tests.support.tuf_world import World, signer, twin
from trust.errors import EvidenceError
from trust.keys import key_material
from trust.metadata import QUORUM_ROLES, check_root

WORLD = World()
TWINS = [twin(one, f"{i:064x}") for i, one in enumerate([*WORLD.approvers, *WORLD.roots])]
KEYS: list[Key] = [s.public_key for s in (*WORLD.roots, *WORLD.approvers, *TWINS, signer("stranger"))]
KEYS += [WORLD.online.snapshot.public_key, WORLD.online.timestamp.public_key]
ROLES = ["root", "targets", "snapshot", "timestamp"]
WEIRD: list[Any] = [True, False, 1.0, 2.0, 2.5]

edits = st.one_of(
    st.tuples(
        st.just("add"),
        st.sampled_from(ROLES),
        st.sampled_from(KEYS),
    ),
    st.tuples(st.just("drop"), st.sampled_from(["root", "targets"]), st.integers(0, 5)),
    st.tuples(
        st.just("threshold"),
        st.sampled_from(ROLES),
        st.one_of(st.integers(-2, 6), st.sampled_from(WEIRD)),
    ),
    st.tuples(st.just("only"), st.sampled_from(["root", "targets"]), st.sampled_from(KEYS)),
)


def apply(root: Root, edit: tuple[str, str, Any]) -> None:
    kind, role, value = edit
    if kind == "add":
        root.add_key(value, role)
    elif kind == "only":
        root.keys[value.keyid] = value
        root.roles[role] = Role([value.keyid], 1)
    elif kind == "drop" and value < len(root.roles[role].keyids):
        del root.roles[role].keyids[value]
    elif kind == "threshold":
        root.roles[role].threshold = value


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(edits, max_size=6))
def test_accepted_root_always_needs_two_distinct_keys(changes: list[tuple[str, str, Any]]) -> None:
    """If the linter passes it, every quorum role needs k >= 2 and has at least k keys of different material."""
    root = copy.deepcopy(Metadata[Root].from_bytes(WORLD.root).signed)
    for edit in changes:
        apply(root, edit)
    try:
        check_root(root)
    except EvidenceError:
        return
    online = {key_material(root.keys[i]) for r in ("snapshot", "timestamp") for i in root.roles[r].keyids}
    for name in QUORUM_ROLES:
        role = root.roles[name]
        materials = [key_material(root.keys[key_id]) for key_id in role.keyids]
        assert type(role.threshold) is int and role.threshold >= 2
        assert len(set(materials)) == len(materials) >= role.threshold
        assert not online & set(materials)
