"""The verbs that change what is in force: propose, review, sign, publish, status, rollback."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from control_plane.cli.context import JsonFlag, MeshOption, open_mesh, run
from control_plane.cli.keys import passphrase_for
from control_plane.cli.output import console, emit, table
from control_plane.cli.policy_replay import REVIEW_SINCE, impact, report_json, show_report
from control_plane.cli.policy_source import show_diff
from control_plane.core.amend import settings_of
from control_plane.core.left_out import as_lines, left_out
from control_plane.core.replay import ReplayReport
from control_plane.edge import operator_client
from control_plane.edge.given_file import read_given
from control_plane.edge.operator_client import OperatorClient
from control_plane.edge.release import Release, Reviewed, build_folder, proposal_to_dict
from egm.v1 import operator_pb2
from trust import limits
from trust.authoring import Holders
from trust.edge.keyfiles import load_public, load_signer
from trust.errors import MeshError
from trust.policy.diff import BundleDiff, diff
from trust.verified import BASE_ROLE

T = TypeVar("T")
_DAY_S = 24 * 3600
Proposal = Annotated[
    str, typer.Argument(help="Proposal id, from 'egm policy propose' or 'egm policy status'.")
]


def _with_release(mesh: Path | None, action: Callable[[Release, OperatorClient], Awaitable[T]]) -> T:
    file, directory = open_mesh(mesh)

    async def ask() -> T:
        async with operator_client.operator(file, directory) as client:
            return await action(Release(file, directory, client), client)

    return run(ask())


def _print_proposal(proposal: operator_pb2.Proposal, then: str) -> None:
    data = proposal_to_dict(proposal)
    signed = ", ".join(str(s.name or s.key_id[:12]) for s in proposal.signatures) or "nobody yet"
    console.print(
        f"proposal {proposal.id}: version {proposal.version} of {proposal.role}, {data['state']}",
        markup=False,
    )
    console.print(f"  title      {proposal.title}", markup=False)
    console.print(f"  digest     {proposal.digest}", markup=False)
    console.print(f"  signed by  {signed} ({len(proposal.signatures)} of {proposal.threshold})", markup=False)
    if then:
        console.print(f"  next       {then}", markup=False)


def _next(proposal: operator_pb2.Proposal) -> str:
    if proposal.state == operator_pb2.PROPOSAL_STATE_READY:
        return f"egm policy publish {proposal.id}"
    if proposal.state == operator_pb2.PROPOSAL_STATE_OPEN:
        return f"egm policy review {proposal.id}, then egm policy sign {proposal.id} --key KEYFILE"
    return ""


def _show(proposal: operator_pb2.Proposal, *, as_json: bool) -> None:
    emit(proposal_to_dict(proposal), as_json=as_json, text=lambda: _print_proposal(proposal, _next(proposal)))


def propose(
    folder: Annotated[
        Path, typer.Argument(help="Policy folder (see 'egm policy new').", exists=True, file_okay=False)
    ],
    title: Annotated[str, typer.Option(help="One line for the approvers.")] = "",
    days: Annotated[
        int, typer.Option(help="Days until the policy must be signed anew.", min=1, max=3650)
    ] = 365,
    level: Annotated[
        int | None, typer.Option(help="Replace the default level of bundle.yaml.", min=0, max=5)
    ] = None,
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Propose the policy in FOLDER as the next version. Approvers then review and sign it."""
    archive, role, name = build_folder(folder, level_override=level)

    async def action(
        release: Release, _client: OperatorClient
    ) -> tuple[operator_pb2.Proposal, dict[str, Any]]:
        current = (await release.in_force()).bundle(role)
        dropped = left_out(None if current is None else current.mesh, settings_of(archive))
        return await release.propose(
            archive, role=role, title=title or name, lifetime_s=days * _DAY_S
        ), dropped

    proposal, dropped = _with_release(mesh, action)

    def text() -> None:
        _print_proposal(proposal, _next(proposal))
        if dropped:
            console.print(
                "\nit leaves out, and so ends, what is in force; to keep that, put into bundle.yaml:"
            )
            for line in as_lines(dropped):
                console.print(f"  {line}", markup=False, soft_wrap=True)

    emit({**proposal_to_dict(proposal), "left_out": dropped}, as_json=as_json, text=text)


