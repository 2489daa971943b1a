"""What a sidecar makes of what the control plane answers about approvals: lies, old tickets, silence."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from egm.v1 import approvals_pb2 as pb
from sidecar.core.call import Attempt, Decision, Direction
from sidecar.edge.approvals import ApprovalDuty
from sidecar.edge.case import Case
from sidecar.edge.spent_file import SpentFile
from tests.support.approvers import ANN, BEN, GROUPS, NOW_MS, TD, Approver
from tests.support.eventually import eventually
from trust import limits
from trust.approval import APPROVAL_KEY, open_approval, unpack
from trust.errors import MeshError, Reason, StateError
from trust.policy.types import Authn
from trust.ticket import Ticket

REQUEST = b"pay 5"
ASKED = ("require_approval", "2 of ops")


class FakeDesk:
    """A control plane in memory: honest, unless a test says otherwise."""

    def __init__(self) -> None:
        """Have no tickets."""
        self.open_tickets: dict[tuple[str, ...], Ticket] = {}
        self.notes: dict[str, list[bytes]] = {}
        self.asked: list[pb.OpenTicketRequest] = []
        self.silent = False
        self.forgetful = False  # never hears that a ticket was used
        self.answer: Ticket | None = None  # instead of the right one

    async def open(self, request: pb.OpenTicketRequest) -> pb.OpenTicketResponse:
        """Find or keep a ticket."""
        self.asked.append(request)
        if self.silent:
            raise StateError(Reason.SOURCE_UNAVAILABLE, "nobody answers")
        wanted = Ticket.parse(request.ticket)
        found = self.answer or self.open_tickets.setdefault(wanted.call, wanted)
        return pb.OpenTicketResponse(ticket=found.body(), notes=self.notes.get(found.id, []))

    async def collect(self, ids: Sequence[str]) -> dict[str, tuple[bytes, ...]]:
        """Return notes."""
        return {one: tuple(self.notes.get(one, ())) for one in ids}

    async def spent(self, ids: Sequence[str]) -> None:
        """Forget tickets."""
        if not self.forgetful:
            self.open_tickets = {call: one for call, one in self.open_tickets.items() if one.id not in ids}

    def approve(self, *approvers: Approver) -> Ticket:
        """Have everybody sign the only open ticket."""
        (one,) = self.open_tickets.values()
        self.notes[one.id] = [approver.say(one) for approver in approvers]
        return one


class World:
    """One duty with its desk."""

    def __init__(self, tmp_path: Path) -> None:
        """Start without tickets."""
        self.desk, self.alarms, self.serial = FakeDesk(), [""], 0
        self.monotonic = 0
        self.caller = "alice"
        self.duty = ApprovalDuty(
            trust_domain=TD,
            groups=lambda: GROUPS,
            desk=self.desk,
            spent=SpentFile(tmp_path / "spent", NOW_MS),
            now_ms=lambda: NOW_MS,
            monotonic_ms=lambda: self.monotonic,
            serials=self._next_serial,
            ids=lambda: b"\x01" * 16,
            alarm=self.alarms.append,
        )

    def _next_serial(self) -> str:
        self.serial += 1
        return f"{self.serial:032x}"

    async def meet(
        self,
        request: bytes = REQUEST,
        *,
        level: int = 4,
        asked: tuple[tuple[str, str], ...] = (ASKED,),
        restrictions: tuple[tuple[str, str], ...] = (),
        direction: Direction = Direction.OUTBOUND,
        approvals: tuple[str | bytes, ...] = (),
    ) -> tuple[Case, Reason | None]:
        """Bring one call before the duty; return its case, and why it was refused."""
        attempt = Attempt(
            direction, "echo", "shop.Pay/Pay", f"spiffe://{TD}/workload/{self.caller}", Authn.MTLS
        )
        case = Case(attempt, level, request=request, request_sha256=hashlib.sha256(request).digest())
        case.approvals = approvals
        decision = Decision(
            "d", True, Reason.ALLOWED, level, 1, ("may",), obligations=asked, restrictions=restrictions
        )
        try:
            await self.duty.meet(case, decision, now_ms=NOW_MS)
        except MeshError as error:
            return case, error.reason
        return case, None


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A duty that has asked nobody yet."""
    return World(tmp_path)


