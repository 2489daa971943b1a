"""Tickets in every kind of store: found again, counted, used up by their node alone, forgotten."""

from dataclasses import replace

from control_plane.core.approvals import Room, Stored
from control_plane.edge.store import approvals
from control_plane.edge.store.database import Database
from tests.support.approvers import ANN, BEN, NOW_MS, ticket
from trust import limits

HOUR_MS = 3_600_000
FIRST = Stored(ticket(), "a", False, 4, NOW_MS, NOW_MS + HOUR_MS, 0, b"pay 5", 5, True)
SECOND = replace(
    FIRST, ticket=ticket(method="shop.Payments/Refund"), opened_ms=NOW_MS + 1, content=None, shown=False
)


async def test_a_ticket_is_found_by_its_call_its_id_and_the_beginning_of_it(database: Database) -> None:
    """The same call of the same side of the same node, while it is open."""
    async with database.write() as connection:
        await approvals.add(connection, FIRST)
        await approvals.add(connection, SECOND)
        for name, one in (("ann", ANN), ("ben", BEN)):
            await approvals.add_note(
                connection,
                FIRST.ticket.id,
                name=name,
                verdict="approve",
                note=one.say(FIRST.ticket),
                at_ms=NOW_MS,
            )
        again = ANN.say(FIRST.ticket, reason="again")
        await approvals.add_note(
            connection, FIRST.ticket.id, name="ann", verdict="approve", note=again, at_ms=NOW_MS + 5
        )
    noted = replace(FIRST, notes=(BEN.say(FIRST.ticket), again))
    async with database.read() as connection:
        same = replace(FIRST, ticket=ticket(serial="f" * 32))
        assert await approvals.open_one(connection, same, now_ms=NOW_MS) == noted
        for other in (replace(same, node="b"), replace(same, inbound=True)):
            assert await approvals.open_one(connection, other, now_ms=NOW_MS) is None
        assert await approvals.open_one(connection, same, now_ms=NOW_MS + HOUR_MS) is None
        assert await approvals.find(connection, FIRST.ticket.id[:8]) == [noted]
        assert await approvals.get(connection, [SECOND.ticket.id, "0" * 64]) == [SECOND]
        listed = await approvals.newest(connection, live=True, limit=10, now_ms=NOW_MS)
        assert listed == [SECOND, replace(noted, content=None)], "a list carries no requests"
        room = await approvals.room(connection, node="a", caller=FIRST.ticket.caller, now_ms=NOW_MS)
        assert room == Room(2, 2, 2)
        assert await approvals.room(connection, node="b", caller="x", now_ms=NOW_MS) == Room(2, 0, 0)


async def test_what_is_used_or_over_shows_no_request_and_is_forgotten_in_the_end(database: Database) -> None:
    """Only the node that opened a ticket uses it up."""
    async with database.write() as connection:
        await approvals.add(connection, FIRST)
        await approvals.add(connection, SECOND)
        await approvals.spend(connection, [FIRST.ticket.id], node="b", now_ms=NOW_MS + 5)
        assert (await approvals.get(connection, [FIRST.ticket.id]))[0].spent_ms == 0
        await approvals.spend(connection, [FIRST.ticket.id], node="a", now_ms=NOW_MS + 5)
        (used,) = await approvals.get(connection, [FIRST.ticket.id])
        assert (used.spent_ms, used.content) == (NOW_MS + 5, None)
        assert await approvals.newest(connection, live=False, limit=10, now_ms=NOW_MS) == [used]
        assert await approvals.room(connection, node="a", caller="x", now_ms=NOW_MS) == Room(1, 1, 0)
        await approvals.add_note(
            connection, used.ticket.id, name="ann", verdict="deny", note=ANN.say(used.ticket), at_ms=NOW_MS
        )
        end_ms = FIRST.until_ms + limits.TICKET_HISTORY_S * 1000
        await approvals.forget(connection, now_ms=end_ms)
        assert len(await approvals.newest(connection, live=None, limit=10, now_ms=NOW_MS)) == 2
        await approvals.forget(connection, now_ms=end_ms + 1)
        assert await approvals.newest(connection, live=None, limit=10, now_ms=NOW_MS) == []
