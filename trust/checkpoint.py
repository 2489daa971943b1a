"""What a log says its tree is: the three lines of a C2SP tlog-checkpoint, canonical or rejected."""

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from trust.errors import EvidenceError, Reason
from trust.merkle import EMPTY_ROOT, HASH_BYTES, MAX_SIZE
from trust.note import Note, Sign, Verifier, open_note, sign_note

_DECIMAL: Final = re.compile(r"(?:0|[1-9][0-9]{0,18})\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree head: the log's origin, its size in leaves, its root (32 bytes), and opaque further lines."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no log may say.

        Raises:
            EvidenceError: PROOF_INVALID.
        """
        if not 0 <= self.size <= MAX_SIZE or len(self.root) != HASH_BYTES:
            raise _malformed("size or root is out of range")
        if self.size == 0 and self.root != EMPTY_ROOT:
            raise _malformed("an empty tree has another root")
        for line in (self.origin, *self.extensions):
            if not line or any(c < " " for c in line):
                raise _malformed("the origin and further lines are not empty and have no control characters")

    def body(self) -> bytes:
        """Return the text that is signed."""
        root = base64.b64encode(self.root).decode()
        return "".join(f"{line}\n" for line in (self.origin, self.size, root, *self.extensions)).encode()


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A checkpoint with the note that vouches for it, and the bytes that were verified."""

    checkpoint: Checkpoint
    note: Note
    data: bytes


def parse_checkpoint(body: bytes) -> Checkpoint:
    """Return the checkpoint of a note's text.

    Raises:
        EvidenceError: PROOF_INVALID, for anything that `Checkpoint.body` would not write.
    """
    try:
        lines = body.decode().split("\n")
    except UnicodeDecodeError:
        raise _malformed("it is not UTF-8") from None
    if len(lines) < 4 or lines[-1]:
        raise _malformed("origin, size and root are expected, a line each")
    if not _DECIMAL.match(lines[1]):
        raise _malformed("the size is not a decimal number without leading zeroes")
    try:
        root = base64.b64decode(lines[2], validate=True)
    except (binascii.Error, ValueError):
        raise _malformed("the root is not base64") from None
    checkpoint = Checkpoint(lines[0], int(lines[1]), root, tuple(lines[3:-1]))
    if checkpoint.body() != body:
        raise _malformed("it is not in canonical form")
    return checkpoint


def sign_checkpoint(checkpoint: Checkpoint, sign: Sign, *, public_key: bytes) -> bytes:
    """Return the note that a log publishes: signed under its origin as the key's name.

    Raises:
        EvidenceError: as `trust.note.sign_note`.
    """
    return sign_note(checkpoint.body(), checkpoint.origin, sign, public_key=public_key)


def open_checkpoint(data: bytes, log: Verifier, witnesses: Iterable[Verifier] = ()) -> SignedCheckpoint:
    """Return the checkpoint if the log itself signed it; cosignatures of `witnesses` are verified with it.

    `log.name` must be the origin: a key that signs several logs may not pass one off as another.

    Raises:
        EvidenceError: PROOF_INVALID, SIGNATURE_INVALID or KEY_UNSAFE.
    """
    note = open_note(data, [log, *witnesses])
    if not any((s.name, s.key_id) == (log.name, log.key_id) for s in note.verified):
        raise EvidenceError(Reason.SIGNATURE_INVALID, f"not signed by the log {log.name}")
    checkpoint = parse_checkpoint(note.text)
    if checkpoint.origin != log.name:
        raise EvidenceError(
            Reason.PROOF_INVALID, f"a checkpoint of {checkpoint.origin[:80]!r}, not of {log.name}"
        )
    return SignedCheckpoint(checkpoint, note, data)


def _malformed(what: str) -> EvidenceError:
    return EvidenceError(Reason.PROOF_INVALID, f"not a checkpoint: {what}")
