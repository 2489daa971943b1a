"""The assessor on a real mesh: level 5 when nothing is broken, less for every control that is, and nothing left behind.

One mesh of three nodes for the whole file; each test mends what it broke.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
import yaml

from control_plane.assess.bypass import LOCAL_ONLY
from control_plane.assess.edge.probe_node import NAME_PREFIX
from control_plane.assess.edge.run import FULL, SAFE, Assessor
from control_plane.assess.model import Assessment, Basis, Outcome, Verdict
from control_plane.edge import operator_client
from control_plane.edge.mesh_file import MeshFile, NodeEntry
from control_plane.lab.harness import LabMesh
from control_plane.lab.plan import LabPlan, Node, Service
from control_plane.lab.processes import Process
from egm.v1 import record_pb2
from trust.errors import Reason, StateError

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("assess")]
LEASE_S = 20
RATE = b'@id("members-call-shop")\n@rate("1000/m")\n'


@dataclass
class World:
    """A mesh, and the services behind it, which count every call that reaches them."""

    mesh: LabMesh
    calls: list[str] = field(default_factory=list)
    shop: str = ""  # where the service itself listens

    async def assess(
        self, probe: str = FULL, only: str | None = None, file: MeshFile | None = None
    ) -> Assessment:
        """Assess the mesh, or what another address book says of it; its links must let the probe node through."""
        mesh = self.mesh

        def started(name: str, process: Process) -> None:
            mesh.fleet.processes[name] = process

        file = mesh.fleet.running.mesh if file is None else file
        return await Assessor(file, mesh.directory, probe=probe, only=only, started=started).run()


class Counting(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # not generic at run time
    """Answers every method, and notes it."""

    def __init__(self, calls: list[str]) -> None:
        self._calls = calls

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method

        async def answer(_request: bytes, _context: Any) -> bytes:
            self._calls.append(method)
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


def _with_responses(files: dict[str, bytes]) -> dict[str, bytes]:
    settings = yaml.safe_load(files["bundle.yaml"])
    settings["detection"] = {
        "respond": True,
        "responses": [{"on": "EGM-T003", "do": ["throttle"], "rate": "60/m", "ttl_s": 600}],
    }
    return {**files, "bundle.yaml": yaml.safe_dump(settings).encode()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    calls: list[str] = []
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Counting(calls),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    shop = Service(address=f"127.0.0.1:{port}", grpc_services=("shop.v1.Cart",))
    plan = LabPlan(
        {"a": Node({"shop": shop}), "b": Node({"pay": Service()}), "c": Node(workloads=("alice",))},
        level=5,
        lease_s=LEASE_S,
        grace_s=LEASE_S,
    )
    try:  # a server that outlives its loop takes other tests of this process with it
        async with LabMesh(plan, tmp_path_factory.mktemp("assess")) as mesh:
            version = await mesh.publish(_with_responses)
            await mesh.wait_until({"policy_version_at_least": version, "lease": "FRESH", "state": "READY"})
            yield World(mesh, calls, f"127.0.0.1:{port}")
    finally:
        await server.stop(0)


def verdicts(assessment: Assessment, service: str = "shop") -> dict[str, Verdict]:
    (found,) = [one for one in assessment.services if one.service == service]
    return {result.id: result.verdict for result in found.results}


def outcomes(assessment: Assessment, service: str = "shop") -> dict[str, Outcome]:
    (found,) = [one for one in assessment.services if one.service == service]
    return {check.id: check.outcome for result in found.results for check in result.checks}


async def test_a_mesh_at_level_five_is_measured_five_by_probe_and_observation(world: World) -> None:
    """Nothing is declared, nothing is left open, no service was called, and no member stays behind."""
    world.calls.clear()
    found = await world.assess()

    whys = [(r.id, r.why) for one in found.services for r in one.results if r.why]
    assert (found.level, whys) == (5, [])
    # what does not count against it is said all the same: the services listen in plaintext on the loopback
    assert [note.partition(":")[0] for note in found.notes] == ["pay", "shop"]
    assert all(LOCAL_ONLY in note for note in found.notes)
    bases = {check.basis for one in found.services for r in one.results for check in r.checks}
    assert bases == {Basis.PROBED, Basis.OBSERVED}
    # past its sidecar the service is dialled on purpose, by the reserved method alone
    assert set(world.calls) <= {"/egm.v1.Probe/Ping"}
    await _leaves_only_traces(world)


async def _leaves_only_traces(world: World) -> None:
    """What it did can be looked up; what it needed is gone: no member, no open proposal."""
    async with operator_client.operator(world.mesh.fleet.running.mesh, world.mesh.directory) as client:
        nodes = {one.node for one in await client.nodes()}
        records = await client.executions(
            record_pb2.ListExecutionsRequest(limit=10, method="egm.v1.Probe/Ping", service="shop")
        )
        proposals = await client.proposals(open_only=True)
        audit = [entry.action for entry in await client.audit(limit=50)]

    assert nodes == {"a", "b", "c"}
    assert records.entries
    assert not proposals
    assert {"create-join-token", "propose", "withdraw", "forget-node"} <= set(audit)


async def test_a_safe_assessment_adds_no_member_and_grants_less(world: World) -> None:
    """What was not tried is not established, never met."""
    async with operator_client.operator(world.mesh.fleet.running.mesh, world.mesh.directory) as client:
        before = len(await client.audit(limit=1000))
        found = await world.assess(SAFE, "shop")
        after = [entry.action for entry in (await client.audit(limit=1000))[: -before or None]]

    assert [one.service for one in found.services] == ["shop"]
    assert found.level == 0
    assert set(after) <= {"resolve-incident"}
    assert Verdict.NOT_MET not in {
        verdict for name, verdict in verdicts(found).items() if name not in {"EGMM-L5-07", "EGMM-L2-06"}
    }
    assert verdicts(found)["EGMM-L5-01"] is Verdict.NOT_ESTABLISHED
    assert verdicts(found)["EGMM-L4-02"] is Verdict.MET


async def test_a_node_that_control_plane_does_not_hear_of_is_noticed(world: World) -> None:
    """Cut off it still refuses rightly, but nobody sees what happens there."""
    await world.mesh.kill("a")
    try:
        found = await world.assess(SAFE, "shop")
    finally:
        await world.mesh.start_member("a")
    await world.mesh.wait_until({"a": {"state": "READY", "lease": "FRESH"}})

    assert verdicts(found)["EGMM-L1-02"] is Verdict.NOT_MET
    assert verdicts(found)["EGMM-L1-01"] is not Verdict.MET
    assert verdicts(found)["EGMM-L4-02"] is not Verdict.MET, (
        "a dead listener refuses everybody and proves nothing"
    )
    assert found.level == 0


async def test_a_ledger_that_was_changed_on_disk_is_noticed(world: World) -> None:
    """One byte of a record, in the place where the node keeps it."""
    await world.assess(SAFE, "shop")  # its calls are the first records, if this test is the first
    records = world.mesh.directory / "nodes" / "a" / "data" / "ledger" / "records"
    segment = sorted(records.iterdir())[0]
    kept = segment.read_bytes()
    with segment.open("r+b") as file:
        file.seek(150)
        file.write(bytes([kept[150] ^ 1]))
    try:
        found = await world.assess(SAFE, "shop")
    finally:
        with segment.open("r+b") as file:
            file.seek(150)
            file.write(bytes([kept[150]]))

    assert verdicts(found)["EGMM-L5-03"] is Verdict.NOT_MET
    assert outcomes(found)["ledger-intact"] is Outcome.FAILED


@pytest.mark.parametrize(
    ("level", "graded", "missed"),
    [
        (3, {3}, {"EGMM-L4-06"}),
        pytest.param(4, {4}, {"EGMM-L5-01"}, marks=pytest.mark.lab),
        pytest.param(1, {0, 1}, {"EGMM-L2-06", "EGMM-L3-02", "EGMM-L4-01"}, marks=pytest.mark.lab),
    ],
    ids=["level-3", "level-4", "level-1"],
)  # each is a whole assessment, and policy put in force twice
async def test_each_signed_level_is_measured_at_most_as_what_it_is(
    world: World, level: int, graded: set[int], missed: set[str]
) -> None:
    """A service that is lowered by signed policy loses the grade with it; the others keep theirs."""

    async def lowered(to: int) -> None:
        def change(files: dict[str, bytes]) -> dict[str, bytes]:
            settings = yaml.safe_load(files["bundle.yaml"])
            settings["services"]["shop"]["level"] = to
            text = files["policies/members.cedar"]
            policy = text if RATE in text else text.replace(RATE.splitlines(keepends=True)[0], RATE)
            return {
                **files,
                "bundle.yaml": yaml.safe_dump(settings).encode(),
                "policies/members.cedar": policy,
            }

        version = await world.mesh.publish(change)
        await world.mesh.wait_until({"policy_version_at_least": version, "lease": "FRESH", "state": "READY"})

    await lowered(level)
    try:
        found = await world.assess(only="shop")
    finally:
        await lowered(5)
    assert found.level in graded
    told = verdicts(found)
    assert {name for name in missed if told[name] is Verdict.NOT_MET} == missed


async def test_a_second_replica_without_a_sidecar_lowers_the_service(world: World) -> None:
    """One replica is governed; the other answers anybody, and calls are balanced over both."""
    file = world.mesh.fleet.running.mesh
    ghost = NodeEntry(admin="127.0.0.1:1", inbound={"shop": world.shop})
    found = await world.assess(SAFE, "shop", file.model_copy(update={"nodes": {**file.nodes, "z": ghost}}))
    result = found.services[0].result("EGMM-L4-02")

    assert outcomes(found)["unauthenticated-refused"] is Outcome.FAILED
    assert result.verdict is Verdict.NOT_MET and "z: " in result.why
    assert verdicts(found)["EGMM-L4-07"] is not Verdict.MET, "nobody knows where the second one listens"


async def test_a_node_that_the_address_book_leaves_out_is_missed(world: World) -> None:
    """Whoever writes mesh.json could leave out the node that does not enforce."""
    file = world.mesh.fleet.running.mesh
    rest = {name: entry for name, entry in file.nodes.items() if name != "c"}
    found = await world.assess(SAFE, "shop", file.model_copy(update={"nodes": rest}))

    assert verdicts(found)["EGMM-L3-04"] is Verdict.NOT_ESTABLISHED
    assert any(note.startswith("c: it is registered") for note in found.notes)


async def test_policy_that_permits_everything_and_responds_to_nothing_is_no_level_five(world: World) -> None:
    """Signed level 5, every permit is checked, every node is attested; and everybody may do everything."""
    kept: dict[str, bytes] = {}

    def opened(files: dict[str, bytes]) -> dict[str, bytes]:
        kept.update(files)
        settings = yaml.safe_load(files["bundle.yaml"])
        settings["detection"] |= {"respond": False, "off": ["EGM-T005"]}
        return {
            **files,
            "bundle.yaml": yaml.safe_dump(settings).encode(),
            "policies/members.cedar": b'@id("everything")\npermit (principal, action in Action::"any", resource);\n',
        }

    version = await world.mesh.publish(opened)
    await world.mesh.wait_until({"policy_version_at_least": version, "lease": "FRESH", "state": "READY"})
    try:
        found = await world.assess(only="shop")
    finally:
        version = await world.mesh.publish(lambda _: kept)
        await world.mesh.wait_until({"policy_version_at_least": version, "lease": "FRESH", "state": "READY"})

    assert found.level <= 1
    for denied in ("EGMM-L2-03", "EGMM-L2-06", "EGMM-L3-02", "EGMM-L3-06"):
        assert verdicts(found)[denied] is Verdict.NOT_MET, denied
    assert verdicts(found)["EGMM-L5-01"] is Verdict.MET, "permits are checked all the same"


async def test_an_assessment_that_is_interrupted_leaves_no_member(world: World) -> None:
    """Ctrl-C while the probe node is being used: its process ends, and the control plane forgets it."""
    started: list[Process] = []

    def known(name: str, process: Process) -> None:
        world.mesh.fleet.processes[name] = process
        started.append(process)

    assessor = Assessor(world.mesh.fleet.running.mesh, world.mesh.directory, only="shop", started=known)
    task = asyncio.create_task(assessor.run())
    async with operator_client.operator(world.mesh.fleet.running.mesh, world.mesh.directory) as client:
        for _ in range(300):
            if any(one.node.startswith(NAME_PREFIX) for one in await client.nodes()):
                break
            await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        left = {one.node for one in await client.nodes()}

    assert left == {"a", "b", "c"}
    assert started and started[0].pid is None


@pytest.mark.lab
async def test_a_control_plane_that_is_gone_gives_no_grade(world: World) -> None:
    """Without it nothing central is known; the assessor says so instead of guessing."""
    await world.mesh.control_plane.stop()
    try:
        with pytest.raises(StateError) as caught:
            await world.assess(SAFE, "shop")
    finally:
        await world.mesh.control_plane.start()
        await world.mesh.wait_until({"lease": "FRESH", "state": "READY"})

    assert caught.value.reason is Reason.SOURCE_UNAVAILABLE
    assert "egm doctor" in caught.value.detail
