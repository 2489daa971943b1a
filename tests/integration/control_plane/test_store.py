"""One suite for every kind of store: SQLite and a real PostgreSQL must behave alike."""

import asyncio
import hashlib
import random
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from control_plane.core.join_tokens import make_grant
from control_plane.core.proposals import Proposal, Signed, State
from control_plane.edge.store import alerts, audit, fleet, incidents, models, proposals, repository
from control_plane.edge.store.database import _MIGRATIONS, Database
from control_plane.edge.tokens import StoredTokens
from tests.support.control_plane import Domain
from trust.errors import Reason, StateError


def proposal(number: int, *, role: str = "targets", state: State = State.OPEN) -> Proposal:
    """Return a proposal that differs by `number`."""
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    return Proposal(digest[:16], role, 1, digest, state, "t", "spiffe://td/operator/o", number, 10**14, b"{}")


async def test_migrations_make_exactly_the_tables_of_the_models(database: Database) -> None:
    """A column added to the models without a migration would only fail at a customer's."""
    await database.migrate()  # again: nothing to do
    async with database.read() as connection:
        differences = await connection.run_sync(
            lambda sync: compare_metadata(
                MigrationContext.configure(sync, opts={"compare_type": False}), models.metadata
            )
        )
    assert differences == []


async def test_a_store_of_the_version_before_keeps_its_incidents_and_its_queue(
    store_url: str, domain: Domain
) -> None:
    """What was delivered leaves the queue, what waits stays in it; incidents that were there use up no node's share."""
    opened = Database(domain.config(store=store_url).store_url())

    def before(connection: sa.Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, "0006")
        connection.execute(
            sa.text(
                "INSERT INTO incidents (id, rule, severity, subject, state, opened_ms, last_ms, findings, text, "
                "evidence, nodes, resolved_by, resolved_why, resolved_ms) VALUES ('0123456789abcdef', 'EGM-T002', "
                "3, 'spiffe://mesh.test/workload/x', 'open', 1, 1, 1, 't', '[]', '[\"b\"]', '', '', 0)"
            )
        )
        for state, next_ms in (("waiting", 5), ("done", 0), ("failed", 0)):
            connection.execute(
                sa.text(
                    "INSERT INTO alert_deliveries (alert_id, channel, body, created_ms, next_ms, attempts, state, "
                    "error) VALUES ('a', 'mqtt', :body, 1, :next_ms, 1, :state, '')"
                ),
                {"body": b"{}", "next_ms": next_ms, "state": state},
            )

    async with opened.write() as connection:
        await connection.run_sync(before)
    await opened.migrate()
    async with opened.write() as connection:
        (incident,) = await incidents.get(connection, "0123")
        assert (incident.nodes, incident.alone) == (("b",), ())
        assert await alerts.due_channels(connection, now_ms=9) == ["mqtt"]
        assert len(await alerts.claim(connection, "mqtt", now_ms=9, lease_ms=1, most=9)) == 1
    await opened.close()


async def test_two_processes_may_migrate_at_the_same_moment(store_url: str, domain: Domain) -> None:
    """Several control planes start together on one empty database."""
    opened = [Database(domain.config(store=store_url).store_url()) for _ in range(3)]
    await asyncio.gather(*(one.migrate() for one in opened))
    for one in opened:
        await one.close()


async def test_changes_of_the_repository_are_serialised_and_a_rollback_leaves_no_trace(
    database: Database,
) -> None:
    """Of concurrent publications each sees what the one before it committed."""

    async def change(number: int) -> None:
        async with database.write() as connection:
            revision = await repository.lock_head(connection)
            held = await repository.load(connection, ["metadata/timestamp.json"])
            value = int(held.get("metadata/timestamp.json", b"0")) + 1
            await asyncio.sleep(0)
            await repository.write(
                connection, {"metadata/timestamp.json": str(value).encode()}, revision=revision
            )
            if number % 3 == 0:
                raise RuntimeError("crash before the commit")

    results = await asyncio.gather(*(change(n) for n in range(12)), return_exceptions=True)
    assert sum(isinstance(r, RuntimeError) for r in results) == 4
    async with database.read() as connection:
        assert await repository.revision(connection) == 8
        assert await repository.load(connection, ["metadata/timestamp.json", "nothing"]) == {
            "metadata/timestamp.json": b"8"
        }
        (file,) = await repository.listing(connection)
        assert (file.sha256, file.revision) == (hashlib.sha256(b"8").hexdigest(), 8)
        assert await repository.listing(connection, after=8) == []


