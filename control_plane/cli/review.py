"""`egm review`: any time of the past under any policy, after the fact."""

from typing import Annotated

import typer

from control_plane.cli.context import JsonFlag, MeshOption, open_mesh, run
from control_plane.cli.policy_replay import (
    LimitOption,
    ServiceOption,
    SinceOption,
    UntilOption,
    finish,
    progress,
)
from control_plane.cli.when import parse_when
from control_plane.core.replay import ReplayReport
from control_plane.core.replay import replay as decide_again
from control_plane.edge import operator_client, past
from control_plane.edge.release import Release
from trust import limits
from trust.edge.clock import SystemClock

app = typer.Typer(add_completion=False)


@app.command()
def review(
    bundle: Annotated[
        str,
        typer.Option(help="A policy folder, an archive, a proposal id, a version, or in-force."),
    ] = past.IN_FORCE,
    since: SinceOption = "7d",
    until: UntilOption = "",
    service: ServiceOption = "",
    limit: LimitOption = limits.MAX_REPLAYED_EXECUTIONS,
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Decide what was recorded again, under any policy, and say what would differ. Exit 0: nothing; 1: something."""
    file, directory = open_mesh(mesh)
    now_ms = SystemClock().now_ms()

    async def ask() -> tuple[str, ReplayReport]:
        async with operator_client.operator(file, directory) as client:
            named = await past.engine_of(Release(file, directory, client), bundle)
            found = await past.executions(
                client,
                since_ms=parse_when(since, now_ms=now_ms),
                until_ms=parse_when(until, now_ms=now_ms),
                service=service,
                most=limit,
                progress=progress,
            )
            report = decide_again(None, named.engine, found.executions, truncated=found.truncated)
            return f"{named.title} against what was recorded", report

    title, report = run(ask())
    finish(title, report, as_json=as_json)
