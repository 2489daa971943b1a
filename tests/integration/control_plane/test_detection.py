"""Detection over the index: behind a cursor, once, across restarts and with two control planes; and its responses."""

import asyncio
import contextlib
import json
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa
from securesystemslib.signer import CryptoSigner

from control_plane.core.detection import Detector
from control_plane.core.executions import Batch
from control_plane.core.incidents import Incident, State
from control_plane.core.responses import Fate, Response
from control_plane.edge.detection import Detection
from control_plane.edge.responder import Responder
from control_plane.edge.store import audit, incidents
from control_plane.edge.store import detection as stored
from control_plane.edge.store.database import Database
from control_plane.edge.store.fleet import StoredNode
from control_plane.edge.store.models import detection_state, records
from egm.v1 import operator_pb2
from tests.support.eventually import eventually
from tests.support.index import taken
from tests.support.records import refusal, workload
from trust import limits
from trust.detection import DetectionSettings
from trust.edge.denial_keeper import DenialKeeper
from trust.mesh import MeshSettings
from trust.misbehaviour import Anchors
from trust.record import Intent, Outcome, Side, build_record

TD = "mesh.test"
NOW_MS = 1_790_000_100_000
MALLORY = workload("mallory")


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.ms = NOW_MS

    def now_ms(self) -> int:
        """Unix ms."""
        return self.ms

    def monotonic_ms(self) -> int:
        """Never goes back."""
        return self.ms - NOW_MS + 1_000


class Reports:
    """What nodes report."""

    def __init__(self, *alarms: str) -> None:
        self.alarms = alarms

    async def records(self) -> Sequence[StoredNode]:
        """One node with its alarms."""
        status = operator_pb2.NodeStatus(node="b", alarms=self.alarms)
        return [StoredNode("b", NOW_MS, NOW_MS, status.SerializeToString())]


class Plane:
    """The detection of one control plane over a store, with its own denials and a responder."""

    def __init__(
        self,
        database: Database,
        home: Path,
        *,
        name: str = "cp-1",
        key: bool = True,
        alarms: Sequence[str] = (),
        **settings: object,
    ) -> None:
        signer = CryptoSigner.generate_ed25519()
        self.clock, self.opened = Clock(), list[Incident]()
        home.mkdir(parents=True, exist_ok=True)
        self.keeper = DenialKeeper(
            home / "denials.json",
            TD,
            now_ms=self.clock.now_ms,
            monotonic_ms=self.clock.monotonic_ms,
            anchors=lambda: Anchors(TD, b"", None, b""),
        )
        self.mesh = MeshSettings(
            trust_domain=TD,
            emergency_keys={"responder": signer.public_key.keyval["public"]} if key else {},
            detection=DetectionSettings.model_validate(settings),
        )
        self.keeper.govern(self.mesh)
        self.database = database
        self.detection = Detection(
            database,
            self.clock,
            name,
            trust_domain=TD,
            mesh=lambda: self.mesh,
            denials=self.keeper.denials,
            reports=Reports(*alarms),
            responder=Responder(signer, "responder", self.keeper),
            opened=self.opened.append,
        )

    async def look(self) -> None:
        """Look at everything there is."""
        while await self.detection.step():
            pass

    async def incidents(self) -> list[Incident]:
        """Every incident."""
        async with self.database.read() as connection:
            return await incidents.page(connection, incidents.Wanted())

    async def responses(self) -> list[Response]:
        """What was done about the only incident."""
        async with self.database.read() as connection:
            (incident,) = await incidents.page(connection, incidents.Wanted())
            return await incidents.responses_of(connection, incident.id)


async def ship(database: Database, *records: Intent | Outcome, at: int = 0, node: str = "b") -> None:
    """Have a node ship records."""
    batch = Batch(node, "l1", at, tuple(map(build_record, records)), records, after_gap=False)
    await taken(database, batch)


