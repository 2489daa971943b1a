"""The policy client is total: mutated repositories and caches give a MeshError or the signed policy, nothing else."""

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.tuf_world import DictSource, World, public, signer
from trust.edge.tuf_client import PolicyClient
from trust.errors import MeshError
from trust.repository import Holders

WORLD = World()
WORLD.release(b"bundle 1")
PAYERS = [signer("p1"), signer("p2")]
WORLD.delegate("payments", Holders(public(PAYERS), 2))
WORLD.release(b"payments 1", "payments", PAYERS)
WORLD.renew(lease_ttl_s=24 * 3600)
PATHS = sorted(WORLD.files)
JSON_PATHS = [path for path in PATHS if path.endswith(".json")]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.just([]),
    st.just({}),
)
fuzz = settings(
    deadline=None,
    max_examples=120,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def try_refresh(files: dict[str, bytes], announced: bytes | None = None) -> None:
    """Refresh from hostile files: refused with a reason, or exactly what the approvers signed."""
    with tempfile.TemporaryDirectory() as name:
        client = PolicyClient(Path(name) / "policy", WORLD.root)
        try:
            policy = client.refresh(DictSource(files), announced)
        except MeshError:
            return
        assert policy.base.data == b"bundle 1"
        assert all(target.data == b"payments 1" for target in policy.namespaces.values())
        assert client.load() == policy


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value inside a JSON document."""
    found = [at] if at else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*at, key))
    return found


def replaced(document: Any, at: tuple[Any, ...], value: object) -> Any:
    parent = document
    for key in at[:-1]:
        parent = parent[key]
    parent[at[-1]] = value
    return document


@fuzz
@given(path=st.sampled_from(PATHS), data=st.binary(max_size=200))
def test_replaced_file_is_refused_or_harmless(path: str, data: bytes) -> None:
    """Arbitrary bytes in place of any file."""
    try_refresh(WORLD.files | {path: data}, data)


@fuzz
@given(path=st.sampled_from(PATHS), at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_flipped_bit_is_refused_or_harmless(path: str, at: int, bit: int) -> None:
    """One bit of one file."""
    data = bytearray(WORLD.files[path])
    data[at % len(data)] ^= 1 << bit
    try_refresh(WORLD.files | {path: bytes(data)}, bytes(data))


@fuzz
@given(path=st.sampled_from(JSON_PATHS), pick=st.integers(0, 10**6), value=scalars, extra=st.booleans())
def test_value_of_another_type_is_refused_or_harmless(
    path: str, pick: int, value: object, extra: bool
) -> None:
    """Any value inside any metadata replaced by one of another type; also as the next root and as announcement."""
    document = json.loads(WORLD.files[path])
    found = places(document)
    data = json.dumps(replaced(document, found[pick % len(found)], value)).encode()
    changed = {path: data} | ({"metadata/2.root.json": data} if extra else {})
    try_refresh(WORLD.files | changed, data)


@fuzz
@given(a=st.sampled_from(PATHS), b=st.sampled_from(PATHS))
def test_swapped_files_are_refused_or_harmless(a: str, b: str) -> None:
    """Any file served in place of any other."""
    try_refresh(WORLD.files | {a: WORLD.files[b]}, WORLD.files[b])


@fuzz
@given(data=st.data())
def test_mutated_cache_loads_only_the_signed_policy(data: st.DataObject) -> None:
    """A cache edited in any place gives an error, or the policy that was signed; and a refresh mends it."""
    with tempfile.TemporaryDirectory() as name:
        client = PolicyClient(Path(name) / "policy", WORLD.root)
        good = client.refresh(DictSource(dict(WORLD.files)))
        accepted = Path(name) / "policy" / "accepted.json"
        record = json.loads(accepted.read_bytes())
        if data.draw(st.booleans()):
            at = data.draw(st.sampled_from(places(record)))
            accepted.write_text(json.dumps(replaced(record, at, data.draw(scalars))))
        else:
            accepted.write_bytes(data.draw(st.binary(max_size=100)))
        with contextlib.suppress(MeshError):
            assert client.load().base == good.base
        assert client.refresh(DictSource(dict(WORLD.files))) == good