async def test_what_goes_on_carries_its_approvals_and_is_written_down(world: World) -> None:
    """Caller's side: asked with the request, then the same call again."""
    assert (await world.meet())[1] is Reason.APPROVAL_REQUIRED
    assert world.desk.asked[0].content == REQUEST
    ticket = world.desk.approve(ANN, BEN)
    case, reason = await world.meet()
    assert reason is None
    ((key, packed),) = case.extra
    assert key == APPROVAL_KEY and isinstance(packed, bytes) and len(unpack(packed)) == 2
    assert [value.split()[2].partition("=")[2] for _, value in case.obligations] == [ticket.id, ticket.id]
    callee, reason = await world.meet(direction=Direction.INBOUND, approvals=(packed,))
    assert reason is None and callee.extra == (), "the other side of the same node counts by itself"
    assert (await world.meet(direction=Direction.INBOUND, approvals=(packed,)))[1] is Reason.APPROVAL_SPENT


async def test_a_control_plane_that_shows_a_used_ticket_again_gains_nothing(world: World) -> None:
    """It can withhold approvals; it cannot have one serve twice."""
    await world.meet()
    world.desk.forgetful = True
    world.desk.approve(ANN, BEN)
    assert (await world.meet())[1] is None
    assert (await world.meet())[1] is Reason.APPROVAL_UNAVAILABLE


async def test_a_control_plane_that_answers_with_another_calls_ticket_gains_nothing(world: World) -> None:
    """Approvals of something harmless do not open something else."""
    await world.meet(b"harmless")
    world.desk.answer = world.desk.approve(ANN, BEN)
    assert (await world.meet(b"harmful"))[1] is Reason.APPROVAL_UNAVAILABLE


async def test_forged_approvals_from_the_control_plane_do_not_count(world: World) -> None:
    """Neither of strangers, nor of one person under two names."""
    await world.meet()
    ticket = world.desk.approve(ANN)
    world.desk.notes[ticket.id] += [
        Approver("ben", seed="cp").say(ticket),
        Approver("eve").say(ticket),
        b"junk",
    ]
    assert (await world.meet())[1] is Reason.APPROVAL_REQUIRED


async def test_without_a_control_plane_level_three_goes_on_with_an_alarm_and_others_refuse(
    world: World,
) -> None:
    """And what incident response asks for is not shaken off so."""
    world.desk.silent = True
    case, reason = await world.meet(level=3)
    assert reason is None and case.would_deny is Reason.APPROVAL_UNAVAILABLE
    assert case.obligations == (("require_approval", "2 of ops=unavailable"),)
    assert "go on without" in world.alarms[-1]
    assert (await world.meet(level=4))[1] is Reason.APPROVAL_UNAVAILABLE
    assert (await world.meet(level=2, restrictions=(ASKED,)))[1] is Reason.APPROVAL_UNAVAILABLE
    assert len(world.desk.asked) == 1, "for a moment nobody is asked again"
    world.monotonic += 5_000
    world.desk.silent = False
    assert (await world.meet(level=3))[1] is Reason.APPROVAL_REQUIRED
    assert world.alarms[-1] == ""


async def test_levels_that_block_nothing_ask_nobody(world: World) -> None:
    """They say what would have been asked."""
    for level in (1, 2):
        case, reason = await world.meet(level=level)
        assert reason is None and case.would_deny is Reason.APPROVAL_REQUIRED
        assert case.obligations == (("require_approval", "2 of ops=not-asked"),)
    assert world.desk.asked == []


async def test_a_group_that_cannot_give_the_approval_refuses_at_once(world: World) -> None:
    """The message names what is missing; no ticket is opened."""
    for value in ("4 of ops", "1 of nobody"):
        assert (await world.meet(asked=(("require_approval", value),)))[1] is Reason.APPROVAL_UNAVAILABLE
    assert world.desk.asked == []


async def test_a_window_is_asked_once_and_ends_with_its_approvers_standing(world: World) -> None:
    """Kept here, verified at every call; another caller's side still verifies for itself."""
    asked = (("require_approval", "2 of ops, window 10m"),)
    await world.meet(asked=asked)
    world.desk.approve(ANN, BEN)
    assert (await world.meet(b"one", asked=asked))[1] is None
    count = len(world.desk.asked)
    world.desk.silent = True
    assert (await world.meet(b"two", asked=asked))[1] is None
    assert len(world.desk.asked) == count


@pytest.mark.parametrize("came", [("text",), (b"", b""), (b"\xff",), (b"\x0a\x03abc",)], ids=repr)
async def test_junk_in_the_metadata_is_refused(world: World, came: tuple[str | bytes, ...]) -> None:
    """Whoever calls the callee's sidecar chooses what it sends."""
    assert (await world.meet(direction=Direction.INBOUND, approvals=came))[1] is Reason.APPROVAL_INVALID


