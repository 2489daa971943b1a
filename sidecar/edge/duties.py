"""What is done for an allowed call before it may go on: each duty meets the obligations that it knows, in order."""

from typing import Protocol

from sidecar.core.call import Decision
from sidecar.core.obligations import completed
from sidecar.edge.case import Case


class Duty(Protocol):
    """Meets one kind of obligation. Not asked for calls without any."""

    async def meet(self, case: Case, decision: Decision, *, now_ms: int) -> None:
        """Do what `decision.obligations` asks of the kind that this duty knows; return when the call may go on.

        A duty writes what it did with `case.obligations = noted(case.obligations, (name, value), what)`
        (`sidecar.core.obligations`), which the record lists; before it raises, too.

        Args:
            case: the execution; `case.request` is the request, or the opening message, as received.
            decision: that allowed it. Of its obligations, those in `decision.restrictions` were asked by incident
                response and bind from level 2 on; all others are policy's and bind from level 3 on.
            now_ms: Unix time, ms.

        Raises:
            MeshError: the call is refused with this reason.
        """
        ...


class Duties:
    """The duties of one node, in the order in which they were added; the payload is sealed last."""

    def __init__(self, last: Duty) -> None:
        """Take the duty that comes after all that are added."""
        self._first: list[Duty] = []
        self._last = last

    def add(self, duty: Duty) -> None:
        """Have `duty` asked, after those that were added before."""
        self._first.append(duty)

    async def meet(self, case: Case, decision: Decision, *, now_ms: int) -> None:
        """Run each duty; afterwards `case.obligations` lists every obligation with what was done about it.

        Raises:
            MeshError: of the first duty that refuses; later ones are not asked.
        """
        try:
            for duty in self._first:
                await duty.meet(case, decision, now_ms=now_ms)
            await self._last.meet(case, decision, now_ms=now_ms)
        finally:
            case.obligations = completed(decision.obligations, case.obligations)
