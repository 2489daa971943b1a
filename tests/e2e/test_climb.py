"""The climb from level 0 to level 5, as a stranger runs it."""

import json
import subprocess
import sys

import pytest

from control_plane.assess.edge.climb import LEVELS


@pytest.mark.lab
@pytest.mark.timeout(900)
def test_one_service_climbs_all_levels_and_each_grade_is_measured() -> None:
    """`egm demo --climb --json`: at every level the assessor finds that level, no more and no less."""
    done = subprocess.run(
        [sys.executable, "-m", "control_plane.cli.main", "demo", "--climb", "--json"],
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    assert [step for step in steps if not step["ok"]] == [], done.stderr
    assert done.returncode == 0
    measured = [line for step in steps for line in step["detail"].splitlines() if line.startswith("measured")]
    assert [line.split(";")[0] for line in measured] == [
        f"measured: level {level}, {name}" for level, name in enumerate(LEVELS)
    ]
