"""What the live view of a mesh shows, from the answers of a control plane: pure, so that it can be printed or drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from control_plane.core.analytics import caller_name
from egm.v1 import analytics_pb2, operator_pb2

SILENT_AFTER_S = 15.0  # several report periods


@dataclass(frozen=True, slots=True)
class Line:
    """One service, one edge, or everything."""

    name: str
    calls: int
    per_s: float
    p50_ms: float
    p95_ms: float
    failed: int  # ended in another status than OK
    refused: int
    would_deny: int


@dataclass(frozen=True, slots=True)
class NodeLine:
    """One node."""

    name: str
    state: str
    lease: str
    policy_version: int
    level: str  # "1", or "1-4" when its services differ
    seen_s_ago: float
    alarms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AlertLine:
    """One alert that is not over."""

    state: str
    severity: str
    rule: str
    subject: str
    detail: str
    acknowledged: bool


@dataclass(frozen=True, slots=True)
class View:
    """Everything on the screen. `over_s`: the time that calls were counted over."""

    trust_domain: str
    now_ms: int
    over_s: float
    all: Line
    nodes: tuple[NodeLine, ...]
    services: tuple[Line, ...]
    edges: tuple[Line, ...]  # the busiest
    alerts: tuple[AlertLine, ...]
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Return the view as JSON values."""
        return asdict(self)


def view(
    status: operator_pb2.ControlPlaneStatus,
    nodes: Sequence[operator_pb2.NodeRecord],
    by_edge: analytics_pb2.AnalyticsResponse,
    by_service: analytics_pb2.AnalyticsResponse,
    alerts: analytics_pb2.ListAlertsResponse,
    *,
    most: int,
) -> View:
    """Return what is shown now; at most `most` services and edges, the busiest first."""
    over_s = max(1.0, (min(by_edge.until_ms, status.now_ms) - by_edge.since_ms) / 1000)
    return View(
        trust_domain=status.trust_domain,
        now_ms=status.now_ms,
        over_s=over_s,
        all=_line("all", by_service.all, over_s),
        nodes=tuple(_node(node, status.now_ms) for node in nodes),
        services=tuple(_line(g.service, g.sums, over_s) for g in by_service.groups[:most]),
        edges=tuple(
            _line(f"{caller_name(g.caller)} > {g.service} {g.method}", g.sums, over_s)
            for g in by_edge.groups[:most]
        ),
        alerts=tuple(
            AlertLine(a.state, a.severity, a.rule, a.subject, a.detail, bool(a.acked_by))
            for a in alerts.alerts
        ),
        problems=tuple(dict.fromkeys((*status.problems, *alerts.problems))),
    )


def _line(name: str, sums: analytics_pb2.AnalyticsSums, over_s: float) -> Line:
    return Line(
        name=name,
        calls=sums.calls,
        per_s=round(sums.calls / over_s, 2),
        p50_ms=round(sums.p50_ms, 2),
        p95_ms=round(sums.p95_ms, 2),
        failed=_total(sums.ended) - sums.ended.get("OK", 0),
        refused=_total(sums.refused),
        would_deny=_total(sums.would_deny),
    )


def _total(counts: Mapping[str, int]) -> int:
    return sum(counts.values())


def _node(record: operator_pb2.NodeRecord, now_ms: int) -> NodeLine:
    said = record.status
    levels = sorted(set(said.levels.values()))
    seen_s_ago = max(0.0, (now_ms - record.last_seen_ms) / 1000)
    return NodeLine(
        name=record.node,
        state="SILENT" if seen_s_ago > SILENT_AFTER_S else said.state,
        lease=said.lease,
        policy_version=said.policy_version,
        level="-" if not levels else "-".join(str(level) for level in dict.fromkeys((levels[0], levels[-1]))),
        seen_s_ago=round(seen_s_ago, 1),
        alarms=tuple(said.alarms),
    )
