"""Emergency keys for tests, and what they sign."""

import hashlib

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from trust.denials import Rules
from trust.mesh import PermanentRevocation
from trust.revocation import Directive, Kind, Subject, sign_directive

TD = "mesh.local"
MAX_TTL_S = 24 * 3600


class EmergencyKey:
    """One emergency key, always the same for one name."""

    def __init__(self, name: str) -> None:
        """Derive the key from its name."""
        self.name = name
        self.private = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())
        self.public = self.private.public_key().public_bytes_raw()

    def revoke(
        self,
        kind: Kind,
        value: str,
        *,
        now_ms: int,
        ttl_s: int = 3600,
        sequence: int = 1,
        trust_domain: str = TD,
        reason: str = "stolen laptop",
    ) -> bytes:
        """Return a signed directive, issued now."""
        issued_s = now_ms // 1000
        directive = Directive(
            trust_domain, sequence, Subject(kind, value), issued_s, issued_s + ttl_s, reason
        )
        return self.sign(directive)

    def sign(self, directive: Directive) -> bytes:
        """Sign any directive."""
        return sign_directive(directive, self.name, self.private.sign, public_key=self.public)


FIRST = EmergencyKey("emergency-1")
SECOND = EmergencyKey("emergency-2")


def rules(
    *keys: EmergencyKey,
    max_ttl_s: int = MAX_TTL_S,
    permanent: tuple[PermanentRevocation, ...] = (),
    ended: frozenset[str] = frozenset(),
    released: frozenset[str] = frozenset(),
) -> Rules:
    """Return what a signed policy says of denying; by default it names the first key."""
    named = {key.name: key.public for key in keys or (FIRST,)}
    return Rules(TD, named, max_ttl_s, permanent, ended, released)
