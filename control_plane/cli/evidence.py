"""`egm evidence`: take executions out of the mesh as a file that proves itself, and check such a file, offline."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import typer

from control_plane.cli.context import JsonFlag
from control_plane.cli.output import Exit, emit
from control_plane.edge.evidence_export import export_evidence, ledgers_of
from trust import limits
from trust.chain import verify_roots
from trust.edge.files import write_atomic
from trust.errors import EvidenceError, InputError, MeshError, Reason
from trust.evidence_verify import NOT_PROVED, Report, Section, Verdict, verify_evidence
from trust.execution import parse_id
from trust.x509 import check_anchors

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Executions as a file that proves itself: export and verify, offline.",
)
_EXITS: Final = {
    Verdict.ESTABLISHED: Exit.YES,
    Verdict.CONTRADICTED: Exit.NO,
    Verdict.UNKNOWN: Exit.UNKNOWN,
}


@app.command()
def export(
    executions: Annotated[list[str], typer.Argument(help="Execution ids, as 'egm lineage list' shows them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    ledger: Annotated[
        list[str] | None,
        typer.Option("--ledger", help="NODE=DIR: a node's ledger, in its data directory. May be repeated."),
    ] = None,
    mesh: Annotated[
        Path | None, typer.Option("--mesh", help="A directory of 'egm up': takes the ledgers of its nodes.")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option("--ca", help="CA certificates (PEM) to include besides those nodes kept.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write records, proofs, policy and certificates of executions to one file. The nodes may keep running."""
    ledgers = ledgers_of(mesh) if mesh is not None else {}
    for item in ledger or ():
        node, sign, directory = item.partition("=")
        if not (node and sign and directory):
            raise InputError(Reason.INPUT_INVALID, f"--ledger {item!r}: write NODE=DIR")
        ledgers[node] = Path(directory)
    if not ledgers:
        raise InputError(Reason.INPUT_INVALID, "say where the ledgers are: --ledger NODE=DIR, or --mesh DIR")
    wanted = [parse_id(text) for text in executions]
    data, evidence = export_evidence(wanted, ledgers, ca_pem=None if ca is None else ca.read_bytes())
    write_atomic(output, data, mode=0o600)
    nodes = [node.name for node in evidence.nodes]
    emit(
        {
            "ok": True,
            "file": str(output),
            "bytes": len(data),
            "executions": sorted({content.execution for content in evidence.contents}),
            "records": len(evidence.records),
            "nodes": nodes,
            "policies": len(evidence.policies),
        },
        as_json=as_json,
        text=f"wrote {output}: {len(evidence.records)} records of {', '.join(nodes)}, {len(evidence.policies)} "
        f"policies, {len(data)} bytes\ncheck it with: egm evidence verify {output} --root ROOT.json --ca CA.pem",
    )


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="The evidence file.")],
    root: Annotated[Path, typer.Option("--root", help="The mesh's root.json, known from elsewhere.")],
    ca: Annotated[
        Path | None,
        typer.Option("--ca", help="The mesh's CA certificates (PEM), known from elsewhere."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say what a file proves. Exit 0: all that it can; 1: something contradicts; 3: something could not be told."""
    with file.open("rb") as opened:  # one byte more than allowed shows that it is too large
        data = opened.read(limits.MAX_EVIDENCE_BYTES + 1)
    trusted = _usable(root, lambda data: verify_roots(data, ()))
    anchors = None if ca is None else _usable(ca, check_anchors)
    try:
        report = verify_evidence(data, trusted, anchors)
    except EvidenceError as error:
        emit(
            {"verdict": Verdict.CONTRADICTED.value, "error": error.reason.value, "detail": error.detail},
            as_json=as_json,
            text=f"REFUSED  {error.reason}: {error.detail}",
        )
        raise typer.Exit(Exit.NO) from None
    emit(_as_json(report), as_json=as_json, text=_as_text(report))
    code = _EXITS[report.verdict()]
    if code:
        raise typer.Exit(code)


def _usable(path: Path, check: Callable[[bytes], object]) -> bytes:
    """Return a file that the reader trusts; a damaged one says nothing about the evidence.

    Raises:
        InputError: INPUT_INVALID, naming it.
    """
    data = path.read_bytes()
    try:
        check(data)
    except MeshError as error:
        raise InputError(Reason.INPUT_INVALID, f"{path} cannot be used: {error.detail}") from None
    return data


def _as_json(report: Report) -> dict[str, object]:
    return {
        "verdict": report.verdict().value,
        "sections": {section.value: report.verdict(section).value for section in Section},
        "executions": [
            {"id": c.execution, "node": c.node, "side": c.side.name.lower()} for c in report.contents
        ],
        "approved": [
            {
                "where": a.where,
                "role": a.role,
                "version": a.version,
                "sha256": a.sha256,
                "threshold": a.threshold,
                "approvers": list(a.approvers),
            }
            for a in report.approved
        ],
        "nodes": list(report.nodes),
        "contradictions": [
            {"section": f.section.value, "where": f.where, "reason": f.reason.value, "what": f.what}
            for f in report.findings
            if f.reason is not None
        ],
        "could_not_tell": [
            {"section": f.section.value, "where": f.where, "what": f.what}
            for f in report.findings
            if f.reason is None
        ],
        "not_proved": list(NOT_PROVED),
    }


def _as_text(report: Report) -> str:
    lines = [f"{section.value:<10} {report.verdict(section).value}" for section in Section]
    lines.append("")
    lines += [f"execution  {c.execution}  {c.node}, {c.side.name.lower()} side" for c in report.contents]
    lines += [
        f"policy     {a.role} version {a.version}: {len(a.approvers)} signed, {a.threshold} needed: "
        f"{', '.join(a.approvers)}"
        for a in report.approved
    ]
    lines += [f"node       {node}" for node in report.nodes]
    lines += [f"WRONG      {f.where}: {f.what} ({f.reason})" for f in report.findings if f.reason is not None]
    lines += [f"OPEN       {f.where}: {f.what}" for f in report.findings if f.reason is None]
    lines += ["", "Not proved by any such file:", *(f"  {text}" for text in NOT_PROVED)]
    return "\n".join(lines)
