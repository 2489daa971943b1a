"""`egm status`: every node with its policy version, lease and level."""

import typer

from control_plane.cli.context import JsonFlag, MeshOption, open_mesh, run
from control_plane.cli.output import Exit, console, emit, table
from control_plane.edge import operator_client
from control_plane.edge.fleet_view import FleetView, NodeView, fleet_view

app = typer.Typer(add_completion=False)


@app.command()
def status(mesh: MeshOption = None, as_json: JsonFlag = False) -> None:
    """Show nodes, policy version, lease and level. Exit 0: all ready; 1: some are not; 3: could not tell."""
    file, directory = open_mesh(mesh)

    async def ask() -> FleetView:
        async with operator_client.operator(file, directory) as client:
            return fleet_view(await client.status(), await client.nodes())

    view = run(ask())
    emit(view.to_dict(), as_json=as_json, text=lambda: _print(view))
    raise typer.Exit(Exit.YES if view.healthy else Exit.NO)


def _print(view: FleetView) -> None:
    versions = (
        ", ".join(f"{role} {version}" for role, version in sorted(view.role_versions.items())) or "none"
    )
    console.print(f"control plane  {view.name}, lease {view.lease_ttl_s} s, {view.broker}", markup=False)
    console.print(f"published      {versions or 'nothing'}\n", markup=False)
    table(
        ("node", "state", "policy", "lease", "left", "attested", "levels", "seen"),
        (
            (
                node.name,
                node.state,
                node.policy_version or "none",
                node.lease,
                _left(node),
                _attested(node),
                " ".join(f"{service}={level}" for service, level in sorted(node.levels.items())) or "-",
                f"{node.seen_s_ago:.0f} s ago",
            )
            for node in view.nodes
        ),
    )
    for gap in view.missing:
        console.print(f"- {gap}", markup=False)
    for problem in view.problems:
        console.print(f"! {problem}", markup=False)


def _left(node: NodeView) -> str:
    if node.lease == "FRESH":
        return f"{node.lease_remaining_s:.0f} s"
    return f"grace {node.grace_remaining_s:.0f} s" if node.lease == "STALE" else "-"


def _attested(node: NodeView) -> str:
    if node.attested:
        return f"by {len(node.vouched)}, {node.attestation_remaining_s:.0f} s"
    if node.attestation == "ATTESTED":
        return "says so"
    return "no" if node.attestation == "NOT_ATTESTED" else "-"
