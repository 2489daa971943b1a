"""`egm analytics`: who calls what, how often, how long, how it fails, and what level 4 would have refused."""

from typing import Annotated

import typer

from control_plane.cli.context import JsonFlag, MeshOption, open_mesh, run
from control_plane.cli.output import console, emit, table
from control_plane.cli.when import parse_when
from control_plane.core.analytics import By, caller_name
from control_plane.edge.analytics_client import analytics as connect
from control_plane.edge.mesh_file import MeshFile
from egm.v1 import analytics_pb2
from trust import limits
from trust.edge.clock import SystemClock
from trust.spiffe import SpiffeId
from trust.x509 import to_datetime

app = typer.Typer(add_completion=False)
_SHOWN = 40


@app.command()
def analytics(
    since: Annotated[str, typer.Option(help="10m, 2h, 7d ago, or 2026-01-31T12:00:00Z; included.")] = "24h",
    until: Annotated[str, typer.Option(help="As --since; excluded. Default: now.")] = "",
    by: Annotated[By, typer.Option(help="What to sum up; node: what each node recorded.")] = By.EDGE,
    caller: Annotated[str, typer.Option(help="Only this workload (name or SPIFFE ID).")] = "",
    service: Annotated[str, typer.Option(help="Only calls to this service.")] = "",
    method: Annotated[str, typer.Option(help="Only this package.Service/Method.")] = "",
    limit: Annotated[
        int,
        typer.Option(help="Groups at most, those with the most calls.", min=1, max=limits.MAX_ANALYTICS_ROWS),
    ] = _SHOWN,
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show what executions add up to: who calls what, how often, how long, how it fails, what level 4 would refuse.

    Every execution counts once, though two sidecars recorded it. A time of more than six hours is summed up in whole
    hours. Quantiles are within 9 percent.
    """
    file, directory = open_mesh(mesh)
    now_ms = SystemClock().now_ms()
    request = analytics_pb2.AnalyticsRequest(
        since_ms=parse_when(since, now_ms=now_ms),
        until_ms=parse_when(until, now_ms=now_ms),
        by=by.value,
        caller=caller_id(caller, file),
        service=service,
        method=method.removeprefix("/"),
        limit=limit,
    )

    async def ask() -> analytics_pb2.AnalyticsResponse:
        async with connect(file, directory) as client:
            return await client.query(request)

    answer = run(ask())
    emit(to_dict(answer, by), as_json=as_json, text=lambda: _print(answer, by))


def caller_id(caller: str, mesh: MeshFile) -> str:
    """Return the SPIFFE ID that an operator names by workload or in full; empty stays empty."""
    if not caller or caller.startswith("spiffe://"):
        return caller
    return str(SpiffeId.of(mesh.trust_domain, "workload", caller))


def to_dict(answer: analytics_pb2.AnalyticsResponse, by: By) -> dict[str, object]:
    """Return an answer as JSON values."""
    return {
        "since_ms": answer.since_ms,
        "until_ms": answer.until_ms,
        "by": by.value,
        "groups": [
            {
                "caller": group.caller,
                "service": group.service,
                "method": group.method,
                "node": group.node,
                "side": group.side,
                **sums_json(group.sums),
            }
            for group in answer.groups
        ],
        "omitted": answer.omitted,
        "all": sums_json(answer.all),
    }


def sums_json(sums: analytics_pb2.AnalyticsSums) -> dict[str, object]:
    """Return sums as JSON values."""
    return {
        "calls": sums.calls,
        "refused": dict(sums.refused),
        "would_deny": dict(sums.would_deny),
        "ended": dict(sums.ended),
        "request_bytes": sums.request_bytes,
        "response_bytes": sums.response_bytes,
        "mean_ms": round(sums.mean_ms, 3),
        "p50_ms": round(sums.p50_ms, 3),
        "p95_ms": round(sums.p95_ms, 3),
        "p99_ms": round(sums.p99_ms, 3),
    }


def counts(counted: "dict[str, int]", *, besides: str = "") -> str:
    """Return counts as "12 POLICY_DENIED, 3 REVOKED", the largest first; "-" when there are none."""
    found = sorted(((n, name) for name, n in counted.items() if name != besides), reverse=True)
    return ", ".join(f"{n} {name}" for n, name in found) or "-"


def size(count: int) -> str:
    """Return a number of bytes as a person reads it."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _names(group: analytics_pb2.AnalyticsGroup, by: By) -> tuple[str, ...]:
    return {
        By.CALLER: (caller_name(group.caller),),
        By.SERVICE: (group.service,),
        By.METHOD: (group.service, group.method),
        By.EDGE: (caller_name(group.caller), group.service, group.method),
        By.NODE: (group.node, group.side),
    }[by]


_HEADINGS = {
    By.CALLER: ("caller",),
    By.SERVICE: ("service",),
    By.METHOD: ("service", "method"),
    By.EDGE: ("caller", "service", "method"),
    By.NODE: ("node", "side"),
}


def _print(answer: analytics_pb2.AnalyticsResponse, by: By) -> None:
    span = (
        f"{to_datetime(answer.since_ms):%Y-%m-%d %H:%M} to {to_datetime(answer.until_ms):%Y-%m-%d %H:%M} UTC"
    )
    if not answer.groups:
        console.print(
            f"no executions from {span}; nodes at level 1 and above ship them when they reach the control plane"
        )
        return
    console.print(f"{answer.all.calls} calls from {span}\n")
    columns = ("calls", "p50 ms", "p95 ms", "in", "out", "failed", "refused", "would be refused")
    rows = (
        (
            *_names(group, by),
            group.sums.calls,
            f"{group.sums.p50_ms:.1f}",
            f"{group.sums.p95_ms:.1f}",
            size(group.sums.request_bytes),
            size(group.sums.response_bytes),
            counts(dict(group.sums.ended), besides="OK"),
            counts(dict(group.sums.refused)),
            counts(dict(group.sums.would_deny)),
        )
        for group in answer.groups
    )
    table((*_HEADINGS[by], *columns), rows)
    if answer.omitted:
        console.print(f"\n{answer.omitted} more: --limit, or narrow it by --service, --caller, --since")
