"""The tour, as a stranger runs it."""

import json
import subprocess
import sys

STEPS = 16


def test_every_step_of_the_demonstration_holds() -> None:
    """`egm demo --json` prints one object per step, every one ok, and exits 0."""
    done = subprocess.run(
        [sys.executable, "-m", "control_plane.cli.main", "demo", "--json"],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    failed = [step for step in steps if not step["ok"]]
    assert not failed, (failed, done.stderr)
    assert done.returncode == 0
    assert len(steps) == STEPS
    assert {"step", "ok", "detail"} <= steps[0].keys()
