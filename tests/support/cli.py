"""Running `egm` as a person or a program does."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What a command printed, and its exit code."""

    code: int
    stdout: str
    stderr: str

    @property
    def data(self) -> Any:
        """The one JSON object on standard output."""
        lines = [line for line in self.stdout.splitlines() if line.strip()]
        assert len(lines) == 1, (self.stdout, self.stderr)
        return json.loads(lines[0])


def egm(*arguments: object, mesh: Path | None = None, timeout_s: float = 60.0) -> Outcome:
    """Run one command to its end."""
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200"}
    environment.pop("EGM_MESH", None)
    if mesh is not None:
        environment["EGM_MESH"] = str(mesh)
    done = subprocess.run(
        [sys.executable, "-m", "control_plane.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env=environment,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
