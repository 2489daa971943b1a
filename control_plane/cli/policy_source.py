"""`egm policy new|schema|lint|test|diff|build`: what an author does before anybody is asked to sign.

Nothing here talks to the control plane.
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer

from control_plane.cli.output import Exit, JsonOption, console, emit, table
from control_plane.core.analytics import caller_name
from control_plane.edge.given_file import read_given
from control_plane.edge.reflection import fetch_descriptors
from control_plane.edge.source_folder import bundle_at, read_folder, write_folder
from trust import limits
from trust.edge.files import write_atomic
from trust.errors import InputError, Reason
from trust.policy import diff as differ
from trust.policy.casetests import CaseResult, run_tests
from trust.policy.descriptors import MethodTable
from trust.policy.lint import lint as lint_bundle
from trust.policy.problems import Problem, Severity, errors_of, refuse
from trust.policy.scaffold import scaffold
from trust.policy.schema import generate_schema
from trust.policy.source import build as build_archive
from trust.policy.source import load

Json = Annotated[bool, JsonOption]
Base = Annotated[
    Path | None,
    typer.Option(help="The base bundle in force (folder or archive); needed for a namespace bundle."),
]
PathArgument = Annotated[
    Path, typer.Argument(help="A policy folder, or an archive made by `egm policy build`.")
]


def new(
    folder: Annotated[Path, typer.Argument(help="The folder to write; its files must not exist yet.")],
    service: Annotated[str, typer.Option(help="Logical name of the service to govern.")] = "example",
    caller: Annotated[str, typer.Option(help="Workload that may call it.")] = "alice",
    descriptors: Annotated[Path | None, typer.Option(help="FileDescriptorSet of the service.")] = None,
    trust_domain: Annotated[str, typer.Option(help="Trust domain of the mesh.")] = "mesh.local",
    as_json: Json = False,
) -> None:
    """Write a small policy folder that passes its own lint and tests."""
    files = scaffold(
        service=service,
        caller=caller,
        descriptors=None if descriptors is None else _descriptors_at(descriptors),
        trust_domain=trust_domain,
    )
    refuse(lint_bundle(files))
    write_folder(folder, files)
    data = {"folder": str(folder), "files": sorted(files)}
    names = "\n".join(f"  {folder / name}" for name in sorted(files))
    emit(data, as_json=as_json, text=_said(f"wrote\n{names}\nnext: egm policy test {folder}"))


def schema(
    folder: Annotated[Path | None, typer.Argument(help="A policy folder.")] = None,
    descriptors: Annotated[Path | None, typer.Option(help="A FileDescriptorSet instead of a folder.")] = None,
    reflect: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Ask a running server for its descriptors (gRPC reflection)."),
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(help="With --reflect: CA certificates; without it, plaintext.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Write the schema here; with --reflect, the descriptors (descriptors.binpb).",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the Cedar schema that policies are checked against: the methods, and the type of each request."""
    if sum(source is not None for source in (folder, descriptors, reflect)) != 1:
        raise InputError(
            Reason.INPUT_INVALID, "name one of: a policy folder, --descriptors FILE, --reflect HOST:PORT"
        )
    if folder is not None:
        parsed, problems = load(read_folder(folder))
        refuse(problems)
        text = "" if parsed is None else parsed.schema
        found = None if parsed is None else parsed.descriptors
    else:
        found = _fetch(reflect, ca) if reflect is not None else _descriptors_at(descriptors or Path())
        text = generate_schema(found)
    methods = list(MethodTable.parse(found).methods())
    written = found if reflect is not None else text.encode()
    if output is not None and written is not None:
        write_atomic(output, written)
    data = {"methods": methods, "schema": text, "output": None if output is None else str(output)}
    shown = text.rstrip() if output is None else f"wrote {output}: {len(methods)} methods"
    emit(data, as_json=as_json, text=_said(shown))


def lint(
    path: PathArgument,
    base: Base = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
    as_json: Json = False,
) -> None:
    """Find what is wrong in a policy folder, by file and line. Exit 1 when a sidecar would refuse it."""
    against = None if base is None else bundle_at(base)
    subject = read_folder(path) if path.is_dir() else bundle_at(path)
    problems = lint_bundle(subject, base=against)
    failed = problems if strict else errors_of(problems)
    data = {"ok": not failed, "problems": [problem.to_dict() for problem in problems]}
    emit(data, as_json=as_json, text=lambda: _show_problems(problems))
    if failed:
        raise typer.Exit(Exit.NO)


def test(path: PathArgument, base: Base = None, as_json: Json = False) -> None:
    """Decide every case of tests/*.yaml and compare. Exit 1 when one differs."""
    results = run_tests(bundle_at(path), None if base is None else bundle_at(base))
    failed = [result for result in results if not result.passed]
    data = {
        "ok": not failed,
        "passed": len(results) - len(failed),
        "failed": len(failed),
        "cases": [result.to_dict() for result in results],
    }
    emit(data, as_json=as_json, text=lambda: _show_results(results))
    if failed:
        raise typer.Exit(Exit.NO)


