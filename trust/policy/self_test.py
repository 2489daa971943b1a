"""Decides whether freshly compiled policies may be enforced at all: one known-forbidden call must be denied."""

from typing import Final

from trust.errors import EvidenceError, Reason
from trust.policy.engine import Engine
from trust.policy.types import Authn, Call

SELF_TEST_CALLER: Final = "egm-self-test"  # spiffe://TD/egm-self-test: no certificate can carry it
SELF_TEST_METHOD: Final = "egm.selftest/Forbidden"
SELF_TEST_SERVICE: Final = "egm-self-test"
SELF_TEST_NODE: Final = "egm-self-test"
SELF_TEST_TIME_MS: Final = 1_767_614_400_000  # 2026-01-05 12:00 UTC, a Monday
HINT: Final = 'name an action or a service in its scope (for all methods: `action in Action::"any"`)'


def permits_everything(engine: Engine) -> tuple[str, ...]:
    """Return the policies that allow a call that nobody can make; none, when it is denied as it must be.

    The method does not exist, nor does the service, nor the node; and the time is fixed: the answer must be the same
    on every node and at every start, and where the policy is proposed, or a quorum could sign what nodes refuse.
    """
    call = Call(
        principal=f"spiffe://{engine.mesh.trust_domain}/{SELF_TEST_CALLER}",
        method=SELF_TEST_METHOD,
        service=SELF_TEST_SERVICE,
        authn=Authn.MTLS,
        node=SELF_TEST_NODE,
        level=4,
    )
    verdict = engine.decide(call, now_ms=SELF_TEST_TIME_MS)
    return verdict.policies if verdict.allowed else ()


def check_forbidden(engine: Engine) -> None:
    """Refuse policies that allow a known-forbidden call.

    Raises:
        EvidenceError: BUNDLE_SELF_TEST_FAILED, naming the policies that allowed it and what to write instead.
    """
    if found := permits_everything(engine):
        raise EvidenceError(
            Reason.BUNDLE_SELF_TEST_FAILED,
            f"{', '.join(found)} permits everything, even {SELF_TEST_METHOD} by nobody; {HINT}",
        )
