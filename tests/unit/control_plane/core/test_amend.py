"""Bundles in which only the quorum's word on denials changes."""

import pytest

from control_plane.core import amend
from tests.support.control_plane import archive, source
from tests.support.emergency import FIRST
from trust.bundle import MESH, bundle_files, read_bundle
from trust.errors import InputError
from trust.mesh import MeshSettings
from trust.policy.source import build
from trust.verified import BASE_ROLE


def mesh_of(data: bytes) -> MeshSettings:
    """Return the settings of a base bundle."""
    mesh = read_bundle(data, role=BASE_ROLE).mesh
    assert mesh is not None
    return mesh


def test_everything_but_the_settings_stays_byte_for_byte() -> None:
    """Approvers review one line, not a rebuilt bundle."""
    before = archive()
    after = amend.ended(before, mesh_of(before), ["ab" * 32])
    old, new = bundle_files(before), bundle_files(after)
    assert {path for path in old | new if old.get(path) != new.get(path)} == {MESH}
    assert mesh_of(after).ended_revocations == ("ab" * 32,)
    assert amend.ended(after, mesh_of(after), ["ab" * 32]) == after


def test_release_settles_proofs_ends_directives_and_drops_permanent_ones_of_that_node_alone() -> None:
    """The node takes part again; whoever else is denied stays so."""
    bundle = archive()
    for name in ("a", "b"):
        bundle = amend.kept(bundle, mesh_of(bundle), kind="node", value=name, reason="gone")
    bundle = amend.released(bundle, mesh_of(bundle), "a", proofs=["01" * 32], directives=["02" * 32])
    mesh = mesh_of(bundle)
    assert [one.value for one in mesh.revocations] == ["b"]
    assert (mesh.released_proofs, mesh.ended_revocations) == (("01" * 32,), ("02" * 32,))


def test_what_is_permanent_already_is_not_proposed_again() -> None:
    """Approvers should not sign what changes nothing."""
    bundle = amend.kept(archive(), mesh_of(archive()), kind="workload", value="alice", reason="left")
    with pytest.raises(InputError, match="already"):
        amend.kept(bundle, mesh_of(bundle), kind="workload", value="alice", reason="left")


def test_keys_of_a_development_domain_are_named_unless_the_folder_names_its_own() -> None:
    """What a person wrote is never replaced."""
    named = amend.with_emergency_keys(archive(), {FIRST.name: FIRST.public.hex()})
    assert mesh_of(named).emergency_keys == {FIRST.name: FIRST.public.hex()}
    assert amend.with_emergency_keys(named, {"other": "00" * 32}) == named
    assert amend.with_emergency_keys(archive(), {}) == archive()


def test_detection_is_named_from_level_2_on_unless_the_folder_says_something_of_it() -> None:
    """Below there is nothing to respond with; what a person wrote is never replaced."""
    wanted = {"respond": True, "responses": [{"on": "severity high", "do": ["alert"]}]}
    low, high = (build(source(), level_override=level) for level in (1, 2))
    assert amend.with_detection(low, wanted) == low
    made = amend.with_detection(high, wanted)
    detection = mesh_of(made).detection
    assert detection is not None and detection.respond
    assert amend.with_detection(made, {"respond": False}) == made
