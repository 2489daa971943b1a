"""`egm lineage`: which executions there were, how they hang together, and what supports each link."""

import enum
from collections.abc import Mapping
from typing import Annotated

import typer

from control_plane.cli.analytics import caller_id
from control_plane.cli.context import JsonFlag, MeshOption, open_mesh, run
from control_plane.cli.lineage_payload import payload
from control_plane.cli.output import console, emit, table
from control_plane.cli.when import parse_when, utc
from control_plane.core.executions import DEFAULT_PAGE, Decided
from control_plane.edge import operator_client
from control_plane.edge.lineage_view import seen_of
from egm.v1 import record_pb2
from trust import limits
from trust.edge.clock import SystemClock
from trust.errors import InputError, Reason
from trust.execution import id_text, parse_id
from trust.lineage import Hop, build_tree, facts, hop_json, short_names, standing, title, to_json
from trust.lineage_export import to_dot, to_mermaid, to_text
from trust.record import record_digest

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Executions over all nodes: list, show, tree, payload."
)
app.command("payload")(payload)


class Format(enum.StrEnum):
    """How a tree is printed."""

    TEXT = "text"
    DOT = "dot"
    MERMAID = "mermaid"


@app.command()
def show(
    execution: Annotated[str, typer.Argument(metavar="ID", help="The id of an execution.")],
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show everything that nodes recorded of one execution, and where it is in their ledgers."""
    file, directory = open_mesh(mesh)
    wanted = parse_id(execution)

    async def ask() -> tuple[list[record_pb2.ExecutionEntry], record_pb2.GetTreeResponse]:
        async with operator_client.operator(file, directory) as client:
            return list(await client.execution(wanted)), await client.tree(wanted)

    entries, around = run(ask())
    # what stands above it says how it is linked; a large tree may have been cut before it
    records = {(e.node, e.ledger, e.intent_index): e for e in (*entries, *around.entries)}
    tree = build_tree(map(seen_of, records.values()), around.root_id)
    hop = next(hop for hop in tree.hops if hop.execution_id == wanted)
    sides = [_side_json(entry) for entry in entries]
    emit(
        {"id": id_text(wanted), "sides": sides, "hop": hop_json(hop)},
        as_json=as_json,
        text=lambda: _print_sides(hop, short_names(tree), sides),
    )


@app.command("tree")
def tree_of(
    root: Annotated[
        str, typer.Argument(metavar="ROOT", help="The id of the root, or of any execution below it.")
    ],
    form: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.TEXT,
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the chain of executions over all nodes, with decision, duration and what supports each hop."""
    file, directory = open_mesh(mesh)
    wanted = parse_id(root)

    async def ask() -> record_pb2.GetTreeResponse:
        async with operator_client.operator(file, directory) as client:
            return await client.tree(wanted)

    answer = run(ask())
    tree = build_tree(map(seen_of, answer.entries), answer.root_id, truncated=answer.truncated)
    render = {Format.TEXT: to_text, Format.DOT: to_dot, Format.MERMAID: to_mermaid}[form]
    emit(
        to_json(tree),
        as_json=as_json,
        # never wrapped: DOT and Mermaid are for programs, and a tree only reads in one piece
        text=lambda: console.print(render(tree), markup=False, soft_wrap=True),
    )


@app.command("list")
def list_executions(
    caller: Annotated[str, typer.Option(help="Workload name or SPIFFE ID.")] = "",
    service: Annotated[str, typer.Option(help="Logical name of the callee.")] = "",
    method: Annotated[str, typer.Option(help="package.Service/Method.")] = "",
    decision: Annotated[Decided | None, typer.Option(help="What was decided.")] = None,
    reason: Annotated[str, typer.Option(help="For example POLICY_DENIED; see docs/reasons.md.")] = "",
    node: Annotated[str, typer.Option(help="The node that recorded it.")] = "",
    since: Annotated[str, typer.Option(help="10m, 2h, 7d ago, or 2026-01-31T12:00:00Z; included.")] = "",
    until: Annotated[str, typer.Option(help="As --since; excluded.")] = "",
    limit: Annotated[
        int, typer.Option(help="Entries at most.", min=1, max=limits.MAX_EXECUTIONS_PAGE)
    ] = DEFAULT_PAGE,
    cursor: Annotated[str, typer.Option(help="Go on after an earlier page.")] = "",
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List executions, newest first; each side that a node recorded is an entry."""
    file, directory = open_mesh(mesh)
    now_ms = SystemClock().now_ms()
    request = record_pb2.ListExecutionsRequest(
        limit=limit,
        cursor=cursor,
        caller=caller_id(caller, file),
        service=service,
        method=method.removeprefix("/"),
        decision=decision or "",
        reason=_reason(reason),
        node=node,
        since_ms=parse_when(since, now_ms=now_ms),
        until_ms=parse_when(until, now_ms=now_ms),
    )

    async def ask() -> record_pb2.ListExecutionsResponse:
        async with operator_client.operator(file, directory) as client:
            return await client.executions(request)

    answer = run(ask())
    sides = [_side_json(entry) for entry in answer.entries]
    emit(
        {"executions": sides, "next_cursor": answer.next_cursor or None},
        as_json=as_json,
        text=lambda: _print_list(sides, answer.next_cursor),
    )


def _side_json(entry: record_pb2.ExecutionEntry) -> dict[str, object]:
    seen = seen_of(entry)
    intent, outcome = seen.intent, seen.outcome
    ended = None
    if outcome is not None:
        ended = {
            "ending": outcome.ending.name,
            "status": outcome.status,
            "reason": outcome.reason,
            "duration_ms": outcome.duration_us / 1000,
            "response_sha256": outcome.response_sha256.hex(),
            "request_messages": outcome.request_messages,
            "request_bytes": outcome.request_bytes,
            "response_messages": outcome.response_messages,
            "response_bytes": outcome.response_bytes,
            "at_ms": outcome.wall_ms,
            "boot_id": outcome.boot_id,
            "ledger_index": seen.outcome_index,
            "record_sha256": record_digest(entry.outcome).hex(),
            "sealed_response_bytes": len(outcome.sealed_response),
        }
    return {
        "id": id_text(intent.execution_id),
        "root": id_text(intent.root_id),
        "parent": intent.parent_id.hex() and id_text(intent.parent_id),
        "parent_link": intent.link.name,
        "parent_permit_sha256": intent.parent_permit_sha256.hex(),
        "node": intent.node,
        "side": intent.side.name,
        "at_ms": intent.wall_ms,
        "caller": intent.caller,
        "authn": intent.authn,
        "service": intent.service,
        "callee": intent.callee,
        "method": intent.method,
        "request_sha256": intent.request_sha256.hex(),
        "allowed": intent.allowed,
        "reason": intent.reason,
        "would_deny": intent.would_deny,
        "level": intent.level,
        "policy_version": intent.policy_version,
        "policy_sha256": intent.policy_sha256.hex(),
        "policies": list(intent.policies),
        "policies_omitted": intent.policies_omitted,
        "obligations": [list(pair) for pair in intent.obligations],
        "permit_sha256": intent.permit_sha256.hex(),
        "sealed_request_bytes": len(intent.sealed_request),
        "decision_id": intent.decision_id,
        "traceparent": intent.traceparent,
        "boot_id": intent.boot_id,
        "ledger": entry.ledger,
        "ledger_index": entry.intent_index,
        "record_sha256": record_digest(entry.intent).hex(),
        "outcome": ended,
    }


def _print_sides(hop: Hop, names: Mapping[str, str], sides: list[dict[str, object]]) -> None:
    console.print(title(hop, names), markup=False)
    console.print(f"{facts(hop)}  [{standing(hop)}]", markup=False, soft_wrap=True)
    for side in sides:
        outcome = side.pop("outcome")
        console.print(f"\n{side.pop('side')} at node {side.pop('node')}", markup=False)
        rows = [(name, value) for name, value in side.items() if value not in ("", [], 0, None)]
        if isinstance(outcome, dict):
            rows += [(f"outcome {name}", value) for name, value in outcome.items() if value not in ("", 0)]
        for name, value in rows:
            shown = f"{utc(int(str(value)))} UTC" if name.endswith("at_ms") else value
            console.print(f"  {name:<28}{shown}", markup=False, soft_wrap=True)
        if outcome is None and side["allowed"]:
            console.print("  no outcome recorded yet", markup=False)


def _print_list(sides: list[dict[str, object]], next_cursor: str) -> None:
    if not sides:
        console.print("no executions match; nodes ship their records when they reach the control plane")
        return
    rows = []
    for side in sides:
        outcome = side["outcome"]
        status = outcome["status"] or outcome["ending"] if isinstance(outcome, dict) else "-"
        caller = str(side["caller"]).rpartition("/workload/")[2] or "(nobody)"
        rows.append(
            (
                utc(int(str(side["at_ms"]))),
                caller,
                side["service"],
                side["method"],
                side["reason"],
                status,
                f"{side['node']}/{str(side['side']).lower()}",
                side["id"],
            )
        )
    table(("when (UTC)", "caller", "service", "method", "decision", "status", "recorded by", "id"), rows)
    if next_cursor:
        console.print(f"\nmore: --cursor {next_cursor}", markup=False)


def _reason(text: str) -> str:
    if text and text.upper() not in Reason.__members__:
        raise InputError(Reason.INPUT_INVALID, f"no reason {text[:64]!r}; docs/reasons.md lists them")
    return text.upper()
