"""`egm evidence`: take executions out of the mesh as a file that proves itself, and check such a file, offline."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

import typer

from control_plane.cli.context import JsonFlag, run
from control_plane.cli.misbehaviour import is_proof, verify_file
from control_plane.cli.output import Exit, emit
from control_plane.edge.evidence_export import (
    Sources,
    export_evidence,
    ledgers_of,
    missing_credentials,
    missing_policies,
    repository_in,
)
from control_plane.edge.evidence_remote import control_plane_of
from control_plane.edge.given_file import read_given
from control_plane.edge.mesh_file import FILE_NAME, MeshFile
from trust import limits
from trust.chain import verify_roots
from trust.edge.files import write_atomic
from trust.edge.ledger import Place, open_place
from trust.errors import EvidenceError, InputError, MeshError, Reason
from trust.evidence import Evidence
from trust.evidence_verify import NOT_PROVED, Permitted, Report, Section, Verdict, verify_evidence
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
    archive: Annotated[
        list[str] | None,
        typer.Option(
            "--archive",
            help="NODE=PLACE: where else older parts of its ledger are: a path, file:///PATH or s3://BUCKET/PREFIX; "
            "besides what the ledger itself has written down. May be repeated.",
        ),
    ] = None,
    endorsements: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder 'endorsements' of a node whose ledger is not here; 'credentials' beside it is read, too. "
            "May be repeated."
        ),
    ] = None,
    repository: Annotated[
        Path | None,
        typer.Option(help="Folder 'repository' of a control plane: policies that nodes no longer have."),
    ] = None,
    mesh: Annotated[
        Path | None,
        typer.Option(
            "--mesh",
            help="Directory with mesh.json: asks its control plane where records are, and for past policies. Of "
            "'egm up': takes the ledgers and the repository in it, running or not.",
        ),
    ] = None,
    ca: Annotated[
        Path | None, typer.Option("--ca", help="CA certificates (PEM) to include besides those nodes kept.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write executions to one file, with what proves them. Nodes may keep running.

    Records, permits and their inclusion proofs; policies, certificates and trust credentials of then.
    """
    ledgers = _ledgers(ledger, mesh)
    kept = None if mesh is None else mesh / "control-plane" / "data" / "repository"
    if repository is None and kept is not None and kept.is_dir():
        repository = kept
    sources = Sources(
        archives=_archives(archive, ledgers),
        endorsements=tuple(endorsements or ()),
        repository=None if repository is None else repository_in(repository),
    )
    wanted = [parse_id(text) for text in executions]
    ca_pem = None if ca is None else read_given(ca, limits.MAX_CERTIFICATE_CHAIN_BYTES)
    data, evidence, notes = run(_collect(wanted, ledgers, ca_pem, sources, mesh))
    write_atomic(output, data, mode=0o600)
    _tell_exported(output, len(data), evidence, [*notes, *_missing(evidence)], as_json=as_json)


def _ledgers(given: list[str] | None, mesh: Path | None) -> dict[str, Path]:
    """Return node to ledger directory: those that were named, and those of a mesh that `egm up` made."""
    ledgers = {node: Path(place) for node, place in _pairs("--ledger", given)}
    if mesh is not None and (not ledgers or (mesh / "nodes").is_dir()):
        ledgers = ledgers_of(mesh) | ledgers
    if not ledgers:
        raise InputError(Reason.INPUT_INVALID, "say where the ledgers are: --ledger NODE=DIR, or --mesh DIR")
    return ledgers


def _archives(given: list[str] | None, ledgers: Mapping[str, Path]) -> dict[str, list[Place]]:
    archives: dict[str, list[Place]] = {}
    for node, place in _pairs("--archive", given):
        if node not in ledgers:
            raise InputError(
                Reason.INPUT_INVALID, f"--archive {node}=…: there is no ledger of {node} to go with it"
            )
        archives.setdefault(node, []).append(open_place(place))
    return archives


def _missing(evidence: Evidence) -> list[str]:
    """Return notes about what the file would need to prove everything, and where that may be."""
    policies = [
        f"policy version {version} ({sha256}) is in no place that was looked at, so that its quorum cannot be "
        "verified; name the control plane's repository with --repository, or a running mesh with --mesh"
        for version, sha256 in missing_policies(evidence)
    ]
    credentials = [
        f"the trust credential {sha256} of {node} is in no place that was looked at, so that who vouched for the node "
        "cannot be verified; name the folder 'endorsements' of its data directory with --endorsements"
        for node, sha256 in missing_credentials(evidence)
    ]
    return [*policies, *credentials]


