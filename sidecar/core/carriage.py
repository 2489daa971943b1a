"""With which outgoing calls this node's trust credential travels: with each to a service until that says it holds it.

A permit names the credential by its digest. Whoever has it does not need it again, and says so with its answer
(`HELD_KEY`); that a call succeeded is no sign of it, because a callee at a lower level looks at no credential. Whoever
lacks it refuses with ATTESTATION_UNKNOWN. A service behind whose name several sidecars answer may have some that lack
it: once one of them has refused, the credential goes with every call to that service.
"""

from collections.abc import Iterable
from typing import Final

HELD_KEY: Final = (
    "egm-attestation-held-bin"  # gRPC metadata key of an answer: SHA-256 of the credential that came
)
_LACKED: Final = (
    "UNAVAILABLE"  # the status of ATTESTATION_UNKNOWN; of other troubles, too, which costs only bytes
)


class Carriage:
    """Services that hold a credential. Not thread-safe; bounded by the services that this node may call."""

    def __init__(self) -> None:
        """Know of nobody."""
        self._holds: dict[str, bytes] = {}
        self._always: set[str] = set()

    def needed(self, service: str, sha256: bytes) -> bool:
        """Return whether the credential `sha256` must go with a call to `service`."""
        return service in self._always or self._holds.get(service) != sha256

    def answered(self, service: str, sha256: bytes, answer: Iterable[tuple[str, str | bytes]]) -> None:
        """Learn from the first metadata of an answer whether the callee's sidecar holds the credential that came."""
        if any(key == HELD_KEY and value == sha256 for key, value in answer):
            self._holds[service] = sha256

    def ended(self, service: str, *, carried: bool, status: str) -> None:
        """Learn from a call that has ended.

        Args:
            service: that was called.
            carried: whether the credential went with it.
            status: gRPC status code name.
        """
        if not carried and status == _LACKED:
            self._always.add(service)
