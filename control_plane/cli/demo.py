"""`egm demo`: the tour, every step explained in a line and checked."""

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from control_plane.cli.context import JsonFlag, run
from control_plane.cli.output import Exit, console
from control_plane.lab.demo import Parts, Step, Tour

app = typer.Typer(add_completion=False)


@app.command()
def demo(
    directory: Annotated[
        Path | None,
        typer.Option("--dir", help="Keep everything in this new directory (default: one that is removed)."),
    ] = None,
    climb: Annotated[
        bool,
        typer.Option(
            "--climb", help="Take one service from level 0 to 5 and measure its grade at each; some minutes."
        ),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show every promise on real processes: refusal, quorum, governed call, partition, a lying node. Under a minute.

    Exit 0 only if every check held. With --json one object per step: part, step, ok, detail, seconds.
    """

    part = ""

    def report(step: Step) -> None:
        nonlocal part
        if as_json:
            sys.stdout.write(json.dumps(asdict(step)) + "\n")
            sys.stdout.flush()
            return
        if step.part != part:
            part = step.part
            console.print(f"\n{part}", style="bold")
        mark, style = ("ok  ", "green") if step.ok else ("FAIL", "bold red")
        console.print(mark, style=style, end=" ")
        console.print(f"{step.step}  ({step.seconds:.1f} s)", markup=False)
        for line in step.detail.splitlines():
            console.print(f"       {line}", markup=False, style="dim", soft_wrap=True)

    def say(line: str) -> None:
        if not as_json:
            console.print(f"       … {line}", markup=False, style="dim")

    with tempfile.TemporaryDirectory(prefix="egm-demo-", dir=_on_disk()) as scratch:
        held = run(Tour((directory or Path(scratch)).resolve(), report, say, _parts(climb)).run())
    if not as_json:
        console.print(f"\n{_end(held, directory)}", style="bold", soft_wrap=True)
    raise typer.Exit(Exit.YES if held else Exit.NO)


def _on_disk() -> Path | None:
    """Return where the ledgers outlive memory: the assessor grants level 5 to no other. None: the usual place."""
    from control_plane.assess.edge.ledgers import in_memory

    lasting = Path("/var/tmp")  # noqa: S108 (a private directory is made in it)
    return lasting if in_memory(Path(tempfile.gettempdir())) and lasting.is_dir() else None


def _parts(climb: bool) -> Parts | None:
    if not climb:
        return None
    from control_plane.assess.edge.climb import PARTS as CLIMB

    return CLIMB


def _end(held: bool, directory: Path | None) -> str:
    if held:
        return "every check held"
    where = (
        f"logs are in {directory / 'logs'}" if directory else "egm demo --dir NEW keeps keys, disks and logs"
    )
    return f"a check did not hold; the steps after it were not taken; {where}"
