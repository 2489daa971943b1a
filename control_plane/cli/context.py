"""What the online verbs share: which mesh, and running one asynchronous action against it."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from control_plane.edge.mesh_file import ENVIRONMENT, MeshFile, find_mesh

T = TypeVar("T")

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
    """Run one asynchronous action to its end."""
    return asyncio.run(action)
