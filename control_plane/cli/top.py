"""`egm top`: the mesh live in a terminal."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from control_plane.cli.context import JsonFlag, MeshOption, open_mesh, run
from control_plane.cli.output import console, emit, visible
from control_plane.core.top import Line, View, view
from control_plane.edge.analytics_client import AnalyticsClient
from control_plane.edge.analytics_client import analytics as connect
from control_plane.edge.mesh_file import MeshFile
from egm.v1 import analytics_pb2
from trust.errors import MeshError
from trust.x509 import to_datetime

app = typer.Typer(add_completion=False)
_MOST = 12
_MINUTES = 5


@app.command()
def top(
    interval: Annotated[float, typer.Option(help="Seconds between looks.", min=0.5, max=60)] = 2.0,
    minutes: Annotated[int, typer.Option(help="Calls of so many minutes.", min=1, max=360)] = _MINUTES,
    once: Annotated[
        bool, typer.Option("--once", help="Print it once and end; so it does in a pipe.")
    ] = False,
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show nodes, services, the busiest edges and firing alerts, live. Ends with Ctrl-C.

    With --json, or when the output is no terminal, it looks once. Exit 3: could not tell.
    """
    file, directory = open_mesh(mesh)
    if once or as_json or not sys.stdout.isatty():
        seen = run(_look_once(file, directory, minutes))
        emit(seen.to_dict(), as_json=as_json, text=lambda: console.print(_drawn(seen, None)))
        return
    run(_follow(file, directory, interval, minutes))


async def _look_once(file: MeshFile, directory: Path, minutes: int) -> View:
    async with connect(file, directory) as client:
        return await _look(client, minutes)


async def _look(client: AnalyticsClient, minutes: int) -> View:
    status, nodes, alerts = await asyncio.gather(
        client.operator.status(), client.operator.nodes(), client.alerts()
    )
    since_ms = status.now_ms - minutes * 60_000

    def query(by: str) -> analytics_pb2.AnalyticsRequest:
        return analytics_pb2.AnalyticsRequest(since_ms=since_ms, by=by, limit=_MOST)

    by_edge, by_service = await asyncio.gather(client.query(query("edge")), client.query(query("service")))
    return view(status, nodes, by_edge, by_service, alerts, most=_MOST)


async def _follow(file: MeshFile, directory: Path, interval: float, minutes: int) -> None:
    """Draw again and again, until SIGINT or SIGTERM; a control plane that does not answer is said on the screen.

    The signals set an event: a task that is cancelled while it calls may see an error of the call instead.
    """
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    stopping = asyncio.ensure_future(stop.wait())
    async with connect(file, directory) as client:
        seen = await _look(client, minutes)  # an error at the start is an error of the command
        with Live(_drawn(seen, None), console=console, screen=True, auto_refresh=False) as live:
            while not stop.is_set():
                looking = asyncio.ensure_future(_look(client, minutes))
                await asyncio.wait({looking, stopping}, return_when=asyncio.FIRST_COMPLETED)
                problem: str | None = None
                if not looking.done():
                    looking.cancel()
                try:
                    seen = await looking
                except MeshError as error:
                    problem = f"no answer since the last look: {error.detail}"
                except asyncio.CancelledError:
                    return
                live.update(_drawn(seen, problem), refresh=True)
                await asyncio.wait({stopping}, timeout=interval)


def _drawn(seen: View, problem: str | None) -> RenderableType:
    total = seen.all
    head = (
        f"{seen.trust_domain}  {to_datetime(seen.now_ms):%H:%M:%S} UTC  calls of {seen.over_s / 60:.0f} min: "
        f"{_rate(total.per_s)}/s  p50 {total.p50_ms:.1f} ms  p95 {total.p95_ms:.1f} ms  failed {total.failed}  "
        f"refused {total.refused}  would be refused {total.would_deny}"
    )
    parts: list[RenderableType] = [Text(visible(head), style="bold")]
    for text in (*([problem] if problem else []), *seen.problems):
        parts.append(Text(visible(f"! {text}"), style="red"))
    parts += [Text(""), _alerts(seen), Text(""), _nodes(seen), Text("")]
    parts += [_lines("service", seen.services), Text(""), _lines("busiest edges", seen.edges)]
    return Group(*parts)


def _alerts(seen: View) -> RenderableType:
    if not seen.alerts:
        return Text("no alert")
    grid = _grid("alert", "severity", "rule", "subject", "detail")
    for alert in seen.alerts[:_MOST]:
        style = "red" if alert.state == "firing" and not alert.acknowledged else ""
        cells = (alert.state, alert.severity, alert.rule, alert.subject or "-", alert.detail)
        grid.add_row(*(_cell(cell) for cell in cells), style=style)
    return grid


def _nodes(seen: View) -> RenderableType:
    grid = _grid("node", "state", "level", "policy", "lease", "seen", "alarms")
    for node in seen.nodes[:_MOST]:
        alarms = str(len(node.alarms)) if node.alarms else "-"
        cells = (
            node.name,
            node.state,
            node.level,
            node.policy_version,
            node.lease,
            f"{node.seen_s_ago:.0f} s ago",
            alarms,
        )
        grid.add_row(
            *(_cell(cell) for cell in cells),
            style="" if node.state == "READY" and not node.alarms else "yellow",
        )
    if len(seen.nodes) > _MOST:
        grid.add_row(Text(f"and {len(seen.nodes) - _MOST} more"))
    return grid


def _lines(title: str, lines: tuple[Line, ...]) -> RenderableType:
    if not lines:
        return Text(f"{title}: no calls")
    grid = _grid(title, "calls/s", "calls", "p50 ms", "p95 ms", "failed", "refused", "would be refused")
    for line in lines:
        numbers = (
            _rate(line.per_s),
            line.calls,
            f"{line.p50_ms:.1f}",
            f"{line.p95_ms:.1f}",
            line.failed or "-",
            line.refused or "-",
            line.would_deny or "-",
        )
        grid.add_row(_cell(line.name), *(Text(str(number), justify="right") for number in numbers))
    return grid


def _grid(*columns: str) -> Table:
    grid = Table(box=None, pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, overflow="ellipsis", no_wrap=True)
    return grid


def _rate(per_s: float) -> str:
    return f"{per_s:.1f}" if per_s >= 10 or per_s == 0 else f"{per_s:.2f}"


def _cell(value: object) -> Text:
    return Text(visible(str(value)).replace("\n", " "))
