"""What a sealed payload is: one JWE (RFC 7516) that only auditors can open, bound to one record.

General JSON serialization, one spelling: members in ascending order, no spaces, nothing else.

    protected   {"alg":"ECDH-ES+A256KW","enc":"A256GCM","typ":"egm-payload+jwe","eid":…,"side":…,"part":…,"node":…}
    recipients  one per auditor: `kid`, an ephemeral X25519 key (RFC 8037), the wrapped content key

The protected header is authenticated with the ciphertext, so a payload that is moved to the record of another
execution, side, direction or node does not open there. Making one needs randomness: `sidecar.edge.payload_sealer`.
"""

import enum
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, cast

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from joserfc.errors import JoseError
from joserfc.jwe import GeneralJSONSerialization, JWERegistry, decrypt_json
from joserfc.jwk import OKPKey
from joserfc.registry import HeaderParameter

from trust import limits
from trust.auditor import key_id_of
from trust.compact import from_base64url, parse_object
from trust.errors import EvidenceError, Reason
from trust.execution import id_text
from trust.record import Intent, Outcome, Side

ALGORITHM: Final = "ECDH-ES+A256KW"
ENCRYPTION: Final = "A256GCM"
TYPE: Final = "egm-payload+jwe"
_IV_BYTES: Final = 12
_TAG_BYTES: Final = 16
_WRAPPED_KEY_BYTES: Final = 40
_MAX_HEADER_BYTES: Final = 1024
_KEY_ID: Final = re.compile(r"[A-Za-z0-9_-]{43}\Z")
_SIDES: Final = {side: side.name.lower() for side in Side}


@enum.unique
class Part(enum.StrEnum):
    """Which bytes were sealed."""

    REQUEST = "request"  # the only request, or a stream's opening message
    RESPONSE = "response"  # the response of a unary call


@dataclass(frozen=True, slots=True)
class Binding:
    """The one place where a sealed payload belongs."""

    execution_id: bytes
    side: Side
    part: Part
    node: str

    def header(self) -> dict[str, str]:
        """Return the protected header; as JSON without spaces these are the only bytes that are accepted."""
        return {
            "alg": ALGORITHM,
            "enc": ENCRYPTION,
            "typ": TYPE,
            "eid": id_text(self.execution_id),
            "side": _SIDES[self.side],
            "part": self.part.value,
            "node": self.node,
        }


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed payload, well-formed and otherwise unverified."""

    eid: str  # what it says of itself, see `Binding.header`
    side: str
    part: str
    node: str
    key_ids: tuple[str, ...]  # whom it was sealed to: ids as `trust.auditor.AuditorKey.id`
    document: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Recorded:
    """One payload in one record: where it belongs, what was sealed, and the digest that the record states."""

    binding: Binding
    sealed: bytes  # empty: the record has none
    sha256: bytes  # of the payload; empty when the record states none


def registry() -> JWERegistry:
    """Return what joserfc may accept and make: these two algorithms, our header members, our sizes."""
    text = {name: HeaderParameter(name, "str") for name in ("eid", "side", "part", "node")}
    made = JWERegistry(header_registry=dict(text), algorithms=[ALGORITHM, ENCRYPTION])
    made.max_recipients = limits.MAX_AUDITORS
    made.max_protected_header_length = 2 * _MAX_HEADER_BYTES
    made.max_ciphertext_length = limits.MAX_SEALED_PAYLOAD_BYTES
    return made


def payloads_of(record: Intent | Outcome) -> Recorded:
    """Return the payload that `record` has or could have: an intent the request, an outcome the response."""
    if isinstance(record, Intent):
        binding = Binding(record.execution_id, record.side, Part.REQUEST, record.node)
        return Recorded(binding, record.sealed_request, record.request_sha256)
    binding = Binding(record.execution_id, record.side, Part.RESPONSE, record.node)
    return Recorded(binding, record.sealed_response, record.response_sha256)


def write_sealed(document: Mapping[str, Any]) -> bytes:
    """Return the one encoding of a JWE in General JSON serialization."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii")


def parse_sealed(data: bytes) -> Sealed:
    """Return what `data` says, if it is the one encoding of a sealed payload. Total over arbitrary bytes.

    Raises:
        EvidenceError: PAYLOAD_INVALID, naming what is wrong.
    """
    if len(data) > limits.MAX_SEALED_PAYLOAD_BYTES:
        _refuse(f"it has {len(data)} bytes, the limit is {limits.MAX_SEALED_PAYLOAD_BYTES}")
    try:
        document = parse_object(data)
    except (ValueError, RecursionError):
        _refuse("it is not one ASCII JSON object")
    _members(document, {"ciphertext", "iv", "protected", "recipients", "tag"}, "it")
    _bytes(document["iv"], _IV_BYTES, "iv")
    _bytes(document["tag"], _TAG_BYTES, "tag")
    if len(_bytes(document["ciphertext"], None, "ciphertext")) > limits.MAX_AUDITED_PAYLOAD_BYTES:
        _refuse(f"it holds more than {limits.MAX_AUDITED_PAYLOAD_BYTES} bytes")
    header = _header(_bytes(document["protected"], None, "protected header"))
    recipients = document["recipients"]
    if not isinstance(recipients, list) or not 1 <= len(recipients) <= limits.MAX_AUDITORS:
        _refuse(f"it is not sealed to 1 to {limits.MAX_AUDITORS} auditors")
    key_ids = tuple(_recipient(recipient) for recipient in recipients)
    if len(set(key_ids)) != len(key_ids):
        _refuse("it names one auditor twice")
    if write_sealed(document) != data:
        _refuse("it is another encoding than the one with ascending members and no spaces")
    return Sealed(header["eid"], header["side"], header["part"], header["node"], key_ids, document)


