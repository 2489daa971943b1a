"""Taking records: several nodes in one transaction, failures, whose records count, and who waits for whom."""

import asyncio
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from control_plane.core import executions as checks
from control_plane.core import taking
from control_plane.core.analytics import windows
from control_plane.core.executions import Batch
from control_plane.core.fresh import FreshEvents
from control_plane.core.join_tokens import make_grant
from control_plane.core.standing import Weight
from control_plane.edge import records as servicers
from control_plane.edge.store import analytics, database, executions, fleet, intake
from control_plane.edge.store import detection as stored
from control_plane.edge.store.database import Database
from control_plane.edge.store.models import executions as table
from control_plane.edge.tokens import StoredTokens
from egm.v1 import record_pb2
from tests.support.index import TRUST_DOMAIN, new_intake, taken
from tests.support.records import START_MS, callee_side, execution_id, intent, outcome, workload
from trust import limits
from trust.errors import MeshError, Reason, StateError
from trust.record import Intent, Outcome, build_record
from trust.spiffe import SpiffeId

NOW_MS = START_MS + 120_000
MIGRATIONS = Path(database.__file__).parents[1] / "migrations"


def batch(*records: Intent | Outcome, at: int = 0, node: str = "a", ledger: str = "l1") -> Batch:
    """Return a batch as the servicer makes one."""
    return Batch(node, ledger, at, tuple(map(build_record, records)), records, after_gap=False)


async def joined(store: Database, node: str, *workloads: str, now_ms: int = START_MS) -> None:
    """Have a node join with a token for those workloads."""
    tokens, digest = StoredTokens(store), node.ljust(64, "0")
    async with store.write() as connection:
        await connection.execute(sa.text("DELETE FROM join_tokens"))
    await tokens.create(digest, make_grant(node, workloads), expires_ms=2**62, now_ms=now_ms)
    await tokens.consume(digest, now_ms)


async def weights(store: Database) -> dict[str, int]:
    """Return what each execution in the index counts for, by caller and node."""
    async with store.read() as connection:
        rows = await connection.execute(sa.select(table.c.node, table.c.caller, table.c.counts))
        return {f"{row.caller.rpartition('/')[2]} at {row.node}": row.counts for row in rows}


async def calls(store: Database) -> int:
    """Return how many calls the sums have."""
    _, parts = windows(START_MS // 1000 - 3600, NOW_MS // 1000 + 60, now_s=NOW_MS // 1000)
    async with store.read() as connection:
        return sum(one.calls for one in (await analytics.totals(connection, parts)).values())


async def test_refused_batch_keeps_no_other_node_s_from_being_taken(database: Database) -> None:
    """They share a transaction, so one node must not be able to spoil it for others."""
    by = new_intake()
    await taken(database, batch(intent(1), node="liar"), intake=by)
    answers = await by.take(
        database,
        [
            batch(intent(2, node="b"), node="b"),
            batch(intent(3), at=7),  # records before it are missing
            batch(intent(9), node="liar"),  # other bytes than before
            batch(intent(4, node="c"), outcome(intent(4, node="c")), node="c"),
        ],
    )
    reasons = [one.reason if isinstance(one, MeshError) else one for one in answers]
    assert reasons == [1, Reason.CONFLICT, Reason.DIGEST_MISMATCH, 2]
    async with database.read() as connection:
        (entry,) = await executions.get(connection, execution_id(4))
    assert entry.outcome_index == 1


async def test_outcome_with_an_id_used_twice_closes_the_first_as_in_a_batch_of_its_own(
    database: Database,
) -> None:
    """How records are cut into messages changes nothing of what the index says."""
    first = intent(1)
    await taken(database, batch(first), batch(intent(1, method="x.Y/Z"), outcome(first), at=1))
    async with database.read() as connection:
        (entry,) = await executions.get(connection, first.execution_id)
    assert (entry.intent, entry.outcome_index) == (build_record(first), 2)


async def test_failed_transaction_leaves_nothing_behind_and_the_next_one_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row numbers that were learned in it may belong to something else by then."""
    store = Database(f"sqlite+aiosqlite:///{tmp_path / 's.db'}")
    await store.migrate()
    by, real = new_intake(), database._run_many

    def fails(connection: sqlite3.Connection, statements: Any) -> None:
        real(connection, statements)
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(database, "_run_many", fails)
    with pytest.raises(StateError) as caught:
        await taken(store, batch(intent(1)), intake=by)
    assert caught.value.reason is Reason.SOURCE_UNAVAILABLE
    monkeypatch.setattr(database, "_run_many", real)
    await taken(store, batch(intent(5, node="z"), node="z"), intake=new_intake())  # takes the row meanwhile
    assert await taken(store, batch(intent(1), outcome(intent(1))), intake=by) == 2
    assert await calls(store) == 2
    await store.close()


async def test_what_waits_is_taken_in_one_transaction_whoever_left_and_at_most_once_a_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction costs about the same for one node as for many; a stream that ended is waited for by nobody."""
    store = Database(f"sqlite+aiosqlite:///{tmp_path / 's.db'}")
    await store.migrate()
    by, groups = new_intake(), list[list[str]]()
    real = by.take

    async def take(to: Database, batches: Any) -> Any:
        groups.append([f"{one.node}{one.first_index}" for one in batches])
        return await real(to, batches)

    monkeypatch.setattr(by, "take", take)
    servicer = servicers.RecordsServicer(store, FixedClock(), by, trust_domain=TRUST_DOMAIN)
    nodes = [f"n{number}" for number in range(20)]
    waiting = [
        asyncio.create_task(servicer._take(batch(intent(n, node=node), node=node)))
        for n, node in enumerate(nodes)
    ]
    gone = asyncio.create_task(servicer._take(batch(intent(99, node="gone"), node="gone")))
    again = asyncio.create_task(servicer._take(batch(intent(50, node="n0"), at=1, node="n0")))
    await asyncio.sleep(0)
    gone.cancel()
    assert await asyncio.gather(*waiting, again) == [*[1] * 20, 2]
    assert groups == [[f"{node}0" for node in nodes], ["n01"]]
    assert gone.cancelled()
    await store.close()


@pytest.mark.parametrize("poisoned", [1, 20])
async def test_records_that_the_store_does_not_take_keep_back_those_of_no_other_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poisoned: int
) -> None:
    """Whatever a node finds to make a transaction fail, it fails alone; a store that is away is not asked for each."""
    store = Database(f"sqlite+aiosqlite:///{tmp_path / 's.db'}")
    await store.migrate()
    by, asked = new_intake(), 0
    real = by.take

    async def take(to: Database, batches: Any) -> Any:
        nonlocal asked
        asked += 1
        if any(one.node.startswith("p") for one in batches):
            raise OverflowError("too large")
        return await real(to, batches)

    monkeypatch.setattr(by, "take", take)
    servicer = servicers.RecordsServicer(store, FixedClock(), by, trust_domain=TRUST_DOMAIN)
    nodes = ["a", "b"] if poisoned == 1 else []
    nodes = [*nodes[:1], *(f"p{n}" for n in range(poisoned)), *nodes[1:]]
    waiting = [servicer._take(batch(intent(n, node=node), node=node)) for n, node in enumerate(nodes)]
    found = await asyncio.gather(*waiting, return_exceptions=True)
    kinds = [one if isinstance(one, int) else type(one) for one in found]
    assert kinds == ([1, OverflowError, 1] if poisoned == 1 else [OverflowError] * poisoned)
    assert asked == (4 if poisoned == 1 else 1 + 8)
    await store.close()


