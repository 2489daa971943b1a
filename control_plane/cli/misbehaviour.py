"""`egm evidence verify` for misbehaviour proofs: what a proof shows, offline."""

from pathlib import Path
from typing import Final

import typer
from tuf.api.metadata import Root

from control_plane.cli.output import Exit, console, emit
from control_plane.edge.given_file import read_given
from trust import limits
from trust.authoring import parse_metadata
from trust.bundle import read_bundle
from trust.errors import EvidenceError, InputError, Reason
from trust.metadata import trust_domain_of
from trust.misbehaviour import FORMAT, Anchors, verify_proof
from trust.verified import BASE_ROLE

_BEGINNING: Final = f'{{"format":"{FORMAT.partition("/")[0]}'.encode()


def is_proof(data: bytes) -> bool:
    """Whether a file says that it is a misbehaviour proof."""
    return data.startswith(_BEGINNING)


def verify_file(data: bytes, *, root: bytes, ca: bytes | None, bundle: Path | None, as_json: bool) -> None:
    """Say what a proof shows; exit 0 when it is proven, 1 when it is not.

    Args:
        data: the proof.
        root: the mesh's TUF root metadata.
        ca: its CA certificates, which bind node keys; None when the reader has none.
        bundle: its base bundle, whose witness roster pins keys.
        as_json: print JSON.
    """
    domain = trust_domain_of(parse_metadata(root, Root).signed)
    if domain is None:
        raise InputError(
            Reason.INPUT_INVALID, "the root metadata names no trust domain; use the mesh's root.json"
        )
    roster = None
    if bundle is not None:
        mesh = read_bundle(read_given(bundle, limits.MAX_BUNDLE_ARCHIVE_BYTES), role=BASE_ROLE).mesh
        roster = None if mesh is None else mesh.roster()
    try:
        found = verify_proof(data, Anchors(domain, ca or b"", roster, root))
    except EvidenceError as error:
        record = {"verdict": "unproven", "error": error.reason.value, "detail": error.detail}
        emit(record, as_json=as_json, text=f"REFUSED  {error.reason}: {error.detail}")
        raise typer.Exit(Exit.NO) from None

    def text() -> None:
        console.print(f"PROVEN  {found.summary}", soft_wrap=True)
        console.print(f"  kind     {found.kind}")
        console.print(f"  accused  {found.accused}")
        for key in found.keys:
            console.print(f"  signed both: key {key}")
        console.print(f"  proof    {found.id}")

    emit(
        {
            "verdict": "proven",
            "id": found.id,
            "kind": found.kind,
            "accused": found.accused,
            "node": found.node,
            "summary": found.summary,
            "keys": list(found.keys),
        },
        as_json=as_json,
        text=text,
    )