WAITS = (("require_approval", "2 of ops, wait 30s"),)


async def held(world: World, request: bytes = REQUEST) -> "asyncio.Task[tuple[Case, Reason | None]]":
    """Return a call that waits for approvers."""
    before = world.duty.held
    call = asyncio.create_task(world.meet(request, asked=WAITS))
    await eventually(lambda: world.duty.held == before + 1 or call.done(), "it waits")
    return call


@contextlib.asynccontextmanager
async def collecting(world: World) -> AsyncIterator[None]:
    """Ask the desk as a node does, without its pauses."""
    task = asyncio.create_task(world.duty.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_held_call_hears_of_an_approval_that_takes_the_place_of_another(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ann's first word had ended; she signs again, so that there are no more notes than before."""
    monkeypatch.setattr(limits, "APPROVAL_POLL_S", 0.001)
    await world.meet(asked=(ASKED,))
    (ticket,) = world.desk.open_tickets.values()
    world.desk.notes[ticket.id] = [ANN.say(ticket, now_ms=NOW_MS - 900_000), BEN.say(ticket)]
    async with collecting(world):
        call = await held(world)
        world.desk.notes[ticket.id] = [ANN.say(ticket), BEN.say(ticket)]
        assert (await asyncio.wait_for(call, 60))[1] is None


async def test_a_caller_that_goes_away_while_it_is_held_has_used_nothing_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The approvals serve the call when it is made again."""
    monkeypatch.setattr(limits, "APPROVAL_POLL_S", 0.001)
    async with collecting(world):
        call = await held(world)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert world.duty.held == 0
        world.desk.approve(ANN, BEN)
        assert (await world.meet())[1] is None


async def test_two_identical_calls_that_are_held_share_one_approval_and_one_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """People saw one request."""
    monkeypatch.setattr(limits, "APPROVAL_POLL_S", 0.001)
    async with collecting(world):
        calls = [await held(world), await held(world)]
        world.desk.approve(ANN, BEN)
        reasons = {(await asyncio.wait_for(call, 60))[1] for call in calls}
    assert reasons == {None, Reason.APPROVAL_SPENT}


async def test_one_caller_cannot_take_every_place_in_which_calls_are_held(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it asks beyond its share is refused with the ticket at once; another caller is still held."""
    monkeypatch.setattr(limits, "MAX_CALLER_HELD_CALLS", 2)
    calls = [await held(world), await held(world, b"other")]
    assert (await world.meet(b"third", asked=WAITS))[1] is Reason.APPROVAL_REQUIRED
    world.caller = "bob"
    calls.append(await held(world, b"fourth"))
    assert world.duty.held == 3
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert world.duty.held == 0 and not world.duty._held_of


async def test_a_control_plane_that_sends_floods_of_notes_keeps_nobody_busy(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each note is verified; the same one again is not, and no more than a ticket may have."""
    opened = 0

    def count(*args: object, **more: object) -> object:
        nonlocal opened
        opened += 1
        return open_approval(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("sidecar.core.approvals.open_approval", count)
    await world.meet()
    ticket = world.desk.approve(ANN)
    world.desk.notes[ticket.id] *= 5_000
    assert (await world.meet())[1] is Reason.APPROVAL_REQUIRED
    world.desk.notes[ticket.id] = [ANN.say(ticket, ttl_s=number + 1) for number in range(200)]
    assert (await world.meet())[1] is Reason.APPROVAL_REQUIRED
    assert opened <= 1 + limits.MAX_TICKET_NOTES


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("2 of ops, window 10m", "2 of ops"), ("2 of ops", "2 of ops, window 10m"), ("1 of ops", "2 of ops")],
)
async def test_approvals_under_another_version_of_the_policy_have_the_callees_side_ask_itself(
    world: World, theirs: str, ours: str
) -> None:
    """As the caller's sidecar has not heard of the new one yet: what came counts for nothing, and is no attack."""
    asked = (("require_approval", theirs),)
    await world.meet(asked=asked)
    world.desk.approve(ANN, BEN)
    case, reason = await world.meet(asked=asked)
    assert reason is None
    ((_, packed),) = case.extra
    assert isinstance(packed, bytes)
    again = (("require_approval", ours),)
    _, reason = await world.meet(direction=Direction.INBOUND, approvals=(packed,), asked=again)
    assert reason is Reason.APPROVAL_REQUIRED
    _, reason = await world.meet(b"other", direction=Direction.INBOUND, approvals=(packed,), asked=asked)
    assert reason is (None if "window" in theirs else Reason.APPROVAL_INVALID)
