"""What the online verbs share: which mesh, and running one asynchronous action against it."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer

from control_plane.edge.mesh_file import ENVIRONMENT, FILE_NAME, MeshFile, find_mesh
from trust.errors import StateError

T = TypeVar("T")
_NOBODY_ANSWERED: Final = ("failed to connect", "DEADLINE_EXCEEDED", "DNS resolution failed")

MeshOption = Annotated[
    Path | None,
    typer.Option("--mesh", help=f"Directory with mesh.json (default: ${ENVIRONMENT}, or this directory)."),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def open_mesh(option: Path | None) -> tuple[MeshFile, Path]:
    """Return the address book and its directory.

    Raises:
        InputError: when there is none, saying how to name one.
    """
    directory = find_mesh(option)
    return MeshFile.load(directory), directory


def run(action: Coroutine[Any, Any, T]) -> T:
    """Run one asynchronous action to its end.

    Raises:
        MeshError: what the action raised; if nobody answered it, with what to do next.
    """
    try:
        return asyncio.run(action)
    except StateError as error:
        if any(sign in error.detail for sign in _NOBODY_ANSWERED):
            detail = f"{error.detail}; is it running, is its address in {FILE_NAME} right? ask 'egm doctor'"
            raise StateError(error.reason, detail) from None
        raise