async def test_a_reader_sees_one_moment_while_others_write(database: Database) -> None:
    """The files of one publication are seen together or not at all."""
    async with database.read() as reading:
        assert await repository.revision(reading) == 0
        async with database.write() as writing:
            revision = await repository.lock_head(writing)
            await repository.write(writing, {"metadata/1.root.json": b"{}"}, revision=revision)
        assert await repository.revision(reading) == 0
        assert await repository.load_roots(reading) == {}
    async with database.read() as reading:
        assert await repository.load_roots(reading) == {"metadata/1.root.json": b"{}"}


async def test_large_files_come_back_whole(database: Database) -> None:
    """An archive of many megabytes is one row."""
    data = hashlib.sha256(b"x").digest() * (512 * 1024)
    async with database.write() as connection:
        await proposals.add(connection, proposal(1), {"base.tar.gz": data})
    async with database.read() as connection:
        assert await proposals.files_of(connection, proposal(1).id) == {"base.tar.gz": data}


async def test_proposals_keep_signatures_once_per_key(database: Database) -> None:
    """The same key twice is one signature, whatever its bytes."""
    async with database.write() as connection:
        await proposals.add(connection, proposal(1), {"base.tar.gz": b"data"})
        assert await proposals.add_signature(connection, proposal(1).id, Signed("k1", "aa", 5))
        assert not await proposals.add_signature(connection, proposal(1).id, Signed("k1", "bb", 6))
        assert await proposals.add_signature(connection, proposal(1).id, Signed("k2", "cc", 7))
    async with database.write() as connection:
        found = await proposals.get(connection, proposal(1).id, lock=True)
        assert found is not None
        assert found.signatures == (Signed("k1", "aa", 5), Signed("k2", "cc", 7))
        assert await proposals.get(connection, "unknown") is None


async def test_the_same_proposal_cannot_be_stored_twice(database: Database) -> None:
    """Two operators propose the same at the same moment: the second is told, not answered with a crash."""
    async with database.write() as connection:
        await proposals.add(connection, proposal(1), {})
    with pytest.raises(StateError) as caught:
        async with database.write() as connection:
            await proposals.add(connection, proposal(1), {})
    assert caught.value.reason is Reason.CONFLICT
    async with database.read() as connection:
        assert await proposals.count_open(connection) == 1


async def test_closed_proposals_leave_the_open_list_and_give_up_their_files(database: Database) -> None:
    """What was published is in the repository; what was withdrawn needs no space."""
    async with database.write() as connection:
        for number, role in ((1, "targets"), (2, "targets"), (3, "payments")):
            await proposals.add(connection, proposal(number, role=role), {"f": b"data"})
        await proposals.set_state(connection, proposal(1).id, State.WITHDRAWN)
    async with database.read() as connection:
        assert await proposals.count_open(connection) == 2
        assert [p.created_ms for p in await proposals.listing(connection, open_only=True, limit=9)] == [3, 2]
        assert len(await proposals.listing(connection, open_only=False, limit=2)) == 2
        assert [p.created_ms for p in await proposals.open_of_role(connection, "targets")] == [2]
        assert await proposals.files_of(connection, proposal(1).id) == {}


async def test_a_join_token_is_spent_once_however_many_try(database: Database) -> None:
    """Of many nodes with a stolen token, one gets in, and the operator notices the other."""
    tokens = StoredTokens(database)
    await tokens.create("ab" * 32, make_grant("a", ["alice", "bob"]), expires_ms=2_000, now_ms=1_000)
    results = await asyncio.gather(
        *(tokens.consume("ab" * 32, 1_500) for _ in range(8)), return_exceptions=True
    )
    granted = [r for r in results if not isinstance(r, BaseException)]
    assert granted == [make_grant("a", ["alice", "bob"])]
    refusals = {r.reason for r in results if isinstance(r, StateError)}
    assert refusals == {Reason.JOIN_TOKEN_INVALID}
    assert await tokens.grant_of("a") == granted[0]
    assert await tokens.grant_of("b") is None


