"""Which metadata crosses the sidecar: everything the application sent, nothing that a hop or the mesh owns."""

from collections.abc import Iterable
from typing import Final

# Keys that start so never cross: ours must not be forged, gRPC's belong to one hop (gRPC over HTTP/2, "Requests":
# names starting with grpc- are reserved). `-bin` keys of gRPC (status details, traces) are end to end.
_OWNED: Final = ("egm-", "grpc-")
_END_TO_END: Final = frozenset({"grpc-retry-pushback-ms", "grpc-previous-rpc-attempts"})
# grpcio writes its own user-agent on every call and offers no way to replace it.
_PER_HOP: Final = frozenset({"user-agent", "te", "content-type", "connection"})

Pair = tuple[str, str | bytes]


def crosses(key: str) -> bool:
    """Return whether a metadata key may pass from one side of the sidecar to the other."""
    if key.startswith(_OWNED):
        return key.startswith("grpc-") and (key.endswith("-bin") or key in _END_TO_END)
    return key not in _PER_HOP


def from_caller(
    sent: Iterable[Pair], consumed: frozenset[str] = frozenset()
) -> tuple[tuple[Pair, ...], dict[str, str]]:
    """Split a caller's metadata into what is forwarded and what a policy may look at.

    Args:
        sent: as received; repeated keys allowed.
        consumed: keys that this sidecar used up (a token it verified): neither forwarded nor shown.

    Returns:
        The pairs to forward, in order, and the text values by key; values of a repeated key are joined with
        a comma, as HTTP does, so that a policy never sees only the harmless one of two.
    """
    forward: list[Pair] = []
    visible: dict[str, str] = {}
    for pair in sent:
        key, value = pair
        if key in consumed:
            continue
        if crosses(key):
            forward.append((key, value))
        elif key != "user-agent":
            continue
        if isinstance(value, str):
            visible[key] = f"{visible[key]},{value}" if key in visible else value
    return tuple(forward), visible


def from_upstream(received: Iterable[Pair]) -> tuple[Pair, ...]:
    """Return the initial or trailing metadata of an upstream that its caller gets to see."""
    return tuple((key, value) for key, value in received if crosses(key) and sendable(value))


def sendable(value: str | bytes) -> bool:
    """Return whether gRPC carries this value: text must be printable ASCII; bytes (`-bin` keys) may be anything.

    Other text can arrive all the same (HTTP/2 allows it), but starting a call with it would fail in gRPC core.
    """
    return isinstance(value, bytes) or (value.isascii() and value.isprintable())
