"""`egm ledger`: check a node's log on disk, and take proofs from it. Needs no mesh and no running process."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from control_plane.cli.context import JsonFlag
from control_plane.cli.output import Exit, emit, errors
from trust import limits
from trust.edge.ledger import Place, Reader, Verification, open_place, places_of, read_archived
from trust.edge.ledger import archive as archive_ledger
from trust.edge.ledger import verify as verify_ledger
from trust.edge.ledger.layout import list_segments
from trust.errors import EvidenceError, InputError, Reason
from trust.merkle import check_consistency, leaf_hash, root_from_inclusion
from trust.note import Verifier

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="A node's append-only log: verify it, take proofs from it.",
)
DirectoryArgument = Annotated[
    Path, typer.Argument(help="The ledger's directory (it has a file 'checkpoint').")
]
ArchiveOption = Annotated[
    list[str] | None,
    typer.Option(
        "--archive",
        help="Where else older parts are: a path, file:///PATH or s3://BUCKET/PREFIX; besides what the ledger itself "
        "has written down. May be repeated.",
    ),
]
SizeOption = Annotated[
    int | None, typer.Option(help="Size of the tree, in records (default: of the last checkpoint).", min=0)
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key", help="The log's C2SP verifier key NAME+HEX+BASE64, or a file with it, known from elsewhere."
    ),
]


@app.command()
def verify(
    directory: DirectoryArgument,
    key: KeyOption = None,
    archive: ArchiveOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Read the whole ledger: every record, tile and signature. Exit 0: all fits; 1: the findings name the places."""
    found = verify_ledger(directory, key=_key(key), archives=_places(directory, archive))
    emit(
        {
            "ok": found.ok,
            "origin": found.origin,
            "size": found.size,
            "root": base64.b64encode(found.root).decode(),
            "records": found.records,
            "signer": found.signer,
            "signer_known": found.known_key,
            "findings": [{"where": f.where, "what": f.what} for f in found.findings],
            "notes": found.notes,
        },
        as_json=as_json,
        text=_describe(found),
    )
    if not found.ok:
        raise typer.Exit(Exit.NO)