async def test_expired_and_unknown_tokens_grant_nothing(database: Database) -> None:
    """Expiry counts from its first millisecond."""
    tokens = StoredTokens(database)
    await tokens.create("ab" * 32, make_grant("a", []), expires_ms=2_000, now_ms=1_000)
    for digest, now_ms in (("ab" * 32, 2_000), ("cd" * 32, 1_000)):
        with pytest.raises(StateError) as caught:
            await tokens.consume(digest, now_ms)
        assert caught.value.reason is Reason.JOIN_TOKEN_INVALID
    assert await tokens.grant_of("a") is None


async def test_joining_again_replaces_the_grant(database: Database) -> None:
    """A reinstalled node gets what its new token says, not the sum of both."""
    tokens = StoredTokens(database)
    for digest, workloads in (("ab" * 32, ["alice", "bob"]), ("cd" * 32, ["carol"])):
        await tokens.create(digest, make_grant("a", workloads), expires_ms=2_000, now_ms=1_000)
        await tokens.consume(digest, 1_500)
    assert await tokens.grant_of("a") == make_grant("a", ["carol"])


async def test_an_older_report_does_not_replace_a_newer_one(database: Database) -> None:
    """Two control planes flush what they heard from one node in any order."""
    async with database.write() as connection:
        await fleet.save_nodes(connection, [fleet.StoredNode("a", 2_000, 9, b"first")])
        await fleet.save_nodes(connection, [fleet.StoredNode("a", 3_000, 9, b"new")])
        later = [fleet.StoredNode("a", 1_000, 9, b"old"), fleet.StoredNode("b", 1_000, 9, b"b")]
        await fleet.save_nodes(connection, later)
        await fleet.save_nodes(connection, [])
    async with database.read() as connection:
        assert [(n.node, n.status) for n in await fleet.all_nodes(connection)] == [("a", b"new"), ("b", b"b")]


async def test_the_history_of_a_node_is_bounded(database: Database) -> None:
    """A node that flaps for a year does not fill the disk."""
    async with database.write() as connection:
        for at_ms in (1, 2, 3, 4, 4):
            await fleet.add_history(
                connection, "a", at_ms=at_ms, state="READY", policy_version=at_ms, lease="FRESH", keep=3
            )
        await fleet.add_history(connection, "b", at_ms=1, state="X", policy_version=0, lease="NONE", keep=3)
    async with database.read() as connection:
        assert [row[0] for row in await fleet.history(connection, "a")] == [4, 3, 2]
        assert len(await fleet.history(connection, "b")) == 1


async def test_audit_pages_run_from_the_newest_backwards(database: Database) -> None:
    """Every deed is listed once, whatever the page size."""
    async with database.write() as connection:
        for number in range(5):
            await audit.record(connection, at_ms=number, who="o", action="sign", proposal_id=f"p{number}")
    seen: list[str] = []
    async with database.read() as connection:
        before = 0
        while page := await audit.page(connection, limit=2, before_id=before):
            seen += [entry.proposal_id for entry in page]
            before = page[-1].id
    assert seen == ["p4", "p3", "p2", "p1", "p0"]


async def test_a_database_that_goes_away_is_a_state_not_a_crash(postgres_server: str) -> None:
    """A store that cannot be reached says so, without its password."""
    database = Database("postgresql+asyncpg://egm:secret@127.0.0.1:1/none")
    with pytest.raises(StateError) as caught:
        await database.migrate()
    await database.close()
    assert caught.value.reason is Reason.SOURCE_UNAVAILABLE
    assert "secret" not in caught.value.detail
    assert "127.0.0.1:1/none" in caught.value.detail


async def test_a_store_made_by_a_newer_version_is_refused(tmp_path: Path) -> None:
    """Going back to an older program must not damage what the newer one wrote."""
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}")
    await database.migrate()
    async with database.write() as connection:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StateError) as caught:
        await database.migrate()
    await database.close()
    assert "newer" in caught.value.detail


async def test_a_cancelled_write_leaves_no_lock_behind(database: Database) -> None:
    """A task that is cancelled at any point, as every one is at a stop, must not hold up the next writer."""
    pause = random.Random(1)
    for at in range(80):

        async def write(at_ms: int = at) -> None:
            async with database.write() as connection:
                await fleet.save_nodes(connection, [fleet.StoredNode("a", at_ms, 9, b"status")])

        task = asyncio.create_task(write())
        for _ in range(pause.randrange(600)):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        async with asyncio.timeout(10), database.write() as connection:  # a lock would be waited for for 30 s
            await fleet.save_nodes(connection, [fleet.StoredNode("b", at, 9, b"status")])
