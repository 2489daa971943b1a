"""Approvers for tests: keys by name, and what they sign."""

import hashlib

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from trust.approval import Approval, Verdict, sign_approval
from trust.ticket import Ticket, ticket_for

TD = "mesh.test"
NOW_MS = 1_800_000_000_000
SERIAL = "0123456789abcdef" * 2


class Approver:
    """One approver, always the same key for one name."""

    def __init__(self, name: str, seed: str = "") -> None:
        """Derive the key from the name, or from `seed`."""
        self.name = name
        self.private = Ed25519PrivateKey.from_private_bytes(hashlib.sha256((seed or name).encode()).digest())
        self.public = self.private.public_key().public_bytes_raw()

    def say(
        self,
        ticket: Ticket,
        verdict: Verdict = Verdict.APPROVE,
        *,
        now_ms: int = NOW_MS,
        ttl_s: int = 600,
        reason: str = "looks right",
    ) -> bytes:
        """Return a signed approval or denial, issued now."""
        issued_s = now_ms // 1000
        return self.sign(Approval(ticket, verdict, issued_s, issued_s + ttl_s, reason))

    def sign(self, approval: Approval) -> bytes:
        """Sign any approval."""
        return sign_approval(approval, self.name, self.private.sign, public_key=self.public)


ANN, BEN, CLEO, STRANGER = (Approver(name) for name in ("ann", "ben", "cleo", "stranger"))
OPS = (ANN, BEN, CLEO)
GROUPS = {
    "ops": {one.name: one.public.hex() for one in OPS},
    "finance": {CLEO.name: CLEO.public.hex()},
}


def ticket(**changes: object) -> Ticket:
    """Return the ticket of one call, with `changes`."""
    fields: dict[str, object] = {
        "trust_domain": TD,
        "caller": f"spiffe://{TD}/workload/alice",
        "service": "echo",
        "method": "shop.Payments/Pay",
        "request_sha256": hashlib.sha256(b"pay 5").digest(),
        "policies": ("alice-may",),
        "needs": "2 of ops",
        "window": False,
        "serial": SERIAL,
    }
    return ticket_for(**{**fields, **changes})  # type: ignore[arg-type]
