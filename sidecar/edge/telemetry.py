"""OpenTelemetry: a span per execution in the caller's trace, and metrics. Off costs nothing: no SDK is imported.

It is on when a standard variable says so: OTEL_EXPORTER_OTLP_ENDPOINT (or its _TRACES_/_METRICS_ form), or
OTEL_TRACES_EXPORTER / OTEL_METRICS_EXPORTER naming `otlp` or `console`; OTEL_SDK_DISABLED=true wins.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

from sidecar.core.call import Attempt, Decision
from sidecar.core.gate import Metadata

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Observation
    from opentelemetry.trace import Span

    from sidecar.edge.status import NodeView

_SIGNALS: Final = ("TRACES", "METRICS")
_TRACE_KEYS: Final = frozenset({"traceparent", "tracestate"})
_SCOPE: Final = "egm.sidecar"
_LOOP_PATIENCE_S: Final = 5.0  # for the loop to say how it is, once a minute


def wanted(env: Mapping[str, str], signal: str) -> str:
    """Return the exporter of one signal ("TRACES" or "METRICS"): "otlp", "console", or "" for off."""
    if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ""
    named = env.get(f"OTEL_{signal}_EXPORTER", "").strip().lower()
    if named:
        return named if named in {"otlp", "console"} else ""
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    return "otlp" if any(env.get(name) for name in endpoints) else ""


def start(view: "NodeView", trust_domain: str, env: Mapping[str, str] = os.environ) -> "Telemetry | None":
    """Return telemetry that exports as the environment says; None when it is off."""
    if not any(wanted(env, signal) for signal in _SIGNALS):
        return None
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    attributes = {
        "service.instance.id": view.boot_id,
        "egm.node": view.node,
        "egm.trust_domain": trust_domain,
    }
    if "OTEL_SERVICE_NAME" not in env and "service.name=" not in env.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        attributes["service.name"] = "egm-sidecar"
    resource = Resource.create(attributes)
    tracers = TracerProvider(resource=resource)
    if exporter := wanted(env, "TRACES"):
        tracers.add_span_processor(BatchSpanProcessor(_span_exporter(exporter, env)))
    readers = []
    if exporter := wanted(env, "METRICS"):
        readers.append(PeriodicExportingMetricReader(_metric_exporter(exporter, env)))
    return Telemetry(view, tracers, MeterProvider(metric_readers=readers, resource=resource))


def _protocol(env: Mapping[str, str], signal: str) -> str:
    general = env.get("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    return env.get(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", general)


def _span_exporter(name: str, env: Mapping[str, str]) -> Any:
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    if _protocol(env, "TRACES").startswith("http"):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

        return HttpExporter()
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def _metric_exporter(name: str, env: Mapping[str, str]) -> Any:
    if name == "console":
        from opentelemetry.sdk.metrics.export import ConsoleMetricExporter

        return ConsoleMetricExporter()
    if _protocol(env, "METRICS").startswith("http"):
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpExporter

        return HttpExporter()
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

    return OTLPMetricExporter()


class _Followed:
    """One execution under way."""

    __slots__ = ("allowed", "attributes", "began", "decided", "span")

    def __init__(self, span: "Span", attributes: dict[str, str], began: float) -> None:
        self.span, self.attributes, self.began = span, attributes, began
        self.decided = began
        self.allowed = False


class Telemetry:
    """Implements `sidecar.core.gate.Observer`; `tracers` and `meters` are SDK providers of our own."""

    def __init__(self, view: "NodeView", tracers: Any, meters: Any) -> None:
        """Make the instruments. What a running loop owns is read in it, whatever thread exports."""
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._view, self._tracers, self._meters = view, tracers, meters
        self._tracer = tracers.get_tracer(_SCOPE)
        self._propagator = TraceContextTextMapPropagator()
        self._server_kind, self._error = SpanKind.SERVER, StatusCode.ERROR
        self._loop: asyncio.AbstractEventLoop | None = None
        with contextlib.suppress(RuntimeError):  # none runs
            self._loop = asyncio.get_running_loop()
        meter = meters.get_meter(_SCOPE)
        self._decisions = meter.create_counter(
            "egm.decisions", unit="{decision}", description="Decisions by outcome and reason."
        )
        self._decide_s = meter.create_histogram(
            "egm.decision.duration", unit="s", description="From the call's arrival to its decision."
        )
        self._forward_s = meter.create_histogram(
            "egm.forward.duration", unit="s", description="From the decision to the end of the call."
        )
        for name, unit, description, read in self._gauges():
            meter.create_observable_gauge(
                name, callbacks=[self._callback(read)], unit=unit, description=description
            )

    def _gauges(self) -> Iterable[tuple[str, str, str, Callable[[], float]]]:
        view = self._view
        yield "egm.policy.version", "1", "Version of the base bundle in force; 0 for none.", self._version
        yield "egm.policy.age", "s", "Since the lease in force was signed or renewed.", self._age_s
        yield "egm.lease.remaining", "s", "Until the lease lapses.", lambda: view.remaining_ms()[0] / 1000
        yield "egm.ready", "1", "1 when the node is ready.", lambda: float(not view.readiness().not_ready)
        yield "egm.streams.open", "{stream}", "Open streams.", lambda: float(len(view.pipeline.streams))
        yield "egm.approvals.held", "{call}", "Calls that wait for approvers.", lambda: float(view.held())
        meters = view.pipeline.meters
        yield (
            "egm.limits.metered",
            "{limit}",
            "Rates and budgets of callers held apart.",
            lambda: float(len(meters)),
        )
        yield (
            "egm.limits.shared",
            "{call}",
            "Calls counted in a limit shared for want of room.",
            lambda: float(meters.shared),
        )
        yield "egm.ledger.archived", "{segment}", "Archived since start.", lambda: view.archiving()[0]
        yield "egm.ledger.archive.failing", "1", "1 while archiving fails.", lambda: view.archiving()[1]

    def _version(self) -> float:
        held = self._view.state.in_force
        return 0.0 if held is None else float(held.version)

    def _age_s(self) -> float:
        held = self._view.state.in_force
        if held is None:
            return 0.0
        return held.engine.mesh.lease.ttl_s - self._view.remaining_ms()[0] / 1000

    def begin(self, attempt: Attempt, metadata: Metadata) -> tuple[object, Metadata]:
        """Start a span as child of the caller's; the metadata returned makes it the parent of what follows."""
        from opentelemetry.trace import set_span_in_context

        carrier = {key: value for key, value in metadata if key in _TRACE_KEYS and isinstance(value, str)}
        service, _, method = attempt.method.rpartition("/")
        attributes = {"egm.direction": str(attempt.direction), "egm.service": attempt.service}
        span = self._tracer.start_span(
            attempt.method,
            context=self._propagator.extract(carrier),
            kind=self._server_kind,
            attributes={
                **attributes,
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": method,
                "egm.caller": attempt.principal or "",
            },
        )
        injected: dict[str, str] = {}
        self._propagator.inject(injected, set_span_in_context(span))
        forwarded = [pair for pair in metadata if pair[0] not in _TRACE_KEYS]
        forwarded += injected.items()
        return _Followed(span, attributes, time.perf_counter()), tuple(forwarded)

    def decided(self, handle: object, decision: Decision) -> None:
        """Note the decision on the span and in the metrics."""
        if not isinstance(handle, _Followed):
            return
        handle.decided = time.perf_counter()
        handle.allowed = decision.allowed
        outcome = "allow" if decision.allowed else "deny"
        labels = {**handle.attributes, "egm.outcome": outcome, "egm.reason": str(decision.reason)}
        if decision.would_deny is not None:
            labels["egm.would_deny"] = str(decision.would_deny)
        self._decisions.add(1, labels)
        self._decide_s.record(handle.decided - handle.began, handle.attributes)
        handle.span.set_attributes(
            {
                "egm.decision.id": decision.id,
                "egm.outcome": outcome,
                "egm.reason": str(decision.reason),
                "egm.level": decision.level,
                "egm.policy.version": decision.policy_version,
                "egm.policies": decision.policies,
            }
        )

    def end(self, handle: object, status: str) -> None:
        """Close the span."""
        if not isinstance(handle, _Followed):
            return
        if handle.allowed:
            labels = {**handle.attributes, "rpc.grpc.status": status}
            self._forward_s.record(time.perf_counter() - handle.decided, labels)
        handle.span.set_attribute("rpc.grpc.status", status)
        if status != "OK":
            handle.span.set_status(self._error, status)
        handle.span.end()

    def shutdown(self) -> None:
        """Export what is left. Blocking: call it in a thread."""
        self._tracers.shutdown()
        self._meters.shutdown()

    def _callback(self, read: Callable[[], float]) -> "Callable[[CallbackOptions], Iterable[Observation]]":
        from opentelemetry.metrics import Observation as Observed

        return lambda _options: [Observed(_read_in(self._loop, read))]


def _read_in(loop: asyncio.AbstractEventLoop | None, read: Callable[[], float]) -> float:
    """Read a value in the loop that owns it: what is looked at on the way decides calls, and is for one thread.

    Raises:
        TimeoutError: the loop is too busy; the value is left out this time.
        RuntimeError: it has ended.
    """
    if loop is None or _runs_here(loop):
        return read()
    told: Future[float] = Future()

    def work() -> None:
        if not told.set_running_or_notify_cancel():
            return
        try:
            told.set_result(read())
        except Exception as error:  # noqa: BLE001  # raised again in the thread that asked
            told.set_exception(error)

    loop.call_soon_threadsafe(work)
    try:
        return told.result(_LOOP_PATIENCE_S)
    finally:
        told.cancel()


def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
