"""The tour, as a stranger runs it."""

import json
import subprocess
import sys
from pathlib import Path

from control_plane.lab.demo import PARTS
from tests.support.cli import egm

STEPS = 23
NODES = ("payments", "accounts", "workloads")


def test_every_step_of_the_demonstration_holds(tmp_path: Path) -> None:
    """`egm demo --json` prints one object per step, every one ok, exits 0; what it kept verifies without it."""
    home = tmp_path / "tour"
    done = subprocess.run(
        [sys.executable, "-m", "control_plane.cli.main", "demo", "--json", "--dir", str(home)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    failed = [step for step in steps if not step["ok"]]
    assert not failed, (failed, done.stderr)
    assert done.returncode == 0
    assert len(steps) == STEPS
    assert [(step["part"], step["step"]) for step in steps] == [
        (part, name) for part, named in PARTS for name, _ in named
    ]
    seen = {step["step"]: step["detail"] for step in steps}
    for name in NODES:
        assert f"{name} " in seen["a quorum of its peers vouches for every node"]
    assert "POLICY_STALE" in seen["the minority refuses: no fresh policy, no quorum that vouches"]
    assert "NODE_QUARANTINED" in seen["quarantined everywhere, and no operator was asked"]
    known = ["--root", home / "domain" / "root.json", "--ca", home / "domain" / "ca" / "ca.pem"]
    verified = egm(
        "evidence", "verify", home / "proof.json", *known, "--bundle", home / "base.tar.gz", "--json"
    )
    assert (verified.code, verified.data["node"]) == (0, "spiffe://mesh.local/node/workloads")
    again = egm("demo", "--dir", home)
    assert again.code == 2
    assert "is not empty" in again.stderr