@app.command()
def proof(
    directory: DirectoryArgument,
    index: Annotated[int, typer.Argument(help="The record, from 0.", min=0)],
    size: SizeOption = None,
    archive: ArchiveOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Prove that a record is in the tree: its hashes, leaf to root. Exit 1: what is on disk does not prove it."""
    reader = Reader(directory, archives=_places(directory, archive))
    whole = reader.size if size is None else size
    if not index < whole <= reader.size:
        raise InputError(
            Reason.INPUT_INVALID,
            f"the checkpoint covers {reader.size} records: choose an index below the size, and a size up to that",
        )
    try:
        digest = reader.digest(index)
        hashes, root = reader.inclusion_proof(index, whole), reader.root(whole)
        ok = root_from_inclusion(leaf_hash(digest), index, whole, hashes) == root
        ok = ok and (whole != reader.size or root == reader.checkpoint.root)
    except EvidenceError as error:
        _cannot(error, as_json=as_json)
    emit(
        {
            "ok": ok,
            "index": index,
            "size": whole,
            "record_sha256": digest.hex(),
            "leaf_hash": leaf_hash(digest).hex(),
            "proof": [h.hex() for h in hashes],
            "root": root.hex(),
            "checkpoint": reader.checkpoint_note.decode(),
        },
        as_json=as_json,
        text="\n".join(
            [
                f"record     {index} of {whole}, SHA-256 {digest.hex()}",
                f"leaf hash  {leaf_hash(digest).hex()}",
                *(f"sibling    {h.hex()}" for h in hashes),
                f"root       {root.hex()}",
                "these lead from the record to the root"
                if ok
                else "the tiles do not lead to the signed root",
            ]
        ),
    )
    if not ok:
        raise typer.Exit(Exit.NO)


@app.command()
def consistency(
    directory: DirectoryArgument,
    size1: Annotated[int, typer.Argument(help="The earlier size, in records.", min=0)],
    size2: Annotated[int, typer.Argument(help="The later size, in records.", min=0)],
    archive: ArchiveOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Prove that the tree of SIZE2 continues the one of SIZE1. Exit 1: what is on disk does not prove it."""
    reader = Reader(directory, archives=_places(directory, archive))
    if not size1 <= size2 <= reader.size:
        raise InputError(
            Reason.INPUT_INVALID, f"choose SIZE1 <= SIZE2 <= {reader.size}, which the checkpoint covers"
        )
    try:
        hashes = reader.consistency_proof(size1, size2)
        root1, root2 = reader.root(size1), reader.root(size2)
        check_consistency(size1, root1, size2, root2, hashes)
        ok = size2 != reader.size or root2 == reader.checkpoint.root
    except EvidenceError as error:
        _cannot(error, as_json=as_json)
    emit(
        {
            "ok": ok,
            "size1": size1,
            "root1": root1.hex(),
            "size2": size2,
            "root2": root2.hex(),
            "proof": [h.hex() for h in hashes],
        },
        as_json=as_json,
        text="\n".join(
            [
                f"size {size1}  root {root1.hex()}",
                f"size {size2}  root {root2.hex()}",
                *(f"hash  {h.hex()}" for h in hashes),
                "the second continues the first" if ok else "the tiles do not lead to the signed root",
            ]
        ),
    )
    if not ok:
        raise typer.Exit(Exit.NO)


@app.command()
def archive(
    directory: DirectoryArgument,
    to: Annotated[
        str, typer.Argument(help="Where to move old parts: a folder (made if needed), or s3://BUCKET/PREFIX.")
    ],
    before: Annotated[
        int | None, typer.Option(help="Only what ends below this record (default: all that may go).", min=0)
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Move old segments away, each read back and checked there before it is removed. The node may keep running.

    Exit 3: the object store does not answer; nothing is lost, and the next attempt goes on where this one ended.
    """
    to = str(Path(to).absolute()) if "://" not in to else to

    def moved(first: int) -> None:
        if not as_json:
            errors.print(f"records {first} to {first + limits.LEDGER_SEGMENT_RECORDS - 1} are at {to}")

    done = archive_ledger(directory, open_place(to), before=before, moved=moved)
    emit(
        {"ok": True, "moved": done, "to": to},
        as_json=as_json,
        text=f"moved {len(done)} segments to {to}; every verb finds them there"
        if done
        else "nothing may go yet: the last two segments always stay",
    )


@app.command()
def status(directory: DirectoryArgument, as_json: JsonFlag = False) -> None:
    """Show how much is here, how much is archived, and where. Reads nothing of the archives themselves."""
    reader = Reader(directory)
    here = list_segments(directory)
    archived = {first: url for first, url in read_archived(directory).items() if first not in here}
    by_place: dict[str, list[int]] = {}
    for first, url in archived.items():
        by_place.setdefault(url, []).append(first)
    step = limits.LEDGER_SEGMENT_RECORDS
    archives = [
        {"to": url, "segments": len(firsts), "first": min(firsts), "upto": max(firsts) + step}
        for url, firsts in by_place.items()
    ]
    emit(
        {
            "ok": True,
            "origin": reader.checkpoint.origin,
            "size": reader.size,
            "root": base64.b64encode(reader.checkpoint.root).decode(),
            "segments": len(here),
            "first": min(here, default=0),
            "archives": archives,
        },
        as_json=as_json,
        text="\n".join(
            [
                f"origin      {reader.checkpoint.origin}",
                f"checkpoint  {reader.size} records, root {reader.checkpoint.root.hex()}",
                f"here        {len(here)} segments, from record {min(here, default=0)} on",
                *(
                    f"archived    records {a['first']} to {int(str(a['upto'])) - 1}: {a['to']}"
                    for a in archives
                ),
            ]
        ),
    )


def _places(directory: Path, more: Sequence[str] | None) -> list[Place]:
    """What the ledger has written down, and what the person named."""
    return [*places_of(directory), *map(open_place, more or ())]


def _key(option: str | None) -> Verifier | None:
    if option is None:
        return None
    path = Path(option)
    text = path.read_text("utf-8").strip() if path.is_file() else option
    return Verifier.parse(text)


def _describe(found: Verification) -> str:
    lines = [
        f"origin      {found.origin}",
        f"checkpoint  {found.size} records, root {found.root.hex()}",
        f"read        {found.records} records",
    ]
    if found.signer:
        how = "the key you gave" if found.known_key else "the key that the ledger itself names; compare it"
        lines.append(f"signed by   {found.signer}\n            ({how})")
    lines += [f"note        {note}" for note in found.notes]
    lines += [f"WRONG       {finding.where}: {finding.what}" for finding in found.findings]
    lines.append(
        "all of it fits" if found.ok else f"{len(found.findings)} findings: keep the directory as evidence"
    )
    return "\n".join(lines)


def _cannot(error: EvidenceError, *, as_json: bool) -> NoReturn:
    """End with exit 1: the ledger on disk does not give the proof."""
    emit(
        {"ok": False, "error": error.reason.value, "detail": error.detail},
        as_json=as_json,
        text=f"no proof: {error.detail}; 'egm ledger verify' names everything that is wrong",
    )
    raise typer.Exit(Exit.NO)
