"""`egm node quarantine` and `egm node release`: one emergency key locks a node out, only the quorum lets it back in."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from control_plane.cli.amending import propose
from control_plane.cli.context import JsonFlag, MeshOption, open_mesh, run
from control_plane.cli.output import Exit, emit
from control_plane.cli.revoke import KeyOption, ReasonOption, TtlOption, revoke_node
from control_plane.core import amend
from control_plane.edge.emergency_client import EmergencyClient
from control_plane.edge.given_file import read_given
from trust import limits
from trust.edge.files import write_atomic
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


def proof(
    name: NodeName,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the proof will be.")],
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Write the misbehaviour proof against node NAME to a file that anybody can verify offline."""
    book, directory = open_mesh(mesh)
    _, found = run(EmergencyClient(book, directory).denials())
    proofs = _against(found.proofs, str(SpiffeId.of(book.trust_domain, "node", name)))
    if not proofs:
        raise InputError(Reason.NOT_FOUND, f"no misbehaviour of node {name} has been proven")
    write_atomic(output, proofs[0])
    text = f"{output}: verify it with: egm evidence verify {output} --root ROOT.json --ca CA.pem"
    emit({"file": str(output), "id": proof_id(proofs[0]), "proofs": len(proofs)}, as_json=as_json, text=text)


def accuse(
    file: Annotated[Path, typer.Argument(help="A misbehaviour proof.", exists=True)],
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Hand a misbehaviour proof in: whom it convicts is quarantined everywhere. It proves itself; anybody may."""
    data = read_given(file, limits.MAX_PROOF_BYTES)
    book, directory = open_mesh(mesh)
    answers = run(EmergencyClient(book, directory).accuse(data))
    taken = [one for one in answers if one.error is None]
    refused = {one.member: str(one.error) for one in answers if one.error is not None and one.reached}
    text = f"proven: {taken[0].summary}" if taken else "nobody took it: " + "; ".join(refused.values())
    emit(
        {"id": proof_id(data), "taken_by": [one.member for one in taken], "refused": refused},
        as_json=as_json,
        text=text,
    )
    if not taken:
        raise typer.Exit(Exit.NO if refused else Exit.UNKNOWN)


def release(name: NodeName, mesh: MeshOption = None, as_json: JsonFlag = False) -> None:
    """Propose to let node NAME take part again: settles its proofs, ends its revocations. The quorum decides."""
    book, directory = open_mesh(mesh)
    _, found = run(EmergencyClient(book, directory).denials())
    accused = str(SpiffeId.of(book.trust_domain, "node", name))
    proofs = [proof_id(data) for data in _against(found.proofs, accused)]
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


def _against(proofs: Iterable[bytes], accused: str) -> list[bytes]:
    return [data for data in proofs if read_proof(data).accused == accused]
