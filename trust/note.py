"""Who signed a text: C2SP signed notes, and the cosignatures that witnesses put on them.

A note is text, a blank line, and signature lines `— <name> base64(key id || signature)`. Anything that is not
exactly so encoded is refused; signatures of keys that the reader does not know are kept apart and mean nothing.
"""

import base64
import binascii
import enum
import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from securesystemslib.signer import SSlibKey

from trust import limits
from trust.errors import EvidenceError, Reason
from trust.keys import check_public_key

KEY_ID_BYTES: Final = 4
_SIGNATURE_BYTES: Final = 64
_TIME_BYTES: Final = 8
_DASH: Final = "\u2014 "
_MAX_TIME_S: Final = 2**63 - 1
_KNOWN_KEYS: Final = 4_096

Sign = Callable[[bytes], bytes]


class KeyKind(enum.IntEnum):
    """The signature types of C2SP signed-note that are accepted here."""

    ED25519 = 0x01
    COSIGNATURE_V1 = 0x04


@dataclass(frozen=True, slots=True)
class Verifier:
    """A key whose signatures count: 32 bytes Ed25519, with the name that it signs under."""

    name: str
    public_key: bytes
    kind: KeyKind = KeyKind.ED25519

    def __post_init__(self) -> None:
        """Refuse a name or key that must not count.

        Raises:
            EvidenceError: KEY_UNSAFE.
        """
        if not is_key_name(self.name):
            raise EvidenceError(
                Reason.KEY_UNSAFE,
                f"key name {self.name[:80]!r}: use a name without spaces and '+', such as example.com/log",
            )
        _check_key(self.name, self.public_key)

    @property
    def key_id(self) -> bytes:
        """SHA-256(name || newline || kind || public key), the first 4 bytes: a label, not an identity."""
        return key_id(self.name, self.public_key, self.kind)

    def encode(self) -> str:
        """Return the C2SP verifier key: `name+hex(key id)+base64(kind || public key)`."""
        material = base64.b64encode(bytes([self.kind]) + self.public_key).decode()
        return f"{self.name}+{self.key_id.hex()}+{material}"

    @classmethod
    def parse(cls, text: str) -> "Verifier":
        """Return the verifier that `encode` wrote.

        Raises:
            EvidenceError: KEY_UNSAFE, for anything that `encode` would not write.
        """
        name, _, rest = text.partition("+")
        material = _decode64(rest.partition("+")[2])
        if material is not None and len(material) == 33 and material[0] in set(KeyKind):
            verifier = cls(name, material[1:], KeyKind(material[0]))
            if verifier.encode() == text:
                return verifier
        raise EvidenceError(
            Reason.KEY_UNSAFE, "not a verifier key; it looks like NAME+HEX+BASE64 (C2SP signed-note)"
        )


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line. `time_s`: when a cosigner saw the text, Unix seconds; None for other kinds."""

    name: str
    key_id: bytes
    value: bytes
    time_s: int | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """A text with the signatures that verified, and those of keys that are not known here (worthless)."""

    text: bytes
    verified: tuple[Signature, ...]
    unknown: tuple[Signature, ...]


@functools.lru_cache(maxsize=_KNOWN_KEYS)
def _check_key(name: str, public_key: bytes) -> None:
    """Refuse a key that must not count. Remembered when it may: looking for its point takes longer than a signature."""
    check_public_key(SSlibKey(name, "ed25519", "ed25519", {"public": public_key.hex()}))


def is_key_name(name: str) -> bool:
    """Return whether `name` may stand in a signature line."""
    return (
        0 < len(name) <= limits.MAX_NOTE_NAME_CHARS
        and "+" not in name
        and not any(c.isspace() or ord(c) < 0x20 or 0xD800 <= ord(c) < 0xE000 for c in name)
    )


def key_id(name: str, public_key: bytes, kind: KeyKind = KeyKind.ED25519) -> bytes:
    """Return the 4-byte key id that C2SP signed-note recommends."""
    return hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + public_key).digest()[:KEY_ID_BYTES]


def sign_note(text: bytes, name: str, sign: Sign, *, public_key: bytes) -> bytes:
    """Return a note over `text` with one Ed25519 signature.

    Args:
        text: UTF-8 lines, the last one ended too; no control characters.
        sign: returns the 64-byte Ed25519 signature of the holder of `public_key` (32 bytes).

    Raises:
        EvidenceError: PROOF_INVALID, if the text cannot be a note; SIGNATURE_INVALID, if `sign` does not
            sign for `public_key`; KEY_UNSAFE, for a bad name or key.
    """
    _check_text(text)
    signature = sign(text)
    note = text + b"\n" + _line(Verifier(name, public_key), signature)
    open_note(note, [Verifier(name, public_key)])  # never publish what nobody could verify
    return note


def cosign(text: bytes, name: str, sign: Sign, *, public_key: bytes, time_s: int) -> bytes:
    """Return a cosignature/v1 line over a checkpoint's text (C2SP tlog-cosignature).

    Raises:
        EvidenceError: PROOF_INVALID, for a text or a time that cannot be cosigned; KEY_UNSAFE.
    """
    _check_text(text)
    if not 0 <= time_s <= _MAX_TIME_S:
        raise _malformed(f"the time {time_s} is not a Unix time in seconds")
    signature = sign(cosigned_message(text, time_s))
    verifier = Verifier(name, public_key, KeyKind.COSIGNATURE_V1)
    return _line(verifier, time_s.to_bytes(_TIME_BYTES, "big") + signature)


def cosigned_message(text: bytes, time_s: int) -> bytes:
    """Return the bytes that a cosignature/v1 signs."""
    return f"cosignature/v1\ntime {time_s}\n".encode() + text


def with_signatures(note: bytes, lines: Iterable[bytes]) -> bytes:
    """Return the note with more signature lines, each as `cosign` returns it.

    Raises:
        EvidenceError: PROOF_INVALID, when the result is not a note.
    """
    joined = note + b"".join(lines)
    _split(joined)
    return joined


def open_note(data: bytes, verifiers: Iterable[Verifier]) -> Note:
    """Return the note if at least one signature is of a known key, and every signature of one verifies.

    Raises:
        EvidenceError: PROOF_INVALID, if the bytes are not a note; SIGNATURE_INVALID, if a known key's
            signature does not verify or no key is known; KEY_UNSAFE, if two verifiers cannot be told apart.
    """
    known: dict[tuple[str, bytes], Verifier] = {}
    for verifier in verifiers:
        other = known.setdefault((verifier.name, verifier.key_id), verifier)
        if other is not verifier and other != verifier:
            raise EvidenceError(Reason.KEY_UNSAFE, f"two keys share the id {verifier.encode()[:120]}")
    text, signatures = _split(data)
    verified: dict[tuple[str, bytes], Signature] = {}
    unknown: dict[Signature, None] = {}
    for found in signatures:
        label = (found.name, found.key_id)
        key = known.get(label)
        if key is None:
            unknown.setdefault(found)
        else:
            verified.setdefault(label, _verify(text, found, key))
    if not verified:
        names = ", ".join(sorted({s.name for s in signatures}))[:200]
        raise EvidenceError(Reason.SIGNATURE_INVALID, f"signed by no known key (but by: {names})")
    return Note(text, tuple(verified.values()), tuple(unknown))


def read_unverified(data: bytes) -> Note:
    """Return a note without verifying anything: only to show it, or to find the key it names.

    Raises:
        EvidenceError: PROOF_INVALID, if the bytes are not a note.
    """
    text, signatures = _split(data)
    return Note(text, (), signatures)


def _verify(text: bytes, found: Signature, key: Verifier) -> Signature:
    value, time_s, message = found.value, None, text
    if key.kind is KeyKind.COSIGNATURE_V1:
        time_s = int.from_bytes(value[:_TIME_BYTES], "big")
        value, message = value[_TIME_BYTES:], cosigned_message(text, time_s)
    try:
        if len(value) != _SIGNATURE_BYTES or (time_s or 0) > _MAX_TIME_S:
            raise InvalidSignature
        Ed25519PublicKey.from_public_bytes(key.public_key).verify(value, message)
    except InvalidSignature:
        raise EvidenceError(
            Reason.SIGNATURE_INVALID, f"the signature of {key.name} does not verify"
        ) from None
    return Signature(found.name, found.key_id, found.value, time_s)


def _split(data: bytes) -> tuple[bytes, tuple[Signature, ...]]:
    if len(data) > limits.MAX_NOTE_BYTES:
        raise _malformed(f"{len(data)} bytes; a note has at most {limits.MAX_NOTE_BYTES}")
    head, gap, tail = data.rpartition(b"\n\n")
    if not gap or not tail.endswith(b"\n"):
        raise _malformed("a text, an empty line and signature lines are expected")
    text = head + b"\n"
    _check_text(text)
    try:
        lines: Sequence[str] = tail.decode().split("\n")[:-1]
    except UnicodeDecodeError:
        raise _malformed("it is not UTF-8") from None
    if len(lines) > limits.MAX_NOTE_SIGNATURES:
        raise _malformed(f"{len(lines)} signatures; at most {limits.MAX_NOTE_SIGNATURES} are read")
    return text, tuple(_parse_line(line) for line in lines)


def _parse_line(line: str) -> Signature:
    name, _, encoded = line.removeprefix(_DASH).partition(" ")
    value = _decode64(encoded)
    if not line.startswith(_DASH) or not is_key_name(name) or value is None or len(value) <= KEY_ID_BYTES:
        raise _malformed(f"not a signature line: {line[:80]!r}")
    return Signature(name, value[:KEY_ID_BYTES], value[KEY_ID_BYTES:])


def _check_text(text: bytes) -> None:
    try:
        decoded = text.decode()
    except UnicodeDecodeError:
        raise _malformed("it is not UTF-8") from None
    if not text.endswith(b"\n") or any(c < " " and c != "\n" for c in decoded):
        raise _malformed("the text must end with a newline and have no other control characters")


def _line(verifier: Verifier, value: bytes) -> bytes:
    encoded = base64.b64encode(verifier.key_id + value)
    return _DASH.encode() + verifier.name.encode() + b" " + encoded + b"\n"


def _decode64(text: str) -> bytes | None:
    """Decode canonical standard base64; None for anything else."""
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return value if base64.b64encode(value).decode() == text else None


def _malformed(what: str) -> EvidenceError:
    return EvidenceError(Reason.PROOF_INVALID, f"not a signed note: {what}")
