"""`egm policy shadow`: try a proposed bundle in live sidecars beside the policy in force, and see what differs."""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from control_plane.cli.context import JsonFlag, MeshOption, open_mesh, run
from control_plane.cli.keys import passphrase_for
from control_plane.cli.output import Exit, console, emit, table
from control_plane.cli.when import seconds
from control_plane.core.shadow import Finding, findings
from control_plane.edge import operator_client
from control_plane.edge.release import Release
from control_plane.edge.shadow_client import ShadowClient, shadow_runs
from egm.v1 import shadow_pb2
from trust.edge.clock import SystemClock
from trust.edge.keyfiles import load_signer
from trust.errors import InputError, Reason
from trust.shadow import Order, sign_order
from trust.verified import target_path

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Try a proposed bundle in live sidecars, enforcing nothing; one approver starts it.",
)


@app.command()
def start(
    proposal: Annotated[str, typer.Argument(help="Proposal id, from 'egm policy propose'.")],
    key: Annotated[str, typer.Option(help="Your approver key: a file, or a signer URI.")],
    lasting: Annotated[str, typer.Option("--for", help="How long: 30m, 8h, 7d at most.")] = "1h",
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Have every node decide each call under PROPOSAL as well, and count what would differ."""
    signer = load_signer(key, passphrase_for(key))
    file, directory = open_mesh(mesh)
    now_s = SystemClock().now_ms() // 1000
    lasting_s = seconds(lasting, "--for")

    async def order() -> bytes:
        async with operator_client.operator(file, directory) as client:
            reviewed = await Release(file, directory, client).review(proposal)
        archive = reviewed.content.files.get(target_path(reviewed.role))
        if archive is None:
            raise InputError(Reason.INPUT_INVALID, f"proposal {proposal} changes no policy: nothing to try")
        return sign_order(
            Order(
                file.trust_domain,
                reviewed.role,
                reviewed.digest,
                hashlib.sha256(archive).hexdigest(),
                len(archive),
                now_s,
                now_s + lasting_s,
            ),
            signer,
        )

    signed = run(order())
    found = _ask(mesh, lambda client: client.start(proposal, signed))
    emit(
        to_dict(found),
        as_json=as_json,
        text=f"shadow run {found.run_id} of proposal {proposal}: nodes take it up within seconds; "
        "what differs: egm policy shadow show",
    )


@app.command()
def stop(mesh: MeshOption = None, as_json: JsonFlag = False) -> None:
    """End the run that is under way; what was found stays."""
    found = _ask(mesh, lambda client: client.stop())
    emit(to_dict(found), as_json=as_json, text=f"shadow run {found.run_id} is stopped")


@app.command()
def show(
    run_id: Annotated[str, typer.Argument(help="Shadow run; default: the newest.")] = "",
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show what the candidate would have decided differently. Exit 1 when it would deny what is allowed now."""
    found = _ask(mesh, lambda client: client.get(run_id))
    differing = findings(found.nodes)
    emit(to_dict(found), as_json=as_json, text=lambda: _print(found, differing))
    if any(finding.change == "newly-denied" for finding in differing):
        raise typer.Exit(Exit.NO)


def to_dict(found: shadow_pb2.ShadowRun) -> dict[str, Any]:
    """Return a run as `--json` shows it."""
    return {
        "run": found.run_id,
        "proposal": found.proposal_id,
        "role": found.role,
        "state": found.state,
        "approver": found.approver,
        "started_by": found.started_by,
        "started_ms": found.started_ms,
        "until_ms": found.until_ms,
        "stopped_ms": found.stopped_ms or None,
        "nodes": [
            {
                "node": node.node,
                "at_ms": node.at_ms,
                "compared": node.report.compared,
                "incomparable": node.report.incomparable,
                "omitted": node.report.omitted,
                "problem": node.report.problem or None,
            }
            for node in found.nodes
        ],
        "differences": [asdict(finding) for finding in findings(found.nodes)],
    }


def _print(found: shadow_pb2.ShadowRun, differing: list[Finding]) -> None:
    console.print(
        f"shadow run {found.run_id}: proposal {found.proposal_id} ({found.role}), {found.state}, "
        f"ordered by {found.approver}",
        markup=False,
    )
    if not found.nodes:
        console.print("no node has reported yet; they do every few seconds")
        return
    for node in found.nodes:
        report = node.report
        what = report.problem or f"{report.compared} calls compared, {report.incomparable} not comparable"
        console.print(f"  {node.node}: {what}", markup=False, soft_wrap=True)
    if not differing:
        console.print("no call would have been decided differently")
        return
    table(
        ("change", "caller", "service", "method", "now", "then", "calls", "by", "decision"),
        (
            (
                f.change,
                f.caller,
                f.service,
                f.method,
                f.before,
                f.after,
                max(f.inbound, f.outbound),
                ", ".join(f.policies),
                f.decision_id,
            )
            for f in differing
        ),
    )


def _ask(
    mesh: Path | None, action: Callable[[ShadowClient], Awaitable[shadow_pb2.ShadowRun]]
) -> shadow_pb2.ShadowRun:
    file, directory = open_mesh(mesh)

    async def ask() -> shadow_pb2.ShadowRun:
        async with shadow_runs(file, directory) as client:
            return await action(client)

    return run(ask())