def replayed(number: int = 1, *, caller: str = MALLORY, node: str = "b", at_ms: int = NOW_MS) -> Intent:
    """A replayed permit that the callee's sidecar refused."""
    return refusal(
        number, reason="PERMIT_REPLAYED", caller=caller, node=node, side=Side.INBOUND, wall_ms=at_ms
    )


async def test_incident_is_found_once_across_restarts_and_by_two_control_planes(
    database: Database, tmp_path: Path
) -> None:
    """A restart, and a control plane that takes over, look at the same records again."""
    first = Plane(database, tmp_path / "1")
    await ship(database, replayed(1), replayed(2))
    await first.look()
    (incident,) = await first.incidents()
    assert (incident.rule, incident.subject, incident.nodes) == ("EGM-T002", MALLORY, ("b",))
    assert [(one.node, one.ledger, one.index) for one in incident.evidence] == [("b", "l1", 0)]
    assert [one.id for one in first.opened] == [incident.id]

    again = Plane(database, tmp_path / "1")  # killed: nothing was written down of what was learned
    await again.look()
    second = Plane(database, tmp_path / "2", name="cp-2")
    await second.look()  # not its turn
    second.clock.ms += limits.DETECTION_LEASE_S * 1000 + 1_000
    await second.look()
    assert await second.incidents() == [incident]
    assert not again.opened
    assert not second.opened


async def test_what_was_learned_goes_on_after_an_orderly_stop(database: Database, tmp_path: Path) -> None:
    """The next control plane begins where this one stopped, at once, and counts go on."""
    first = Plane(database, tmp_path / "1")
    probes = [refusal(n, caller=MALLORY, method=f"a.B/M{n}", node="b", wall_ms=NOW_MS) for n in range(1, 6)]
    await ship(database, *probes[:3])
    await first.look()
    await first.detection.close()
    assert not await first.detection.step()  # closed is closed
    await ship(database, *probes[3:], at=3)
    second = Plane(database, tmp_path / "2", name="cp-2")
    await second.look()
    assert [one.rule for one in await second.incidents()] == ["EGM-T003"]


async def test_damaged_learning_is_learned_anew_and_detection_goes_on(
    database: Database, tmp_path: Path
) -> None:
    """Who writes to the database can make it forget, not make it stop or run code."""
    first = Plane(database, tmp_path / "1")
    await first.look()
    await first.detection.close()
    async with database.write() as connection:
        await connection.execute(sa.update(detection_state).values(learned=b"\x80\x04garbage"))
    second = Plane(database, tmp_path / "2", name="cp-2")
    await ship(database, replayed(1))
    await second.look()
    assert len(await second.incidents()) == 1


async def test_taking_over_much_that_was_learned_keeps_no_writer_waiting(
    database: Database, tmp_path: Path
) -> None:
    """It may take seconds, in which leases must be renewed and revocations passed on."""
    plane = Plane(database, tmp_path)
    await ship(database, replayed(1))
    real, begun, go = plane.detection._new_detector, threading.Event(), threading.Event()

    def slow(state: object) -> Detector:
        begun.set()
        assert go.wait(20), "nobody else could write meanwhile"
        return real(state)

    plane.detection._new_detector = slow  # type: ignore[method-assign]  # blocks where reading takes long
    looking = asyncio.create_task(plane.look())
    assert await asyncio.to_thread(begun.wait, 20)
    async with database.write() as connection:
        await connection.execute(sa.text("UPDATE detection_state SET id = id"))
    go.set()
    await looking
    assert len(await plane.incidents()) == 1


@pytest.mark.parametrize(
    "value", [{}, {"a": []}, {"a": [1, [2], {"b": "c"}], "d": list(range(45)), "e": {"f": 1}}]
)
def test_what_was_learned_is_written_in_pieces_that_make_one_value(value: dict[str, object]) -> None:
    """The same JSON as in one piece, however many entries there are."""
    assert json.loads(zlib.decompress(stored.pack(value))) == value


