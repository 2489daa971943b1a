"""`egm assess`: which maturity level a mesh, or a service, really has; measured by probing, with what is missing."""

import asyncio
import enum
import json
import signal
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from control_plane.assess.catalogue import Catalogue, load_catalogue
from control_plane.assess.compare import Comparison
from control_plane.assess.compare import compare as compare_assessments
from control_plane.assess.model import Assessment, Verdict
from control_plane.assess.report_html import to_html
from control_plane.assess.report_json import dump, to_json
from control_plane.assess.report_oscal import to_oscal
from control_plane.assess.report_text import catalogue_page, moment, to_markdown
from control_plane.assess.roadmap import reached, roadmap
from control_plane.cli.context import JsonFlag, MeshOption, open_mesh, run
from control_plane.cli.output import Exit, console, emit, errors, table
from control_plane.edge.mesh_file import find_mesh
from trust.edge.files import write_atomic
from trust.errors import InputError, Reason

app = typer.Typer(add_completion=False, help="Measure the maturity level of a mesh or a service, by probing.")
_STOPPING: Final = (signal.SIGINT, signal.SIGTERM)
_SIGNALLED: Final = 128  # a shell's exit code of what a signal ended
_OSCAL: Final = ".oscal.json"
_KINDS: Final = (".html", ".json", ".md", _OSCAL)


class Probe(enum.StrEnum):
    """How far attempts may go."""

    SAFE = "safe"
    FULL = "full"


LevelOption = Annotated[
    int | None,
    typer.Option(
        "--require", help="Exit 1 when the grade is below this level.", min=0, max=5, metavar="LEVEL"
    ),
]


@app.callback(invoke_without_command=True)
def assess(
    context: typer.Context,
    mesh: MeshOption = None,
    service: Annotated[str | None, typer.Option(help="Assess this service alone.")] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Look at a service from outside, HOST:PORT or unix:///PATH; needs no mesh."),
    ] = None,
    probe: Annotated[
        Probe,
        typer.Option(
            help="full: with a probe node that joins and is forgotten again; safe: nothing joins, less is established."
        ),
    ] = Probe.FULL,
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "--output", "-o", help="Write a report: .html, .json, .md or .oscal.json. May be repeated."
        ),
    ] = None,
    require: LevelOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure the level of every service, by real attempts. Exit 0: done; 1: below --require; 3: could not tell.

    Attempts use synthetic identities and a reserved method that sidecars answer themselves: no service is called.
    """
    if context.invoked_subcommand is not None:
        return
    for path in output or ():
        _kind(path)
    if target is not None and (service is not None or mesh is not None):
        raise InputError(Reason.INPUT_INVALID, "--target looks from outside: leave --mesh and --service out")
    assessment = _outside(target) if target is not None else _inside(mesh, service, probe)
    catalogue = load_catalogue()
    for path in output or ():
        write_atomic(path, _report(catalogue, assessment, path))
    emit(
        to_json(catalogue, assessment),
        as_json=as_json,
        text=lambda: _print(catalogue, assessment, output or ()),
    )
    if require is not None and assessment.level < require:
        errors.print(f"level {assessment.level} is below the required {require}", markup=False)
        raise typer.Exit(Exit.NO)


def _outside(target: str) -> Assessment:
    from control_plane.assess.edge.from_outside import look

    return run(look(target))


def _inside(mesh: Path | None, service: str | None, probe: Probe) -> Assessment:
    from control_plane.assess.edge.history import keep
    from control_plane.assess.edge.run import Assessor

    file, directory = open_mesh(mesh)

    def say(line: str) -> None:
        if errors.is_terminal:
            errors.print(f"egm assess: {line}", markup=False)

    assessor = Assessor(file, directory, probe=probe.value, only=service, say=say)
    assessment = run(_until_told(assessor.run()))
    keep(directory, assessment)
    return assessment


async def _until_told(work: Coroutine[Any, Any, Assessment]) -> Assessment:
    """Do the work. The first Ctrl-C or SIGTERM ends it once the probe node is removed; more of them change nothing."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    told: list[int] = []

    def stop(number: int) -> None:
        if not told and task is not None:
            errors.print("egm assess: stopping; the probe node is being removed", markup=False)
            task.cancel()
        told.append(number)

    for number in _STOPPING:
        loop.add_signal_handler(number, stop, number)
    try:
        return await work
    except asyncio.CancelledError:
        raise typer.Exit(_SIGNALLED + told[0] if told else Exit.UNKNOWN) from None
    finally:
        for number in _STOPPING:
            loop.remove_signal_handler(number)


def _kind(path: Path) -> str:
    """Return what a report file is to be. Raises InputError for an unknown ending."""
    name = path.name.lower()
    if name.endswith(_OSCAL):
        return _OSCAL
    if path.suffix.lower() in _KINDS:
        return path.suffix.lower()
    raise InputError(Reason.INPUT_INVALID, f"-o {path}: a report ends with one of {', '.join(_KINDS)}")


def _report(catalogue: Catalogue, assessment: Assessment, path: Path) -> bytes:
    match _kind(path):
        case ".html":
            return to_html(catalogue, assessment).encode()
        case ".md":
            return to_markdown(catalogue, assessment).encode()
        case ".json":
            return dump(catalogue, assessment)
        case _:
            return json.dumps(to_oscal(catalogue, assessment), indent=2).encode() + b"\n"


