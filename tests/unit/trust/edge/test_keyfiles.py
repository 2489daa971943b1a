"""Key files: encrypted, private, and clear about what is wrong with them."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from securesystemslib.signer import CryptoSigner, Signature

from trust.edge.keyfiles import (
    create_key,
    key_id_of,
    load_public,
    load_signer,
    passphrase_source,
    read_passphrase,
    write_public,
)
from trust.errors import EvidenceError, InputError, Reason
from trust.keys import key_name

SECRET = b"correct horse battery"


def unreadable(call: object, *args: object) -> str:
    with pytest.raises(InputError) as caught:
        call(*args)  # type: ignore[operator]
    assert caught.value.reason is Reason.KEY_UNREADABLE, caught.value
    return caught.value.detail


@pytest.fixture
def pem(tmp_path: Path) -> Path:
    path = tmp_path / "alice.pem"
    create_key(path, "alice", SECRET)
    return path


def test_new_key_is_encrypted_private_and_signs(pem: Path) -> None:
    """Mode 0600, encrypted PKCS#8; the public half carries the holder's name."""
    assert pem.stat().st_mode & 0o777 == 0o600
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in pem.read_bytes()
    public = load_public(pem.with_name("alice.pub.json"))
    assert key_name(public) == "alice"
    made = load_signer(str(pem), lambda: SECRET)
    assert made.public_key == public
    public.verify_signature(made.sign(b"x"), b"x")


def test_wrong_or_missing_passphrase_is_named(pem: Path) -> None:
    """The commonest mistake gets the clearest message."""
    assert "passphrase is wrong" in unreadable(load_signer, str(pem), lambda: b"wrong")
    assert "encrypted" in unreadable(load_signer, str(pem), None)


def test_key_that_others_can_read_is_refused_with_the_remedy(pem: Path) -> None:
    """A private key readable by the group is not private."""
    pem.chmod(0o640)
    assert f"chmod 600 {pem}" in unreadable(load_signer, str(pem), lambda: SECRET)


def test_existing_files_bad_names_and_short_passphrases_are_refused(pem: Path, tmp_path: Path) -> None:
    """A key is never overwritten, and never made in a way that has to be repaired later."""
    for path, name, secret, reason in (
        (pem, "alice", SECRET, Reason.CONFLICT),
        (tmp_path / "b.pem", "Not A Name", SECRET, Reason.INPUT_INVALID),
        (tmp_path / "b.pem", "b", b"short", Reason.INPUT_INVALID),
        (tmp_path / "b.key", "b", SECRET, Reason.INPUT_INVALID),
    ):
        with pytest.raises(InputError) as caught:
            create_key(path, name, secret)
        assert caught.value.reason is reason
    assert not (tmp_path / "b.pem").exists()


def test_halves_that_do_not_belong_together_are_refused(pem: Path, tmp_path: Path) -> None:
    """A swapped public half would sign under another holder's id."""
    create_key(tmp_path / "bob.pem", "bob", SECRET)
    (tmp_path / "alice.pub.json").write_bytes((tmp_path / "bob.pub.json").read_bytes())
    assert "belong together" in unreadable(load_signer, str(pem), lambda: SECRET)


def test_files_that_are_no_keys_are_refused(tmp_path: Path, pem: Path) -> None:
    """Missing, garbage, huge and private files each have their message."""
    bad = tmp_path / "bad.pub.json"
    for content in (b"", b"{}", b"[]", b"[" * 10_000, b'{"keyid": "0", "keytype": "x", "scheme": "x"}'):
        bad.write_bytes(content)
        assert "egm keys new" in unreadable(load_public, bad)
    bad.write_bytes(b" " * 100_000)
    assert "too large" in unreadable(load_public, bad)
    assert "private key" in unreadable(load_public, pem)
    unreadable(load_public, tmp_path / "absent.pub.json")
    unreadable(load_signer, str(tmp_path / "absent.pem"), None)
    garbage = tmp_path / "garbage.pem"
    garbage.write_bytes(b"garbage")
    garbage.chmod(0o600)
    assert "PKCS#8" in unreadable(load_signer, str(garbage), None)


def test_unsafe_public_key_is_refused(tmp_path: Path) -> None:
    """A small-order point in a key file does not get into a trust domain."""
    path = tmp_path / "zero.pub.json"
    record = {"keyid": "00", "keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": "00" * 32}}
    path.write_text(json.dumps(record))
    with pytest.raises(EvidenceError) as caught:
        load_public(path)
    assert caught.value.reason is Reason.KEY_UNSAFE