async def test_damaged_record_and_a_failing_detector_do_not_end_the_control_plane(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It renews every node's lease; detection says that it fails, and goes on when it can."""
    await ship(database, replayed(1), replayed(2, caller=workload("eve")))
    async with database.write() as connection:
        first = records.c.ledger_index == 0
        await connection.execute(sa.update(records).where(first).values(record=b"damaged"))
    plane = Plane(database, tmp_path)
    monkeypatch.setattr(limits, "DETECTION_PERIOD_S", 0.01)
    looking = plane.detection._step

    async def fails(now_ms: int) -> bool:
        raise ValueError("a defect")

    plane.detection._step = fails  # type: ignore[method-assign]
    running = asyncio.create_task(plane.detection.run())
    await eventually(lambda: plane.detection.problems, "a problem that is told")
    assert "a defect" in plane.detection.problems[0]
    plane.detection._step = looking  # type: ignore[method-assign]
    await eventually(lambda: plane.opened, "an incident")
    assert [one.subject for one in await plane.incidents()] == [workload("eve")]
    assert not plane.detection.problems
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_quarantine_by_rule_denies_everywhere_and_is_written_down(
    database: Database, tmp_path: Path
) -> None:
    """Directive, audit trail and incident agree; a second finding does not do it again."""
    plane = Plane(
        database,
        tmp_path,
        respond=True,
        responses=[{"on": "EGM-T002", "do": ["alert", "quarantine"], "ttl_s": 600}],
    )
    await ship(database, replayed(1))
    await plane.look()
    alert, quarantine = await plane.responses()
    assert (alert.fate, quarantine.fate) == (Fate.DONE, Fate.DONE)
    assert plane.keeper.denials.check(workloads=(MALLORY,), nodes=(), keys=(), method="a.B/C") is not None
    assert quarantine.directive in plane.keeper.denials.directives
    assert quarantine.until_ms == NOW_MS + 1 + 600_000
    async with database.read() as connection:
        said = [entry.detail for entry in await audit.page(connection, limit=10)]
    assert any(text.startswith("quarantine mallory done") for text in said)
    plane.clock.ms += 300_000
    await ship(database, replayed(2, at_ms=plane.clock.ms), at=1)
    await plane.look()
    assert len(await plane.responses()) == 2
    plane.clock.ms += 600_000  # it ended, and the attack goes on
    await ship(database, replayed(3, at_ms=plane.clock.ms), at=2)
    await plane.look()
    assert [one.action.value for one in await plane.responses()] == ["alert", "quarantine", "quarantine"]


async def test_planned_response_is_done_by_the_next_run_after_a_crash(
    database: Database, tmp_path: Path
) -> None:
    """It was written down before anything was done, so nothing is lost between the two."""
    rule = {"on": "EGM-T002", "do": ["cut"]}
    plane = Plane(database, tmp_path / "1", respond=True, responses=[rule])
    await ship(database, replayed(1))

    async def crash() -> int:
        raise asyncio.CancelledError

    plane.detection.respond = crash  # type: ignore[method-assign]
    with contextlib.suppress(asyncio.CancelledError):
        await plane.detection.step()
    assert [one.fate for one in await plane.responses()] == [Fate.PLANNED]
    second = Plane(database, tmp_path / "2", respond=True, responses=[rule])
    await second.look()
    assert [one.fate for one in await second.responses()] == [Fate.DONE]
    assert second.keeper.denials.any


async def test_responder_that_policy_does_not_name_does_nothing_and_says_so(
    database: Database, tmp_path: Path
) -> None:
    """The approvers decide who may respond; a configured key alone is nothing."""
    plane = Plane(
        database, tmp_path, key=False, respond=True, responses=[{"on": "EGM-T002", "do": ["quarantine"]}]
    )
    await ship(database, replayed(1))
    await plane.look()
    (one,) = await plane.responses()
    assert one.fate is Fate.FAILED
    assert "emergency_keys" in one.why
    assert not plane.keeper.denials.active
    assert plane.detection.problems


async def test_alarm_of_a_node_about_tampered_policy_becomes_an_incident(
    database: Database, tmp_path: Path
) -> None:
    """What a node refused to adopt, a person should see."""
    plane = Plane(database, tmp_path, alarms=["new policy refused: QUORUM_NOT_MET: 1 of 2", "disk full"])
    await plane.look()
    (incident,) = await plane.incidents()
    assert (incident.rule, incident.subject, incident.state) == ("EGM-T008", "policy at b", State.OPEN)


async def test_plan_that_a_crash_left_is_not_done_once_policy_protects_its_subject(
    database: Database, tmp_path: Path
) -> None:
    """The approvers took it back while nobody responded: `respond: false` and `protected` hold from then on."""
    rule = {"on": "EGM-T002", "do": ["quarantine"]}
    plane = Plane(database, tmp_path / "1", respond=True, responses=[rule])
    plane.detection._responder = None
    await ship(database, replayed(1))

    async def crash() -> int:
        raise asyncio.CancelledError

    plane.detection.respond = crash  # type: ignore[method-assign]
    with contextlib.suppress(asyncio.CancelledError):
        await plane.detection.step()
    second = Plane(database, tmp_path / "2", respond=True, responses=[rule], protected=["mallory"])
    await second.look()
    (one,) = await second.responses()
    assert (one.fate, "protects" in one.why) == (Fate.PROTECTED, True)
    assert not second.keeper.denials.any


async def test_node_with_many_ledgers_and_a_backlog_keeps_no_other_node_waiting(
    database: Database,
) -> None:
    """Records of one node without end must not hide those of another: each step looks at some of both."""
    for number in range(40):
        records_of = tuple(
            replayed(number * 100 + n, node="liar", caller=workload(f"c{n}")) for n in range(80)
        )
        raw = tuple(map(build_record, records_of))
        await taken(database, Batch("liar", f"l{number}", 0, raw, records_of, after_gap=False))
    await ship(database, replayed(9_999, node="z"), node="z")
    async with database.read() as connection:
        found = await stored.fresh(connection, {})
    assert found.more
    assert "z" in {event.evidence.node for event in found.events}
    assert len(found.events) <= limits.DETECTION_BATCH_RECORDS


async def test_one_node_fills_its_own_share_of_open_incidents_alone(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store full of made-up incidents would be a store that opens no true one."""
    monkeypatch.setattr(limits, "MAX_OPEN_INCIDENTS_PER_NODE", 3)
    plane = Plane(database, tmp_path)
    await ship(database, *(replayed(n, caller=workload(f"c{n}")) for n in range(1, 20)))
    await plane.look()
    await ship(database, replayed(99, node="z"), node="z")
    await plane.look()
    found = await plane.incidents()
    assert sorted(one.only_node for one in found) == ["b", "b", "b", "z"]


async def test_right_to_detect_taken_under_a_clock_that_was_ahead_does_not_outlive_it(
    database: Database, tmp_path: Path
) -> None:
    """A control plane that died in the wrong year must not keep all others from detecting until then."""
    ahead = Plane(database, tmp_path / "1", name="wrong")
    ahead.clock.ms += 365 * 86_400_000
    await ahead.look()
    await ship(database, replayed(1))
    right = Plane(database, tmp_path / "2", name="right")
    await right.look()
    assert [one.subject for one in await right.incidents()] == [MALLORY]


async def test_incident_is_found_by_the_beginning_of_its_id_without_reading_all(
    database: Database, tmp_path: Path
) -> None:
    """LIKE passes over every incident there ever was."""
    plane = Plane(database, tmp_path)
    await ship(database, replayed(1))
    await plane.look()
    (one,) = await plane.incidents()
    async with database.read() as connection:
        for digits in (1, 8, 16):
            assert await incidents.get(connection, one.id[:digits]) == [one]
        assert await incidents.get(connection, "0" * 15 if one.id[0] != "0" else "f" * 15) == []
        if connection.dialect.name == "sqlite":
            plan = await connection.exec_driver_sql(
                "EXPLAIN QUERY PLAN SELECT * FROM incidents WHERE id >= ? AND id < ?", ("a", "ag")
            )
            assert not [row for row in plan if str(tuple(row)[-1]).startswith("SCAN")]
