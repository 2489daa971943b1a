"""docs/operations.md, step by step: ceremony, processes run by hand, passphrases, rollback, a replaced approver."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tests.support.cli import Outcome, egm

# Some forty commands, one after the other: seconds each on a busy machine.
pytestmark = [pytest.mark.xdist_group("production"), pytest.mark.timeout(400)]

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
CHECK = "grpc.health.v1.Health/Check"
TRUST_DOMAIN = "shop.example"
WAIT_S = 40.0
HOLDERS = ("root-1", "root-2", "approver-1", "approver-2", "approver-3")


def free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago; configuration files written by hand name them."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


@dataclass
class World:
    """The files of everybody, and the processes started by hand."""

    home: Path
    sockets: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def domain(self) -> Path:
        """What the ceremony makes."""
        return self.home / "DOMAIN"

    @property
    def operator(self) -> Path:
        """The directory with the hand-written mesh.json."""
        return self.home / "operator"

    def as_holder(self, name: str, *arguments: object) -> Outcome:
        """Run a verb on the machine of a key holder, whose passphrase is in a file."""
        os.environ["EGM_PASSPHRASE_FILE"] = str(self.home / name / "passphrase")
        try:
            return egm(*arguments, "--json", mesh=self.operator)
        finally:
            del os.environ["EGM_PASSPHRASE_FILE"]

    def run(self, *arguments: object) -> Any:
        """Run a verb that must succeed; return what it said."""
        outcome = egm(*arguments, "--json", mesh=self.operator)
        assert outcome.code == 0, outcome
        return outcome.data

    def key(self, name: str) -> Path:
        """The private key of a holder."""
        return self.home / name / f"{name}.pem"

    def start(self, *arguments: object) -> None:
        """Start a process in the foreground, as a supervisor would; wait for its ready line."""
        with (self.home / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "control_plane.cli.main", *map(str, arguments), "--json"],
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self.processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line and "error" not in json.loads(line), (line, (self.home / "log").read_text()[-3000:])

    def put_in_force(self, proposal: str, *approvers: str) -> None:
        """Sign and publish, each approver with their own passphrase; signing verifies what reviewing does."""
        for name in approvers:
            signed = self.as_holder(name, "policy", "sign", proposal, "--key", self.key(name))
            assert signed.code == 0, signed
        self.run("policy", "publish", proposal)

    def call(self) -> str:
        """Call as alice's ordinary client does: plaintext, through the Unix socket of her sidecar."""
        with grpc.insecure_channel(f"unix:{self.sockets}/alice-payments.sock") as channel:
            try:
                health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
            except grpc.RpcError as error:
                return str(error.details())
            return "answered"

    def eventually(self, wanted: str) -> None:
        """Wait until a call ends so."""
        deadline = time.monotonic() + WAIT_S
        while wanted not in (found := self.call()):
            assert time.monotonic() < deadline, (found, (self.home / "log").read_text()[-3000:])
            time.sleep(0.1)


