"""`egm lineage payload`: read what policy asked to keep of an execution, with an auditor's key."""

import base64
import enum
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from control_plane.cli.context import JsonFlag, MeshOption, open_mesh, run
from control_plane.cli.keys import passphrase_for
from control_plane.cli.output import Exit, console, emit, table
from control_plane.edge import operator_client
from control_plane.edge.recorded import from_entries, from_evidence, from_ledgers
from egm.v1 import record_pb2
from trust.edge.auditor_keys import load_auditor_private
from trust.edge.files import write_atomic
from trust.edge.ledger import open_place
from trust.errors import EvidenceError, InputError, Reason
from trust.execution import id_text, parse_id
from trust.payload import Part, Recorded, digest_fits, open_sealed, payloads_of
from trust.record import Record, Side


class SideName(enum.StrEnum):
    """Whose sidecar recorded it."""

    OUTBOUND = "outbound"
    INBOUND = "inbound"


@enum.unique
class Finding(enum.StrEnum):
    """What became of one payload."""

    OPENED = "opened"  # and it has the digest that the record states
    CONTRADICTED = "contradicted"  # changed, of another record, or not what the record says was sent
    OTHER_KEY = "sealed to others"
    NOT_SEALED = "not sealed"  # policy did not ask, or it could not be kept


@dataclass(frozen=True, slots=True)
class Opened:
    """One place where a payload could be, and what was found there."""

    recorded: Recorded
    finding: Finding
    payload: bytes = b""
    detail: str = ""


