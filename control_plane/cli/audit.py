"""`egm audit`: what operators did, newest first."""

from typing import Annotated

import typer

from control_plane.cli.context import JsonFlag, MeshOption, open_mesh, run
from control_plane.cli.output import emit, table
from control_plane.cli.when import utc
from control_plane.edge import operator_client
from egm.v1 import operator_pb2
from trust import limits

app = typer.Typer(add_completion=False)


@app.command()
def audit(
    limit: Annotated[int, typer.Option(help="Entries at most.", min=1, max=limits.MAX_AUDIT_PAGE)] = 50,
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List who proposed, signed, published, withdrew, and made join tokens. Kept by the control plane."""
    file, directory = open_mesh(mesh)

    async def ask() -> list[operator_pb2.AuditEntry]:
        async with operator_client.operator(file, directory) as client:
            return list(await client.audit(limit=limit))

    entries = run(ask())
    data = [
        {
            "id": e.id,
            "at_ms": e.at_ms,
            "who": e.who,
            "action": e.action,
            "proposal": e.proposal_id,
            "detail": e.detail,
        }
        for e in entries
    ]
    rows = ((utc(e.at_ms), e.who, e.action, e.proposal_id, e.detail) for e in entries)
    emit(
        {"entries": data},
        as_json=as_json,
        text=lambda: table(("when (UTC)", "who", "action", "proposal", "detail"), rows),
    )
