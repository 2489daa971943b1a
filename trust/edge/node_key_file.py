"""The file of a node's signing key: read, or made once (Ed25519, PKCS#8 PEM, mode 0600)."""

import logging
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from trust.edge.files import check_private, write_atomic
from trust.errors import InputError, Reason

logger = logging.getLogger(__name__)

KEY_FILE: Final = "node-key.pem"


def load_or_make_key(path: Path) -> Ed25519PrivateKey:
    """Return the node key in `path`; make one where there is none.

    Raises:
        InputError: KEY_UNREADABLE, if it is readable by others, damaged, of another kind, or cannot be written.
    """
    try:
        data = path.read_bytes() if path.exists() else None
        if data is None:
            return _make(path)
    except OSError as error:
        raise InputError(Reason.KEY_UNREADABLE, f"{path}: {error.strerror or error}") from None
    check_private(path)
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(
            Reason.KEY_UNREADABLE,
            f"{path} is not an unencrypted Ed25519 key (PKCS#8 PEM); restore it, or remove it and the node makes a "
            "new one, which its peers accept by its certificate",
        )
    return key


def _make(path: Path) -> Ed25519PrivateKey:
    key = Ed25519PrivateKey.generate()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_atomic(path, pem, mode=0o600)
    logger.info("made the signing key of this node: %s", path)
    return key


def write_public_key(path: Path, key: Ed25519PublicKey) -> None:
    """Write what the services next to this sidecar verify hand-overs with; nothing, if it is there already.

    Raises:
        InputError: KEY_UNREADABLE, if it cannot be written.
    """
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    try:
        if not path.exists() or path.read_bytes() != pem:
            write_atomic(path, pem, mode=0o644)
    except OSError as error:
        raise InputError(Reason.KEY_UNREADABLE, f"{path}: {error.strerror or error}") from None
