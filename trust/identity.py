"""Who a process is: an X.509-SVID, and the port that supplies a current one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from trust.spiffe import SpiffeId


@dataclass(frozen=True, slots=True)
class Svid:
    """A certificate with exactly one SPIFFE URI SAN and a DNS SAN, and its private key."""

    spiffe_id: SpiffeId
    chain_pem: bytes  # leaf first
    key_pem: bytes  # PKCS#8, unencrypted: keep it in memory or in a 0600 file
    not_before_ms: int
    not_after_ms: int


class IdentitySource(Protocol):
    """Supplies SVIDs and trust anchors; implementations rotate them in the background."""

    def svid(self, spiffe_id: SpiffeId) -> Svid:
        """Return the current SVID for `spiffe_id`.

        Raises:
            StateError: IDENTITY_UNAVAILABLE, when none is held or it has expired.
        """
        ...

    def anchors_pem(self) -> bytes:
        """Return the CA certificates to trust now (PEM)."""
        ...

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Call `changed` (from the event loop) after an SVID or the anchors were replaced."""
        ...
