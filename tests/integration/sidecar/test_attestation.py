"""Level 5 with witnesses, over real sockets: vouched for by a quorum, or nothing is executed."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from egm.v1 import operator_pb2
from sidecar.core.readiness import NodeState
from sidecar.core.trust_state import Standing
from sidecar.edge.attestation_files import COUNTER_FILE, CREDENTIAL_FILE
from sidecar.edge.provenance import LEDGER_DIRECTORY
from tests.integration.sidecar.test_level_five import settled
from tests.support import sidecars
from tests.support.attested_mesh import Attested, attested, standing
from tests.support.control_plane import TRUST_DOMAIN
from tests.support.eventually import eventually
from tests.support.interop_service import UNARY, ask
from tests.support.sidecar_mesh import Mesh
from tests.support.sidecars import RunningSidecar
from tests.support.tlog_witness import ThirdParty
from trust.attestation.credential import check_live, credential_sha256, open_credential
from trust.attestation.roster import Roster
from trust.edge.grpc_errors import error_from_rpc
from trust.errors import Reason
from trust.permit import PERMIT_KEY, read_claims
from trust.spiffe import SpiffeId


def roster_of(node: RunningSidecar) -> Roster:
    """Return the roster that a node enforces."""
    roster = node.sidecar.trust.roster
    assert roster is not None
    return roster


async def test_nodes_vouch_for_each_other_and_calls_name_their_credential(mesh: Mesh) -> None:
    """Two of three suffice; the permit's `att` is the caller's live credential, which a stranger can verify."""
    world = Attested(mesh)
    await world.publish()
    async with world.running("a", "b", "c") as nodes:
        await attested(*nodes.values())
        assert await settled(nodes["a"].outbound) == b"\0"
        assert await sidecars.unary(nodes["a"].outbound, UNARY, ask(size=1)) == b"\0"
        claims = read_claims(str(dict(mesh.echo.metadata[-1])[PERMIT_KEY]))
        view = nodes["a"].sidecar.view.attestation()
        assert (view.quorum, list(view.witnesses), view.is_witness) == (2, ["a", "b", "c"], True)
        assert len(view.vouched) >= 2
        data = (mesh.home / "a" / "data" / CREDENTIAL_FILE).read_bytes()
        assert claims.credential_sha256 is not None
        roster = roster_of(nodes["b"])
        credential = open_credential(data, roster)
        assert str(credential.node) == f"spiffe://{TRUST_DOMAIN}/node/a"
        assert check_live(credential, roster, now_ms=nodes["b"].sidecar.clock.now_ms())
        assert credential_sha256(data).hex() == view.credential_sha256
        assert nodes["b"].sidecar.view.readiness().state is NodeState.READY


async def test_the_control_plane_verifies_the_credentials_that_nodes_report(mesh: Mesh) -> None:
    """Attested by what it verified; a node that reports somebody else's credential only says so."""
    world = Attested(mesh)
    await world.publish()
    async with world.running("a", "b") as nodes, mesh.cp.operator() as operator:
        await attested(*nodes.values())

        async def known() -> dict[str, operator_pb2.NodeRecord]:
            return {record.node: record for record in await operator.nodes()}

        async def wait(node: str, *, verified: bool) -> operator_pb2.NodeRecord:
            for _ in range(400):
                record = (await known()).get(node)
                if record is not None and (record.attested_until_ms > 0) is verified:
                    return record
                await asyncio.sleep(0.05)
            raise AssertionError(f"{node} never became {verified}")

        await wait("b", verified=True)
        record = await wait("a", verified=True)
        assert list(record.attested_by) == ["a", "b"]
        assert not record.status.credential
        borrowed = nodes["b"].sidecar.trust.own()
        nodes["a"].sidecar.trust.own = lambda: borrowed  # type: ignore[method-assign]  # as a lying sidecar would
        record = await wait("a", verified=False)
        assert record.status.attestation.standing == Standing.ATTESTED
        assert "/node/b" in record.attested_problem


