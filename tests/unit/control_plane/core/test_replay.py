"""Past executions decided again: what differs, what cannot be told, and what is left out."""

from typing import Any

import pytest

from control_plane.core.replay import Change, Recorded, replay
from tests.support.engines import engine, order, workload
from tests.support.records import intent
from trust import limits
from trust.policy.engine import Engine
from trust.record import Side
from trust.record_rules import plain

TAKE = "shop.Stock/Take"
COUNT = "shop.Stock/Count"
PLACE = "shop.Orders/Place"
ALICE = f'principal == Workload::"{workload("alice")}"'
ALICE_TAKES = f'@id("alice") permit({ALICE}, action == Action::"{TAKE}", resource);'
NOTHING = '@id("never") forbid(principal, action, resource);'
ASKED = '@id("asked") @rate("10/m") permit(principal, action, resource);'
BY_AMOUNT = (
    '@id("small") permit(principal, action == Action::"shop.Orders/Place", resource) '
    "when { context.request.amount < 10 };"
)
BY_TENANT = '@id("tenant") permit(principal, action, resource) when { context.metadata has tenant };'


def at(policies: str, level: int = 4) -> Engine:
    """Return an engine whose services have that level."""
    return engine(policies, services={"payments": {"level": level}})


def past(number: int = 1, **changes: Any) -> Recorded:
    """Return an execution of alice that was allowed, as the callee's sidecar recorded it."""
    plain = {"caller": workload("alice"), "method": TAKE, "side": Side.INBOUND, "reason": "ALLOWED"}
    return Recorded(intent(number, **(plain | changes)))


def refused(number: int = 1, reason: str = "POLICY_DENIED", **changes: Any) -> Recorded:
    """Return one that was refused."""
    return past(number, allowed=False, reason=reason, permit_sha256=b"", **changes)


@pytest.mark.parametrize(
    ("new", "level", "one", "change"),
    [
        (ALICE_TAKES, 4, past(), Change.UNCHANGED),
        (NOTHING, 4, past(), Change.NEWLY_DENIED),
        (NOTHING, 3, past(), Change.NEWLY_DENIED),
        (NOTHING, 1, past(), Change.NEWLY_DOUBTED),
        (NOTHING, 0, past(), Change.UNCHANGED),
        (ALICE_TAKES, 4, past(caller=workload("bob")), Change.NEWLY_DENIED),
        (ALICE_TAKES, 3, past(method=COUNT), Change.NEWLY_DOUBTED),  # no policy speaks of it
        (ALICE_TAKES, 4, refused(), Change.NEWLY_ALLOWED),
        (NOTHING, 4, refused(), Change.UNCHANGED),
        (NOTHING, 1, refused(), Change.NEWLY_ALLOWED),  # level 1 blocks nothing
        (ALICE_TAKES, 1, past(would_deny="NO_POLICY_PERMITS"), Change.NO_LONGER_DOUBTED),
        (NOTHING, 4, past(would_deny="NO_POLICY_PERMITS"), Change.NEWLY_DENIED),
        (ASKED, 4, past(), Change.MORE_ASKED),
        (ASKED, 4, past(obligations=(("rate", "10/m=taken"),)), Change.UNCHANGED),
        (ALICE_TAKES, 4, refused(reason="PERMIT_REPLAYED"), Change.NOT_BY_POLICY),
        (ALICE_TAKES, 4, past(reason="GOVERNANCE_UNAVAILABLE"), Change.NOT_BY_POLICY),
        (BY_AMOUNT, 4, past(method=PLACE), Change.CANNOT_TELL),
        (BY_TENANT, 4, past(), Change.CANNOT_TELL),
        (ALICE_TAKES, 4, past(caller=""), Change.NEWLY_DENIED),
    ],
)
def test_each_execution_differs_in_one_named_way(new: str, level: int, one: Recorded, change: Change) -> None:
    """Every pair of answers has a name; nothing is guessed."""
    engine_new = at(new, level) if new is not BY_TENANT else engine(new, services={"payments": {}})
    report = replay(None, engine_new, [one])
    assert report.counts == {change: 1}


