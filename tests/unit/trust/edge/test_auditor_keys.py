"""Key files of auditors: made once, encrypted, and never mistaken for signing keys."""

import json
from pathlib import Path

import pytest

from tests.support.cli import egm
from trust.edge.auditor_keys import (
    create_auditor_key,
    is_auditor_public,
    load_auditor_private,
    load_auditor_public,
)
from trust.edge.keyfiles import create_key, load_public, load_signer
from trust.errors import InputError, MeshError, Reason

PASSPHRASE = b"correct horse battery"


def test_a_new_key_reads_back_and_is_encrypted_and_private(tmp_path: Path) -> None:
    """Both halves belong together."""
    path = tmp_path / "ann.pem"
    key = create_auditor_key(path, "ann", PASSPHRASE)
    assert load_auditor_public(tmp_path / "ann.pub.json") == key
    private = load_auditor_private(path, lambda: PASSPHRASE)
    assert private.public_key().public_bytes_raw() == key.public
    assert path.stat().st_mode & 0o777 == 0o600 and b"ENCRYPTED" in path.read_bytes()


def test_nothing_is_overwritten_and_nothing_is_made_without_a_passphrase(tmp_path: Path) -> None:
    """An overwritten key makes every record that was sealed to it unreadable."""
    create_auditor_key(tmp_path / "ann.pem", "ann", PASSPHRASE)
    for name, passphrase, reason in (
        ("ann", PASSPHRASE, Reason.CONFLICT),
        ("ben", b"short", Reason.INPUT_INVALID),
        ("Not A Name", PASSPHRASE, Reason.INPUT_INVALID),
    ):
        with pytest.raises(InputError) as caught:
            create_auditor_key(tmp_path / f"{name}.pem", name, passphrase)
        assert caught.value.reason is reason


@pytest.mark.parametrize("passphrase", [b"wrong passphrase", b""])
def test_a_wrong_passphrase_says_so(tmp_path: Path, passphrase: bytes) -> None:
    """And where it came from."""
    create_auditor_key(tmp_path / "ann.pem", "ann", PASSPHRASE)
    with pytest.raises(InputError, match=r"ann\.pem: the passphrase .* is wrong"):
        load_auditor_private(tmp_path / "ann.pem", lambda: passphrase)


def test_auditor_and_signing_keys_are_not_taken_for_each_other(tmp_path: Path) -> None:
    """A reader signs nothing, a signer reads nothing; each message says what to give instead."""
    create_auditor_key(tmp_path / "ann.pem", "ann", PASSPHRASE)
    create_key(tmp_path / "ben.pem", "ben", PASSPHRASE)
    assert is_auditor_public(tmp_path / "ann.pub.json") and not is_auditor_public(tmp_path / "ben.pub.json")
    with pytest.raises(InputError, match="signs nothing"):
        load_public(tmp_path / "ann.pub.json")
    with pytest.raises(InputError, match="Ed25519, ECDSA or RSA"):
        load_signer(str(tmp_path / "ann.pem"), lambda: PASSPHRASE)
    with pytest.raises(InputError, match="--purpose auditor"):
        load_auditor_public(tmp_path / "ben.pub.json")
    with pytest.raises(InputError, match="reads nothing"):
        load_auditor_private(tmp_path / "ben.pem", lambda: PASSPHRASE)


@pytest.mark.parametrize(
    "changes",
    [{"x": "A" * 43}, {"kid": "x" * 43}, {"crv": "Ed25519"}, {"x-egm-name": 7}, {"x": None}],
    ids=["small order", "another id", "curve", "name", "no key"],
)
def test_an_edited_public_half_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    """Its id is compared by voice, so it must be that of the key."""
    create_auditor_key(tmp_path / "ann.pem", "ann", PASSPHRASE)
    path = tmp_path / "ann.pub.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))
    with pytest.raises(MeshError) as caught:
        load_auditor_public(path)
    assert caught.value.reason in {Reason.KEY_UNSAFE, Reason.KEY_UNREADABLE}


def test_the_command_makes_and_shows_one_with_the_line_for_the_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`egm keys new NAME --purpose auditor`, then `egm keys show`."""
    monkeypatch.setenv("EGM_PASSPHRASE", PASSPHRASE.decode())
    made = egm("keys", "new", "ann", "--purpose", "auditor", "--dir", tmp_path)
    assert made.code == 0, made
    key = load_auditor_public(tmp_path / "ann.pub.json")
    line = f"auditors: {{ann: {key.text}}}"
    assert line in made.stdout
    shown = egm("keys", "show", tmp_path / "ann.pub.json")
    assert line in shown.stdout and key.id in shown.stdout
    data = egm("keys", "show", tmp_path / "ann.pub.json", "--json").data
    assert data == {"name": "ann", "scheme": "x25519", "key_id": key.id, "key": key.text}
