"""`egm node quarantine` and `egm node release`: one emergency key locks a node out, only the quorum lets it back in."""

from typing import Annotated

import typer

from control_plane.cli.amending import propose
from control_plane.cli.context import JsonFlag, MeshOption, open_mesh, run
from control_plane.cli.revoke import KeyOption, ReasonOption, TtlOption, revoke_node
from control_plane.core import amend
from control_plane.edge.emergency_client import EmergencyClient
from trust.errors import InputError, Reason
from trust.misbehaviour import proof_id, read_proof
from trust.spiffe import SpiffeId

NodeName = Annotated[str, typer.Argument(help="The node.")]


def quarantine(
    name: NodeName,
    ttl: TtlOption = "1d",
    reason: ReasonOption = "",
    key: KeyOption = "",
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Lock node NAME out at once, with one emergency key. A misbehaviour proof does so without anybody asking."""
    revoke_node(name, ttl, reason, key=key, mesh=mesh, as_json=as_json)


def release(name: NodeName, mesh: MeshOption = None, as_json: JsonFlag = False) -> None:
    """Propose to let node NAME take part again: settles its proofs, ends its revocations. The quorum decides."""
    book, directory = open_mesh(mesh)
    _, found = run(EmergencyClient(book, directory).denials())
    accused = str(SpiffeId.of(book.trust_domain, "node", name))
    proofs = [proof_id(data) for data in found.proofs if read_proof(data).accused == accused]
    directives = [
        one.id for one in found.denials if (one.kind, one.value, one.by) == ("node", name, "emergency")
    ]
    denied = [one for one in found.denials if (one.kind, one.value) == ("node", name)]
    if not denied:
        raise InputError(
            Reason.NOT_FOUND, f"node {name} is neither quarantined nor revoked; see 'egm revoke list'"
        )
    keep = f"released_proofs: [{', '.join(proofs)}]"
    if directives:
        keep += f"  ended_revocations: [{', '.join(directives)}]"
    propose(
        book,
        directory,
        lambda archive, settings: amend.released(
            archive, settings, name, proofs=proofs, directives=directives
        ),
        title=f"Release node {name}",
        keep=keep,
        as_json=as_json,
    )