def test_request_that_was_kept_is_decided_by() -> None:
    """With the payload at hand it can be told."""
    known = past(method=PLACE)
    small, large = (
        Recorded(known.intent, order(amount=5)),
        Recorded(
            intent(2, caller=workload("alice"), method=PLACE, side=Side.INBOUND),
            order(amount=50),
        ),
    )
    report = replay(None, at(BY_AMOUNT), [small, large])
    assert report.counts == {Change.UNCHANGED: 1, Change.NEWLY_DENIED: 1}


def test_comparison_with_another_policy_ignores_what_was_recorded() -> None:
    """An approver asks what the proposal changes, not what the last version has changed already."""
    report = replay(at(NOTHING), at(NOTHING), [past()])
    assert report.counts == {Change.UNCHANGED: 1}
    assert not report.differs
    assert replay(at(ALICE_TAKES), at(NOTHING), [past()]).differs


def test_execution_of_two_sidecars_counts_once_and_refusals_where_they_were() -> None:
    """The callee's side decides; what the caller's sidecar refused never came there."""
    both = [past(1), past(1, side=Side.OUTBOUND, node="a"), refused(2, side=Side.OUTBOUND)]
    report = replay(None, at(NOTHING), both)
    assert report.executions == 2
    assert report.counts == {Change.NEWLY_DENIED: 1, Change.UNCHANGED: 1}
    alone = replay(None, at(NOTHING), [past(1, side=Side.OUTBOUND)])
    assert alone.executions == 1


def test_groups_name_few_examples_most_frequent_first() -> None:
    """Thousands of executions are a few lines with something to look up."""
    many = [past(n) for n in range(1, 8)] + [past(9, caller=workload("bob"))]
    report = replay(None, at(NOTHING), many)
    assert [(g.caller, g.count, len(g.examples)) for g in report.groups] == [
        (workload("alice"), 7, limits.MAX_REPLAY_EXAMPLES),
        (workload("bob"), 1, 1),
    ]
    assert report.groups[0].policies == ("never",)
    assert report.groups[0].first_ms < report.groups[0].last_ms


def test_too_many_groups_are_counted_and_said_to_be_cut() -> None:
    """A caller that invents names cannot fill an approver's screen, nor hide in silence."""
    many = [past(n, method=f"a.B/M{n}") for n in range(limits.MAX_REPLAY_GROUPS + 2)]
    report = replay(None, at(NOTHING), many)
    assert report.truncated
    assert len(report.groups) == limits.MAX_REPLAY_GROUPS
    assert report.counts[Change.NEWLY_DENIED] == limits.MAX_REPLAY_GROUPS + 2


def test_answer_that_changed_while_the_record_was_written_cannot_be_told() -> None:
    """The record's time is a moment after the decision's: at the edge of a time window both answers are possible."""
    before = 'context.time.now < datetime("2026-09-21T14:13:20Z")'
    until = f'@id("until") permit(principal, action, resource) when {{ {before} }};'
    edge_ms = 1_790_000_000_000
    for after_ms, change in (
        (-1, Change.UNCHANGED),
        (1_000, Change.CANNOT_TELL),
        (60_000, Change.NEWLY_DENIED),
    ):
        (found,) = replay(None, at(until), [past(wall_ms=edge_ms + after_ms)]).counts
        assert found is change


def test_name_that_no_record_can_hold_is_not_taken_for_another() -> None:
    """What stands in its place is a name that no policy meant."""
    long = plain("shop.Stock/" + "T" * 600)
    report = replay(None, at('@id("any") permit(principal, action, resource);'), [refused(method=long)])
    assert report.groups[0].change is Change.CANNOT_TELL
    assert report.groups[0].after == "name"