@pytest.fixture
def world(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    sockets = tmp_path_factory.mktemp("s")  # a Unix socket's path is short
    sockets.chmod(0o700)
    made = World(tmp_path, sockets)
    try:
        yield made
    finally:
        for process in reversed(made.processes):
            process.terminate()
        codes = [process.wait(30) for process in made.processes]
        for process in made.processes:
            assert process.stdout is not None
            process.stdout.close()
    assert set(codes) <= {0}, (tmp_path / "log").read_text()[-3000:]


@pytest.fixture
def service(world: World) -> Iterator[str]:
    address = f"unix://{world.sockets}/payments.sock"
    server = grpc.server(futures.ThreadPoolExecutor(4))
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    server.add_insecure_port(address)
    server.start()
    yield address
    server.stop(None).wait()


def hold_ceremony(world: World) -> None:
    """Every holder makes a key, hands over its public half, and root holders sign; nothing is relaxed."""
    public = {}
    for name in HOLDERS:
        home = world.home / name
        home.mkdir()
        (home / "passphrase").write_text(f"the passphrase of {name}\n")
        (home / "passphrase").chmod(0o600)
        made = world.as_holder(name, "keys", "new", name, "--dir", home)
        assert made.code == 0, made
        public[name] = made.data["public"]
    keys = []
    for name in HOLDERS:
        keys += ["--root-key" if name.startswith("root") else "--approver-key", public[name]]
    begun = egm("init", world.domain, "--trust-domain", TRUST_DOMAIN, *keys, "--json")
    assert begun.code == 1, begun  # signatures are missing
    for name in ("root-1", "root-2"):
        unsigned = world.domain / "root.unsigned.json"
        signed = world.as_holder(name, "keys", "sign-root", unsigned, "--key", world.key(name))
        assert signed.code == 0, signed
    assert egm("init", world.domain, "--json").data["complete"]


def configure(world: World, service: str) -> None:
    """Write the four files of docs/examples with the addresses of this machine."""
    control, join, broker, payments, admin_1, admin_2, probes = free_ports(7)
    places = {
        "0.0.0.0:7400": control,
        "control-plane.shop.example:7400": control,
        "0.0.0.0:7401": join,
        "control-plane.shop.example:7401": join,
        "0.0.0.0:1883": broker,
        "control-plane.shop.example:1883": broker,
        "0.0.0.0:7443": payments,
        "payments-1.shop.example:7443": payments,
        "payments-1.shop.example:7444": admin_1,
        "alice-1.shop.example:7444": admin_2,
        "127.0.0.1:7445": probes,
    }
    for source, target, admin in (
        ("control-plane.yaml", world.home / "control-plane.yaml", 0),
        ("sidecar-payments.yaml", world.home / "payments-1" / "sidecar.yaml", admin_1),
        ("sidecar-alice.yaml", world.home / "alice-1" / "sidecar.yaml", admin_2),
        ("mesh.json", world.operator / "mesh.json", 0),
    ):
        text = (EXAMPLES / source).read_text()
        for place, port in places.items():
            text = text.replace(place, f"127.0.0.1:{port}")
        text = text.replace("0.0.0.0:7444", f"127.0.0.1:{admin}")
        text = text.replace("unix:///run/payments/grpc.sock", service)
        text = text.replace("unix:///run/egm/", f"unix://{world.sockets}/")
        target.parent.mkdir(exist_ok=True)
        target.write_text(text)
    for home in ("payments-1", "alice-1", "operator"):
        (world.home / home / "root.json").write_bytes((world.domain / "root.json").read_bytes())
        (world.home / home / "ca.pem").write_bytes((world.domain / "ca" / "ca.pem").read_bytes())


def write_policy(folder: Path, role: str) -> Path:
    """Let the members of a role check."""
    (folder / "policies").mkdir(parents=True, exist_ok=True)
    (folder / "bundle.yaml").write_text(
        f"name: shop\ntrust_domain: {TRUST_DOMAIN}\n"
        f"services: {{payments: {{grpc_services: [{CHECK}]}}}}\nroles: {{callers: [{role}]}}\n"
    )
    (folder / "policies" / "payments.cedar").write_text(
        '@id("callers-check")\npermit (principal in Role::"callers", '
        f'action == Action::"{CHECK}", resource == Service::"payments");\n'
    )
    return folder


def test_production_path_from_ceremony_to_replaced_approver(world: World, service: str) -> None:
    """Without --development: keys, ceremony, hand-written configuration, enrolment, quorum, rollback, rotation."""
    hold_ceremony(world)
    configure(world, service)
    world.start("control-plane", "run", "-c", world.home / "control-plane.yaml")
    world.run("node", "operator", "ann", "--domain", world.domain, "--out", world.operator / "operator")
    for node, workload in (("payments-1", "payments"), ("alice-1", "alice")):
        token = world.run("node", "token", node, "--workload", workload)["token"]
        (world.home / node / "join-token").write_text(token)
        world.start("sidecar", "run", "-c", world.home / node / "sidecar.yaml")
    world.eventually("POLICY_MISSING")

    policy = write_policy(world.home / "policy", "alice")
    first = world.run("policy", "propose", policy, "--title", "Alice may check")["id"]
    early = egm("policy", "publish", first, "--json", mesh=world.operator)
    assert early.data["error"] == "QUORUM_NOT_MET"
    wrong = world.as_holder("root-1", "policy", "sign", first, "--key", world.key("approver-1"))
    assert (wrong.code, wrong.data["error"]) == (2, "KEY_UNREADABLE")
    assert world.as_holder("approver-1", "policy", "review", first).code == 0
    world.put_in_force(first, "approver-1", "approver-3")
    world.eventually("answered")

    second = world.run("policy", "propose", write_policy(policy, "somebody-else"))["id"]
    world.put_in_force(second, "approver-1", "approver-3")
    world.eventually("NO_POLICY_PERMITS")
    back = world.run("policy", "rollback", "--to", 1)["id"]
    world.put_in_force(back, "approver-1", "approver-3")
    world.eventually("answered")

    replaced = world.home / "root.2.json"
    rotate = ("keys", "rotate", "--domain", world.domain, "--remove", "approver-2", "--threshold", 2)
    world.run(*rotate, "-o", replaced)
    for name in ("root-1", "root-2"):
        sign = ("keys", "sign-root", replaced, "--previous", world.domain / "root.json", "--key")
        assert world.as_holder(name, *sign, world.key(name)).code == 0
    world.run("policy", "publish", world.run("policy", "propose-root", replaced)["id"])
    world.run("keys", "adopt-root", replaced, "--domain", world.domain)
    last = world.run("policy", "propose", write_policy(policy, "nobody"))["id"]
    left = world.as_holder("approver-2", "policy", "sign", last, "--key", world.key("approver-2"))
    assert (left.code, left.data["error"]) == (2, "NOT_AUTHORIZED")
    world.put_in_force(last, "approver-1", "approver-3")
    world.eventually("NO_POLICY_PERMITS")
    actions = [entry["action"] for entry in world.run("audit")["entries"]]
    assert actions.count("publish") == 5
