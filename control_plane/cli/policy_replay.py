"""`egm policy replay`: what a proposal would have made of recorded executions; approvers see it before they sign."""

from typing import Annotated

import typer

from control_plane.cli.context import JsonFlag, MeshOption, open_mesh, run
from control_plane.cli.output import Exit, console, emit, errors, table
from control_plane.cli.when import iso, parse_when
from control_plane.core.replay import SHOWN, Change, Group, ReplayReport
from control_plane.core.replay import replay as decide_again
from control_plane.edge import operator_client, past
from control_plane.edge.operator_client import OperatorClient
from control_plane.edge.release import Release, Reviewed
from trust import limits
from trust.edge.clock import SystemClock
from trust.errors import MeshError
from trust.execution import id_text

REVIEW_SINCE = "7d"
REVIEW_MOST = 20_000  # executions: a review should not take minutes
_MEANING = {
    Change.NEWLY_DENIED: "newly denied",
    Change.NEWLY_ALLOWED: "newly allowed",
    Change.NEWLY_DOUBTED: "would newly be denied at level 4",
    Change.NO_LONGER_DOUBTED: "would no longer be denied at level 4",
    Change.MORE_ASKED: "allowed, but asked for more",
    Change.CANNOT_TELL: "cannot tell: decided by what records do not hold",
}

SinceOption = Annotated[str, typer.Option(help="From when on: 2h, 7d, or ISO 8601.")]
UntilOption = Annotated[str, typer.Option(help="Until when: 1h for an hour ago, or ISO 8601. Default: now.")]
ServiceOption = Annotated[str, typer.Option(help="Only executions of this service.")]
LimitOption = Annotated[
    int, typer.Option(help="Executions at most, the newest.", min=1, max=limits.MAX_REPLAYED_EXECUTIONS)
]


def replay(
    proposal: Annotated[str, typer.Argument(help="Proposal id, from 'egm policy propose'.")],
    since: SinceOption = REVIEW_SINCE,
    until: UntilOption = "",
    service: ServiceOption = "",
    limit: LimitOption = limits.MAX_REPLAYED_EXECUTIONS,
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Decide recorded executions again under a proposal, against what is in force. Exit 0: nothing differs; 1: some."""
    file, directory = open_mesh(mesh)
    now_ms = SystemClock().now_ms()

    async def ask() -> tuple[str, ReplayReport]:
        async with operator_client.operator(file, directory) as client:
            release = Release(file, directory, client)
            reviewed = await release.review(proposal)
            new = await past.engine_of_proposal(release, reviewed)
            old = await past.engine_in_force(release) if reviewed.previous is not None else None
            found = await past.executions(
                client,
                since_ms=parse_when(since, now_ms=now_ms),
                until_ms=parse_when(until, now_ms=now_ms),
                service=service,
                most=limit,
                progress=progress,
            )
            report = decide_again(
                None if old is None else old.engine, new.engine, found.executions, truncated=found.truncated
            )
            against = "what was recorded" if old is None else old.title
            return f"{new.title} against {against}", report

    title, report = run(ask())
    finish(title, report, as_json=as_json)


async def impact(release: Release, client: OperatorClient, reviewed: Reviewed) -> ReplayReport | MeshError:
    """Return what a proposal would have made of the last days, for its review; the error when that cannot be told."""
    try:
        new = await past.engine_of_proposal(release, reviewed)
        old = await past.engine_in_force(release)
        since_ms = parse_when(REVIEW_SINCE, now_ms=SystemClock().now_ms())
        found = await past.executions(client, since_ms=since_ms, most=REVIEW_MOST)
        return decide_again(old.engine, new.engine, found.executions, truncated=found.truncated)
    except MeshError as error:
        return error


def finish(title: str, report: ReplayReport, *, as_json: bool) -> None:
    """Print a report and end with its exit code."""
    emit({"compared": title, **report_json(report)}, as_json=as_json, text=lambda: show_report(title, report))
    if report.differs:
        raise typer.Exit(Exit.NO)


def progress(count: int) -> None:
    """Say on a terminal how far it is."""
    if errors.is_terminal:
        errors.print(f"{count} executions fetched", end="\r")


def report_json(report: ReplayReport) -> dict[str, object]:
    """Return a report as JSON values."""
    return {
        "executions": report.executions,
        "truncated": report.truncated,
        "counts": {change.value: report.counts.get(change, 0) for change in Change},
        "groups": [_group_json(group) for group in report.groups],
    }


def show_report(title: str, report: ReplayReport) -> None:
    """Print a report for a person."""
    console.print(f"{report.executions} executions decided again: {title}", soft_wrap=True)
    if report.truncated:
        console.print("there are more; narrow --since, --until or --service, or raise --limit")
    if apart := report.counts.get(Change.NOT_BY_POLICY, 0):
        console.print(f"{apart} were refused or passed for other reasons than policy: not compared")
    for change in SHOWN:
        groups = [group for group in report.groups if group.change is change]
        if groups:
            console.print(f"\n{_MEANING[change]} ({report.counts[change]}):", style="bold")
            table(
                ("executions", "caller", "service", "method", "was", "now", "policies", "example"),
                (_row(group) for group in groups),
            )
    if not report.differs:
        what = ", of what can be told" if report.counts.get(Change.CANNOT_TELL, 0) else ""
        console.print(f"\nnothing would differ{what}")


def _row(group: Group) -> tuple[object, ...]:
    return (
        group.count,
        group.caller or "(not identified)",
        group.service,
        group.method,
        group.before,
        group.after,
        ", ".join(group.policies) or "-",
        id_text(group.examples[0]),
    )


def _group_json(group: Group) -> dict[str, object]:
    return {
        "change": group.change.value,
        "caller": group.caller,
        "service": group.service,
        "method": group.method,
        "before": group.before,
        "after": group.after,
        "policies": list(group.policies),
        "count": group.count,
        "first": iso(group.first_ms),
        "last": iso(group.last_ms),
        "examples": [id_text(example) for example in group.examples],
    }


def register(app: typer.Typer) -> None:
    """Add the verb of this module to `app`."""
    app.command("replay")(replay)