def _tell_exported(output: Path, size: int, evidence: Evidence, notes: list[str], *, as_json: bool) -> None:
    nodes = [node.name for node in evidence.nodes]
    emit(
        {
            "ok": True,
            "file": str(output),
            "bytes": size,
            "executions": sorted({content.execution for content in evidence.contents}),
            "records": len(evidence.records),
            "nodes": nodes,
            "policies": len(evidence.policies),
            "credentials": len(evidence.credentials),
            "notes": notes,
        },
        as_json=as_json,
        text="\n".join(
            [
                f"wrote {output}: {len(evidence.records)} records of {', '.join(nodes)}, "
                f"{len(evidence.policies)} policies, {size} bytes",
                *(f"note: {note}" for note in notes),
                f"check it with: egm evidence verify {output} --root ROOT.json --ca CA.pem",
            ]
        ),
    )


def _pairs(option: str, items: list[str] | None) -> list[tuple[str, str]]:
    found = []
    for item in items or ():
        node, sign, place = item.partition("=")
        if not (node and sign and place):
            raise InputError(Reason.INPUT_INVALID, f"{option} {item!r}: write NODE=DIR")
        found.append((node, place))
    return found


async def _collect(
    wanted: list[bytes],
    ledgers: Mapping[str, Path],
    ca_pem: bytes | None,
    sources: Sources,
    mesh: Path | None,
) -> tuple[bytes, Evidence, list[str]]:
    """Return the file, what is in it, and what a person should know of how it was made."""

    async def collect(known: Sources) -> tuple[bytes, Evidence]:
        return await asyncio.to_thread(export_evidence, wanted, ledgers, ca_pem=ca_pem, sources=known)

    if mesh is None or not (mesh / FILE_NAME).is_file():
        return *await collect(sources), []
    async with control_plane_of(MeshFile.load(mesh), mesh) as remote:
        try:
            positions = await remote.positions(wanted)
        except MeshError as error:
            note = f"the control plane was not asked where records are, the ledgers were searched: {error.detail}"
            return *await collect(sources), [note]
        reader = sources.repository or remote.reader()
        return *await collect(replace(sources, positions=positions, repository=reader)), []


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="The evidence file.")],
    root: Annotated[Path, typer.Option("--root", help="The mesh's root.json, known from elsewhere.")],
    ca: Annotated[
        Path | None,
        typer.Option("--ca", help="The mesh's CA certificates (PEM), known from elsewhere."),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="For a misbehaviour proof: the base bundle (base.tar.gz), whose roster pins witness keys."
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say what a file proves. Exit 0: all that it can; 1: something contradicts; 3: something could not be told.

    The file is one of 'egm evidence export', or a misbehaviour proof ('egm node proof').
    """
    with file.open("rb") as opened:  # one byte more than allowed shows that it is too large
        data = opened.read(limits.MAX_EVIDENCE_BYTES + 1)
    trusted = _usable(root, lambda data: verify_roots(data, ()))
    anchors = None if ca is None else _usable(ca, check_anchors)
    if is_proof(data):
        verify_file(data, root=trusted, ca=anchors, bundle=bundle, as_json=as_json)
        return
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
    data = read_given(path, limits.MAX_METADATA_BYTES)
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
        "permits": [
            {
                "where": p.where,
                "execution": p.execution,
                "issuer": p.issuer,
                "subject": p.subject,
                "audience": p.audience,
                "method": p.method,
                "iat": p.issued_s,
                "exp": p.expires_s,
                "verified": p.verified,
            }
            for p in report.permits
        ],
        "attested": [
            {
                "where": a.where,
                "node": a.node,
                "sha256": a.sha256,
                "policy": a.policy,
                "witnesses": list(a.witnesses),
                "needed": a.needed,
            }
            for a in report.attested
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
    lines += [f"permit     {text}" for text in dict.fromkeys(map(_permit_text, report.permits))]
    lines += [
        f"attested   {a.node} by {', '.join(a.witnesses) or 'nobody'}, {a.needed} needed: credential {a.sha256}"
        for a in report.attested
    ]
    lines += [f"node       {node}" for node in report.nodes]
    lines += [f"WRONG      {f.where}: {f.what} ({f.reason})" for f in report.findings if f.reason is not None]
    lines += [f"OPEN       {f.where}: {f.what}" for f in report.findings if f.reason is None]
    lines += ["", "Not proved by any such file:", *(f"  {text}" for text in NOT_PROVED)]
    return "\n".join(lines)


def _permit_text(permit: Permitted) -> str:
    standing = "signed by its node" if permit.verified else "NOT VERIFIED"
    return f"{permit.execution}  {permit.subject} → {permit.audience} {permit.method}, by {permit.issuer}: {standing}"
