"""`egm doctor`: what is wrong with this mesh, and how to mend it."""

from dataclasses import asdict
from typing import Annotated

import typer

from control_plane.cli.context import JsonFlag, MeshOption, open_mesh, run
from control_plane.cli.output import Exit, console, emit
from control_plane.core.diagnosis import Finding, Severity, diagnose
from control_plane.edge.examine import examine

app = typer.Typer(add_completion=False)
_STYLE = {Severity.PROBLEM: "bold red", Severity.WARNING: "yellow", Severity.OK: "green"}


@app.command()
def doctor(
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
    everything: Annotated[bool, typer.Option("--all", help="Show also what is in order.")] = False,
) -> None:
    """Look at every part of the mesh. Exit 0: no problem (warnings allowed); 1: something is wrong."""
    file, directory = open_mesh(mesh)
    findings = diagnose(run(examine(file, directory)))
    problems = [finding for finding in findings if finding.severity is Severity.PROBLEM]
    data = {"healthy": not problems, "findings": [asdict(finding) for finding in findings]}
    emit(data, as_json=as_json, text=lambda: _print(findings, everything=everything))
    raise typer.Exit(Exit.NO if problems else Exit.YES)


def _print(findings: list[Finding], *, everything: bool) -> None:
    for finding in findings:
        if finding.severity is Severity.OK and not everything:
            continue
        console.print(f"{finding.severity:<9}", style=_STYLE[finding.severity], end="")
        console.print(f"{finding.subject}: {finding.detail}", markup=False, soft_wrap=True)
        if finding.mend:
            console.print(f"{'':<9}-> {finding.mend}", markup=False, soft_wrap=True)
    worst = findings[0].severity if findings else Severity.OK
    if worst is Severity.OK:
        console.print("nothing is wrong")
