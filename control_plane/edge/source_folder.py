"""Policy folders and archives on disk: read whole, written without overwriting anything."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from control_plane.edge.given_file import read_given
from trust import limits
from trust.bundle import DESCRIPTORS, ENTITIES, REFERENCE_VALUES, Bundle, read_claimed_bundle
from trust.edge.files import write_atomic
from trust.errors import InputError, Reason
from trust.policy.source import SETTINGS, build

_FILES: Final = (SETTINGS, ENTITIES, DESCRIPTORS, REFERENCE_VALUES)
_FOLDERS: Final = ("policies", "tests")


def read_folder(folder: Path) -> dict[str, bytes]:
    """Return the files of a policy folder by relative path. Hidden files and editors' backups are left out.

    What lies beside the known files is named with empty content, so that lint can say it is left out.

    Raises:
        InputError: INPUT_INVALID, when it is not a folder, cannot be read, or is too large.
    """
    if not folder.is_dir():
        raise InputError(
            Reason.INPUT_INVALID, f"{folder} is not a folder; make one with: egm policy new {folder}"
        )
    found: dict[str, bytes] = {}
    total = 0
    for path in sorted(folder.iterdir()):
        if _is_hidden(path):
            continue
        if path.name not in (*_FILES, *_FOLDERS):
            found[path.name] = b""
            continue
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        for file in files:
            if any(_is_hidden(part) for part in file.relative_to(folder).parents) or _is_hidden(file):
                continue
            total += file.stat().st_size
            if total > limits.MAX_BUNDLE_UNPACKED_BYTES or len(found) > limits.MAX_BUNDLE_ENTRIES:
                raise InputError(
                    Reason.INPUT_INVALID,
                    f"{folder} is larger than a bundle may be ({limits.MAX_BUNDLE_UNPACKED_BYTES} bytes,"
                    f" {limits.MAX_BUNDLE_ENTRIES} files); split it by namespace",
                )
            found[file.relative_to(folder).as_posix()] = read_given(file, limits.MAX_BUNDLE_UNPACKED_BYTES)
    return found


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write `files` below `folder`.

    Raises:
        InputError: INPUT_INVALID, when a file is already there; nothing was written.
    """
    if present := sorted(path for path in files if (folder / path).exists()):
        raise InputError(
            Reason.INPUT_INVALID, f"{folder / present[0]} exists; name a new folder, or remove it first"
        )
    for path, data in files.items():
        write_atomic(folder / path, data)


def bundle_at(path: Path) -> Bundle:
    """Return the bundle at `path`: an archive, or a folder that is built.

    Raises:
        InputError: INPUT_INVALID, when a folder has mistakes or there is nothing at `path`.
        EvidenceError: when an archive is malformed.
    """
    if path.is_dir():
        return read_claimed_bundle(build(read_folder(path)))
    if not path.exists():
        raise InputError(Reason.INPUT_INVALID, f"{path} does not exist; name a policy folder or an archive")
    return read_claimed_bundle(read_given(path, limits.MAX_BUNDLE_ARCHIVE_BYTES))


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name.endswith(("~", ".swp", ".orig"))
