"""What must be done for a call before it goes on is done in order, and noted."""

from dataclasses import dataclass, field

import pytest

from sidecar.core.call import Attempt, Decision, Direction
from sidecar.core.obligations import noted
from sidecar.edge.case import Case
from sidecar.edge.duties import Duties
from trust.errors import Reason, StateError
from trust.policy.types import Authn

ALICE = Attempt(
    Direction.OUTBOUND, "payments", "shop.v1.Payments/Transfer", "spiffe://x/workload/a", Authn.MTLS
)
ASKED = (("lease", "30s"), ("rate", "1/s"))


@dataclass
class Notes:
    """A duty that meets one obligation, or refuses."""

    asked: tuple[str, str]
    met: list[str] = field(default_factory=list)
    refuses: bool = False

    async def meet(self, case: Case, decision: Decision, *, now_ms: int) -> None:
        self.met.append(f"{decision.id} at {now_ms}")
        case.obligations = noted(case.obligations, self.asked, "done")
        if self.refuses:
            raise StateError(Reason.OBLIGATION_UNMET, "not today")


def decision() -> Decision:
    return Decision("d", True, Reason.ALLOWED, 4, 1, obligations=ASKED)


async def test_every_duty_is_met_in_order_and_noted_and_what_none_knows_is_noted_too() -> None:
    """An auditor sees each obligation with what was done about it."""
    first, last, case = Notes(ASKED[1]), Notes(("audit", "payload")), Case(ALICE, 4)
    duties = Duties(last)
    duties.add(first)
    await duties.meet(case, decision(), now_ms=7)
    assert first.met == last.met == ["d at 7"]
    assert case.obligations == (("lease", "30s=unsupported"), ("rate", "1/s=done"))


async def test_a_duty_that_refuses_ends_the_call_and_later_ones_are_not_asked() -> None:
    """Nothing is sealed or held for a call that is not forwarded."""
    first, last, case = Notes(ASKED[1], refuses=True), Notes(("audit", "payload")), Case(ALICE, 4)
    duties = Duties(last)
    duties.add(first)
    with pytest.raises(StateError, match="not today"):
        await duties.meet(case, decision(), now_ms=7)
    assert last.met == [] and case.obligations[1] == ("rate", "1/s=done")
