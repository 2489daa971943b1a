"""Replay against real decisions: under the policy that decided, nothing differs; at most it cannot be told."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.core.replay import Change, Recorded, replay
from tests.support.engines import engine, order, workload
from tests.support.records import START_MS, intent
from trust.policy.engine import Engine
from trust.policy.types import Authn, Call
from trust.record import Side
from trust.record_rules import plain

PLACE, COUNT, TAKE = "shop.Orders/Place", "shop.Stock/Count", "shop.Stock/Take"
CONDITIONS = (
    "",
    "when { context.request.amount < 10 }",
    "unless { context has request && context.request.express }",
    'when { context.metadata has tenant && context.metadata.tenant == "a" }',
    "when { context.metadata has tenant }",
    "when { context.time.hour < 12 }",
    'when { context.time.now < datetime("2026-09-21T14:13:30Z") }',
    'when { context.caller.authn == "mtls" }',
    "when { context.node.level > 3 }",
    'when { context.node.name == "b" }',
    "when { context.caller == context.caller && context.metadata == context.metadata }",
)
SCOPES = (
    "principal, action, resource",
    f'principal == Workload::"{workload("alice")}", action, resource',
    f'principal, action == Action::"{PLACE}", resource',
    f'principal, action in [Action::"{COUNT}", Action::"{TAKE}"], resource',
)


@st.composite
def engines(draw: Any) -> Engine:
    """An engine of some policies that read whatever a policy can read."""
    text = []
    for number in range(draw(st.integers(1, 4))):
        effect = draw(st.sampled_from(("permit", "permit", "forbid")))
        rate = draw(st.sampled_from(("", '@rate("5/m") '))) if effect == "permit" else ""
        scope = draw(st.sampled_from(SCOPES))
        # a policy of every method cannot read a request: its shape differs
        conditions = [c for c in CONDITIONS if PLACE in scope or "request" not in c]
        text.append(f'@id("p{number}") {rate}{effect}({scope}) {draw(st.sampled_from(conditions))};')
    level = draw(st.integers(0, 5))
    return engine("\n".join(text), services={"payments": {"level": level}})


@st.composite
def calls(draw: Any, level: int) -> tuple[Call, int]:
    """A call as a sidecar sees it, with the time at which it decides."""
    method = draw(st.sampled_from((PLACE, COUNT, TAKE, "made.Up/" + "M" * 600)))
    call = Call(
        draw(st.sampled_from((workload("alice"), workload("bob")))),
        method,
        "payments",
        draw(st.sampled_from((Authn.MTLS, Authn.UNIX_SOCKET))),
        draw(st.sampled_from("ab")),
        level,
        order(amount=draw(st.integers(0, 20)), express=draw(st.booleans())) if method == PLACE else None,
        draw(st.sampled_from(({}, {"tenant": "a"}, {"tenant": "b"}))),
    )
    return call, START_MS + draw(st.sampled_from((0, 9_000, 3_600_000 * 7, 3_600_000 * 15, 43_200_000)))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_replay_under_the_policy_that_decided_agrees_or_says_that_it_cannot_tell(data: Any) -> None:
    """A guess shown to approvers as a fact is worse than none."""
    governed = data.draw(engines())
    level = governed.mesh.level_of("payments")
    call, now_ms = data.draw(calls(level))
    verdict = governed.decide(call, now_ms=now_ms)
    spoken = verdict.reason.value != "NO_POLICY_PERMITS" or governed.governs(call.method, call.service)
    denied = not verdict.allowed and (level >= 4 or (level == 3 and spoken))
    record = intent(
        1,
        caller=call.principal,
        method=plain(call.method),
        authn=call.authn.value,
        node=call.node,
        level=level,
        side=Side.INBOUND,
        allowed=not denied,
        reason=verdict.reason.value if denied or verdict.allowed else "PASSED_UNGOVERNED",
        would_deny="" if denied or verdict.allowed or level == 0 else verdict.reason.value,
        obligations=tuple((name, f"{value}=met") for name, value in verdict.obligations),
        wall_ms=now_ms + data.draw(st.integers(0, 4_000)),
    )
    report = replay(None, governed, [Recorded(record)])
    assert set(report.counts) <= {Change.UNCHANGED, Change.CANNOT_TELL}, (report, verdict)
    reads = governed.explain(call.principal, call.method, call.service)
    if len(call.method) < 100 and not any(rule.reads for rule in reads):
        assert set(report.counts) == {Change.UNCHANGED}
