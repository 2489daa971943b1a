"""`egm node`: the nodes of the mesh, and one-time tokens for new ones."""

from pathlib import Path
from typing import Annotated

import typer

from control_plane.cli.context import JsonFlag, MeshOption, open_mesh, run
from control_plane.cli.node_quarantine import accuse, proof, quarantine, release
from control_plane.cli.output import console, emit, table
from control_plane.cli.when import iso
from control_plane.edge import operator_client
from control_plane.edge.ca import CertificateAuthority, issue_to_directory
from control_plane.edge.domain import open_domain
from control_plane.edge.emergency_client import EmergencyClient
from control_plane.edge.fleet_view import FleetView, NodeView, fleet_view
from trust import limits
from trust.errors import InputError, Reason
from trust.spiffe import SpiffeId

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Nodes of the mesh, and tokens for new ones."
)


@app.command("list")
def list_nodes(mesh: MeshOption = None, as_json: JsonFlag = False) -> None:
    """List the nodes that the control plane knows."""
    view, out = _view(mesh), _locked_out(mesh)
    silent = sorted(out.keys() - {node.name for node in view.nodes})

    def text() -> None:
        rows: list[tuple[object, ...]] = [
            (
                n.name,
                n.state,
                n.policy_version,
                n.lease,
                _attested(n),
                _word(out.get(n.name)),
                n.admin,
                n.version,
            )
            for n in view.nodes
        ]
        rows += [(name, "-", "-", "-", "-", _word(out[name]), "-", "-") for name in silent]
        table(("node", "state", "policy", "lease", "attested", "denied", "admin", "version"), rows)

    nodes = [{**node, "denied": out.get(str(node["name"]), "")} for node in _nodes(view)]
    emit(
        {"nodes": nodes, "denied_elsewhere": {name: out[name] for name in silent}}, as_json=as_json, text=text
    )


@app.command()
def show(name: str, mesh: MeshOption = None, as_json: JsonFlag = False) -> None:
    """Show one node: readiness with reasons, lease, levels, decisions since it started."""
    view = _view(mesh)
    found = next((node for node in view.nodes if node.name == name), None)
    if found is None:
        known = ", ".join(node.name for node in view.nodes) or "none"
        raise InputError(Reason.NOT_FOUND, f"no node {name!r}; there are: {known}")
    denied = _locked_out(mesh).get(name, "")
    data = {**next(node for node in _nodes(view) if node["name"] == name), "denied": denied}
    emit(data, as_json=as_json, text=lambda: _print(found, denied))


