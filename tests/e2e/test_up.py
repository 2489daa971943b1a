"""`egm up` in front of a service that the project did not write, and every verb against the running mesh."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tests.support.cli import egm

CHECK = "grpc.health.v1.Health/Check"
WAIT_S = 60.0
POLICY = {
    "bundle.yaml": """\
name: probes
description: alice may probe, mallory may not
trust_domain: mesh.local
level: 4
services:
  probe: {grpc_services: [grpc.health.v1.Health/Check, grpc.health.v1.Health/Watch]}
roles:
  prober: [alice]
""",
    "policies/probe.cedar": """\
@id("probers-check")
permit (
  principal in Role::"prober",
  action == Action::"grpc.health.v1.Health/Check",
  resource == Service::"probe"
);
""",
    "tests/probe.yaml": """\
- name: a prober probes
  caller: alice
  service: probe
  method: grpc.health.v1.Health/Check
  expect: allow
  policy: probers-check
- name: nobody else does
  caller: mallory
  service: probe
  method: grpc.health.v1.Health/Check
  expect: deny
""",
}


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@dataclass
class Running:
    """A mesh that `egm up` keeps, and what it wrote."""

    directory: Path
    policy: Path
    mesh: dict[str, Any]

    def call(self, workload: str) -> health_pb2.HealthCheckResponse:
        """Call as any plaintext client would."""
        with grpc.insecure_channel(self.mesh["workloads"][workload]["outbound"]["probe"]) as channel:
            return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture(scope="module")
def running(service: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    home = tmp_path_factory.mktemp("up")
    directory, policy = home / "mesh", write(home / "policy", POLICY)
    arguments = ["up", "--dir", directory, "--service", f"probe={service}", "--policy", policy]
    arguments += ["--workload", "alice", "--workload", "mallory"]
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
        assert process.wait(30) == 0, (home / "log").read_text()


pytestmark = pytest.mark.xdist_group("up")


def test_mesh_json_says_where_everything_is(running: Running) -> None:
    """Programs find the mesh by this file."""
    mesh = running.mesh
    assert mesh["trust_domain"] == "mesh.local"
    assert Path(mesh["root"]).is_file()
    assert set(mesh["nodes"]) == {"probe", "workloads"}
    assert set(mesh["workloads"]) == {"alice", "mallory", "probe"}
    assert {"control_plane", "broker"} <= mesh.keys()
    assert len(mesh["approvers"]) == 3
    assert all(Path(key).stat().st_mode & 0o077 == 0 for key in mesh["approvers"].values())


def test_an_allowed_workload_calls_and_another_is_refused(running: Running) -> None:
    """With a client and a service that know nothing of the mesh."""
    assert running.call("alice").status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        running.call("mallory")
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "NO_POLICY_PERMITS" in str(caught.value.details())


def test_status_is_healthy_and_lists_every_node(running: Running) -> None:
    """Exit 0 only if all are ready on the published policy."""
    deadline = time.monotonic() + WAIT_S
    while (outcome := egm("status", "--json", mesh=running.directory)).code and time.monotonic() < deadline:
        time.sleep(0.2)
    assert outcome.code == 0, outcome
    assert {node["name"] for node in outcome.data["nodes"]} == {"probe", "workloads"}
    assert {node["lease"] for node in outcome.data["nodes"]} == {"FRESH"}
    assert egm("status", mesh=running.directory).stdout.count("READY") == 2


def test_check_explains_both_answers(running: Running) -> None:
    """Exit 0 and the permitting policy; exit 1 and the reason."""
    question = ["check", "--service", "probe", "--method", CHECK, "--json", "--caller"]
    yes, no = (egm(*question, who, mesh=running.directory) for who in ("alice", "mallory"))
    assert (yes.code, yes.data["allowed"], yes.data["policies"]) == (0, True, ["probers-check"])
    assert (no.code, no.data["reason"]) == (1, "NO_POLICY_PERMITS")
    unknown = egm("check", "--caller", "a", "--service", "nope", "--method", CHECK, mesh=running.directory)
    assert (unknown.code, "UNKNOWN_SERVICE" in unknown.stderr) == (2, True)


def test_doctor_warns_of_what_only_development_may_do(running: Running) -> None:
    """A development mesh works (exit 0) and is not called safe."""
    outcome = egm("doctor", "--json", mesh=running.directory)
    assert outcome.code == 0, outcome
    subjects = {
        finding["subject"] for finding in outcome.data["findings"] if finding["severity"] == "warning"
    }
    assert {"trust domain", "listener of workloads"} <= subjects


def test_nodes_are_listed_and_shown(running: Running) -> None:
    """And a token for a new one is made once."""
    listed = egm("node", "list", "--json", mesh=running.directory)
    assert {node["name"] for node in listed.data["nodes"]} == {"probe", "workloads"}
    assert egm("node", "show", "probe", "--json", mesh=running.directory).data["state"] == "READY"
    token = egm("node", "token", "late", "--workload", "bob", "--json", mesh=running.directory)
    assert token.data["token"].startswith("egm-join.v1.")


def test_a_policy_goes_from_proposal_to_force_and_back(running: Running, tmp_path: Path) -> None:
    """propose, review, sign, publish, status, rollback: with who is missing named on the way."""
    on = running.directory
    changed = dict(POLICY)
    changed["bundle.yaml"] = POLICY["bundle.yaml"].replace("[alice]", "[alice, mallory]")
    changed["tests/probe.yaml"] = POLICY["tests/probe.yaml"].split("- name: nobody")[0]
    folder = write(tmp_path / "changed", changed)
    proposed = egm("policy", "propose", folder, "--title", "mallory too", "--json", mesh=on).data
    assert (proposed["state"], proposed["threshold"]) == ("OPEN", 2)
    review = egm("policy", "review", proposed["id"], "--json", mesh=on)
    assert "mallory" in json.dumps(review.data["diff"])
    assert "mallory" in egm("policy", "review", proposed["id"], mesh=on).stdout

    keys = [running.mesh["approvers"][f"approver-{number}"] for number in (1, 2)]
    assert egm("policy", "sign", proposed["id"], "--key", keys[0], "--json", mesh=on).code == 0
    early = egm("policy", "publish", proposed["id"], "--json", mesh=on)
    assert (early.code, early.data["error"]) == (2, "QUORUM_NOT_MET")
    assert "approver-" in early.data["detail"]
    assert egm("policy", "sign", proposed["id"], "--key", keys[1], "--json", mesh=on).data["state"] == "READY"
    published = egm("policy", "publish", proposed["id"], "--json", mesh=on)
    assert published.data["version"] == proposed["version"]
    eventually(lambda: running.call("mallory"))

    back = egm("policy", "rollback", "--to", proposed["version"] - 1, "--json", mesh=on).data
    assert back["version"] == proposed["version"] + 1
    for key in keys:
        assert egm("policy", "sign", back["id"], "--key", key, "--json", mesh=on).code == 0
    assert egm("policy", "publish", back["id"], "--json", mesh=on).code == 0
    actions = [entry["action"] for entry in egm("audit", "--json", mesh=on).data["entries"]]
    assert {"propose", "sign", "publish"} <= set(actions)
    states = {p["id"]: p["state"] for p in egm("policy", "status", "--json", mesh=on).data["proposals"]}
    assert states[proposed["id"]] == states[back["id"]] == "PUBLISHED"
    eventually(lambda: refused(running, "mallory"))
    assert running.call("alice").status == health_pb2.HealthCheckResponse.SERVING


def put_in_force(running: Running, *arguments: object) -> None:
    """Propose, sign with two approvers and publish."""
    on = running.directory
    proposal = egm("policy", "propose", running.policy, *arguments, "--json", mesh=on).data["id"]
    for number in (2, 3):
        key = running.mesh["approvers"][f"approver-{number}"]
        assert egm("policy", "sign", proposal, "--key", key, mesh=on).code == 0
    assert egm("policy", "publish", proposal, mesh=on).code == 0


def test_levels_change_by_policy_and_change_what_happens(running: Running) -> None:
    """Level 0 and 1 pass what 3 and 4 refuse; level 1 says what level 4 would have done."""
    question = ["check", "--caller", "mallory", "--service", "probe", "--method", CHECK, "--json"]

    def answer(level: int) -> dict[str, Any]:
        put_in_force(running, "--level", level)
        found: dict[str, Any] = {}

        def reached() -> None:
            found.update(egm(*question, mesh=running.directory).data)
            assert found["level"] == level

        eventually(reached)
        return found

    try:
        passed = answer(0)
        assert (passed["allowed"], passed["reason"], passed["would_deny"]) == (
            True,
            "PASSED_UNGOVERNED",
            False,
        )
        eventually(lambda: running.call("mallory"))
        observed = answer(1)
        assert (observed["allowed"], observed["would_deny"]) == (True, True)
        eventually(lambda: running.call("mallory"))
        aware = answer(3)
        assert (aware["allowed"], aware["reason"]) == (False, "NO_POLICY_PERMITS")
        eventually(lambda: refused(running, "mallory"))
    finally:
        put_in_force(running)
    eventually(lambda: refused(running, "mallory"))


def eventually(action: Any) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            action()
        except (grpc.RpcError, AssertionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def refused(running: Running, workload: str) -> None:
    with pytest.raises(grpc.RpcError):
        running.call(workload)


@pytest.mark.parametrize("verb", ["status", "doctor", "node list", "policy status"])
def test_without_a_mesh_a_verb_says_how_to_name_one(verb: str, tmp_path: Path) -> None:
    """Exit 2, one line, no traceback; also as JSON."""
    outcome = egm(*verb.split(), "--mesh", tmp_path)
    assert (outcome.code, "egm up" in outcome.stderr, "Traceback" in outcome.stderr) == (2, True, False)
    assert egm(*verb.split(), "--mesh", tmp_path, "--json").data["error"] == "NOT_FOUND"


def test_a_second_up_on_a_running_mesh_is_refused_and_touches_nothing(running: Running, service: str) -> None:
    """mesh.json stays where the others find it."""
    second = egm("up", "--dir", running.directory, "--service", f"probe={service}", "--json")
    assert (second.code, second.data["error"]) == (2, "CONFLICT")
    assert json.loads((running.directory / "mesh.json").read_text()) == running.mesh


def test_a_part_that_cannot_start_says_why(tmp_path: Path) -> None:
    """What the control plane found wrong reaches the terminal; nothing is left running."""
    outcome = egm("up", "--dir", tmp_path, "--service", "probe=127.0.0.1:1", "--broker", "nonsense", "--json")
    assert (outcome.code, outcome.data["error"]) == (3, "SOURCE_UNAVAILABLE")
    assert "broker" in outcome.data["detail"]


def test_a_control_plane_that_does_not_answer_is_could_not_tell(running: Running, tmp_path: Path) -> None:
    """Exit 3, and what to do next."""
    away = {**running.mesh, "control_plane": "127.0.0.1:1"}
    (tmp_path / "mesh.json").write_text(json.dumps(away))
    outcome = egm("status", mesh=tmp_path)
    assert (outcome.code, "egm doctor" in outcome.stderr) == (3, True), outcome
    assert egm("doctor", mesh=tmp_path).code == 1


def test_what_goes_to_a_pipe_is_not_cut(running: Running) -> None:
    """Whatever the terminal's width was."""
    listed = egm("audit", mesh=running.directory)
    assert "spiffe://mesh.local/operator/local" in listed.stdout
    assert "\u2026" not in listed.stdout


def test_up_refuses_what_it_cannot_run(tmp_path: Path) -> None:
    """A service without an address, and levels that there are not."""
    assert egm("up", "--dir", tmp_path / "a", "--service", "probe").code == 2
    level = egm("up", "--dir", tmp_path / "b", "--service", "probe=127.0.0.1:1", "--level", "6")
    assert (level.code, "--level" in level.stderr) == (2, True)


@pytest.mark.parametrize(
    ("file", "text", "word"),
    [
        ("policies/probe.cedar", "permit (principal", "probe.cedar:1"),
        ("bundle.yaml", "name: [", "bundle.yaml"),
        ("bundle.yaml", "name: p\nnamespace: probes\nservices: {probe: {}}\n", "namespace probes"),
    ],
)
def test_a_policy_folder_with_a_mistake_is_refused_before_anything_is_made(
    tmp_path: Path, file: str, text: str, word: str
) -> None:
    """The mistake is told at once, not after a control plane was started for nothing."""
    folder = write(tmp_path / "policy", POLICY | {file: text} if "namespace" not in text else {file: text})
    refused = egm("up", "--dir", tmp_path / "mesh", "--policy", folder)
    assert refused.code == 2
    assert word in refused.stderr
    assert not (tmp_path / "mesh").exists()