def review(proposal: Proposal, mesh: MeshOption = None, as_json: JsonFlag = False) -> None:
    """Show what a proposal changes: policies, settings, who may newly call what. Verified on this machine.

    Then what it would have made of the executions that were recorded in the last days (egm policy replay).
    """

    async def action(
        release: Release, client: OperatorClient
    ) -> tuple[Reviewed, BundleDiff | None, ReplayReport | MeshError | None]:
        reviewed = await release.review(proposal)
        changes = _diff_of(reviewed)
        replays = reviewed.bundle is not None and reviewed.previous is not None
        replayed = await impact(release, client, reviewed) if replays else None
        release.remember(reviewed)
        return reviewed, changes, replayed

    reviewed, changes, replayed = _with_release(mesh, action)
    data = proposal_to_dict(reviewed.content.proposal) | {
        # what a signature covers, computed here; the title and who proposed it are the control plane's word
        "role": reviewed.role,
        "version": reviewed.metadata.signed.version,
        "digest": reviewed.digest,
        "holders": [asdict(change) for change in reviewed.holders],
        "diff": None if changes is None else changes.to_dict(),
        "impact": report_json(replayed) if isinstance(replayed, ReplayReport) else None,
    }

    def text() -> None:
        console.print(f"proposal {proposal}: version {data['version']} of {reviewed.role}")
        console.print(f"  digest     {reviewed.digest}  (verified here)", soft_wrap=True)
        console.print(f"  title      {reviewed.content.proposal.title}  (not signed)", soft_wrap=True)
        console.print(f"  next       egm policy sign {proposal} --key KEYFILE\n", soft_wrap=True)
        _show_holders(reviewed)
        if changes is None:
            console.print("no policy changes, only keys")
        else:
            show_diff(changes)
        _show_impact(proposal, replayed)

    emit(data, as_json=as_json, text=text)


def _show_impact(proposal: str, replayed: ReplayReport | MeshError | None) -> None:
    if isinstance(replayed, MeshError):
        console.print(f"\nimpact on past executions unknown: {replayed.detail}", soft_wrap=True)
    elif replayed is not None and replayed.executions:
        title = f"proposal {proposal} against what is in force, last {REVIEW_SINCE}"
        console.print()
        show_report(title, replayed)


def _show_holders(reviewed: Reviewed) -> None:
    *changes, expiry = reviewed.holders
    if changes:
        console.print("who may sign changes:", style="bold")
    for change in changes:
        text = f"  {change.what}: {change.before or '(none)'} -> {change.after or '(none)'}"
        console.print(text, soft_wrap=True)
    console.print(f"{expiry.what} {expiry.after}" + (f", was {expiry.before}" if expiry.before else ""))


def _diff_of(reviewed: Reviewed) -> BundleDiff | None:
    return None if reviewed.bundle is None else diff(reviewed.previous, reviewed.bundle, base=reviewed.base)


