"""Spans join the caller's trace, metrics count decisions, and off means that nothing is imported."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sidecar.core.call import Decision
from sidecar.core.meters import Charge
from sidecar.core.readiness import Alarms
from sidecar.edge.status import NodeView
from sidecar.edge.telemetry import Telemetry, start, wanted
from tests.support.sidecar_core import PAY, Core, RuleDecider, attempt
from trust.errors import Reason
from trust.policy.controls import controls_of

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


def view(core: Core) -> NodeView:
    """Return the node around a core."""
    return NodeView(
        node="n1",
        boot_id="boot",
        services=frozenset({"payments"}),
        members=(),
        state=core.state,
        pipeline=core.pipeline,
        alarms=Alarms(),
        clock=core.clock,
    )


class Watched:
    """Telemetry that exports into memory."""

    def __init__(self) -> None:
        self.core = Core.new()
        self.core.adopt(RuleDecider(), version=3)
        self.spans, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self.spans))
        self.telemetry = Telemetry(view(self.core), tracers, MeterProvider(metric_readers=[self.reader]))

    def metrics(self) -> dict[str, list[Any]]:
        """Return name -> data points."""
        data = self.reader.get_metrics_data()
        assert data is not None
        return {
            metric.name: list(metric.data.data_points)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@pytest.fixture
def watched() -> Iterator[Watched]:
    """Telemetry, shut down at the end."""
    made = Watched()
    yield made
    made.telemetry.shutdown()


def decision(*, allowed: bool, reason: Reason, would_deny: Reason | None = None) -> Decision:
    """Return a decision to be watched."""
    return Decision("boot-1", allowed, reason, 4, 3, ("p",), would_deny=would_deny)


def test_span_is_a_child_of_the_caller_s_and_the_parent_of_what_follows(watched: Watched) -> None:
    """One trace from the caller through both sidecars to the service."""
    sent = (("traceparent", PARENT), ("tracestate", "v=1"), ("x-own", "1"), ("x-bin", b"\0"))
    handle, forwarded = watched.telemetry.begin(attempt(), sent)
    watched.telemetry.decided(handle, decision(allowed=True, reason=Reason.ALLOWED))
    watched.telemetry.end(handle, "OK")
    (span,) = watched.spans.get_finished_spans()
    assert span.parent is not None
    assert format(span.context.trace_id, "032x") == TRACE
    assert format(span.parent.span_id, "016x") == "b7ad6b7169203331"
    assert span.name == PAY
    headers = dict(forwarded)
    assert headers["traceparent"] == f"00-{TRACE}-{span.context.span_id:016x}-01"
    assert (headers["x-own"], headers["x-bin"], headers["tracestate"]) == ("1", b"\0", "v=1")
    assert [key for key, _ in forwarded].count("traceparent") == 1
    assert span.attributes is not None
    assert span.attributes["egm.decision.id"] == "boot-1"
    assert span.attributes["egm.policies"] == ("p",)


def test_call_without_a_trace_starts_one(watched: Watched) -> None:
    """And garbage in traceparent is not passed on."""
    handle, forwarded = watched.telemetry.begin(attempt(), (("traceparent", "garbage"),))
    watched.telemetry.end(handle, "CANCELLED")
    (span,) = watched.spans.get_finished_spans()
    assert span.parent is None
    assert dict(forwarded)["traceparent"] != "garbage"
    assert span.status.description == "CANCELLED"


def test_how_many_limits_a_node_holds_apart_is_measured(watched: Watched) -> None:
    """Before there is no room for more, somebody should know."""
    meters = watched.core.pipeline.meters
    meters.take("inbound", PAY, [Charge(controls_of((("rate", "1/s"),))[0], 1)], now_ms=0, monotonic_ms=0)
    found = watched.metrics()
    assert [found[f"egm.limits.{name}"][0].value for name in ("metered", "shared")] == [1.0, 0.0]


def test_decisions_are_counted_by_outcome_and_reason(watched: Watched) -> None:
    """What dashboards and alerts are made of."""
    for made in (
        decision(allowed=True, reason=Reason.ALLOWED),
        decision(allowed=False, reason=Reason.POLICY_DENIED),
        decision(allowed=True, reason=Reason.PASSED_UNGOVERNED, would_deny=Reason.NO_POLICY_PERMITS),
    ):
        handle, _ = watched.telemetry.begin(attempt(), ())
        watched.telemetry.decided(handle, made)
        watched.telemetry.end(handle, "OK")
    metrics = watched.metrics()
    counted = {
        (p.attributes["egm.outcome"], p.attributes["egm.reason"], p.attributes.get("egm.would_deny")): p.value
        for p in metrics["egm.decisions"]
    }
    assert counted == {
        ("allow", "ALLOWED", None): 1,
        ("deny", "POLICY_DENIED", None): 1,
        ("allow", "PASSED_UNGOVERNED", "NO_POLICY_PERMITS"): 1,
    }
    assert sum(p.count for p in metrics["egm.decision.duration"]) == 3
    assert sum(p.count for p in metrics["egm.forward.duration"]) == 2


def test_policy_version_and_lease_are_measured(watched: Watched) -> None:
    """A stale policy must be visible before it is sealed."""
    watched.core.clock.pass_ms(10_000)
    values = {name: points[0].value for name, points in watched.metrics().items()}
    assert values["egm.policy.version"] == 3
    assert values["egm.lease.remaining"] == 50
    assert values["egm.policy.age"] == 10


@pytest.mark.parametrize(
    ("env", "traces", "metrics"),
    [
        ({}, "", ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, "otlp", "otlp"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4317"}, "otlp", ""),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, "", "otlp"),
        ({"OTEL_METRICS_EXPORTER": "console"}, "", "console"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "TRUE"}, "", ""),
    ],
)
def test_standard_variables_decide(env: dict[str, str], traces: str, metrics: str) -> None:
    """No configuration keys of our own."""
    assert (wanted(env, "TRACES"), wanted(env, "METRICS")) == (traces, metrics)


def test_off_is_none_and_imports_no_sdk() -> None:
    """Off costs nothing: the proxy has no observer, the process no SDK."""
    assert start(view(Core.new()), "mesh.local", {}) is None
    code = "import sys, sidecar.edge.driver; sys.exit(any(m.startswith('opentelemetry.sdk') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def test_gauges_are_read_in_the_loop_that_decides_calls_whatever_thread_exports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reading readiness looks at the roster in force; half of a change must not be seen by a call meanwhile."""
    read: list[int] = []

    def remaining(_view: NodeView) -> tuple[int, int]:
        read.append(threading.get_ident())
        return 5_000, 6_000

    monkeypatch.setattr(NodeView, "remaining_ms", remaining)
    watched = Watched()
    found = await asyncio.to_thread(watched.metrics)
    assert found["egm.lease.remaining"][0].value == 5.0
    watched.metrics()  # in the loop itself, too
    assert set(read) == {threading.get_ident()}
    watched.telemetry.shutdown()


def test_a_gauge_whose_loop_has_ended_is_left_out() -> None:
    """The last export may come after it."""

    async def made() -> Watched:
        return Watched()

    watched = asyncio.run(made())
    assert watched.reader.get_metrics_data() is None
    watched.telemetry.shutdown()
