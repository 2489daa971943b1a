"""Whether a verified policy can be enforced here: read, compile, self-test. All of it, or none."""

import asyncio
import hashlib
from typing import Final

from sidecar.edge import collector
from trust import limits
from trust.bundle import Bundle, read_bundle
from trust.errors import EvidenceError, Reason
from trust.policy.engine import Engine
from trust.policy.self_test import check_forbidden
from trust.verified import VerifiedPolicy, VerifiedTarget

# A flipped bit in the middle of the archive: gzip's own checksum must not be what catches it, the digest is.
_TAMPERED_BIT: Final = 0x01


def compile_policy(policy: VerifiedPolicy, *, trust_domain: str) -> Engine:
    """Return the engine of `policy`, after it has passed its self-test. CPU heavy: call it in a thread.

    Raises:
        EvidenceError: DIGEST_MISMATCH, BUNDLE_* (BUNDLE_SELF_TEST_FAILED included); nothing is in force yet.
    """
    base = read_target(policy.base)
    namespaces = {name: read_target(target) for name, target in policy.namespaces.items()}
    engine = Engine.build(base, namespaces)
    if engine.mesh.trust_domain != trust_domain:
        raise EvidenceError(
            Reason.BUNDLE_MALFORMED,
            f"mesh.json is for trust domain {engine.mesh.trust_domain}, this node belongs to {trust_domain}",
        )
    check_forbidden(engine)
    check_tampered_refused(policy.base)
    return engine


async def activate(policy: VerifiedPolicy, *, trust_domain: str) -> Engine:
    """Run `compile_policy` in a thread, so that calls go on under the old policy meanwhile."""
    with collector.young_only():
        return await asyncio.to_thread(compile_policy, policy, trust_domain=trust_domain)


def read_target(target: VerifiedTarget) -> Bundle:
    """Return the bundle of one target, if its bytes are the ones that were signed.

    Raises:
        EvidenceError: DIGEST_MISMATCH or BUNDLE_*.
    """
    if len(target.data) > limits.MAX_BUNDLE_ARCHIVE_BYTES:
        raise EvidenceError(Reason.BUNDLE_TOO_LARGE, f"{target.path} has {len(target.data)} bytes")
    if hashlib.sha256(target.data).hexdigest() != target.sha256:
        raise EvidenceError(Reason.DIGEST_MISMATCH, f"{target.path} is not the file that was signed")
    return read_bundle(target.data, role=target.role)


def check_tampered_refused(target: VerifiedTarget) -> None:
    """Prove that this process would refuse the same archive with one bit changed.

    Raises:
        EvidenceError: BUNDLE_SELF_TEST_FAILED.
    """
    tampered = bytearray(target.data)
    tampered[len(tampered) // 2] ^= _TAMPERED_BIT
    forged = VerifiedTarget(
        target.path,
        target.role,
        target.version,
        target.sha256,
        bytes(tampered),
        target.signers,
        target.threshold,
        target.expires_ms,
    )
    try:
        read_target(forged)
    except EvidenceError:
        return
    raise EvidenceError(
        Reason.BUNDLE_SELF_TEST_FAILED,
        f"a tampered copy of {target.path} was not refused; do not use this node",
    )
