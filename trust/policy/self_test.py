"""Decides whether freshly compiled policies may be enforced at all: one known-forbidden call must be denied."""

from typing import Final

from trust.errors import EvidenceError, Reason
from trust.policy.engine import Engine
from trust.policy.types import Authn, Call

SELF_TEST_CALLER: Final = "egm-self-test"  # spiffe://TD/egm-self-test: no certificate can carry it
SELF_TEST_METHOD: Final = "egm.selftest/Forbidden"
SELF_TEST_SERVICE: Final = "egm-self-test"


def check_forbidden(engine: Engine, *, node: str, now_ms: int) -> None:
    """Ask for a call that nobody can make, of a method that does not exist, on a service that is not there.

    Raises:
        EvidenceError: BUNDLE_SELF_TEST_FAILED, naming the policies that allowed it and what to write instead.
    """
    call = Call(
        principal=f"spiffe://{engine.mesh.trust_domain}/{SELF_TEST_CALLER}",
        method=SELF_TEST_METHOD,
        service=SELF_TEST_SERVICE,
        authn=Authn.MTLS,
        node=node,
        level=4,
    )
    verdict = engine.decide(call, now_ms=now_ms)
    if verdict.allowed:
        raise EvidenceError(
            Reason.BUNDLE_SELF_TEST_FAILED,
            f"{', '.join(verdict.policies)} permits everything, even {SELF_TEST_METHOD} by nobody; "
            'name an action or a service in its scope (for all methods: `action in Action::"any"`)',
        )