def _print(catalogue: Catalogue, assessment: Assessment, written: Sequence[Path]) -> None:
    level = catalogue.levels[assessment.level]
    console.print(f"{assessment.target}: level {assessment.level}, {level.name}", style="bold", markup=False)
    console.print(f"{reached(catalogue, assessment)}\n", markup=False)
    table(
        ("service", "level", "signed", *(f"L{number}" for number in range(1, 6))),
        (
            (
                grade.service,
                grade.level,
                "-" if grade.signed_level is None else grade.signed_level,
                *(
                    f"{sum(grade.result(one.id).verdict is Verdict.MET for one in catalogue.of_level(number))}"
                    f"/{len(catalogue.of_level(number))}"
                    for number in range(1, 6)
                ),
            )
            for grade in assessment.services
        ),
    )
    steps = roadmap(catalogue, assessment)
    if steps:
        console.print(f"\nto level {assessment.level + 1}, in order of effort:", markup=False)
    for step in steps:
        found = "" if step.established else "could not be told: "
        console.print(f"- {step.characteristic} {step.name} ({', '.join(step.services)})", markup=False)
        console.print(f"  {found}{step.why}", markup=False, soft_wrap=True)
        console.print(f"  {step.does}: {'; '.join(step.commands)}", markup=False, soft_wrap=True)
    for note in assessment.notes:
        console.print(f"! {note}", markup=False, soft_wrap=True)
    for path in written:
        console.print(f"wrote {path}", markup=False)


@app.command()
def history(mesh: MeshOption = None, as_json: JsonFlag = False) -> None:
    """List the assessments of a mesh, oldest first. Exit 3: some file of the history cannot be read."""
    from control_plane.assess.edge.history import history as read_history

    found, damaged = read_history(find_mesh(mesh))
    runs = [
        {
            "run": one.run,
            "started_ms": one.started_ms,
            "level": one.level,
            "probe": one.probe,
            "policy_version": one.policy_version,
            "services": {grade.service: grade.level for grade in one.services},
        }
        for one in found
    ]
    rows = [
        (
            one.run,
            moment(one.started_ms),
            one.level,
            one.probe,
            one.policy_version,
            " ".join(f"{grade.service}={grade.level}" for grade in one.services) or "-",
        )
        for one in found
    ]
    emit(
        {"runs": runs, "damaged": list(damaged)},
        as_json=as_json,
        text=lambda: (
            table(("run", "when", "level", "probe", "policy", "services"), rows)
            if rows or damaged
            else console.print("no assessment yet; run 'egm assess'", markup=False)
        ),
    )
    for one in damaged:
        errors.print(f"damaged: {one}", markup=False, soft_wrap=True)
    if damaged:
        raise typer.Exit(Exit.UNKNOWN)


@app.command()
def compare(
    before: Annotated[str, typer.Argument(metavar="A", help="A run, or a report file (.json).")],
    after: Annotated[str, typer.Argument(metavar="B", help="The later run, or report file.")],
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show what changed between two assessments. Exit 0: nothing got worse; 1: something did."""
    from control_plane.assess.edge.history import named

    files = all(Path(name).suffix == ".json" for name in (before, after))
    directory = None if files and mesh is None else find_mesh(mesh)
    found = compare_assessments(named(directory, before), named(directory, after))
    emit(_comparison(found), as_json=as_json, text=lambda: _print_comparison(found))
    raise typer.Exit(Exit.NO if found.worse else Exit.YES)


def _comparison(found: Comparison) -> dict[str, object]:
    return {
        "before": found.before,
        "after": found.after,
        "before_level": found.before_level,
        "after_level": found.after_level,
        "worse": found.worse,
        "services": {name: {"before": b, "after": a} for name, (b, a) in found.levels.items()},
        "changes": [
            {
                "service": one.service,
                "characteristic": one.characteristic,
                "before": one.before,
                "after": one.after,
                "better": one.better,
                "why": one.why,
            }
            for one in found.changes
        ],
        "notes": list(found.notes),
    }


def _print_comparison(found: Comparison) -> None:
    console.print(f"level {found.before_level} -> {found.after_level}", style="bold", markup=False)
    for name, (before, after) in found.levels.items():
        if before != after:
            shown = [("not there" if one is None else str(one)) for one in (before, after)]
            console.print(f"{name}: {shown[0]} -> {shown[1]}", markup=False)
    if found.changes:
        table(
            ("service", "characteristic", "before", "after", "why"),
            ((one.service, one.characteristic, one.before, one.after, one.why) for one in found.changes),
        )
    else:
        console.print("no verdict changed", markup=False)
    for note in found.notes:
        console.print(f"! {note}", markup=False)


@app.command()
def catalogue(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/egmm.md.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show every characteristic of the model, and how it is tested."""
    loaded = load_catalogue()
    if markdown and not as_json:
        typer.echo(catalogue_page(loaded), nl=False)
        return
    emit(
        loaded.model_dump(mode="json"),
        as_json=as_json,
        text=lambda: table(
            ("id", "characteristic", "tested by"),
            ((one.id, one.name, ", ".join(one.tests)) for one in loaded.characteristics),
        ),
    )
