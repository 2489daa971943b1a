"""`egm ca`: the embedded certificate authority, and its replacement without dropping a call."""

import enum
from pathlib import Path
from typing import Annotated

import typer

from control_plane.cli.context import JsonFlag
from control_plane.cli.output import emit
from control_plane.edge.ca import CertificateAuthority, RotationStatus, rotate_ca
from control_plane.edge.domain import open_domain
from trust.x509 import to_datetime

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="The embedded CA, and its rotation in three steps."
)
DomainOption = Annotated[
    Path, typer.Option("--domain", help="Trust domain directory (with the CA).", exists=True)
]
_NEXT = {"stable": "prepare", "prepared": "activate", "activated": "retire"}


class Step(enum.StrEnum):
    """The steps of a rotation, in order."""

    PREPARE = "prepare"
    ACTIVATE = "activate"
    RETIRE = "retire"


@app.command()
def status(domain: DomainOption, as_json: JsonFlag = False) -> None:
    """Show which CA certificates are trusted, and where a rotation stands."""
    _report(CertificateAuthority.open(open_domain(domain).ca_directory).rotation(), as_json=as_json)


@app.command()
def rotate(
    step: Annotated[Step, typer.Argument(help="prepare, then activate, then retire.")],
    domain: DomainOption,
    force: Annotated[
        bool,
        typer.Option("--force", help="Do not wait until it is safe; calls are dropped until nodes catch up."),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Take the next step of replacing the CA, on the machine that holds it.

    prepare: nodes learn to trust the new CA. activate: it signs from now on. retire: the old one is forgotten.
    """
    _report(rotate_ca(open_domain(domain).ca_directory, step.value, force=force), as_json=as_json)


def _report(found: RotationStatus, *, as_json: bool) -> None:
    step = _NEXT[found.phase.value]
    safe = "now" if found.next_step_ms is None else f"{to_datetime(found.next_step_ms):%Y-%m-%d %H:%M:%SZ}"
    emit(
        {
            "phase": found.phase.value,
            "trusted": found.anchors,
            "not_after_ms": found.not_after_ms,
            "next_step": step,
            "next_step_safe_from_ms": found.next_step_ms,
        },
        as_json=as_json,
        text=(
            f"phase      {found.phase.value}, {found.anchors} trusted\n"
            f"signs with a certificate valid until {to_datetime(found.not_after_ms):%Y-%m-%d}\n"
            f"next step  {step}, safe from {safe}"
        ),
    )