def test_ecdsa_key_made_elsewhere_works_and_ed448_does_not(tmp_path: Path) -> None:
    """Keys from other tools are welcome if their kind is allowed."""
    path = tmp_path / "k.pem"
    for private, allowed in (
        (ec.generate_private_key(ec.SECP256R1()), True),
        (ed448.Ed448PrivateKey.generate(), False),
    ):
        path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        path.chmod(0o600)
        if allowed:
            assert load_signer(str(path), None).public_key.scheme == "ecdsa-sha2-nistp256"
        else:
            assert "Ed25519, ECDSA or RSA" in unreadable(load_signer, str(path), None)


def test_signer_uri_needs_its_public_half_and_passes_the_pin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys in tokens and KMSs are named by URI; the public half says which key it is."""
    made = CryptoSigner.generate_ecdsa()
    write_public(tmp_path / "token.pub.json", made.public_key)
    pins: list[str] = []

    class Token(CryptoSigner):
        @classmethod
        def from_priv_key_uri(cls, priv_key_uri, public_key, secrets_handler=None):  # type: ignore[no-untyped-def]
            assert priv_key_uri == "hsm:2?label=egm" and public_key == made.public_key
            pins.append(secrets_handler("pin"))
            return made

    from securesystemslib.signer import SIGNER_FOR_URI_SCHEME

    monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, "hsm", Token)
    ref = f"hsm:2?label=egm#{tmp_path / 'token.pub.json'}"
    signature = load_signer(ref, lambda: b"1234").sign(b"x")
    assert isinstance(signature, Signature) and pins == ["1234"]
    assert "NAME.pub.json" in unreadable(load_signer, "hsm:2", lambda: b"1234")
    assert "PIN" in unreadable(load_signer, ref, None)


def test_backend_failure_of_a_signer_uri_is_a_clear_error(tmp_path: Path) -> None:
    """A KMS library that is not installed or not configured says so."""
    write_public(tmp_path / "k.pub.json", CryptoSigner.generate_ed25519().public_key)
    unreadable(load_signer, f"hsm:x#{tmp_path / 'k.pub.json'}", lambda: b"1234")


def test_passphrase_comes_from_environment_file_domain_or_prompt(
    pem: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One order, so that scripts and people get the same."""
    monkeypatch.delenv("EGM_PASSPHRASE", raising=False)
    monkeypatch.delenv("EGM_PASSPHRASE_FILE", raising=False)
    assert "EGM_PASSPHRASE" in unreadable(passphrase_source(pem))
    source = passphrase_source(pem, lambda: b"asked")
    assert source() == b"asked"
    file = tmp_path / "passphrase"
    file.write_bytes(b"beside\n")
    assert "chmod 600" in unreadable(source)
    file.chmod(0o600)
    assert source() == b"beside"
    other = tmp_path / "other"
    other.write_bytes(b"from file\r\n")
    other.chmod(0o600)
    monkeypatch.setenv("EGM_PASSPHRASE_FILE", str(other))
    assert source() == read_passphrase(other) == b"from file"
    monkeypatch.setenv("EGM_PASSPHRASE", "from variable")
    assert source() == b"from variable"


def test_a_key_swapped_under_the_id_that_was_compared_by_voice_is_refused(tmp_path: Path) -> None:
    """`egm keys show` is for comparing ids: an id that is only a label in the file would make that worthless."""
    mine, theirs = tmp_path / "alice.pem", tmp_path / "mallory.pem"
    create_key(mine, "alice", None)
    create_key(theirs, "mallory", None)
    public = mine.with_name("alice.pub.json")
    record = json.loads(public.read_bytes())
    record["keyval"] = json.loads(theirs.with_name("mallory.pub.json").read_bytes())["keyval"]
    public.write_text(json.dumps(record))
    with pytest.raises(EvidenceError) as caught:
        load_public(public)
    assert caught.value.reason is Reason.KEY_UNSAFE


@pytest.mark.parametrize("make", ["generate_ed25519", "generate_ecdsa", "generate_rsa"])
def test_the_id_of_every_kind_of_key_is_the_one_its_signer_uses(make: str) -> None:
    """Keys made elsewhere by the same library keep their ids."""
    options = {"size": 3072} if make == "generate_rsa" else {}
    key = getattr(CryptoSigner, make)(**options).public_key
    assert key_id_of(key) == key.keyid


@pytest.mark.parametrize("extra", [1.5, {"x": 0.1}, "\ud800", [[[1e400]]]])
def test_a_key_record_without_canonical_form_is_refused_with_a_reason(extra: object, tmp_path: Path) -> None:
    """What cannot be signed cannot be a key."""
    create_key(tmp_path / "alice.pem", "alice", None)
    public = tmp_path / "alice.pub.json"
    record = json.loads(public.read_bytes())
    record["keyval"]["extra"] = extra
    public.write_text(json.dumps(record))
    with pytest.raises((InputError, EvidenceError)):
        load_public(public)
