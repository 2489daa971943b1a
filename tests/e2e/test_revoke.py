"""`egm revoke` and `egm node quarantine` against a running mesh, at last with its control plane killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health, health_pb2_grpc

from tests.e2e.test_up import POLICY, WAIT_S, Running, write
from tests.support.cli import Outcome, egm

CHECK = "grpc.health.v1.Health/Check"
pytestmark = pytest.mark.xdist_group("revoke")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A mesh of its own: these tests lock it out and kill its control plane."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    service = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    home = tmp_path_factory.mktemp("revoke")
    directory, policy = home / "mesh", write(home / "policy", POLICY)
    arguments = ["up", "--dir", directory, "--service", f"probe={service}", "--policy", policy]
    arguments += ["--workload", "alice"]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "control_plane.cli.main", *map(str, arguments)], stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + WAIT_S
        while not (directory / "mesh.json").is_file():
            assert process.poll() is None and time.monotonic() < deadline, (home / "log").read_text()
            time.sleep(0.1)
        yield Running(directory, policy, json.loads((directory / "mesh.json").read_text()))
    finally:
        process.terminate()
        process.wait(30)
        server.stop(None).wait()


def refused(running: Running) -> str:
    """Return why alice's call is refused; empty when it is not."""
    try:
        running.call("alice")
    except grpc.RpcError as error:
        return str(error.details())
    return ""


def becomes(running: Running, part: str) -> None:
    """Wait until alice's call is refused with `part` in the text, or allowed when it is empty."""
    deadline = time.monotonic() + WAIT_S
    while (text := refused(running)) != part and (not part or part not in text):
        assert time.monotonic() < deadline, text
        time.sleep(0.05)


def sign_and_publish(running: Running, proposed: Outcome) -> None:
    """Have two approvers sign a proposal, and publish it."""
    name = proposed.data["id"]
    for approver in ("approver-1", "approver-2"):
        key = running.mesh["approvers"][approver]
        assert egm("policy", "review", name, "--json", mesh=running.directory).code == 0
        signed = egm("policy", "sign", name, "--key", key, "--json", mesh=running.directory)
        assert signed.code == 0, signed.stderr + signed.stdout
    assert egm("policy", "publish", name, "--json", mesh=running.directory).code == 0


def test_without_a_reason_or_with_a_stranger_s_key_nothing_is_revoked(
    running: Running, tmp_path: Path
) -> None:
    """Those refused will ask why; and only keys that the quorum named count."""
    asked = egm("revoke", "workload", "alice", "--json", mesh=running.directory)
    assert (asked.code, asked.data["error"]) == (2, "INPUT_INVALID")
    os.environ["EGM_PASSPHRASE"] = "correct horse battery"
    try:
        made = egm("keys", "new", "emergency-9", "--purpose", "emergency", "--dir", tmp_path, "--json")
        assert made.data["bundle"].startswith("emergency_keys: {emergency-9: ")
        key = tmp_path / "emergency-9.pem"
        tried = egm(
            "revoke", "workload", "alice", "--reason", "x", "--key", key, "--json", mesh=running.directory
        )
    finally:
        del os.environ["EGM_PASSPHRASE"]
    assert tried.code == 1
    assert set(tried.data["refused"]) == {"control plane", "probe", "workloads"}
    assert refused(running) == ""


def test_revoked_workload_is_denied_until_the_quorum_lifts_it(running: Running) -> None:
    """Deny with one key, list it, allow again with two of three approvers."""
    done = egm(
        "revoke", "workload", "alice", "--ttl", "1h", "--reason", "stolen", "--json", mesh=running.directory
    )
    assert done.code == 0, done.stderr
    assert set(done.data["in_effect"]) == {"control plane", "probe", "workloads"}
    becomes(running, "workload alice is revoked: stolen")
    listed = egm("revoke", "list", "--json", mesh=running.directory).data
    assert [(one["kind"], one["value"], one["key"]) for one in listed["denials"]] == [
        ("workload", "alice", "emergency-1")
    ]
    shown = egm(
        "check",
        "--caller",
        "alice",
        "--service",
        "probe",
        "--method",
        CHECK,
        "--json",
        mesh=running.directory,
    )
    assert shown.data["reason"] == "REVOKED"
    lifted = egm("revoke", "lift", done.data["id"][:12], "--json", mesh=running.directory)
    assert lifted.code == 0, lifted.stderr
    assert done.data["id"] in lifted.data["bundle"]
    assert "revoked" in refused(running)  # a proposal lifts nothing
    sign_and_publish(running, lifted)
    becomes(running, "")


def test_quarantined_node_refuses_everything_until_the_quorum_releases_it(running: Running) -> None:
    """An operator can lock a node out, not back in."""
    done = egm("node", "quarantine", "workloads", "--reason", "odd", "--json", mesh=running.directory)
    assert done.code == 0, done.stderr
    becomes(running, "node workloads is revoked: odd")
    rows = egm("node", "list", "--json", mesh=running.directory).data["nodes"]
    assert {row["name"]: row["denied"].partition(":")[0] for row in rows} == {
        "probe": "",
        "workloads": "REVOKED",
    }
    assert "odd" in egm("node", "show", "workloads", "--json", mesh=running.directory).data["denied"]
    released = egm("node", "release", "workloads", "--json", mesh=running.directory)
    assert released.code == 0, released.stderr
    sign_and_publish(running, released)
    becomes(running, "")
    assert egm("node", "release", "workloads", "--json", mesh=running.directory).code == 2


def test_with_the_control_plane_killed_a_node_that_is_reached_is_enough(
    running: Running, tmp_path: Path
) -> None:
    """Signed on one machine, handed in from another."""
    (plane,) = [
        process
        for process in psutil.process_iter(["cmdline"])
        if {"control-plane", "run"} <= set(process.info["cmdline"] or ())
        and any(str(running.directory) in word for word in process.info["cmdline"])
    ]
    os.kill(plane.pid, signal.SIGKILL)
    file = tmp_path / "directive"
    made = egm(
        "revoke", "method", f"/{CHECK}", "--reason", "hole", "-o", file, "--json", mesh=running.directory
    )
    assert made.code == 0, made.stderr
    assert refused(running) == ""
    sent = egm("revoke", "send", file, "--json", mesh=running.directory)
    assert sent.code == 0, sent.stderr
    assert sent.data["not_reached"] == ["control plane"]
    becomes(running, f"method {CHECK} is revoked: hole")
    assert egm("revoke", "list", "--json", mesh=running.directory).data["answered"] in {"probe", "workloads"}
