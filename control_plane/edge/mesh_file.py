"""`mesh.json` of a mesh directory: where the other verbs find the mesh (`--mesh DIR` or `EGM_MESH`).

Not to be confused with the signed `mesh.json` inside a bundle (`trust.mesh`): nothing here is trusted,
it is an address book.
"""

import json
import os
from pathlib import Path
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from trust.edge.files import write_atomic
from trust.errors import InputError, Reason

FILE_NAME: Final = "mesh.json"
ENVIRONMENT: Final = "EGM_MESH"


class _Entry(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class NodeEntry(_Entry):
    """One sidecar. `inbound` maps service to the address other sidecars dial."""

    admin: str
    inbound: dict[str, str] = {}
    config: str = ""
    pid: int | None = None


class WorkloadEntry(_Entry):
    """One workload. `outbound` maps service to the plaintext address it may call."""

    outbound: dict[str, str] = {}
    node: str = ""


class MeshFile(_Entry):
    """The address book. Paths are absolute, or relative to the directory of the file."""

    trust_domain: str
    root: str
    control_plane: str
    broker: str = "none"
    operator: str = "operator"  # directory with svid.pem, svid.key.pem, ca.pem
    domain: str | None = None  # trust domain directory, on the machine that holds it
    join: str | None = None  # address of the enrolment listener
    nodes: dict[str, NodeEntry] = {}
    workloads: dict[str, WorkloadEntry] = {}
    approvers: dict[str, str] = {}

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read DIR/mesh.json.

        Raises:
            InputError: NOT_FOUND or INPUT_INVALID, saying how to make one.
        """
        path = directory / FILE_NAME
        try:
            return cls.model_validate_json(path.read_bytes())._below(directory)
        except FileNotFoundError:
            raise InputError(
                Reason.NOT_FOUND,
                f"{path} does not exist; run 'egm up --dir {directory}', or name a mesh with --mesh",
            ) from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InputError(Reason.INPUT_INVALID, f"{path}: {where}: {first['msg']}") from None

    def _below(self, directory: Path) -> Self:
        """Return a copy whose paths no longer depend on where a verb is run."""
        nodes = {
            name: entry.model_copy(update={"config": str(directory / entry.config)})
            if entry.config
            else entry
            for name, entry in self.nodes.items()
        }
        return self.model_copy(
            update={
                "root": str(directory / self.root),
                "operator": str(directory / self.operator),
                "domain": None if self.domain is None else str(directory / self.domain),
                "approvers": {name: str(directory / path) for name, path in self.approvers.items()},
                "nodes": nodes,
            }
        )

    def save(self, directory: Path) -> None:
        """Write DIR/mesh.json at once, so that a reader never sees half of it."""
        text = json.dumps(self.model_dump(), indent=2, sort_keys=True)
        write_atomic(directory / FILE_NAME, text.encode() + b"\n")


def find_mesh(option: Path | None) -> Path:
    """Return the mesh directory: the option, else EGM_MESH, else the current directory if it holds one.

    Raises:
        InputError: INPUT_INVALID, saying how to name one.
    """
    if option is not None:
        return option.resolve()
    named = os.environ.get(ENVIRONMENT)
    if named:
        return Path(named).resolve()
    if (Path.cwd() / FILE_NAME).is_file():
        return Path.cwd()
    raise InputError(
        Reason.INPUT_INVALID,
        f"which mesh? give --mesh DIR or set {ENVIRONMENT} (a directory with {FILE_NAME})",
    )
