"""Auditors for tests: key pairs, and payloads sealed to them for a record."""

from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from sidecar.edge.payload_sealer import auditor_recipients, seal
from tests.support import records
from trust.auditor import AuditorKey
from trust.payload import Binding, Part
from trust.record import Intent, Side


class Auditor:
    """One auditor, with both halves of the key."""

    def __init__(self, name: str = "audit-1") -> None:
        self.private = X25519PrivateKey.generate()
        self.key = AuditorKey(name, self.private.public_key().public_bytes_raw())


BINDING = Binding(records.execution_id(1), Side.OUTBOUND, Part.REQUEST, "a")


def sealed(payload: bytes, *auditors: Auditor, **changes: Any) -> bytes:
    """Return `payload`, sealed for `BINDING` with `changes`."""
    return seal(payload, replace(BINDING, **changes), auditor_recipients(tuple(a.key for a in auditors)))


def audited_intent(payload: bytes, *auditors: Auditor, **changes: Any) -> Intent:
    """Return the intent of `BINDING` with its sealed request."""
    return records.intent(
        1,
        sealed_request=sealed(payload, *auditors),
        obligations=(("audit", "payload=sealed"),),
        **changes,
    )