def diff(
    old: Annotated[str, typer.Argument(help="Folder or archive in force; - for none.")],
    new: Annotated[Path, typer.Argument(help="Folder or archive to compare with it.")],
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Show which policies and settings differ, and who may newly call what, who no longer may."""
    before = None if old == "-" else bundle_at(Path(old))
    found = differ.diff(before, bundle_at(new), base=None if base is None else bundle_at(base))
    emit(found.to_dict(), as_json=as_json, text=lambda: show_diff(found))


def build(
    folder: Annotated[Path, typer.Argument(help="A policy folder.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The archive to write.")],
    level: Annotated[int | None, typer.Option(help="Level instead of the one in bundle.yaml.")] = None,
    trust_domain: Annotated[str | None, typer.Option(help="Instead of the one in bundle.yaml.")] = None,
    as_json: Json = False,
) -> None:
    """Build the archive that approvers sign; the same folder gives the same bytes."""
    archive = build_archive(read_folder(folder), level_override=level, trust_domain_override=trust_domain)
    write_atomic(output, archive)
    digest = hashlib.sha256(archive).hexdigest()
    data = {"output": str(output), "sha256": digest, "bytes": len(archive)}
    emit(data, as_json=as_json, text=_said(f"wrote {output} ({len(archive)} bytes, sha256 {digest})"))


def register(app: typer.Typer) -> None:
    """Add every verb of this module to `app`."""
    for verb in (new, schema, lint, test, diff, build):
        app.command(verb.__name__)(verb)


def show_diff(found: differ.BundleDiff) -> None:
    """Print a difference for a person; `egm policy review` shows the same."""
    if found.empty:
        console.print("no difference")
    for title, sign, changes in (
        ("policies added", "+", found.added),
        ("policies removed", "-", found.removed),
        ("policies changed", "~", found.changed),
    ):
        if changes:
            console.print(f"{title}:")
        for change in changes:
            console.print(f"  {sign} {change.id}  ({change.where})", markup=False)
            if change.before:
                _indent("- " if change.after else "", change.before)
            if change.after:
                _indent("+ " if change.before else "", change.after)
    if found.settings:
        console.print("settings:")
        for setting in found.settings:
            text = f"  {setting.name}: {setting.before or '(unset)'} -> {setting.after or '(unset)'}"
            console.print(text, markup=False, soft_wrap=True)
    _show_reach("may newly call:", found.newly_allowed)
    _show_reach("no longer may call:", found.no_longer_allowed)
    _show_reach("under other conditions:", found.other_conditions)
    if found.truncated:
        console.print(
            f"only the first {found.compared} kinds of call were compared; there are more", style="bold"
        )


def _said(text: str) -> Callable[[], None]:
    """Print `text` as it is: what people copy or pipe must not be wrapped."""
    return lambda: console.print(text, markup=False, soft_wrap=True)


def _show_reach(title: str, reach: Iterable[differ.Reach]) -> None:
    rows = [(f"  {caller_name(r.caller)}", r.service, r.method, f"{r.before} -> {r.after}") for r in reach]
    if rows:
        console.print(title)
        table(("  caller", "service", "method", "change"), rows)


def _indent(sign: str, text: str) -> None:
    # Cedar's line ends and no other: a comment must not seem to end where Cedar goes on with it, nor the reverse
    for line in re.split(r"\r\n|\n|\r", text):
        console.print(f"      {sign}{line}", markup=False, soft_wrap=True)


def _show_problems(problems: list[Problem]) -> None:
    for problem in problems:
        word = "error" if problem.severity is Severity.ERROR else "warning"
        console.print(f"{word}: {problem}", markup=False, soft_wrap=True)
    errors = len(errors_of(problems))
    console.print(f"{errors} errors, {len(problems) - errors} warnings")


def _show_results(results: list[CaseResult]) -> None:
    for result in results:
        word = "ok  " if result.passed else "FAIL"
        console.print(f"{word} {result.file}:{result.line}  {result.name}", markup=False, soft_wrap=True)
        if result.message:
            console.print(f"     {result.message}", markup=False, soft_wrap=True)
    failed = sum(not result.passed for result in results)
    console.print(f"{len(results) - failed} passed, {failed} failed")
    if not results:
        console.print("no tests: add tests/*.yaml, see egm policy new")


def _fetch(target: str, ca: Path | None) -> bytes:
    return fetch_descriptors(
        target, ca_pem=None if ca is None else read_given(ca, limits.MAX_CERTIFICATE_CHAIN_BYTES)
    )


def _descriptors_at(path: Path) -> bytes:
    return read_given(path, limits.MAX_BUNDLE_ENTRY_BYTES)
