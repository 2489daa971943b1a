"""Key files: encrypted PKCS#8 private keys (mode 0600) with the public half beside them, and signer URIs.

    NAME.pem        Ed25519 private key, encrypted with a passphrase
    NAME.pub.json   {"keyid", "keytype", "scheme", "keyval", "x-egm-name"}: give this one away

A signing key may also live elsewhere: `hsm:2?label=TOKEN#approver-1.pub.json`, `awskms:…#approver-1.pub.json`
(any signer URI of securesystemslib, and after `#` the file of its public half).
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.exceptions import FormatError
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, CryptoSigner, Key, Signer, SSlibKey

from trust.edge.files import check_private, read_at_most, write_atomic
from trust.errors import EvidenceError, InputError, Reason
from trust.keys import NAME_FIELD, check_public_key
from trust.spiffe import check_name

PASSPHRASE_VARIABLE: Final = "EGM_PASSPHRASE"  # noqa: S105  # a variable
PASSPHRASE_FILE_VARIABLE: Final = "EGM_PASSPHRASE_FILE"  # noqa: S105
DEVELOPMENT_PASSPHRASE_FILE: Final = "passphrase"  # noqa: S105  # beside the keys
MIN_PASSPHRASE_BYTES: Final = 12
_MAX_FILE_BYTES: Final = 64 * 1024

PassphraseSource = Callable[[], bytes]


def create_key(path: Path, name: str, passphrase: bytes | None) -> Key:
    """Create an Ed25519 key pair: the private key at `path`, the public half beside it.

    Args:
        path: ends in ".pem"; neither file may exist yet.
        name: display name of the holder, an RFC 1123 label.
        passphrase: None leaves the private key unencrypted (mode 0600), for online keys only.

    Returns:
        The public key.

    Raises:
        InputError: CONFLICT, if a file exists; INPUT_INVALID for a bad name, path or short passphrase.
    """
    public_path = free_public_path(path, name, passphrase)
    private = Ed25519PrivateKey.generate()
    encryption = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    public = SSlibKey.from_crypto(private.public_key())
    public.unrecognized_fields[NAME_FIELD] = name
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    write_atomic(path, pem, mode=0o600)
    write_public(public_path, public)
    return public


def free_public_path(path: Path, name: str, passphrase: bytes | None) -> Path:
    """Return where the public half goes, if a key pair of this name may be made at `path`.

    Args:
        path: of the private key; ends in ".pem".
        name: of the holder, an RFC 1123 label.
        passphrase: for the private key; None leaves it unencrypted.

    Raises:
        InputError: CONFLICT, if a file exists; INPUT_INVALID for a bad name, path or short passphrase.
    """
    try:
        check_name(name)
    except EvidenceError as error:
        raise InputError(Reason.INPUT_INVALID, error.detail) from None
    public_path = public_path_of(path)
    for existing in (path, public_path):
        if existing.exists():
            raise InputError(Reason.CONFLICT, f"{existing} exists; choose another name or directory")
    if passphrase is not None and len(passphrase) < MIN_PASSPHRASE_BYTES:
        raise InputError(
            Reason.INPUT_INVALID, f"the passphrase is too short: use at least {MIN_PASSPHRASE_BYTES} bytes"
        )
    return public_path


def public_path_of(path: Path) -> Path:
    """Return where the public half of the private key file `path` is: NAME.pem → NAME.pub.json.

    Raises:
        InputError: INPUT_INVALID, if `path` does not end in .pem.
    """
    if path.suffix != ".pem":
        raise InputError(Reason.INPUT_INVALID, f"{path}: a private key file is named NAME.pem")
    return path.with_suffix(".pub.json")


def write_public(path: Path, key: Key) -> None:
    """Write a public key file."""
    record = {"keyid": key.keyid, **key.to_dict()}
    write_atomic(path, json.dumps(record, indent=2, sort_keys=True).encode() + b"\n")


def load_public(path: Path) -> Key:
    """Read and check a public key file.

    Raises:
        InputError: KEY_UNREADABLE, if it is missing or not a public key file.
        EvidenceError: KEY_UNSAFE, if the key must not be used.
    """
    data = read_key_file(path)
    if b"PRIVATE KEY" in data:
        raise InputError(
            Reason.KEY_UNREADABLE, f"{path} is a private key; give the public half: {path.stem}.pub.json"
        )
    if b'"X25519"' in data:
        raise InputError(
            Reason.KEY_UNREADABLE,
            f"{path} is an auditor's key: it signs nothing; give an approver's or root holder's",
        )
    try:
        record = json.loads(data)
        key = Key.from_dict(record.pop("keyid"), record)
        expected = key_id_of(key)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, FormatError):
        raise InputError(
            Reason.KEY_UNREADABLE, f"{path} is not a public key file; 'egm keys new' makes NAME.pub.json"
        ) from None
    check_public_key(key)
    if key.keyid != expected:
        raise EvidenceError(
            Reason.KEY_UNSAFE,
            f"{path}: the key id is not that of the key, so comparing ids proves nothing; somebody has edited the "
            "file. Ask its holder for it again, or make a new key with 'egm keys new'",
        )
    return key


def key_id_of(key: Key) -> str:
    """Return the id that stands for this very key: the SHA-256 (hex) of its record, as securesystemslib makes it."""
    record = {"keytype": key.keytype, "scheme": key.scheme, "keyval": key.keyval}
    return hashlib.sha256(str(encode_canonical(record)).encode()).hexdigest()


def load_signer(ref: str, passphrase: PassphraseSource | None, public: Key | None = None) -> Signer:
    """Return a signer for a private key file, or for a signer URI (hsm:, awskms:, gcpkms:, azurekms:, …).

    Args:
        ref: path to NAME.pem, or "URI#PUBLIC.json".
        passphrase: asked only when the key needs one (for hsm: it gives the PIN).
        public: the public half; by default it is found beside the file, or after the "#".

    Raises:
        InputError: KEY_UNREADABLE, saying what is wrong: no such file, readable by others, wrong
            passphrase, or the two halves do not belong together.
    """
    scheme, colon, _ = ref.partition(":")
    if colon and scheme in SIGNER_FOR_URI_SCHEME and scheme != CryptoSigner.SCHEME:
        return _load_uri(ref, passphrase, public)
    path = Path(ref)
    check_private(path)
    private = _load_private(path, passphrase)
    if public is None:
        beside = public_path_of(path)
        public = load_public(beside) if beside.exists() else SSlibKey.from_crypto(private.public_key())
    if not isinstance(public, SSlibKey):
        raise InputError(Reason.KEY_UNREADABLE, f"{path}: its public half is of a kind that is not supported")
    check_public_key(public)
    try:
        return CryptoSigner(private, public)
    except Exception:  # noqa: BLE001  # KeyMismatchError, ValueError: all mean the same to the holder
        raise InputError(
            Reason.KEY_UNREADABLE, f"{path} and its public half do not belong together"
        ) from None


def passphrase_source(key: Path, ask: PassphraseSource | None = None) -> PassphraseSource:
    """Return where the passphrase of the private key file `key` comes from, tried in this order.

    EGM_PASSPHRASE; the file named by EGM_PASSPHRASE_FILE; in a development domain the file `passphrase`
    beside the key; `ask` (a prompt).

    Raises (when called):
        InputError: KEY_UNREADABLE, naming the ways to give one.
    """

    def source() -> bytes:
        given = passphrase_from_environment()
        if given is not None:
            return given
        beside = key.parent / DEVELOPMENT_PASSPHRASE_FILE
        if key.suffix == ".pem" and beside.is_file():
            return read_passphrase(beside)
        if ask is not None:
            return ask()
        raise InputError(
            Reason.KEY_UNREADABLE,
            f"{key} needs a passphrase; set {PASSPHRASE_VARIABLE} or {PASSPHRASE_FILE_VARIABLE}",
        )

    return source


def passphrase_from_environment() -> bytes | None:
    """Return the passphrase of EGM_PASSPHRASE or EGM_PASSPHRASE_FILE, or None when neither is set."""
    text = os.environ.get(PASSPHRASE_VARIABLE)
    if text:
        return text.encode()
    file = os.environ.get(PASSPHRASE_FILE_VARIABLE)
    return read_passphrase(Path(file)) if file else None


def read_passphrase(path: Path) -> bytes:
    """Read a passphrase file (mode 0600), without the line end. Raises InputError KEY_UNREADABLE."""
    check_private(path)
    return read_key_file(path).rstrip(b"\r\n")


def _load_private(
    path: Path, passphrase: PassphraseSource | None
) -> Ed25519PrivateKey | EllipticCurvePrivateKey | RSAPrivateKey:
    data = read_key_file(path)
    encrypted = b"ENCRYPTED" in data
    secret: bytes | None = None
    if encrypted:
        if passphrase is None:
            raise InputError(
                Reason.KEY_UNREADABLE, f"{path} is encrypted; set {PASSPHRASE_VARIABLE} to its passphrase"
            )
        secret = passphrase()
    try:
        private = load_pem_private_key(data, secret)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        problem = "the passphrase is wrong, or the file is damaged" if encrypted else "not a PKCS#8 PEM file"
        raise InputError(Reason.KEY_UNREADABLE, f"{path}: {problem}") from None
    if not isinstance(private, Ed25519PrivateKey | EllipticCurvePrivateKey | RSAPrivateKey):
        raise InputError(Reason.KEY_UNREADABLE, f"{path}: use an Ed25519, ECDSA or RSA key")
    return private


def _load_uri(ref: str, passphrase: PassphraseSource | None, public: Key | None) -> Signer:
    uri, _, public_file = ref.rpartition("#") if "#" in ref else (ref, "", "")
    if public is None:
        if not public_file:
            raise InputError(
                Reason.KEY_UNREADABLE, f"{ref}: add the file of its public half, as {ref}#NAME.pub.json"
            )
        public = load_public(Path(public_file))

    def secret(_name: str) -> str:
        if passphrase is None:
            raise InputError(Reason.KEY_UNREADABLE, f"{uri} needs a PIN; set {PASSPHRASE_VARIABLE}")
        return passphrase().decode()

    try:
        return Signer.from_priv_key_uri(uri, public, secret)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001  # every backend raises its own kind
        raise InputError(Reason.KEY_UNREADABLE, f"{uri}: {error}") from None


def read_key_file(path: Path) -> bytes:
    """Return the content of a key or passphrase file.

    Raises:
        InputError: KEY_UNREADABLE, if it cannot be read or is too large to be one.
    """
    try:
        return read_at_most(path, _MAX_FILE_BYTES)
    except OSError as error:
        raise InputError(Reason.KEY_UNREADABLE, f"{path}: {error.strerror or error}") from None
