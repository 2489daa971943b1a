"""What a witness signs about a node, and who of the roster has signed: lines in the form of C2SP signed notes.

    text      egm-attestation/v1 LF  spiffe://TD/node/NAME LF  BASE64(SHA-256 of the evidence statement) LF
    message   egm-attestation-cosignature/v1 LF  time SECONDS LF  text
    line      EM DASH SPACE KEY NAME SPACE BASE64(key id || time, 8 bytes big-endian || Ed25519(message)) LF
    key id    SHA-256(key name || LF || 0xff || "egm-attestation/v1" || public key)[:4]

The key is the node key of the witness, which signs checkpoints, cosignatures, evidence and permits, too: what it signs
begins differently for each (docs/protocol.md).
"""

import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from trust.attestation.roster import Witness
from trust.errors import EvidenceError, Reason
from trust.note import KEY_ID_BYTES, Signature, Verifier, read_unverified
from trust.spiffe import SpiffeId

TEXT_HEADER: Final = "egm-attestation/v1"
MESSAGE_HEADER: Final = "egm-attestation-cosignature/v1"
_KEY_TYPE: Final = b"\xff" + TEXT_HEADER.encode()  # signed-note: 0xff, then a longer identifier
_TIME_BYTES: Final = 8
_SIGNATURE_BYTES: Final = 64
_MAX_TIME_S: Final = 2**40
_DASH: Final = "\u2014 "


@dataclass(frozen=True, slots=True)
class Cosigned:
    """Who vouches for a text and when they did, Unix seconds. Keys: names of the roster."""

    times_s: Mapping[str, int]


def attested_text(node: SpiffeId, evidence_sha256: bytes) -> bytes:
    """Return what witnesses vouch for: that this node gave this evidence, and that they checked all of it."""
    digest = base64.b64encode(evidence_sha256).decode("ascii")
    return f"{TEXT_HEADER}\n{node}\n{digest}\n".encode()


def attestation_key_id(key: Verifier) -> bytes:
    """Return the 4-byte label of a witness's key in attestation cosignatures."""
    data = key.name.encode() + b"\n" + _KEY_TYPE + key.public_key
    return hashlib.sha256(data).digest()[:KEY_ID_BYTES]


def attested_message(text: bytes, time_s: int) -> bytes:
    """Return the bytes that a witness signs."""
    return f"{MESSAGE_HEADER}\ntime {time_s}\n".encode() + text


def cosign_attestation(text: bytes, key: Verifier, sign: Callable[[bytes], bytes], *, time_s: int) -> bytes:
    """Return a witness's line over `text` (of `attested_text`).

    Args:
        text: what is vouched for.
        key: the witness's key, with its name.
        sign: makes its Ed25519 signature, 64 bytes.
        time_s: now, Unix seconds.
    """
    value = attestation_key_id(key) + time_s.to_bytes(_TIME_BYTES, "big")
    value += sign(attested_message(text, time_s))
    return f"{_DASH}{key.name} {base64.b64encode(value).decode('ascii')}\n".encode()


def verify_attestation(text: bytes, lines: bytes, witnesses: Iterable[Witness]) -> Cosigned:
    """Return who of `witnesses` vouches for `text`. Lines of others mean nothing and are passed over.

    Args:
        text: of `attested_text`.
        lines: signature lines, ascending, each once.
        witnesses: whose keys count.

    Raises:
        EvidenceError: ATTESTATION_INVALID, for lines in another form, or one of a witness that does not verify.
    """
    known = {(one.key.name, attestation_key_id(one.key)): one for one in witnesses}
    times: dict[str, int] = {}
    for line in signature_lines(text, lines):
        witness = known.get((line.name, line.key_id))
        if witness is None:
            continue
        if witness.name in times:
            raise _invalid(f"{witness.name} is in it twice")
        times[witness.name] = _verify(text, line, witness.key)
    return Cosigned(times)


def signature_lines(text: bytes, lines: bytes) -> tuple[Signature, ...]:
    """Return signature lines under `text`; nothing is verified.

    Raises:
        EvidenceError: ATTESTATION_INVALID, unless they are well-formed, ascending and each there once.
    """
    if not lines:
        return ()
    split = lines.splitlines(keepends=True)
    if split != sorted(set(split)):
        raise _invalid("its signature lines are not ascending, each once")
    try:
        return read_unverified(text + b"\n" + lines).unknown
    except EvidenceError as error:
        raise _invalid(error.detail) from None


def _verify(text: bytes, line: Signature, key: Verifier) -> int:
    time_s = int.from_bytes(line.value[:_TIME_BYTES], "big")
    signature = line.value[_TIME_BYTES:]
    try:
        if len(signature) != _SIGNATURE_BYTES or time_s >= _MAX_TIME_S:
            raise InvalidSignature
        Ed25519PublicKey.from_public_bytes(key.public_key).verify(signature, attested_message(text, time_s))
    except InvalidSignature:
        raise _invalid(f"the cosignature of {key.name} does not verify") from None
    return time_s


def _invalid(what: str) -> EvidenceError:
    return EvidenceError(Reason.ATTESTATION_INVALID, f"trust credential refused: {what}")
