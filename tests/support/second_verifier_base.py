"""What the parts of the second verifier share: refusing, base64, signatures. No import of the product."""

import base64
import datetime
import itertools
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

SKEW_MS = 5_000  # between clocks


class Refused(Exception):
    """The file does not prove what it says."""


def need(condition: object, what: str) -> None:
    """Refuse unless `condition`."""
    if not condition:
        raise Refused(what)


def ordered(keys: list[Any]) -> None:
    """Refuse what is not strictly ascending."""
    need(all(a < b for a, b in itertools.pairwise(keys)), "order")


def b64(text: str) -> bytes:
    """Read canonical base64 of at least one byte."""
    data = base64.b64decode(text, validate=True)
    need(data and base64.b64encode(data).decode() == text, "base64")
    return data


def b64url(text: str) -> bytes:
    """Read canonical base64url without padding."""
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    need(base64.urlsafe_b64encode(data).rstrip(b"=").decode() == text, "base64url")
    return data


def milliseconds(moment: datetime.datetime) -> int:
    """Unix time of an aware date."""
    return int(moment.timestamp() * 1000)


def verify_tuf(key: dict[str, Any], signature: bytes, message: bytes) -> object:
    """Verify one TUF signature; return what identifies the key, whatever its id."""
    public, kind = key["keyval"]["public"], (key["keytype"], key["scheme"])
    if kind == ("ed25519", "ed25519"):
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(signature, message)
        return bytes.fromhex(public)
    loaded = load_pem_public_key(public.encode())
    curves = {"ecdsa-sha2-nistp256": (256, hashes.SHA256()), "ecdsa-sha2-nistp384": (384, hashes.SHA384())}
    if isinstance(loaded, ec.EllipticCurvePublicKey):
        need(kind[0] == "ecdsa" and kind[1] in curves, "kind of key")
        size, digest = curves[kind[1]]
        need(loaded.curve.name == f"secp{size}r1", "curve of a key")
        loaded.verify(signature, message, ec.ECDSA(digest))
        numbers = loaded.public_numbers()
        return loaded.curve.name, numbers.x, numbers.y
    need(isinstance(loaded, rsa.RSAPublicKey) and kind == ("rsa", "rsassa-pss-sha256"), "kind of key")
    assert isinstance(loaded, rsa.RSAPublicKey)
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.AUTO)
    loaded.verify(signature, message, pss, hashes.SHA256())
    return loaded.public_numbers().n
