"""The TUF conformance suite's tables of key rotations against our client, as plain TUF and whole.

`PolicyClient` refuses the shapes that `REFUSED` names, with the reason; in all others it must agree with the suite.
"""

import json
from pathlib import Path

import pytest

from tests.support.raw_repository import RawRepository
from tests.support.tuf_clients import Plain, refresh_policy
from tests.support.tuf_world import signer
from trust.errors import Reason

TABLE = json.loads((Path(__file__).parents[1] / "vectors" / "tuf_rotations.json").read_text())
FAILS = frozenset(TABLE["fails"])
REFUSED = {
    "root/1-of-1-key-rotation": "a threshold of one",
    "root/1-of-1-key-rotation-unused-signatures": "a threshold of one",
    "root/1-of-3-threshold-increase-to-2-of-3": "the first root has a threshold of one",
    "root/1-of-2-threshold-increase-to-2-of-2": "the first root has a threshold of one",
    "root/2-of-3-threshold-decrease-to-1-of-3": "a quorum may not abolish the quorum",
    "root/1-of-1-key-rotation-fail-not-signed-with-old-key": "the first root has a threshold of one",
    "root/1-of-1-key-rotation-fail-not-signed-with-new-key": "the first root has a threshold of one",
    "root/1-of-3-threshold-bump-to-2-of-3-fails-new-threshold-not-reached": "the first root has a threshold of one",
    "targets/1-of-1-key-rotation": "a threshold of one",
    "targets/1-of-1-key-rotation-unused-signatures": "a threshold of one",
}


@pytest.mark.parametrize("name", TABLE["root"])
def test_root_rotation(name: str, tmp_path: Path) -> None:
    """Each root needs its own quorum and the one before it; which keys of a quorum sign does not matter."""
    repository = RawRepository()
    pool = [signer(str(number)) for number in range(10)]
    repository.root.version = 0
    for keys, threshold, signatures in TABLE["root"][name]:
        repository.set_role("root", [pool[i] for i in keys], threshold)
        repository.commit_root([pool[i] for i in signatures])
    steps = len(TABLE["root"][name])
    root = repository.files["metadata/1.root.json"]
    fails = f"root/{name}" in FAILS
    with repository.served() as url:
        plain = Plain(tmp_path, url, root)
        assert plain.refresh() is not fails
        assert plain.version("root") == steps - fails
        expected = repository.files[f"metadata/{steps - fails}.root.json"]
        assert (plain.metadata / "root.json").read_bytes() == expected
        outcome = refresh_policy(tmp_path, url, root)
    if f"root/{name}" in REFUSED:
        assert outcome is Reason.METADATA_UNSAFE
    elif fails:
        assert outcome is Reason.QUORUM_NOT_MET
    else:
        assert isinstance(outcome, dict) and outcome["root"] == steps


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
@pytest.mark.parametrize("name", TABLE["other"])
def test_rotation_of_another_role(name: str, role: str, tmp_path: Path) -> None:
    """The keys and threshold of the newest root decide who may sign below it."""
    keys, threshold, signatures = TABLE["other"][name]
    repository = RawRepository()
    root = repository.files["metadata/1.root.json"]
    pool = [signer(str(number)) for number in range(10)]
    repository.set_role(role, [pool[i] for i in keys], threshold)
    repository.commit_root()
    repository.signers[role] = [pool[i] for i in signatures]
    repository.commit()
    fails = f"other/{name}" in FAILS
    with repository.served() as url:
        assert Plain(tmp_path, url, root).refresh() is not fails
        outcome = refresh_policy(tmp_path, url, root)
    if f"{role}/{name}" in REFUSED:
        assert outcome is Reason.METADATA_UNSAFE
    elif fails:
        assert outcome is Reason.QUORUM_NOT_MET
    else:
        assert outcome == {"root": 2, "timestamp": 2, "snapshot": 2, "targets": 2}


def test_every_named_refusal_exists() -> None:
    """The list of differences cannot outlive its cases."""
    names = {f"root/{n}" for n in TABLE["root"]}
    names |= {f"{role}/{n}" for role in ("timestamp", "snapshot", "targets") for n in TABLE["other"]}
    assert REFUSED.keys() <= names
