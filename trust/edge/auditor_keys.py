"""Key files of auditors: what reads sealed payloads. Kept as signing keys are, but they sign nothing.

    NAME.pem        X25519 private key, PKCS#8, encrypted with a passphrase, mode 0600
    NAME.pub.json   its public half as a JWK (RFC 8037): {"crv", "kid", "kty", "use", "x", "x-egm-name"}

The approvers put `x` of the public half into the base bundle (`auditors: {NAME: X}`), and so decide who reads.
"""

import json
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from trust.auditor import AuditorKey, parse_auditor_key
from trust.edge.files import check_private, write_atomic
from trust.edge.keyfiles import PASSPHRASE_VARIABLE, PassphraseSource, free_public_path, read_key_file
from trust.errors import EvidenceError, InputError, Reason
from trust.keys import NAME_FIELD

_USE: Final = "enc"


def create_auditor_key(path: Path, name: str, passphrase: bytes) -> AuditorKey:
    """Create an X25519 key pair: the private key at `path`, encrypted, and the public half beside it.

    Args:
        path: ends in ".pem"; neither file may exist yet.
        name: of the auditor, an RFC 1123 label.
        passphrase: at least `trust.edge.keyfiles.MIN_PASSPHRASE_BYTES`; there is no unencrypted form.

    Raises:
        InputError: CONFLICT, if a file exists; INPUT_INVALID for a bad name, path or short passphrase.
    """
    public_path = free_public_path(path, name, passphrase)
    private = X25519PrivateKey.generate()
    key = AuditorKey(name, private.public_key().public_bytes_raw())
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase))
    write_atomic(path, pem, mode=0o600)
    record = {"crv": "X25519", "kid": key.id, "kty": "OKP", "use": _USE, "x": key.text, NAME_FIELD: name}
    write_atomic(public_path, json.dumps(record, indent=2, sort_keys=True).encode() + b"\n")
    return key


def is_auditor_public(path: Path) -> bool:
    """Whether the file is the public half of an auditor's key, rather than of a signing key.

    Raises:
        InputError: KEY_UNREADABLE, if it cannot be read.
    """
    record = _object(read_key_file(path))
    return record.get("kty") == "OKP" and record.get("use") == _USE


def load_auditor_public(path: Path) -> AuditorKey:
    """Read and check the public half of an auditor's key.

    Raises:
        InputError: KEY_UNREADABLE, if it is missing or no such file.
        EvidenceError: KEY_UNSAFE, if payloads must not be sealed to it, or its id is not that of the key.
    """
    record = _object(read_key_file(path))
    name, text = record.get(NAME_FIELD), record.get("x")
    if record.get("crv") != "X25519" or not isinstance(name, str) or not isinstance(text, str):
        raise InputError(
            Reason.KEY_UNREADABLE,
            f"{path} is not the public half of an auditor's key; 'egm keys new NAME --purpose auditor' makes one",
        )
    key = parse_auditor_key(name, text)
    if record.get("kid") != key.id:
        raise EvidenceError(
            Reason.KEY_UNSAFE,
            f"{path}: the key id is not that of the key; somebody has edited the file. Ask its holder for it again",
        )
    return key


def load_auditor_private(path: Path, passphrase: PassphraseSource) -> X25519PrivateKey:
    """Read an auditor's private key.

    Raises:
        InputError: KEY_UNREADABLE, saying what is wrong: no such file, readable by others, wrong passphrase, or a
            key that reads nothing.
    """
    check_private(path)
    data = read_key_file(path)
    secret = passphrase() if b"ENCRYPTED" in data else None
    try:
        private = load_pem_private_key(data, secret)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        problem = "not a PKCS#8 PEM file"
        if secret is not None:
            problem = (
                f"the passphrase (of {PASSPHRASE_VARIABLE} or the prompt) is wrong, or the file is damaged"
            )
        raise InputError(Reason.KEY_UNREADABLE, f"{path}: {problem}") from None
    if not isinstance(private, X25519PrivateKey):
        raise InputError(
            Reason.KEY_UNREADABLE,
            f"{path} is a signing key, which reads nothing; give an auditor's ('egm keys new NAME --purpose auditor')",
        )
    return private


def _object(data: bytes) -> dict[str, object]:
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