async def test_one_of_three_is_not_attested_and_executes_nothing(mesh: Mesh) -> None:
    """The minority side of a partition: not ready, and every call refused with the reason."""
    world = Attested(mesh)
    await world.publish()
    async with world.running("a") as nodes:
        await nodes["a"].enforces(1)
        await eventually(lambda: nodes["a"].sidecar.view.attestation().not_vouched, "witnesses were asked")
        assert await sidecars.unary(nodes["a"].outbound, UNARY, ask(size=1)) is Reason.NODE_NOT_ATTESTED
        status = nodes["a"].sidecar.view.status()
        assert status.attestation.standing == Standing.NOT_ATTESTED
        assert any(text.startswith("NODE_NOT_ATTESTED: 2 of 3 witnesses") for text in status.not_ready)
        assert set(status.attestation.not_vouched) >= {"b", "c"}
        assert any("not attested" in alarm for alarm in status.alarms)


async def test_a_credential_ends_when_the_witnesses_are_gone_and_comes_back_with_them(mesh: Mesh) -> None:
    """Cut off, a node goes on until its credential ends, then refuses; healed, it is attested again."""
    world = Attested(mesh, ttl_s=3)
    await world.publish()
    async with world.running("a") as alone:
        async with world.running("b", "c") as others:
            await attested(*alone.values(), *others.values())
            assert await settled(alone["a"].outbound) == b"\0"
        await eventually(lambda: standing(alone["a"]) is Standing.NOT_ATTESTED, "the credential ends")
        said = alone["a"].sidecar.view.attestation()
        assert (list(said.vouched), said.credential_sha256) == ([], "")
        assert await sidecars.unary(alone["a"].outbound, UNARY, ask(size=1)) is Reason.NODE_NOT_ATTESTED
        async with world.running("b"):
            await attested(alone["a"])


async def test_below_level_5_a_node_without_witnesses_alarms_and_goes_on(mesh: Mesh) -> None:
    """Attestation is asked for at level 5; below, a person is told."""
    world = Attested(mesh)
    await world.publish(level=4)
    async with world.running("a") as a:
        await a["a"].enforces(1)
        await eventually(
            lambda: any("calls go on below level 5" in text for text in a["a"].sidecar.view.status().alarms),
            "the alarm",
        )
        assert a["a"].sidecar.view.readiness().state is NodeState.READY


async def test_a_permit_without_a_credential_is_refused_by_the_callee(mesh: Mesh) -> None:
    """A stolen permit key is not enough: the callee asks who vouches for the node that signed."""
    world = Attested(mesh)
    await world.publish()
    async with world.running("a", "b", "c") as nodes:
        await attested(*nodes.values())
        assert await settled(nodes["a"].outbound) == b"\0"
        nodes["a"].sidecar.trust.own = lambda: None  # type: ignore[method-assign]  # as a lying sidecar would
        answer = await sidecars.unary(nodes["a"].outbound, UNARY, ask(size=1))
        assert answer is Reason.ATTESTATION_MISSING


async def test_a_callee_that_restarted_fetches_the_credentials_of_its_callers(mesh: Mesh) -> None:
    """What it does not hold any more refuses no call."""
    world = Attested(mesh)
    await world.publish()
    async with world.running("a", "c") as nodes:
        async with world.running("b") as first:
            await attested(*nodes.values(), *first.values())
            assert await settled(nodes["a"].outbound) == b"\0"
        async with world.running("b") as again:
            await attested(again["b"])
            answers = []
            # a notices a connection that was lost, and b takes no permit of its first second: both take their time
            async with asyncio.timeout(60):
                while (answer := await sidecars.unary(nodes["a"].outbound, UNARY, ask(size=1))) != b"\0":
                    answers.append(answer)
                    await asyncio.sleep(0.05)
            assert set(answers) <= {Reason.PERMIT_UNVERIFIABLE, Reason.UPSTREAM_UNAVAILABLE}


