"""`egm approvals`: calls that wait for people, and what people say about them with keys of their own."""

import base64
import enum
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer

from control_plane.cli.context import JsonFlag, MeshOption, open_mesh, run
from control_plane.cli.keys import passphrase_for
from control_plane.cli.output import Exit, console, emit, table
from control_plane.cli.when import iso, left, seconds
from control_plane.core.analytics import caller_name
from control_plane.core.approval_content import Shown as How
from control_plane.edge.approval_client import ApprovalClient, Shown, approvals, check_shown, note_shown, sign
from egm.v1 import approvals_pb2 as pb
from trust import limits
from trust.approval import Verdict
from trust.approval_rule import window_s
from trust.edge.clock import SystemClock
from trust.edge.files import write_atomic
from trust.edge.keyfiles import load_signer
from trust.errors import InputError, Reason
from trust.ticket import Ticket

T = TypeVar("T")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Calls that wait for approvers. An approval binds one request, and is signed with the approver's own key.",
)


class StateName(enum.StrEnum):
    """Which tickets to list."""

    WAITING = "waiting"  # open or approved: what may still serve a call
    OPEN = "open"
    APPROVED = "approved"
    DENIED = "denied"
    USED = "used"
    EXPIRED = "expired"
    ALL = "all"


_WIRE: Final = {
    StateName.OPEN: pb.TICKET_STATE_OPEN,
    StateName.APPROVED: pb.TICKET_STATE_APPROVED,
    StateName.DENIED: pb.TICKET_STATE_DENIED,
    StateName.USED: pb.TICKET_STATE_USED,
    StateName.EXPIRED: pb.TICKET_STATE_EXPIRED,
}
_NAMES: Final = {number: name.value for name, number in _WIRE.items()}
_UNSEEN: Final = frozenset({How.PARTLY, How.BYTES, How.MISSING})

TicketArgument = Annotated[
    str, typer.Argument(metavar="TICKET", help="Its id, or at least 8 digits of its beginning.")
]
KeyOption = Annotated[str, typer.Option("--key", help="Your approval key: a file, or a signer URI.")]
ForOption = Annotated[
    str,
    typer.Option(
        "--for", help="How long what you sign counts: 10m, 1h; at most 1d. Default: 1h, or the window."
    ),
]


