"""Proposals that change nothing but what the quorum says of denials."""

from pathlib import Path

from control_plane.cli.context import run
from control_plane.cli.output import console, emit
from control_plane.core import amend
from control_plane.edge import operator_client
from control_plane.edge.mesh_file import MeshFile
from control_plane.edge.release import Release, proposal_to_dict
from egm.v1 import operator_pb2
from trust.errors import InputError, Reason
from trust.verified import BASE_ROLE


def propose_amended(
    book: MeshFile, directory: Path, change: amend.Change, *, title: str
) -> operator_pb2.Proposal:
    """Propose the base bundle in force with one change.

    Raises:
        InputError: POLICY_MISSING, when there is none.
    """

    async def ask() -> operator_pb2.Proposal:
        async with operator_client.operator(book, directory) as client:
            release = Release(book, directory, client)
            policy = (await release.in_force()).policy
            settings = None if policy is None else amend.settings_of(policy.base.data)
            if policy is None or settings is None:
                raise InputError(Reason.POLICY_MISSING, "no policy is in force that could be changed")
            return await release.propose(change(policy.base.data, settings), role=BASE_ROLE, title=title)

    return run(ask())


def propose(
    book: MeshFile, directory: Path, change: amend.Change, *, title: str, keep: str, as_json: bool
) -> None:
    """Propose a change and show what comes next; `keep` is the line for the policy folder."""
    proposal = propose_amended(book, directory, change, title=title)
    show_proposal(proposal, keep=keep, as_json=as_json)


def show_proposal(proposal: operator_pb2.Proposal, *, keep: str, as_json: bool) -> None:
    """Say what the approvers do next, and what must go into the policy folder so that it stays so."""

    def text() -> None:
        console.print(f"proposal {proposal.id}: {proposal.title}; only the quorum allows again")
        console.print(
            f"  next       egm policy review {proposal.id}, then egm policy sign {proposal.id} --key KEYFILE"
        )
        console.print(f"  and keep it in your policy folder, bundle.yaml:  {keep}", soft_wrap=True)

    emit({**proposal_to_dict(proposal), "bundle": keep}, as_json=as_json, text=text)