def restore(home: Path, kept: Path, node: str) -> None:
    """Put an older disk of a node's statements and ledger back."""
    data = home / node / "data"
    shutil.rmtree(data / LEDGER_DIRECTORY)
    shutil.copytree(kept / LEDGER_DIRECTORY, data / LEDGER_DIRECTORY)
    for name in (COUNTER_FILE, "ledger-head"):
        shutil.copy(kept / name, data / name)


async def test_a_restored_disk_is_noticed_by_the_witnesses_and_proven(mesh: Mesh, tmp_path: Path) -> None:
    """A shorter ledger and a counter that goes back: no credential, and a proof that quarantines the node."""
    world = Attested(mesh, ttl_s=6)
    await world.publish()
    async with world.running("b", "c") as witnesses:
        async with world.running("a") as a:
            await attested(a["a"], *witnesses.values())
        kept = shutil.copytree(mesh.home / "a" / "data", tmp_path / "kept")
        async with world.running("a") as a:
            await attested(a["a"])
            for _ in range(3):
                await settled(a["a"].outbound)
            seen = a["a"].sidecar.view.attestation().credential_sha256
            await eventually(
                lambda: a["a"].sidecar.view.attestation().credential_sha256 != seen, "a later credential"
            )
        restore(mesh.home, kept, "a")
        async with world.running("a") as a:
            denied = witnesses["b"].sidecar.membership.denials
            await eventually(lambda: denied.denials.proofs, "the proof")
            assert standing(a["a"]) is Standing.NOT_ATTESTED
            assert "a" in denied.denied_nodes() or f"spiffe://{TRUST_DOMAIN}/node/a" in denied.denied_nodes()
            await eventually(
                lambda: witnesses["c"].sidecar.membership.denials.denials.proofs, "the proof spreads"
            )


async def test_what_is_no_node_is_not_attested(mesh: Mesh) -> None:
    """Operators, workloads and strangers cannot ask a witness."""
    world = Attested(mesh)
    await world.publish()
    async with world.running("b") as nodes:
        await nodes["b"].enforces(1)
        node = SpiffeId.of(TRUST_DOMAIN, "node", "b")
        for kind in ("workload", "operator"):
            async with mesh.domain.credentials(kind, "alice").channel(
                nodes["b"].admin, node.dns_name
            ) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await channel.unary_unary("/egm.v1.Witness/Challenge", None, None)(b"", timeout=10)
                assert error_from_rpc(error.value).reason is Reason.NOT_AUTHORIZED


async def test_a_third_party_that_speaks_tlog_witness_is_asked(mesh: Mesh) -> None:
    """log_quorum: without its cosignature there is no credential; with it the checkpoint carries three."""
    with ThirdParty() as party:
        third: dict[str, Any] = {"w1": {"key": party.key.encode(), "url": party.url}}
        world = Attested(mesh, log_witnesses=third, log_quorum=1)
        await world.publish()
        async with world.running("a", "b") as nodes:
            await attested(*nodes.values())
            credential = nodes["a"].sidecar.trust.own()
            assert credential is not None
            assert credential.logged_s.keys() == {"w1"}
            assert party.origins == {f"{TRUST_DOMAIN}/node/a", f"{TRUST_DOMAIN}/node/b"}
            party.refusing = True
            await world.publish(ttl_s=3)  # what it holds lives on, and soon ends
            await eventually(lambda: standing(nodes["a"]) is Standing.NOT_ATTESTED, "the third party refuses")
            await eventually(
                lambda: "503" in nodes["a"].sidecar.view.attestation().not_vouched.get("w1", ""), "the reason"
            )


async def test_a_measurement_outside_the_reference_values_is_refused(mesh: Mesh) -> None:
    """Every witness refuses, and the node says why."""
    world = Attested(mesh)
    values = b'{"format":1,"distributions":[{"version":"0","sha256":"' + b"00" * 32 + b'"}]}'
    await world.publish(files={"reference_values.json": values})
    async with world.running("a", "b") as nodes:
        await eventually(
            lambda: "MEASUREMENT_REFUSED" in nodes["a"].sidecar.view.attestation().not_vouched.get("b", ""),
            "the refusal",
        )
        assert standing(nodes["a"]) is Standing.NOT_ATTESTED
