"""What a witness must never forget of a node, and the one encoding in which it survives a restart."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from trust.compact import from_base64url, number_claim, parse_object, to_base64url, write_object
from trust.errors import EvidenceError, Reason
from trust.merkle import EMPTY_ROOT, HASH_BYTES, MAX_SIZE

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Memory:
    """One node, as one witness saw it last. `revision` counts its changes: the store compares and swaps."""

    revision: int = 0
    size: int = 0  # of the last cosigned checkpoint
    root: bytes = EMPTY_ROOT
    counter: int = 0
    boot: bytes = b""
    earlier_boots: tuple[bytes, ...] = ()  # newest last
    versions: Mapping[str, int] = field(default_factory=dict)  # TUF role -> version it enforced last
    evidence: bytes = b""  # envelope of the last accepted evidence: one half of a proof
    endorsement: bytes = b""  # that vouched for its key then
    cosigned_s: int = 0


def write_memory(memory: Memory) -> bytes:
    """Return the bytes to persist."""
    return write_object(
        {
            "format": FORMAT,
            "revision": memory.revision,
            "size": memory.size,
            "root": to_base64url(memory.root),
            "counter": memory.counter,
            "boot": to_base64url(memory.boot),
            "earlier_boots": [to_base64url(boot) for boot in memory.earlier_boots],
            "versions": dict(sorted(memory.versions.items())),
            "evidence": to_base64url(memory.evidence),
            "endorsement": to_base64url(memory.endorsement),
            "cosigned_s": memory.cosigned_s,
        }
    )


def read_memory(data: bytes) -> Memory:
    """Return what `write_memory` wrote.

    Raises:
        EvidenceError: WITNESS_UNAVAILABLE, for anything else: a witness that forgets must not vouch.
    """
    try:
        value = parse_object(data)
        memory = Memory(
            revision=number_claim(value["revision"], "revision"),
            size=int(value["size"]),
            root=from_base64url(value["root"]),
            counter=number_claim(value["counter"], "counter"),
            boot=from_base64url(value["boot"]),
            earlier_boots=tuple(from_base64url(boot) for boot in value["earlier_boots"]),
            versions={str(role): number_claim(v, "version") for role, v in value["versions"].items()},
            evidence=from_base64url(value["evidence"]),
            endorsement=from_base64url(value["endorsement"]),
            cosigned_s=number_claim(value["cosigned_s"], "cosigned_s"),
        )
        whole = (
            write_memory(memory) == data and len(memory.root) == HASH_BYTES and 0 <= memory.size <= MAX_SIZE
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise EvidenceError(Reason.WITNESS_UNAVAILABLE, "what this witness remembers of the node is damaged")
    return memory
