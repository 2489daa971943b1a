"""The assessments of one mesh over time: a JSON report per run below its directory, written once and never changed."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from control_plane.assess.catalogue import load_catalogue
from control_plane.assess.model import Assessment
from control_plane.assess.report_json import dump, parse
from trust import limits
from trust.edge.files import sync_directory
from trust.errors import InputError, Reason

FOLDER: Final = "assessments"


def keep(directory: Path, assessment: Assessment) -> Path:
    """Add an assessment to the history of the mesh in `directory`; return its file.

    Raises:
        OSError: it cannot be written; FileExistsError, never: runs have names of their own.
    """
    folder = directory / FOLDER
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{assessment.started_ms:015d}-{assessment.run}.json"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(dump(load_catalogue(), assessment))
        file.flush()
        os.fsync(file.fileno())
    path.chmod(0o400)
    sync_directory(folder)
    return path


def history(directory: Path) -> tuple[Sequence[Assessment], Sequence[str]]:
    """Return the assessments of the mesh in `directory`, oldest first; and what is wrong with files that are none.

    One damaged file must not hide the others, nor go unnoticed.
    """
    found, damaged = [], []
    for path in sorted((directory / FOLDER).glob("*.json"))[-limits.MAX_ASSESSMENTS_SHOWN :]:
        try:
            found.append(read(path))
        except InputError as error:
            damaged.append(error.detail)
    return found, damaged


def read(path: Path) -> Assessment:
    """Return the assessment in a JSON report.

    Raises:
        InputError: NOT_FOUND, or INPUT_INVALID, naming the file.
    """
    try:
        with path.open("rb") as file:
            return parse(file.read(limits.MAX_ASSESSMENT_BYTES + 1))
    except FileNotFoundError:
        raise InputError(
            Reason.NOT_FOUND, f"{path} does not exist; 'egm assess history' lists the runs of a mesh"
        ) from None
    except OSError as error:
        raise InputError(Reason.INPUT_INVALID, f"{path} cannot be read: {error.strerror}") from None
    except InputError as error:
        raise InputError(error.reason, f"{path}: {error.detail}") from None


def named(directory: Path | None, name: str) -> Assessment:
    """Return a report by file, or by the beginning of its run in the history of the mesh in `directory`.

    Raises:
        InputError: NOT_FOUND, or INPUT_INVALID when several runs begin so.
    """
    path = Path(name)
    if path.is_file() or directory is None or path.suffix == ".json":
        return read(path)
    found = [
        one for one in (directory / FOLDER).glob("*.json") if one.stem.partition("-")[2].startswith(name)
    ]
    if len(found) == 1:
        return read(found[0])
    if found:
        raise InputError(Reason.INPUT_INVALID, f"{len(found)} runs begin with {name!r}; write more of it")
    raise InputError(Reason.NOT_FOUND, f"no run {name!r}; 'egm assess history' lists them")
