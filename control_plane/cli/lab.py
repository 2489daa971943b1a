"""`egm lab`: scenarios that break a real mesh on this machine, and say what must hold."""

import json
import shutil
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from control_plane.cli.context import JsonFlag, run
from control_plane.cli.output import Exit, console, emit, errors, table
from control_plane.lab.scenario import find_scenario, load_scenario, shipped_scenarios

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Break a real mesh on this machine: partitions, crashes, lies.",
)

ScenarioArgument = Annotated[
    str, typer.Argument(metavar="SCENARIO", help="A scenario file, or a name of 'egm lab list'.")
]


@app.command("run")
def run_command(
    scenario: ScenarioArgument,
    directory: Annotated[
        Path | None,
        typer.Option(
            "--dir", help="Keep everything here (default: a directory that is removed if all holds)."
        ),
    ] = None,
    network: Annotated[
        str, typer.Option(help="links or namespaces, instead of what the scenario says (docs/lab.md).")
    ] = "",
    as_json: JsonFlag = False,
) -> None:
    """Run a scenario: real processes, real sockets, faults between them.

    Exit 0 if every expectation held, 1 if one did not, 2 for a mistake in the file, 3 if the mesh did not start.
    With --json one object per step: place, step, ok, detail, seconds.
    """
    from control_plane.lab.run_scenario import Runner, StepResult

    read = load_scenario(find_scenario(scenario))
    if network:
        read.plan = replace(read.plan, network=network)

    def report(result: StepResult) -> None:
        if as_json:
            sys.stdout.write(json.dumps(asdict(result)) + "\n")
            sys.stdout.flush()
            return
        mark, style = ("ok  ", "green") if result.ok else ("FAIL", "bold red")
        console.print(mark, style=style, end=" ")
        where = f"  {result.place}" if not result.ok else ""
        console.print(f"{result.step}  ({result.seconds:.1f} s){where}", markup=False)
        console.print(f"       {result.detail}", markup=False, style="dim", soft_wrap=True)

    home = directory.resolve() if directory is not None else Path(tempfile.mkdtemp(prefix="egm-lab-"))
    runner = Runner(read, home, report)
    held = run(runner.run())
    if directory is None and held:
        shutil.rmtree(home, ignore_errors=True)
    if not held:
        errors.print(f"{runner.story}\n\neverything of this mesh is in {home}", markup=False, soft_wrap=True)
    if not as_json:
        console.print("\nevery expectation held" if held else "\nan expectation did not hold", style="bold")
    raise typer.Exit(Exit.YES if held else Exit.NO)


@app.command("check")
def check_command(scenario: ScenarioArgument, as_json: JsonFlag = False) -> None:
    """Check a scenario file without starting anything; mistakes are named with their lines."""
    read = load_scenario(find_scenario(scenario))
    data = {"ok": True, "name": read.name, "steps": len(read.steps), "members": list(read.plan.members())}
    emit(data, as_json=as_json, text=f"{scenario}: ok ({read.name}, {len(read.steps)} steps)")


@app.command("list")
def list_command(as_json: JsonFlag = False) -> None:
    """List the scenarios that come with egm."""
    found = [(name, load_scenario(find_scenario(name)).description) for name in shipped_scenarios()]
    data = {"scenarios": [{"name": name, "description": text} for name, text in found]}
    emit(data, as_json=as_json, text=lambda: table(("scenario", "what it shows"), found))
