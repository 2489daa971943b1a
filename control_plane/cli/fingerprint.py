"""The fingerprint by which `egm revoke key` names a public key."""

import hashlib
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from control_plane.edge.given_file import read_given
from trust import limits
from trust.edge.keyfiles import load_public
from trust.errors import EvidenceError, InputError, Reason
from trust.node_key import ed25519_spki_sha256
from trust.x509 import public_key_sha256


def fingerprint(file: Path) -> str:
    """Return the SHA-256 of the public key in a certificate, a PEM public key or a NAME.pub.json.

    Raises:
        InputError: KEY_UNREADABLE.
    """
    data = read_given(file, limits.MAX_CERTIFICATE_CHAIN_BYTES)
    try:
        if b"-----BEGIN CERTIFICATE-----" in data:
            return public_key_sha256(data).hex()
        if b"-----BEGIN PUBLIC KEY-----" in data:
            parsed = load_pem_public_key(data)
            der = parsed.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            return hashlib.sha256(der).hexdigest()
        key = load_public(file)
        if key.keytype == "ed25519":
            return ed25519_spki_sha256(bytes.fromhex(key.keyval["public"])).hex()
    except (ValueError, EvidenceError):
        pass
    raise InputError(
        Reason.KEY_UNREADABLE, f"{file} holds no certificate and no public key; give one, or the SHA-256"
    )
