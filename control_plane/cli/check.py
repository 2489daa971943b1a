"""`egm check`: would this call be allowed? Asked of the sidecars that would decide it."""

from typing import Annotated

import typer

from control_plane.cli.context import JsonFlag, MeshOption, open_mesh, run
from control_plane.cli.output import Exit, console, emit
from control_plane.edge import operator_client
from egm.v1 import node_pb2
from trust.errors import InputError, Reason

app = typer.Typer(add_completion=False)


@app.command()
def check(
    caller: Annotated[str, typer.Option(help="Workload name or SPIFFE ID.")],
    service: Annotated[str, typer.Option(help="Service name.")],
    method: Annotated[str, typer.Option(help="package.Service/Method")],
    request: Annotated[str, typer.Option(help="The request message as JSON.")] = "",
    node: Annotated[str | None, typer.Option(help="Ask this node (default: the service's).")] = None,
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Say whether a call would be allowed, why, and by which policies. Nothing is executed.

    Exit 0: allowed; 1: refused; 3: could not tell.
    """
    method = method.removeprefix("/")
    if not all(method.partition("/")):
        raise InputError(Reason.INPUT_INVALID, f"--method {method!r}: write package.Service/Method")
    file, directory = open_mesh(mesh)
    asked = node or next((name for name, entry in file.nodes.items() if service in entry.inbound), None)
    if asked is None:
        known = sorted({name for entry in file.nodes.values() for name in entry.inbound})
        raise InputError(
            Reason.UNKNOWN_SERVICE, f"no node serves {service!r}; there are: {', '.join(known) or 'none'}"
        )
    question = node_pb2.CheckRequest(caller=caller, service=service, method=method, request_json=request)

    async def ask() -> node_pb2.CheckResponse:
        async with operator_client.node(file, directory, asked) as client:
            return await client.check(question)

    answer = run(ask())
    data = {
        "allowed": answer.allowed,
        "reason": answer.reason,
        "detail": answer.detail,
        "policies": list(answer.policies),
        "errors": list(answer.errors),
        "obligations": list(answer.obligations),
        "limits": [
            {"name": one.name, "value": one.value, "policy": one.policy, "left": one.left}
            for one in answer.limits
        ],
        "permit_binds": answer.permit_binds,
        "policy_version": answer.policy_version,
        "level": answer.level,
        "lease": answer.lease,
        "would_deny": answer.would_deny,
        "node": asked,
    }
    emit(data, as_json=as_json, text=lambda: _print(answer, asked))
    raise typer.Exit(Exit.YES if answer.allowed else Exit.NO)


def _print(answer: node_pb2.CheckResponse, node: str) -> None:
    verdict = "allowed" if answer.allowed else "refused"
    console.print(f"{verdict}: {answer.reason}{f' ({answer.detail})' if answer.detail else ''}", markup=False)
    console.print(f"policies  {', '.join(answer.policies) or 'none'}", markup=False)
    console.print(
        f"decided   by {node}, policy version {answer.policy_version}, level {answer.level}, {answer.lease}"
    )
    if answer.obligations:
        console.print(f"obliged   {', '.join(answer.obligations)}", markup=False)
    for one in answer.limits:
        by = f"policy {one.policy}" if one.policy else "incident response"
        console.print(f"limit     {one.name} {one.value} by {by}: {one.left} left on {node}", markup=False)
    if answer.permit_binds:
        console.print(f"permit    binds the {answer.permit_binds}", markup=False)
    if answer.would_deny:
        console.print("at level 4 this call would be refused")
    for error in answer.errors:
        console.print(f"policy error in {error}", markup=False)