@app.command("list")
def list_tickets(
    state: Annotated[StateName, typer.Option(help="Which ones.")] = StateName.WAITING,
    limit: Annotated[int, typer.Option(help="How many at most.", min=1, max=limits.MAX_LISTED_TICKETS)] = 50,
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List calls that wait for approvers, newest first."""
    wanted = [_WIRE[state]] if state in _WIRE else [pb.TICKET_STATE_UNSPECIFIED]
    if state is StateName.WAITING:
        wanted = [pb.TICKET_STATE_OPEN, pb.TICKET_STATE_APPROVED]

    async def action(client: ApprovalClient) -> list[pb.TicketEntry]:
        return [one for number in wanted for one in await client.tickets(number, limit)]

    found = sorted(_connected(mesh, action), key=lambda one: -one.opened_ms)[:limit]
    now_ms = SystemClock().now_ms()

    def text() -> None:
        if not found:
            console.print("no ticket; all states: egm approvals list --state all")
            return
        table(
            ("ticket", "state", "caller", "method", "service", "needs", "missing", "left"),
            (_row(one, Ticket.parse(one.ticket), now_ms) for one in found),
        )

    emit({"tickets": [_entry(one) for one in found]}, as_json=as_json, text=text)


@app.command()
def show(
    ticket: TicketArgument,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the request as it was sent (mode 0600).")
    ] = None,
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show a call with its request, checked: the bytes have the digest that approvers sign. Exit 1: they do not."""
    _, directory = open_mesh(mesh)
    shown = _connected(mesh, lambda client: client.ticket(ticket))
    note_shown(directory, shown.ticket.id)
    if output is not None:
        if not shown.entry.has_content:
            raise InputError(
                Reason.NOT_FOUND, "the request is not shown: it is too large, or the ticket is over"
            )
        write_atomic(output, shown.entry.content, mode=0o600)
    emit(_whole(shown), as_json=as_json, text=lambda: _print(shown))
    if shown.content.shown is How.CONTRADICTED:
        raise typer.Exit(Exit.NO)


@app.command()
def approve(
    ticket: TicketArgument,
    key: KeyOption,
    reason: Annotated[str, typer.Option(help="One line for the record.")] = "-",
    lasts: ForOption = "",
    unseen: Annotated[
        bool, typer.Option("--unseen", help="Sign although the request cannot be shown as a whole.")
    ] = False,
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Approve one call. Signs nothing that was not shown, or whose bytes are not those that it names."""
    _decide(ticket, Verdict.APPROVE, key, reason, lasts, unseen=unseen, mesh=mesh, as_json=as_json)


@app.command()
def deny(
    ticket: TicketArgument,
    key: KeyOption,
    reason: Annotated[str, typer.Option(help="Why, in one line; the caller sees it.")],
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Deny one call. One approver is enough, whoever has approved it; the ticket stays denied until it ends."""
    _decide(ticket, Verdict.DENY, key, reason, "", unseen=True, mesh=mesh, as_json=as_json)


def _decide(
    named: str,
    verdict: Verdict,
    key: str,
    reason: str,
    lasts: str,
    *,
    unseen: bool,
    mesh: Path | None,
    as_json: bool,
) -> None:
    _, directory = open_mesh(mesh)
    signer = load_signer(key, passphrase_for(key))

    async def action(client: ApprovalClient) -> Shown:
        shown = await client.ticket(named)
        check_shown(directory, named, shown.ticket.id)
        how = shown.content.shown
        if how is How.CONTRADICTED:
            raise InputError(
                Reason.DIGEST_MISMATCH,
                "the bytes that are shown are not the request that would be signed; do not sign it",
            )
        if how in _UNSEEN and not unseen:
            raise InputError(
                Reason.INPUT_INVALID,
                f"the request is {how.value}: its SHA-256 is {shown.ticket.request}. If you know it from elsewhere, "
                "repeat with --unseen",
            )
        note = sign(
            shown,
            verdict,
            signer,
            client.groups,
            now_ms=SystemClock().now_ms(),
            ttl_s=_lasts_s(lasts, shown, verdict),
            reason=reason.strip(),
        )
        return await client.decide(note)

    decided = _connected(mesh, action)

    def text() -> None:
        state = _NAMES.get(decided.entry.state, "?")
        said = "approved" if verdict is Verdict.APPROVE else "denied"
        console.print(f"{said} {decided.ticket.id[:16]}: the ticket is {state}")
        if decided.entry.missing:
            console.print(f"  missing  {', '.join(decided.entry.missing)}")
        elif state == "approved":
            console.print("  the caller makes the same call again, or it goes on by itself while it is held")

    emit(_whole(decided), as_json=as_json, text=text)


def _lasts_s(lasts: str, shown: Shown, verdict: Verdict) -> int:
    if verdict is Verdict.DENY:
        return limits.MAX_APPROVAL_LIFETIME_S  # as long as the ticket can last
    if lasts:
        chosen = seconds(lasts, "--for")
        if chosen > limits.MAX_APPROVAL_LIFETIME_S:
            raise InputError(
                Reason.INPUT_INVALID, f"--for {lasts}: at most {limits.MAX_APPROVAL_LIFETIME_S // 3600}h"
            )
        return chosen
    return window_s(shown.requirements) or 3600


def _connected(mesh: Path | None, action: Callable[[ApprovalClient], Coroutine[Any, Any, T]]) -> T:
    book, directory = open_mesh(mesh)

    async def ask() -> T:
        async with approvals(book, directory) as client:
            return await action(client)

    return run(ask())


def _entry(one: pb.TicketEntry) -> dict[str, object]:
    ticket = Ticket.parse(one.ticket)
    return {
        "ticket": one.id,
        "state": _NAMES.get(one.state, "unknown"),
        "caller": ticket.caller,
        "service": ticket.service,
        "method": ticket.method,
        "request": ticket.request,
        "policies": ticket.policies,
        "needs": ticket.needs,
        "missing": list(one.missing),
        "node": one.node,
        "side": "inbound" if one.inbound else "outbound",
        "level": one.level,
        "opened_ms": one.opened_ms,
        "until_ms": one.until_ms,
        "request_bytes": one.content_bytes,
    }


def _whole(shown: Shown) -> dict[str, object]:
    return {
        **_entry(shown.entry),
        "content": shown.content.shown.value,
        "content_text": shown.content.text,
        "content_base64": base64.b64encode(shown.entry.content).decode() if shown.entry.has_content else None,
        "said": [
            {
                "approver": one.name,
                "verdict": one.approval.verdict.value,
                "reason": one.approval.reason,
                "issued_s": one.approval.issued_s,
                "until_s": one.approval.until_s,
                "sha256": one.sha256,
                "note": one.data.decode(),
            }
            for one in shown.said
        ],
    }


def _row(one: pb.TicketEntry, ticket: Ticket, now_ms: int) -> tuple[object, ...]:
    return (
        one.id[:16],
        _NAMES.get(one.state, "unknown"),
        caller_name(ticket.caller),
        ticket.method,
        ticket.service,
        ticket.needs,
        ", ".join(one.missing) or "-",
        left(one.until_ms, now_ms),
    )


def _print(shown: Shown) -> None:
    ticket, entry = shown.ticket, shown.entry
    rows = [
        ("ticket", ticket.id),
        ("state", _NAMES.get(entry.state, "unknown")),
        ("caller", ticket.caller),
        ("calls", f"{ticket.method} on {ticket.service}"),
        (
            "permitted by",
            f"{ticket.policies} (level {entry.level}, asked by the {_side(entry)} sidecar, node {entry.node})",
        ),
        ("needs", ticket.needs + (f"; missing {', '.join(entry.missing)}" if entry.missing else "")),
        ("ends", iso(entry.until_ms)),
    ]
    rows += [
        (
            one.approval.verdict.value,
            f"{one.name}, until {iso(one.approval.until_s * 1000)}: {one.approval.reason}",
        )
        for one in shown.said
    ]
    rows.append(("request", _about_content(shown)))
    for name, value in rows:
        console.print(f"{name:<13}{value}", soft_wrap=True)
    if shown.content.text:
        console.print("")
        for line in shown.content.text.split("\n"):
            console.print(f"    {line}", soft_wrap=True)


def _about_content(shown: Shown) -> str:
    size, how = shown.entry.content_bytes, shown.content.shown
    if how is How.CONTRADICTED:
        return "THE BYTES THAT ARE SHOWN ARE NOT THE REQUEST THAT WOULD BE SIGNED: do not sign; somebody lies"
    if how is How.UNBOUND:
        return "the approval binds none: it covers every request of this caller to this method" + (
            "; the first one is" if shown.content.text else ""
        )
    if how is How.NOTHING:
        return "a stream that sends no message"
    extra = {
        How.PARTLY: "; it has fields that the policy's descriptors do not know: see -o FILE",
        How.MISSING: "; it is too large to be shown, or no longer kept",
    }.get(how, "")
    return f"{size} bytes, SHA-256 {shown.ticket.request}, {how.value}{extra}"


def _side(entry: pb.TicketEntry) -> str:
    return "callee's" if entry.inbound else "caller's"