def sign(
    proposal: Proposal,
    key: Annotated[str, typer.Option(help="Your private key: a file, or a signer URI (hsm:, awskms:, ...).")],
    digest: Annotated[
        str | None, typer.Option(help="The digest that 'egm policy review' showed on another machine.")
    ] = None,
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Sign a proposal with your own key: what was reviewed on this machine, or has the digest given."""
    signer = load_signer(key, passphrase_for(key))

    async def action(release: Release, _client: OperatorClient) -> operator_pb2.Proposal:
        return await release.sign(await release.review(proposal), signer, digest=digest)

    _show(_with_release(mesh, action), as_json=as_json)


def publish(proposal: Proposal, mesh: MeshOption = None, as_json: JsonFlag = False) -> None:
    """Put a proposal in force. Needs the approvers' quorum; every sidecar checks it again."""

    async def action(_release: Release, client: OperatorClient) -> operator_pb2.PublishResponse:
        return await client.publish(proposal)

    answer = _with_release(mesh, action)
    data = proposal_to_dict(answer.proposal) | {
        "snapshot_version": answer.snapshot_version,
        "timestamp_version": answer.timestamp_version,
    }
    emit(data, as_json=as_json, text=f"published version {answer.proposal.version} of {answer.proposal.role}")


def withdraw(proposal: Proposal, mesh: MeshOption = None, as_json: JsonFlag = False) -> None:
    """Close an open proposal."""

    async def action(_release: Release, client: OperatorClient) -> operator_pb2.Proposal:
        return await client.withdraw(proposal)

    _show(_with_release(mesh, action), as_json=as_json)


def status(
    open_only: Annotated[bool, typer.Option("--open", help="Only proposals that wait.")] = False,
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show what is in force, and every proposal with who signed and who is missing."""

    async def action(
        _release: Release, client: OperatorClient
    ) -> tuple[operator_pb2.ControlPlaneStatus, list[operator_pb2.Proposal]]:
        return await client.status(), list(await client.proposals(open_only=open_only))

    state, proposals = _with_release(mesh, action)
    data = {
        "versions": dict(state.role_versions),
        "lease_expires_ms": state.lease_expires_ms,
        "lease_ttl_s": state.lease_ttl_s,
        "proposals": [proposal_to_dict(proposal) for proposal in proposals],
    }

    def text() -> None:
        versions = ", ".join(f"{role} {version}" for role, version in sorted(state.role_versions.items()))
        console.print(f"in force   {versions or 'nothing yet'}\n", markup=False)
        table(
            ("proposal", "role", "version", "state", "signed", "missing", "title"),
            (
                (
                    p.id,
                    p.role,
                    p.version,
                    proposal_to_dict(p)["state"],
                    f"{len(p.signatures)} of {p.threshold}",
                    ", ".join(p.missing),
                    p.title,
                )
                for p in proposals
            ),
        )

    emit(data, as_json=as_json, text=text)


def rollback(
    to: Annotated[int, typer.Option("--to", help="The version whose content to return to.", min=1)],
    role: Annotated[str, typer.Option(help="A namespace; default: the base bundle.")] = BASE_ROLE,
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Propose the content of an earlier version as a new version, to be signed like any other."""

    async def action(release: Release, _client: OperatorClient) -> operator_pb2.Proposal:
        return await release.rollback(role=role, version=to)

    _show(_with_release(mesh, action), as_json=as_json)


def delegate(
    namespace: Annotated[str, typer.Argument(help="Namespace, for example payments.")],
    key: Annotated[list[Path] | None, typer.Option(help="Public key file of an approver; repeat.")] = None,
    threshold: Annotated[int, typer.Option(help="How many of them must sign.", min=1)] = 2,
    end: Annotated[bool, typer.Option("--end", help="End the delegation.")] = False,
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Propose approvers of its own for a namespace. The base's approvers sign it."""
    if not key and not end:
        raise typer.BadParameter("give --key PUB.json for every approver, or --end")
    holders = None if end else Holders([load_public(path) for path in key or ()], threshold)

    async def action(release: Release, _client: OperatorClient) -> operator_pb2.Proposal:
        title = f"{'End' if end else 'Delegate'} namespace {namespace}"
        return await release.propose_namespace(namespace, holders, title=title)

    _show(_with_release(mesh, action), as_json=as_json)


def propose_root(
    file: Annotated[Path, typer.Argument(help="Root metadata from 'egm keys rotate'.", exists=True)],
    title: Annotated[str, typer.Option(help="One line for the root key holders.")] = "Replace keys",
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Propose a new root version (key rotation). Needs the old and the new root quorum."""

    async def action(release: Release, _client: OperatorClient) -> operator_pb2.Proposal:
        return await release.propose_root(read_given(file, limits.MAX_METADATA_BYTES), title=title)

    _show(_with_release(mesh, action), as_json=as_json)


def register(app: typer.Typer) -> None:
    """Add every verb of this module to `app`."""
    for verb in (propose, review, sign, publish, withdraw, status, rollback, delegate, propose_root):
        app.command(verb.__name__.replace("_", "-"))(verb)
