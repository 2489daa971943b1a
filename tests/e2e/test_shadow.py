"""A proposal tried in live sidecars: `egm policy shadow` against a mesh that `egm up` keeps."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.e2e.test_up import POLICY, WAIT_S, Running, running, service, write
from tests.support.cli import Outcome, egm

__all__ = ["running", "service"]  # fixtures
pytestmark = pytest.mark.xdist_group("shadow")
WITHOUT_ALICE = POLICY | {
    "bundle.yaml": POLICY["bundle.yaml"].replace("[alice]", "[mallory]"),
    "tests/probe.yaml": "[]\n",
}


@pytest.fixture(scope="module")
def proposal(running: Running, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Alice may not probe any more, mallory may: proposed, signed by nobody."""
    folder = write(tmp_path_factory.mktemp("candidate"), WITHOUT_ALICE)
    return str(egm("policy", "propose", folder, "--json", mesh=running.directory).data["id"])


@pytest.fixture(scope="module")
def started(running: Running, proposal: str) -> Iterator[Outcome]:
    key = running.mesh["approvers"]["approver-1"]
    yield egm(*SHADOW, "start", proposal, "--key", key, "--for", "30m", "--json", mesh=running.directory)


SHADOW = ("policy", "shadow")


def shown(running: Running) -> dict[str, Any]:
    """Return what the run has found so far."""
    found: dict[str, Any] = egm(*SHADOW, "show", "--json", mesh=running.directory).data
    return found


def waited(running: Running, changes: set[tuple[str, str]]) -> dict[str, Any]:
    """Call as alice and as mallory until the run has found `changes`: pairs of change and caller."""
    deadline = time.monotonic() + WAIT_S
    while True:
        for workload in ("alice", "mallory"):
            try:
                running.call(workload)
            except grpc.RpcError as refused:
                assert workload == "mallory", refused
        found = shown(running)
        if changes <= {(one["change"], one["caller"].rpartition("/")[2]) for one in found["differences"]}:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.5)


def test_no_run_is_an_answer_too(running: Running) -> None:
    """Exit 2, and what starts one."""
    none = egm(*SHADOW, "show", mesh=running.directory)
    assert (none.code, "egm policy shadow start" in none.stderr) == (2, True)
    assert egm(*SHADOW, "stop", mesh=running.directory).code == 2


def test_a_run_by_somebody_who_approves_nothing_is_refused(
    running: Running, proposal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator alone cannot make every node decide twice."""
    monkeypatch.setenv("EGM_PASSPHRASE", "long enough for a test")
    assert egm("keys", "new", "stranger", "--dir", tmp_path).code == 0
    refused = egm(
        *SHADOW, "start", proposal, "--key", tmp_path / "stranger.pem", "--json", mesh=running.directory
    )
    assert (refused.code, refused.data["error"]) == (2, "NOT_AUTHORIZED")


def test_one_approver_sees_what_a_proposal_would_change_while_nothing_changes(
    running: Running, started: Outcome
) -> None:
    """Alice still calls and mallory does not; the run says that both would be otherwise."""
    assert started.code == 0, started
    assert (started.data["state"], started.data["approver"]) == ("running", "approver-1")
    found = waited(running, {("newly-denied", "alice"), ("newly-allowed", "mallory")})
    denied = next(one for one in found["differences"] if one["change"] == "newly-denied")
    assert (denied["before"], denied["after"]) == ("ALLOWED", "NO_POLICY_PERMITS")
    assert {node["problem"] for node in found["nodes"]} == {None}
    text = egm(*SHADOW, "show", mesh=running.directory)
    assert (text.code, "newly-denied" in text.stdout) == (1, True)


def test_a_second_run_waits_for_the_end_of_the_first(
    running: Running, started: Outcome, tmp_path: Path
) -> None:
    """Every node decides twice, not three times."""
    other = write(tmp_path / "other", POLICY | {"tests/probe.yaml": "[]\n"})
    proposed = egm("policy", "propose", other, "--json", mesh=running.directory).data["id"]
    key = running.mesh["approvers"]["approver-2"]
    refused = egm(*SHADOW, "start", proposed, "--key", key, "--json", mesh=running.directory)
    assert (refused.code, refused.data["error"]) == (2, "CONFLICT")


def test_a_stopped_run_counts_nothing_more_and_keeps_what_it_found(
    running: Running, started: Outcome
) -> None:
    """And the deed is in the audit."""
    assert started.code == 0, started
    waited(running, {("newly-denied", "alice")})
    stopped = egm(*SHADOW, "stop", "--json", mesh=running.directory)
    assert (stopped.code, stopped.data["state"]) == (0, "stopped")
    assert stopped.data["differences"]
    actions = [one["action"] for one in egm("audit", "--json", mesh=running.directory).data["entries"]]
    assert {"start-shadow", "stop-shadow"} <= set(actions)