@app.command()
def token(
    name: str,
    workload: Annotated[list[str] | None, typer.Option(help="A workload it speaks for; repeat.")] = None,
    ttl: Annotated[
        int, typer.Option(help="Seconds until the token expires.", min=1)
    ] = limits.JOIN_TOKEN_TTL_S,
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Create a one-time join token for node NAME. It is shown once; keep it secret until it is used."""
    file, directory = open_mesh(mesh)

    async def ask() -> tuple[str, int]:
        async with operator_client.operator(file, directory) as client:
            answer = await client.create_join_token(name, workload or [name], ttl)
            return answer.token, answer.expires_ms

    text, expires_ms = run(ask())
    emit({"node": name, "token": text, "expires_ms": expires_ms}, as_json=as_json, text=text)


@app.command()
def forget(name: str, mesh: MeshOption = None, as_json: JsonFlag = False) -> None:
    """Forget node NAME: it can renew nothing until it joins anew with a token. What it holds runs out by itself."""
    file, directory = open_mesh(mesh)

    async def ask() -> int:
        async with operator_client.operator(file, directory) as client:
            return (await client.forget_node(name)).certificate_not_after_ms

    not_after_ms = run(ask())
    until = (
        f"; the certificate it last reported with is valid until {iso(not_after_ms)}" if not_after_ms else ""
    )
    emit(
        {"node": name, "certificate_not_after_ms": not_after_ms},
        as_json=as_json,
        text=f"forgot {name}: its renewals are refused{until}",
    )


@app.command()
def operator(
    name: str,
    domain: Annotated[Path, typer.Option(help="Trust domain directory (with the CA).", exists=True)],
    out: Annotated[Path, typer.Option(help="Directory for svid.pem, svid.key.pem and ca.pem.")],
    days: Annotated[int, typer.Option(help="Days until it must be issued anew.", min=1, max=90)] = 30,
    as_json: JsonFlag = False,
) -> None:
    """Issue an operator's certificate, on the machine that holds the CA. An operator proposes, never decides."""
    opened = open_domain(domain)
    spiffe_id = SpiffeId.of(opened.trust_domain, "operator", name)
    issue_to_directory(CertificateAuthority.open(opened.ca_directory), spiffe_id, out, ttl_s=days * 24 * 3600)
    emit(
        {"operator": str(spiffe_id), "directory": str(out)},
        as_json=as_json,
        text=f'wrote {out}: credentials of {spiffe_id}; name it as "operator" in mesh.json',
    )


app.command()(quarantine)
app.command()(release)
app.command()(proof)
app.command()(accuse)


def _view(mesh: MeshOption) -> FleetView:
    file, directory = open_mesh(mesh)

    async def ask() -> FleetView:
        async with operator_client.operator(file, directory) as client:
            return fleet_view(await client.status(), await client.nodes())

    return run(ask())


def _locked_out(mesh: MeshOption) -> dict[str, str]:
    """Return why nodes are denied, by name."""
    _, found = run(EmergencyClient(*open_mesh(mesh)).denials())
    return {one.value: f"{one.reason}: {one.why}" for one in found.denials if one.kind == "node"}


def _nodes(view: FleetView) -> list[dict[str, object]]:
    nodes = view.to_dict()["nodes"]
    return [dict(node) for node in nodes] if isinstance(nodes, (list, tuple)) else []


def _word(why: str | None) -> str:
    return "" if why is None else why.partition(":")[0]


def _print(node: NodeView, denied: str = "") -> None:
    rows = [
        *((("denied", denied),) if denied else ()),
        ("state", f"{node.state}{': ' + ', '.join(node.not_ready) if node.not_ready else ''}"),
        ("policy", f"version {node.policy_version}"),
        *((f"  {name}", f"version {version}") for name, version in sorted(node.namespace_versions.items())),
        ("lease", f"{node.lease}, {node.lease_remaining_s:.0f} s left, grace {node.grace_remaining_s:.0f} s"),
        *_attestation(node),
        *((f"level {service}", str(level)) for service, level in sorted(node.levels.items())),
        *((kind, str(count)) for kind, count in sorted(node.decisions.items())),
        *(("alarm", alarm) for alarm in node.alarms),
        ("last seen", _seen(node.seen_s_ago)),
        ("admin", node.admin),
        ("version", node.version),
    ]
    width = max(24, *(len(name) + 2 for name, _ in rows))  # reasons are long names
    for name, value in rows:
        console.print(f"{name:<{width}}{value}", markup=False)


def _attestation(node: NodeView) -> list[tuple[str, str]]:
    """Return who vouches for the node, and who does not and why."""
    if not node.witnesses:
        return (
            [("attestation", "the policy names no witnesses")] if node.attestation == "NO_WITNESSES" else []
        )
    by = ", ".join(node.vouched)
    needed = f"{node.quorum} of {len(node.witnesses)} witnesses are needed"
    left = f"{node.attestation_remaining_s:.0f} s left"
    if node.attested:
        rows = [
            ("attestation", f"attested, verified by the control plane, {left}; {needed}, vouched by {by}")
        ]
    else:
        whom = f"it says vouched by {by}" if by else "nobody vouches for it now"
        ending = f", {left}" if by else ""
        rows = [("attestation", f"says {node.attestation}{ending}; {needed}, {whom}")]
        if node.attested_problem:
            rows.append(("  not verified", node.attested_problem))
    rows += [(f"  not by {name}", why) for name, why in sorted(node.not_vouched.items())]
    if node.credential:
        rows.append(("  credential", node.credential))
    if node.is_witness:
        rows.append(("  witness", "vouches for others"))
    return rows


def _attested(node: NodeView) -> str:
    """Return whether the control plane verified it; what is only the node's word is called that."""
    if node.attested:
        return "yes"
    if node.attestation == "ATTESTED":
        return "says so"
    return "no" if node.attestation == "NOT_ATTESTED" else "-"


def _seen(ago_s: float) -> str:
    """Return how long ago the node reported, in the largest unit that fits."""
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if ago_s >= 2 * size:
            return f"{ago_s / size:.0f} {unit} ago"
    return f"{ago_s:.0f} s ago"