def payload(
    execution: Annotated[str, typer.Argument(metavar="ID", help="The id of an execution.")],
    key: Annotated[Path, typer.Option("--key", help="An auditor's private key, NAME.pem.")],
    side: Annotated[SideName | None, typer.Option(help="Whose record: the caller's or the callee's.")] = None,
    part: Annotated[Part | None, typer.Option(help="Request or response.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the payload here (mode 0600), as it was sent."),
    ] = None,
    ledger: Annotated[
        list[Path] | None,
        typer.Option("--ledger", help="Read this ledger directory, not the index. May be repeated."),
    ] = None,
    archive: Annotated[
        list[str] | None,
        typer.Option(
            help="Where else older parts are: a path, file:///PATH or s3://BUCKET/PREFIX. May be repeated."
        ),
    ] = None,
    evidence: Annotated[
        Path | None, typer.Option("--evidence", help="Read this evidence file, not the index.")
    ] = None,
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Open the sealed payloads of an execution. Exit 0: opened, and as recorded; 1: contradicted; 3: cannot tell."""
    wanted = parse_id(execution)
    if ledger and evidence is not None:
        raise InputError(Reason.INPUT_INVALID, "give --ledger or --evidence, not both")
    if archive and not ledger:
        raise InputError(
            Reason.INPUT_INVALID, "--archive goes with --ledger: say whose older parts these are"
        )
    private = load_auditor_private(key, passphrase_for(str(key)))
    if evidence is not None:
        records = from_evidence(evidence, wanted)
    elif ledger:
        places = [open_place(place) for place in archive or ()]
        records = from_ledgers({str(path): path for path in ledger}, wanted, archives=places)
    else:
        records = _from_index(wanted, mesh)
    chosen = _chosen(records, side, part)
    if not chosen:
        raise InputError(
            Reason.NOT_FOUND,
            f"no record of {id_text(wanted)} on that side was found; try without --side and --part",
        )
    found = [_open(recorded, private) for recorded in chosen]
    if output is not None:
        _write(output, found)
    emit(
        {"id": id_text(wanted), "payloads": [_as_json(one, written=output is not None) for one in found]},
        as_json=as_json,
        text=lambda: _print(found, output),
    )
    code = _exit(found)
    if code:
        raise typer.Exit(code)


def _from_index(wanted: bytes, mesh: Path | None) -> list[Record]:
    file, directory = open_mesh(mesh)

    async def ask() -> list[record_pb2.ExecutionEntry]:
        async with operator_client.operator(file, directory) as client:
            return list(await client.execution(wanted))

    return from_entries(run(ask()), wanted)


def _chosen(records: Sequence[Record], side: SideName | None, part: Part | None) -> list[Recorded]:
    """Return each place once, requests before responses, the caller's side first."""
    places: dict[tuple[Side, str, Part, bytes], Recorded] = {}
    for recorded in map(payloads_of, records):
        binding = recorded.binding
        if side is not None and binding.side.name.lower() != side.value:
            continue
        if part is None or binding.part is part:
            places.setdefault((binding.side, binding.node, binding.part, recorded.sealed), recorded)
    return [places[place] for place in sorted(places)]


def _open(recorded: Recorded, key: X25519PrivateKey) -> Opened:
    if not recorded.sealed:
        return Opened(recorded, Finding.NOT_SEALED)
    try:
        opened = open_sealed(recorded.sealed, recorded.binding, key)
    except EvidenceError as error:
        finding = Finding.OTHER_KEY if error.reason is Reason.NOT_FOUND else Finding.CONTRADICTED
        return Opened(recorded, finding, detail=error.detail)
    if not digest_fits(opened, recorded):
        detail = (
            f"what is sealed has the SHA-256 {hashlib.sha256(opened).hexdigest()}, the record says "
            f"{recorded.sha256.hex() or 'none'}: the node did not seal what it forwarded"
        )
        return Opened(recorded, Finding.CONTRADICTED, detail=detail)
    return Opened(recorded, Finding.OPENED, opened)


def _write(path: Path, found: Sequence[Opened]) -> None:
    """Write the payload, if all that was opened is one and the same.

    Raises:
        InputError: INPUT_INVALID, when there are several; NOT_FOUND, when there is none.
    """
    opened = {(one.recorded.binding.part, one.payload) for one in found if one.finding is Finding.OPENED}
    if len(opened) > 1:
        raise InputError(
            Reason.INPUT_INVALID,
            "several payloads were opened: choose one with --side and --part for --output",
        )
    for _, data in opened:
        write_atomic(path, data, mode=0o600)


def _exit(found: Sequence[Opened]) -> Exit:
    findings = {one.finding for one in found}
    if Finding.CONTRADICTED in findings:
        return Exit.NO
    # A response may be missing (a stream, a refusal): what was opened answers the question.
    return Exit.YES if Finding.OPENED in findings else Exit.UNKNOWN


def _as_json(one: Opened, *, written: bool) -> dict[str, object]:
    binding = one.recorded.binding
    shown: dict[str, object] = {
        "node": binding.node,
        "side": binding.side.name.lower(),
        "part": binding.part.value,
        "finding": one.finding.name,
        "sha256": one.recorded.sha256.hex(),
        "detail": one.detail,
    }
    if one.finding is Finding.OPENED:
        shown["bytes"] = len(one.payload)
        if not written:
            shown["payload"] = base64.b64encode(one.payload).decode()
    return shown


def _print(found: Sequence[Opened], output: Path | None) -> None:
    rows = [
        (
            one.recorded.binding.node,
            one.recorded.binding.side.name.lower(),
            one.recorded.binding.part.value,
            one.finding.value,
            len(one.payload) if one.finding is Finding.OPENED else "-",
            one.recorded.sha256.hex() or "-",
        )
        for one in found
    ]
    table(("node", "side", "part", "payload", "bytes", "SHA-256 recorded"), rows)
    for one in found:
        if one.detail:
            binding = one.recorded.binding
            console.print(
                f"{binding.node}, {binding.side.name.lower()} {binding.part.value}: {one.detail}",
                soft_wrap=True,
            )
    if any(one.finding is Finding.OPENED for one in found):
        where = (
            f"written to {output}"
            if output is not None
            else "write one with -o FILE, or print all with --json"
        )
        console.print(f"\n{where}", soft_wrap=True)
