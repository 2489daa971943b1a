"""With which outgoing calls this node's trust credential travels: with the first to each service, until it was taken.

A permit names the credential by its digest. Whoever has it does not need it again; whoever lacks it refuses with
ATTESTATION_UNKNOWN. A service behind whose name several sidecars answer may have some that lack it: once one of them
has refused, the credential goes with every call to that service.
"""

from typing import Final

_TAKEN: Final = "OK"
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

    def ended(self, service: str, sha256: bytes, *, carried: bool, status: str) -> None:
        """Learn from a call that has ended.

        Args:
            service: that was called.
            sha256: of the credential that its permit named.
            carried: whether the credential went with it.
            status: gRPC status code name.
        """
        if carried and status == _TAKEN:
            self._holds[service] = sha256
        elif not carried and status == _LACKED:
            self._always.add(service)
