"""Measures this node from software: the installed files of the distribution, and the effective configuration.

A claim, not a proof: the code that is measured does the measuring (docs/trust.md). A TPM is asked
by `sidecar.edge.tpm`.
"""

import hashlib
import importlib
import importlib.metadata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from sidecar.config import SidecarConfig
from trust import limits
from trust.attestation.measurement import Measurement, configuration_digest, distribution_digest
from trust.errors import Reason, StateError

DISTRIBUTION: Final = "egmesh"
PACKAGES: Final = ("control_plane", "egm", "sidecar", "trust")
_LEFT_OUT: Final = frozenset({"__pycache__"})


class SoftwareMeasurer:
    """Reads every file once; what is loaded later than that is not seen."""

    def __init__(self, config: SidecarConfig, packages: Sequence[str] = PACKAGES) -> None:
        """Measure `config` and the files of `packages`, when asked for the first time."""
        self._config, self._packages = config, packages
        self._measured: Measurement | None = None

    def measure(self) -> Measurement:
        """Return what runs here. Some 20 ms the first time: call it in a thread.

        Raises:
            StateError: MEASUREMENT_REFUSED, if a file cannot be read or there are too many.
        """
        if self._measured is None:
            self._measured = Measurement(
                version=importlib.metadata.version(DISTRIBUTION),
                distribution=installed_digest(self._packages),
                configuration=configuration_digest(self._config.model_dump(mode="json")),
            )
        return self._measured


def installed_digest(packages: Sequence[str] = PACKAGES) -> bytes:
    """Return the digest over every file of the installed packages, wherever they are.

    Raises:
        StateError: MEASUREMENT_REFUSED.
    """
    files: list[tuple[str, bytes]] = []
    try:
        for name in packages:
            root = _folder(name)
            for path in _files(root):
                inside = path.relative_to(root).as_posix()
                files.append((f"{name}/{inside}", hashlib.sha256(path.read_bytes()).digest()))
                if len(files) > limits.MAX_MEASURED_FILES:
                    raise StateError(
                        Reason.MEASUREMENT_REFUSED,
                        f"more than {limits.MAX_MEASURED_FILES} files are installed",
                    )
    except OSError as error:
        raise StateError(
            Reason.MEASUREMENT_REFUSED,
            f"{error.filename}: {error.strerror}: what runs here cannot be measured",
        ) from None
    return distribution_digest(files)


def _folder(package: str) -> Path:
    found = importlib.import_module(package)
    return Path(next(iter(found.__path__)))


def _files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        if path.is_file() and not _LEFT_OUT.intersection(path.parts):
            yield path