async def test_large_message_is_looked_at_beside_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand records take as long as a hundred heartbeats of nodes; neither waits for the other."""
    store = Database(f"sqlite+aiosqlite:///{tmp_path / 's.db'}")
    await store.migrate()
    where: list[bool] = []

    def noting(real: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            where.append(threading.current_thread() is threading.main_thread())
            return real(*arguments, **named)

        return call

    monkeypatch.setattr(servicers, "check_batch", noting(checks.check_batch))
    monkeypatch.setattr(intake, "take", noting(taking.take))
    servicer = servicers.RecordsServicer(store, FixedClock(), new_intake(), trust_domain=TRUST_DOMAIN)
    raw = [build_record(intent(n)) for n in range(200)]
    request = record_pb2.ShipRequest(node="a", ledger="l1", records=raw)
    found = await servicer._checked(SpiffeId.of(TRUST_DOMAIN, "node", "a"), request)
    assert await servicer._take(found) == 200
    assert where == [False, False]
    await store.close()


class FixedClock:
    """A clock that stands still."""

    def now_ms(self) -> int:
        """Unix ms."""
        return NOW_MS

    def monotonic_ms(self) -> int:
        """Ms."""
        return 1


async def test_burst_of_writers_lets_the_lease_in_at_its_turn(tmp_path: Path) -> None:
    """Whoever asked first writes first: records without end cannot keep a renewal or a revocation waiting."""
    store = Database(f"sqlite+aiosqlite:///{tmp_path / 's.db'}")
    await store.migrate()
    order: list[str] = []
    begun = asyncio.Event()

    async def burst() -> None:
        for _ in range(30):
            async with store.write() as connection:
                await connection.execute(sa.text("SELECT 1"))
                order.append("records")
                begun.set()

    async def renew() -> None:
        await begun.wait()
        async with store.write():
            order.append("lease")

    await asyncio.gather(burst(), burst(), renew())
    assert order.index("lease") <= 4
    await store.close()


async def test_node_that_joined_counts_for_its_own_workloads_alone(database: Database) -> None:
    """Made-up records stay in the index, and nothing is concluded from them."""
    await joined(database, "a", "alice")
    await joined(database, "liar", "evil")
    await taken(database, batch(intent(1), outcome(intent(1))))
    lies = [intent(n, node="liar") for n in (2, 3)]
    closed = [outcome(one) for one in lies]
    own = intent(4, node="liar", caller=workload("evil"))
    await taken(database, batch(*lies, *closed[:1], own, node="liar"), batch(closed[1], at=4, node="liar"))
    assert await weights(database) == {
        "alice at a": Weight.COUNTS,
        "alice at liar": Weight.FOREIGN,
        "evil at liar": Weight.COUNTS,
    }
    assert await calls(database) == 2
    async with database.read() as connection:
        found = await stored.fresh(connection, {})
    assert sorted(one.evidence.index for one in found.events if one.evidence.node == "liar") == [0, 1, 3]


async def test_joining_anew_and_being_removed_change_what_later_records_count_for(database: Database) -> None:
    """What was given up counts for the time before; a node that an operator removed moves nothing any more."""
    await joined(database, "a", "alice", "bob")
    by = new_intake(now_ms=START_MS)
    await taken(database, batch(intent(1)), intake=by)
    await joined(database, "a", "bob", now_ms=START_MS + 10_000)
    later = new_intake(now_ms=START_MS + 20_000)
    before, after = intent(2, wall_ms=START_MS + 5), intent(3, wall_ms=START_MS + 19_000)
    await taken(database, batch(before, after, at=1), intake=later)
    async with database.read() as connection:
        rows = await connection.execute(sa.select(table.c.counts).order_by(table.c.intent_index))
        assert list(rows.scalars()) == [Weight.COUNTS, Weight.COUNTS, Weight.FOREIGN]
    async with database.write() as connection:
        assert await fleet.forget(connection, "a", now_ms=START_MS + 30_000) == 0
        assert await fleet.workloads_of(connection, ["a", "never"]) == {
            "a": {"": START_MS + 30_000, "alice": START_MS + 10_000, "bob": START_MS + 30_000}
        }
    last = intent(4, caller=workload("bob"), wall_ms=START_MS + 6)
    await taken(database, batch(last, at=3), intake=new_intake(now_ms=START_MS + 40_000))
    assert (await weights(database))["bob at a"] == Weight.NOTHING
    # when no certificate of it can be alive any more
    await joined(database, "b", now_ms=START_MS + (limits.MAX_SVID_TTL_S + 60) * 1000)
    async with database.read() as connection:
        assert await fleet.workloads_of(connection, ["a"]) == {}


async def test_what_a_node_is_enrolled_for_is_read_again_in_time(database: Database) -> None:
    """A control plane that runs for months hears of what others enrol."""
    now = [NOW_MS]
    by = intake.Intake(TRUST_DOMAIN, lambda: now[0])
    await joined(database, "a", "alice")
    await taken(database, batch(intent(1)), intake=by)
    await joined(database, "a", "bob", now_ms=START_MS)
    now[0] += 60_000
    await taken(database, batch(intent(2, wall_ms=NOW_MS), at=1), intake=by)
    async with database.read() as connection:
        rows = await connection.execute(sa.select(table.c.counts).order_by(table.c.intent_index))
        assert list(rows.scalars()) == [Weight.COUNTS, Weight.FOREIGN]


async def test_events_kept_in_memory_are_those_that_the_store_would_give(database: Database) -> None:
    """Detection must see the same after a restart, or at another control plane."""
    await joined(database, "a", "alice")
    fresh = FreshEvents()
    fresh.wanted = True
    by = new_intake(fresh=fresh)
    calls_of_a = [intent(n) for n in range(1, 6)]
    served = [callee_side(one, "b") for one in calls_of_a]
    made_up = intent(7, caller=workload("bob"))
    await taken(
        database,
        batch(*calls_of_a[:3], outcome(calls_of_a[0]), made_up, outcome(made_up)),
        batch(*calls_of_a[3:], *map(outcome, calls_of_a[1:]), at=6),
        batch(*served, *map(outcome, served), node="b"),
        intake=by,
    )
    async with database.read() as connection:
        kept = await stored.fresh(connection, {}, here=fresh)
        read = await stored.fresh(connection, {})
    assert kept.events == read.events
    assert kept.positions == read.positions
    assert sum(bool(getattr(one, "foreign", "")) for one in kept.events) == 1
    assert len(kept.events) == 5 + 5 + 1 + 5 + 5


def test_nodes_that_joined_before_the_upgrade_are_known_after_it(tmp_path: Path) -> None:
    """Otherwise every node of a running mesh could speak for everybody until it joins anew."""
    engine = sa.create_engine(f"sqlite:///{tmp_path / 's.db'}")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0008")
        grant = sa.text("INSERT INTO node_grants (node, workloads) VALUES ('a', '[\"alice\", \"bob\"]')")
        connection.execute(grant)
        command.upgrade(config, "head")
        rows = connection.execute(
            sa.text("SELECT node, workload, until_ms FROM node_workloads ORDER BY workload")
        )
        assert [tuple(row) for row in rows] == [("a", "", None), ("a", "alice", None), ("a", "bob", None)]
    engine.dispose()
