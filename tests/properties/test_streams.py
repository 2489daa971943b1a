"""Whatever opens, closes and changes in between: after a review only streams with a right remain."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sidecar.core.call import Decision, Permitted, RefusedError
from tests.support.sidecar_core import ALLOW, WATCH, Core, RuleDecider, attempt
from trust.errors import Reason

CALLERS = [f"spiffe://mesh.local/workload/w{n}" for n in range(4)]


class StreamMachine(RuleBasedStateMachine):
    """Streams of four callers under policies that permit changing sets of them."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Core.new()
        self.version = 0
        self.allowed: frozenset[str] = frozenset()
        self.open: dict[int, str] = {}
        self.cuts: dict[int, int] = {}
        self.authorised: list[tuple[Permitted, str]] = []
        self.publish(frozenset(CALLERS))

    @rule(allowed=st.frozensets(st.sampled_from(CALLERS)))
    def publish(self, allowed: frozenset[str]) -> None:
        """A new policy comes into force."""
        self.version += 1
        self.allowed = allowed
        rules = {(caller, WATCH): ALLOW for caller in allowed}
        self.core.adopt(RuleDecider(rules=rules), self.version)

    @rule(caller=st.sampled_from(CALLERS))
    def authorise(self, caller: str) -> None:
        """A call is decided; its stream opens later."""
        try:
            call = attempt(caller, WATCH)
            permit = self.core.pipeline.authorize(call, None, now_ms=self.core.clock.wall)
        except RefusedError:
            assert caller not in self.allowed
        else:
            assert caller in self.allowed
            self.authorised.append((permit, caller))

    @rule()
    def open_all(self) -> None:
        """Every authorised call opens its stream, perhaps under another policy by now."""
        for permit, caller in self.authorised:
            number = len(self.cuts)
            self.cuts[number] = 0

            def cut(decision: Decision, number: int = number) -> None:
                assert decision.reason is Reason.AUTHORIZATION_WITHDRAWN
                self.cuts[number] += 1

            self.core.pipeline.opened(permit, cut)
            self.open[number] = caller
        self.authorised.clear()

    @rule(budget=st.integers(1, 3))
    def review_some(self, budget: int) -> None:
        """One bounded step."""
        before = sum(self.cuts.values())
        cut = self.core.pipeline.review(now_ms=self.core.clock.wall, budget=budget)
        assert sum(self.cuts.values()) - before == cut <= budget

    @rule()
    def review_all(self) -> None:
        """All steps: exactly those without a right are gone."""
        while self.core.pipeline.streams.pending:
            self.core.pipeline.review(now_ms=self.core.clock.wall)
        for number, caller in list(self.open.items()):
            if self.cuts[number]:
                del self.open[number]
            else:
                assert caller in self.allowed
        assert len(self.core.pipeline.streams) == len(self.open)

    @invariant()
    def no_stream_is_cut_twice(self) -> None:
        """A cut ends the stream."""
        assert all(count <= 1 for count in self.cuts.values())


StreamMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestStreams = StreamMachine.TestCase
