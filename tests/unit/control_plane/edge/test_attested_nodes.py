"""Whether nodes are attested, as the control plane finds by itself."""

import asyncio
import threading
from typing import Any

import pytest

from control_plane.edge import attested_nodes
from control_plane.edge.attested_nodes import AttestedNodes
from egm.v1 import operator_pb2
from tests.support.attestation import DOMAIN, NOW_MS, AttestedNode, credential_of, holders, settings_of
from trust.attestation.credential import Credential, open_credential
from trust.attestation.roster import AttestationSettings, Roster
from trust.mesh import MeshSettings

WITNESSES = holders("w1", "w2", "w3")
GOOD = credential_of(AttestedNode().evidence(), WITNESSES[:2])


def mesh(attestation: AttestationSettings | None = None) -> MeshSettings:
    return MeshSettings(trust_domain=DOMAIN, attestation=attestation)


async def judged(credential: bytes, *, node: str = "a", now_ms: int = NOW_MS, **changes: Any) -> Any:
    """What the control plane says of a node that reports this credential and calls itself attested."""
    said = operator_pb2.NodeStatus(
        node=node, credential=credential, attestation=operator_pb2.Attestation(standing="ATTESTED")
    )
    record = operator_pb2.NodeRecord(node=node, status=said)
    settings = changes.get("settings", mesh(settings_of(WITNESSES)))
    await AttestedNodes(lambda: settings).judge([record], now_ms=now_ms)
    return record


async def test_a_live_credential_of_the_quorum_is_verified() -> None:
    """By whom, and until when."""
    record = await judged(GOOD)
    assert (list(record.attested_by), record.attested_problem) == (["w1", "w2"], "")
    assert 0 < record.attested_until_ms - NOW_MS <= 60_000


async def test_what_a_node_merely_says_is_not_verified() -> None:
    """None, nonsense, too few, of another node, of another roster, or old: the node's word, and why."""
    for record in (
        await judged(b""),
        await judged(b"{}"),
        await judged(credential_of(AttestedNode().evidence(), WITNESSES[:1])),
        await judged(GOOD, node="b"),
        await judged(GOOD, now_ms=NOW_MS + 61_000),
        await judged(GOOD, settings=mesh(settings_of(holders("w1", "w2", "w3")))),
    ):
        assert (record.attested_until_ms, list(record.attested_by)) == (0, [])
        assert record.attested_problem


async def test_a_witness_that_is_convicted_or_revoked_does_not_count_here_either() -> None:
    """At once, also for a credential that was verified before; another cosignature makes it good again."""
    struck: set[str] = set()
    nodes = AttestedNodes(lambda: mesh(settings_of(WITNESSES)), lambda _roster: struck)
    status = operator_pb2.NodeStatus(node="a", credential=GOOD)
    record = operator_pb2.NodeRecord(node="a", status=status)
    await nodes.judge([record], now_ms=NOW_MS)
    assert record.attested_until_ms
    struck.add("w2")
    record = operator_pb2.NodeRecord(node="a", status=status)
    await nodes.judge([record], now_ms=NOW_MS)
    assert (record.attested_until_ms, list(record.attested_by)) == (0, [])
    assert "convicted: w2" in record.attested_problem
    record.status.credential = credential_of(AttestedNode().evidence(), WITNESSES)
    await nodes.judge([record], now_ms=NOW_MS)
    assert list(record.attested_by) == ["w1", "w3"]


async def test_without_witnesses_in_the_policy_there_is_nothing_to_verify() -> None:
    """And nothing is wrong with that; nor before there is a policy."""
    for settings in (mesh(), None):
        record = await judged(GOOD, settings=settings)
        assert (record.attested_until_ms, record.attested_problem) == (0, "")


async def test_a_remembered_credential_still_ends_and_another_roster_judges_anew() -> None:
    """What was verified once is neither verified for ever, nor for every roster."""
    settings = [mesh(settings_of(WITNESSES))]
    nodes = AttestedNodes(lambda: settings[0])
    record = operator_pb2.NodeRecord(node="a", status=operator_pb2.NodeStatus(node="a", credential=GOOD))
    await nodes.judge([record], now_ms=NOW_MS)
    assert record.attested_until_ms
    record.ClearField("attested_until_ms")
    await nodes.judge([record], now_ms=NOW_MS + 61_000)
    assert not record.attested_until_ms
    settings[0] = mesh(settings_of(holders("w1", "w2", "w3")))
    await nodes.judge([record], now_ms=NOW_MS)
    assert not record.attested_until_ms


async def test_a_question_that_is_cancelled_lets_the_next_begin_when_its_thread_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both look into what is remembered, and the second throws away what no node reports any more."""
    began, go_on, running = threading.Event(), threading.Event(), [0, 0]

    def slow(data: bytes, roster: Roster) -> Credential:
        running[0] += 1
        running[1] = max(running)
        began.set()
        go_on.wait(10)
        running[0] -= 1
        return open_credential(data, roster)

    monkeypatch.setattr(attested_nodes, "open_credential", slow)
    nodes = AttestedNodes(lambda: mesh(settings_of(WITNESSES)))

    def asked(node: str) -> asyncio.Task[None]:
        status = operator_pb2.NodeStatus(node=node, credential=GOOD)
        return asyncio.create_task(
            nodes.judge([operator_pb2.NodeRecord(node=node, status=status)], now_ms=NOW_MS)
        )

    first = asked("a")
    await asyncio.to_thread(began.wait, 10)
    first.cancel()
    second = asked("b")
    for _ in range(10):
        await asyncio.sleep(0)
    await asyncio.to_thread(go_on.wait, 0.1)  # a thread of the second would be there by now
    go_on.set()
    await asyncio.gather(first, second, return_exceptions=True)
    assert running == [0, 1]
