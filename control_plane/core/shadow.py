"""What a shadow run found, over all nodes: each kind of differing call once."""

from collections.abc import Iterable
from dataclasses import dataclass

from egm.v1 import record_pb2, shadow_pb2


@dataclass(slots=True)
class Finding:
    """Calls that the candidate would decide differently in the same way. Times are Unix ms."""

    change: str
    caller: str
    service: str
    method: str
    before: str
    after: str
    policies: tuple[str, ...]
    inbound: int  # decisions of callees' sidecars
    outbound: int  # of callers' sidecars: the same calls, where both have one
    first_ms: int
    last_ms: int
    decision_id: str  # of one of them, as nodes log it
    nodes: list[str]


def trimmed(report: shadow_pb2.ShadowReport, room: int) -> shadow_pb2.ShadowReport:
    """Return a report of at most about `room` bytes; the differences that do not fit are counted as omitted."""
    kept = shadow_pb2.ShadowReport()
    kept.CopyFrom(report)
    size = kept.ByteSize()
    while kept.differences and size > room:
        size -= kept.differences.pop().ByteSize()
        kept.omitted += 1
    return kept


def findings(nodes: Iterable[shadow_pb2.ShadowNode]) -> list[Finding]:
    """Put the reports of all nodes together, most frequent first."""
    found: dict[tuple[str, ...], Finding] = {}
    for node in nodes:
        for one in node.report.differences:
            key = (one.change, one.caller, one.service, one.method, one.before, one.after)
            finding = found.get(key)
            if finding is None:
                finding = found[key] = Finding(
                    *key, tuple(one.policies), 0, 0, one.first_ms, one.last_ms, one.decision_id, []
                )
            if one.direction == record_pb2.DIRECTION_INBOUND:
                finding.inbound += one.count
            else:
                finding.outbound += one.count
            finding.first_ms = min(finding.first_ms, one.first_ms)
            finding.last_ms = max(finding.last_ms, one.last_ms)
            if node.node not in finding.nodes:
                finding.nodes.append(node.node)
    return sorted(found.values(), key=lambda f: (-max(f.inbound, f.outbound), f.change, f.caller, f.method))
