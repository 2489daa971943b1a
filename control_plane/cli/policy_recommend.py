"""`egm policy recommend`: from what was observed to a draft that approvers can review."""

from pathlib import Path
from typing import Annotated

import typer

from control_plane.cli.context import JsonFlag, MeshOption, open_mesh, run
from control_plane.cli.output import console, emit
from control_plane.cli.when import parse_when
from control_plane.core.recommend import Draft, recommend
from control_plane.core.recommend_permits import Observed
from control_plane.edge.analytics_client import analytics as connect
from control_plane.edge.release import Release
from control_plane.edge.source_folder import write_folder
from egm.v1 import analytics_pb2
from trust import limits
from trust.edge.clock import SystemClock
from trust.errors import Reason
from trust.x509 import to_datetime


def recommend_policy(
    since: Annotated[str, typer.Option(help="10m, 2h, 7d ago, or 2026-01-31T12:00:00Z; included.")] = "7d",
    service: Annotated[str, typer.Option(help="Only calls to this service; all else stays as it is.")] = "",
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The folder to write; its files must not exist yet.")
    ] = Path("recommended-policy"),
    level: Annotated[
        int | None, typer.Option(help="Level of the services concerned, in the draft.", min=0, max=5)
    ] = None,
    min_calls: Annotated[
        int, typer.Option(help="Refuse to draft from fewer observed calls.", min=1)
    ] = limits.MIN_RECOMMEND_CALLS,
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Draft the least policy that allows what was observed, with tests, as a folder for review.

    Settings, forbids and conditional permits of the bundle in force are kept. Nothing is proposed and nothing changes:
    read the draft, then lint, test and propose it as any policy.
    """
    file, directory = open_mesh(mesh)
    now_ms = SystemClock().now_ms()
    request = analytics_pb2.AnalyticsRequest(
        since_ms=parse_when(since, now_ms=now_ms), by="edge", service=service
    )

    async def ask() -> tuple[analytics_pb2.AnalyticsResponse, bytes | None]:
        async with connect(file, directory) as client:
            policy = (await Release(file, directory, client.operator).in_force()).policy
            return await client.query(request), None if policy is None else policy.base.data

    answer, archive = run(ask())
    since_until = (f"{to_datetime(ms):%Y-%m-%d %H:%M}" for ms in (answer.since_ms, answer.until_ms))
    period = f"{' to '.join(since_until)} UTC"
    draft = recommend(
        [_observed(group) for group in answer.groups],
        archive,
        trust_domain=file.trust_domain,
        service=service,
        level=level,
        min_calls=min_calls,
        period=period,
    )
    write_folder(output, draft.files)
    omitted = (
        f"{answer.omitted} edges with the fewest calls were left out (MAX_ANALYTICS_ROWS): name a --service"
    )
    notes = [*draft.notes, *([omitted] if answer.omitted else ())]
    data = {
        "folder": str(output),
        "files": sorted(draft.files),
        "period": period,
        "calls": answer.all.calls,
        "edges": draft.edges,
        "permits": draft.added,
        "kept": draft.kept,
        "replaced": list(draft.replaced),
        "notes": notes,
    }
    emit(data, as_json=as_json, text=lambda: _print(draft, notes, output, period))


_REVOKED = (Reason.REVOKED.value, Reason.NODE_QUARANTINED.value)


def register(app: typer.Typer) -> None:
    """Add the verb of this module to `app`."""
    app.command("recommend")(recommend_policy)


def _observed(group: analytics_pb2.AnalyticsGroup) -> Observed:
    refused = sum(group.sums.refused.values())
    return Observed(
        caller=group.caller,
        service=group.service,
        method=group.method,
        executed=group.sums.calls - refused,
        would_deny=sum(group.sums.would_deny.values()),
        revoked=sum(group.sums.would_deny[reason] for reason in _REVOKED if reason in group.sums.would_deny),
    )


def _print(draft: Draft, notes: list[str], output: Path, period: str) -> None:
    console.print(
        f"wrote {output}: {draft.added} permits for {draft.edges} observed edges ({period}); "
        f"{draft.kept} policies in force kept, {len(draft.replaced)} replaced",
        soft_wrap=True,
    )
    for name in sorted(draft.files):
        console.print(f"  {output / name}", soft_wrap=True)
    for note in notes:
        console.print(f"- {note}", soft_wrap=True)
    console.print(
        f"next: read it, then egm policy test {output} and egm policy propose {output}", soft_wrap=True
    )
