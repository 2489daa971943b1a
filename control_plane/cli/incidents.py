"""`egm incidents`: what detection found, the records that show it, what was done about it, and closing it."""

from typing import Annotated

import typer

from control_plane.cli.context import JsonFlag, MeshOption, open_mesh, run
from control_plane.cli.output import Exit, console, emit, table
from control_plane.cli.when import parse_when, utc
from control_plane.edge.incidents_client import incidents as connect
from egm.v1 import incidents_pb2
from trust import limits
from trust.edge.clock import SystemClock
from trust.execution import id_text

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Incidents: what detection found in executions, with its evidence and what was done about it.",
)
IncidentId = Annotated[
    str, typer.Argument(metavar="ID", help="Of an incident, or the beginning (egm incidents list).")
]


@app.command("list")
def list_incidents(
    state: Annotated[str, typer.Option(help="open, resolved, or all.")] = "open",
    rule: Annotated[str, typer.Option(help="Only of this rule, for example EGM-T002.")] = "",
    subject: Annotated[str, typer.Option(help="Only about this SPIFFE ID.")] = "",
    severity: Annotated[str, typer.Option(help="Only of this severity or above.")] = "",
    since: Annotated[str, typer.Option(help="Only with findings since then: 2h, 7d, or ISO 8601.")] = "",
    limit: Annotated[
        int, typer.Option(help="Incidents at most.", min=1, max=limits.MAX_INCIDENTS_PAGE)
    ] = 100,
    cursor: Annotated[str, typer.Option(help="Where the page before ended.")] = "",
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List incidents, newest first. Exit 0: none is open; 1: there are some; 3: could not tell."""
    file, directory = open_mesh(mesh)
    request = incidents_pb2.ListIncidentsRequest(
        limit=limit,
        cursor=cursor,
        state="" if state == "all" else state,
        rule=rule,
        subject=subject,
        min_severity=severity,
        since_ms=parse_when(since, now_ms=SystemClock().now_ms()),
    )

    async def ask() -> incidents_pb2.ListIncidentsResponse:
        async with connect(file, directory) as client:
            return await client.page(request)

    answer = run(ask())
    data = {
        "incidents": [incident_json(one) for one in answer.incidents],
        "next_cursor": answer.next_cursor,
        "respond": answer.respond,
        "problem": answer.problem,
    }
    emit(data, as_json=as_json, text=lambda: _print_page(answer))
    if any(one.state == "open" for one in answer.incidents):
        raise typer.Exit(Exit.NO)


def _print_page(answer: incidents_pb2.ListIncidentsResponse) -> None:
    if answer.problem:
        console.print(f"detection: {answer.problem}", soft_wrap=True)
    if not answer.incidents:
        console.print("no incidents")
        return
    columns = ("incident", "severity", "rule", "what", "who", "last (UTC)", "found", "state")
    table(
        columns,
        (
            (i.id, i.severity, i.rule, i.title, i.subject, utc(i.last_ms), i.findings, i.state)
            for i in answer.incidents
        ),
    )
    if answer.next_cursor:
        console.print(f"more: --cursor {answer.next_cursor}")


@app.command()
def show(incident: IncidentId, mesh: MeshOption = None, as_json: JsonFlag = False) -> None:
    """Show one incident: the records that it rests on, what was done about it, and how to undo that."""
    file, directory = open_mesh(mesh)

    async def ask() -> incidents_pb2.GetIncidentResponse:
        async with connect(file, directory) as client:
            return await client.get(incident)

    answer = run(ask())
    data = {
        "incident": incident_json(answer.incident),
        "evidence": [_evidence_json(one) for one in answer.evidence],
        "responses": [_response_json(one) for one in answer.responses],
    }
    emit(data, as_json=as_json, text=lambda: _print(answer))


@app.command()
def resolve(
    incident: IncidentId,
    why: Annotated[str, typer.Option(help="What it was and what was done, in one line.")],
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Close an incident, with the reason. A quarantine goes on until it ends or is lifted (egm revoke lift)."""
    file, directory = open_mesh(mesh)

    async def ask() -> incidents_pb2.Incident:
        async with connect(file, directory) as client:
            return await client.resolve(incident, why)

    closed = run(ask())
    emit(
        incident_json(closed), as_json=as_json, text=f"incident {closed.id} resolved by {closed.resolved_by}"
    )


def incident_json(one: incidents_pb2.Incident) -> dict[str, object]:
    """Return an incident as JSON values."""
    return {
        "id": one.id,
        "rule": one.rule,
        "title": one.title,
        "severity": one.severity,
        "subject": one.subject,
        "state": one.state,
        "opened_ms": one.opened_ms,
        "last_ms": one.last_ms,
        "findings": one.findings,
        "text": one.text,
        "nodes": list(one.nodes),
        "resolved_by": one.resolved_by,
        "resolved_why": one.resolved_why,
        "resolved_ms": one.resolved_ms,
        "advice": one.advice,
    }


def _evidence_json(one: incidents_pb2.IncidentEvidence) -> dict[str, object]:
    return {
        "node": one.node,
        "ledger": one.ledger,
        "index": one.index if one.ledger else None,
        "execution": id_text(one.execution_id) if one.execution_id else "",
        "note": one.note,
    }


def _response_json(one: incidents_pb2.IncidentResponse) -> dict[str, object]:
    return {
        "action": one.action,
        "fate": one.fate,
        "at_ms": one.at_ms,
        "kind": one.kind,
        "value": one.value,
        "until_ms": one.until_ms,
        "why": one.why,
        "directive": one.directive,
        "in_effect": one.in_effect,
    }


def _print(answer: incidents_pb2.GetIncidentResponse) -> None:
    one = answer.incident
    console.print(f"incident {one.id}  {one.rule} {one.title} ({one.severity}, {one.state})", soft_wrap=True)
    for name, value in (
        ("who", one.subject),
        ("what", one.text),
        ("think of", one.advice),
        ("from, to", f"{utc(one.opened_ms)} to {utc(one.last_ms)} UTC, {one.findings} findings"),
        ("seen by", ", ".join(one.nodes)),
    ):
        console.print(f"  {name:<10} {value}", soft_wrap=True)
    if one.resolved_by:
        console.print(
            f"  {'resolved':<10} {utc(one.resolved_ms)} UTC by {one.resolved_by}: {one.resolved_why}"
        )
    console.print("\nevidence (a node's word; check it with: egm lineage show, egm evidence export):")
    for item in answer.evidence:
        where = f"{item.node} {item.ledger} #{item.index}" if item.ledger else item.node
        console.print(f"  {where}  {id_text(item.execution_id) if item.execution_id else item.note}")
    console.print("\nresponses:" if answer.responses else "\nnothing was done about it")
    for done in answer.responses:
        _print_response(done)


def _print_response(done: incidents_pb2.IncidentResponse) -> None:
    what = f"{done.action} {done.value}".strip()
    until = f", until {utc(done.until_ms)} UTC" if done.until_ms and done.fate in {"done", "planned"} else ""
    why = f": {done.why}" if done.why else ""
    console.print(f"  {utc(done.at_ms)}  {what}  {done.fate}{until}{why}", soft_wrap=True)
    if done.in_effect:
        console.print(f"    in effect; propose to end it: egm revoke lift {done.directive[:16]}")