def open_sealed(data: bytes, binding: Binding, key: X25519PrivateKey) -> bytes:
    """Return the payload, if it was sealed to `key` for exactly this place.

    The caller compares its SHA-256 with the one in the record (`digest_fits`): whoever has the auditors' public keys
    can seal anything, and only the record says what the node saw.

    Args:
        data: `sealed_request` or `sealed_response` of a record.
        binding: where it was found.
        key: an auditor's private key.

    Raises:
        EvidenceError: PAYLOAD_INVALID, if it is malformed, of another record, or was changed; NOT_FOUND, if it was
            sealed to other auditors only.
    """
    sealed = parse_sealed(data)
    own = key_id_of(key.public_key().public_bytes_raw())
    if (found := foreign_part(sealed, binding)) is not None:
        _refuse(f"it was sealed for another record: {found}")
    if own not in sealed.key_ids:
        raise EvidenceError(
            Reason.NOT_FOUND, f"it is sealed to other keys ({', '.join(sealed.key_ids)}), not to {own}"
        )
    ours = [r for r in sealed.document["recipients"] if r["header"]["kid"] == own]
    document = cast("GeneralJSONSerialization", {**sealed.document, "recipients": ours})
    try:
        opened = decrypt_json(document, OKPKey.import_key(key), registry=registry())
    except (JoseError, ValueError):
        _refuse("it does not decrypt: it was changed after it was sealed")
    return opened.plaintext or b""


def foreign_part(sealed: Sealed, binding: Binding) -> str | None:
    """Return in what a sealed payload differs from the place where it was found, for a person; None if in nothing."""
    expected = binding.header()
    for name in ("eid", "side", "part", "node"):
        if getattr(sealed, name) != expected[name]:
            return f"{name} {getattr(sealed, name)!r} instead of {expected[name]!r}"
    return None


def digest_fits(payload: bytes, recorded: Recorded) -> bool:
    """Whether the payload is the one whose digest the record states."""
    return hashlib.sha256(payload).digest() == recorded.sha256


def _header(data: bytes) -> dict[str, str]:
    if len(data) > _MAX_HEADER_BYTES:
        _refuse(f"its protected header has more than {_MAX_HEADER_BYTES} bytes")
    try:
        header = parse_object(data)
    except (ValueError, RecursionError):
        _refuse("its protected header is not one ASCII JSON object")
    _members(header, {"alg", "enc", "typ", "eid", "side", "part", "node"}, "its protected header")
    if not all(isinstance(value, str) for value in header.values()):
        _refuse("its protected header has a member that is no text")
    if (header["alg"], header["enc"], header["typ"]) != (ALGORITHM, ENCRYPTION, TYPE):
        _refuse(f"its algorithms or type are not {ALGORITHM}, {ENCRYPTION} and {TYPE}")
    names = ("alg", "enc", "typ", "eid", "side", "part", "node")
    if json.dumps({name: header[name] for name in names}, separators=(",", ":")).encode() != data:
        _refuse("its protected header is another encoding than the one that sidecars write")
    return header


def _recipient(value: object) -> str:
    item = _members(value, {"encrypted_key", "header"}, "a recipient")
    _bytes(item["encrypted_key"], _WRAPPED_KEY_BYTES, "encrypted key")
    header = _members(item["header"], {"epk", "kid"}, "a recipient's header")
    epk = _members(header["epk"], {"crv", "kty", "x"}, "an ephemeral key")
    if (epk["crv"], epk["kty"]) != ("X25519", "OKP"):
        _refuse("an ephemeral key is not on X25519")
    _bytes(epk["x"], 32, "ephemeral key")
    kid = header["kid"]
    if not isinstance(kid, str) or _KEY_ID.match(kid) is None:
        _refuse("a recipient's kid is not a thumbprint")
    return kid


def _members(value: object, names: set[str], what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != names:
        _refuse(f"the members of {what} are not exactly {', '.join(sorted(names))}")
    return value


def _bytes(value: object, size: int | None, what: str) -> bytes:
    if isinstance(value, str):
        try:
            data = from_base64url(value)
        except ValueError:
            _refuse(f"the {what} is not canonical base64url")
        if size is None or len(data) == size:
            return data
    return _refuse(f"the {what} is not {'base64url' if size is None else f'{size} bytes in base64url'}")


def _refuse(what: str) -> NoReturn:
    raise EvidenceError(Reason.PAYLOAD_INVALID, f"sealed payload: {what}")
