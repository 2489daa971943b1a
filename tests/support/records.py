"""Execution records for tests: valid ones, varied by keyword, and whole trees over several nodes."""

import hashlib
import uuid
from dataclasses import replace
from typing import Any

from trust.record import Ending, Intent, Link, Outcome, Side

START_MS = 1_790_000_000_000


def digest(number: object) -> bytes:
    """Return 32 bytes that depend on `number`."""
    return hashlib.sha256(str(number).encode()).digest()


def execution_id(number: int, ms: int = START_MS) -> bytes:
    """Return a UUIDv7 that depends on `number`; greater numbers sort later."""
    random = int.from_bytes(digest(number)[:7])
    value = (ms + number) << 80 | 7 << 76 | (random >> 50 & 0xFFF) << 64 | 2 << 62 | random & (2**50 - 1)
    return value.to_bytes(16)


def workload(name: str) -> str:
    """Return the SPIFFE ID of a workload of the tests' trust domain."""
    return f"spiffe://mesh.test/workload/{name}"


def intent(number: int = 1, **changes: Any) -> Intent:
    """Return an allowed outbound root execution of alice at node a."""
    identifier = execution_id(number)
    plain = Intent(
        execution_id=identifier,
        root_id=changes.get("execution_id", identifier),
        link=Link.NONE,
        side=Side.OUTBOUND,
        caller=workload("alice"),
        authn="mtls",
        service="payments",
        callee=workload("payments"),
        method="shop.Payments/Pay",
        request_sha256=digest(number),
        policy_version=3,
        policy_sha256=digest("policy"),
        policies=("alice-pays",),
        allowed=True,
        reason="ALLOWED",
        level=5,
        permit_sha256=digest(("permit", number)),
        node="a",
        boot_id="boot-1",
        wall_ms=START_MS + number,
        monotonic_ms=number,
        decision_id=f"boot-1-{number}",
    )
    return replace(plain, **changes)


def refusal(number: int = 1, **changes: Any) -> Intent:
    """Return an execution that was refused."""
    refused = {"allowed": False, "reason": "POLICY_DENIED", "permit_sha256": b"", "policies": ("never",)}
    return intent(number, **(refused | changes))


def outcome(of: Intent, **changes: Any) -> Outcome:
    """Return how `of` ended: well, after 1.5 ms."""
    plain = Outcome(
        execution_id=of.execution_id,
        side=of.side,
        ending=Ending.COMPLETED,
        status="OK",
        response_sha256=digest("response"),
        request_messages=1,
        request_bytes=120,
        response_messages=1,
        response_bytes=80,
        duration_us=1_500,
        node=of.node,
        boot_id=of.boot_id,
        wall_ms=of.wall_ms + 2,
        monotonic_ms=of.monotonic_ms + 2,
    )
    return replace(plain, **changes)


def child(number: int, parent: Intent, **changes: Any) -> Intent:
    """Return an outbound execution that `parent` caused, linked by its verified permit."""
    linked: dict[str, Any] = {
        "root_id": parent.root_id,
        "parent_id": parent.execution_id,
        "parent_permit_sha256": parent.permit_sha256,
        "link": Link.VERIFIED,
    }
    return intent(number, **(linked | changes))


def callee_side(of: Intent, node: str, **changes: Any) -> Intent:
    """Return the same execution as the callee's sidecar saw it."""
    # the permit names its parent by digest, not by id
    seen: dict[str, Any] = {"side": Side.INBOUND, "node": node, "parent_id": b""}
    return replace(of, **(seen | changes))


def text(identifier: bytes) -> str:
    """Return an id as people write it."""
    return str(uuid.UUID(bytes=identifier))
