"""Sums of executions: each execution once, merging in any order, quantiles, and what a query reads."""

import itertools
from collections.abc import Iterable

import pytest

from control_plane.core.analytics import (
    DAY_S,
    HOUR_S,
    INTERRUPTED,
    MINUTE_S,
    OTHER,
    RETENTION_S,
    By,
    Edge,
    Filter,
    Key,
    Measure,
    Totals,
    deltas,
    edges,
    key_of,
    latency_step,
    once,
    step_middle_us,
    summary,
    windows,
)
from tests.support.records import START_MS, callee_side, intent, outcome, refusal, workload
from trust import limits
from trust.errors import InputError, Reason
from trust.record import Ending, Intent, Outcome, Side

EDGE = Edge(workload("alice"), "payments", "shop.Payments/Pay")
NOW_MS = START_MS + 60_000


def summed(*records: Intent | Outcome) -> dict[Key, Totals]:
    """Return the sums of a minute resolution over records of any nodes."""
    began = {(r.execution_id, r.side): key_of(r) for r in records if isinstance(r, Intent)}
    counted = [(r, key) for r in records if (key := began.get((r.execution_id, r.side))) is not None]
    found: dict[Key, Totals] = {}
    for (resolution, _, key, measure, label), count in deltas(counted, now_ms=NOW_MS).items():
        if resolution == MINUTE_S:
            found.setdefault(key, Totals()).add(measure, label, count)
    return found


def both_sides(numbers: Iterable[int]) -> list[Intent | Outcome]:
    """Calls that both sidecars recorded."""
    records: list[Intent | Outcome] = []
    for number in numbers:
        outbound = intent(number)
        inbound = callee_side(outbound, "b")
        records += [outbound, outcome(outbound, duration_us=3_000), inbound, outcome(inbound)]
    return records


def test_an_execution_that_both_sidecars_recorded_counts_once_as_the_callee_saw_it() -> None:
    """Otherwise every call of a mesh would be two."""
    found = edges(summed(*both_sides(range(1, 11))))
    assert list(found) == [EDGE]
    total = found[EDGE]
    assert (total.calls, total.ended["OK"], total.request_bytes) == (10, 10, 1_200)
    assert total.quantile_ms(0.5) == pytest.approx(1.5, rel=0.1)


def test_what_never_reached_the_callee_counts_beside_it() -> None:
    """A refusal of the caller's side, and a call that found nobody, are calls, too."""
    lost = intent(20)
    records = [*both_sides(range(1, 6)), refusal(21), lost, outcome(lost, status="UNAVAILABLE")]
    total = edges(summed(*records))[EDGE]
    assert total.calls == 7
    assert dict(total.refused) == {"POLICY_DENIED": 1}
    assert dict(total.ended) == {"OK": 5, "UNAVAILABLE": 1}
    assert (total.allowed, total.errors) == (6, 1)


def test_a_refusal_by_the_callee_is_one_refused_call() -> None:
    """The caller's sidecar forwarded it and saw PERMISSION_DENIED: that is the same call."""
    outbound = intent(1)
    inbound = callee_side(refusal(1), "b")
    total = edges(summed(outbound, outcome(outbound, status="PERMISSION_DENIED"), inbound))[EDGE]
    assert (total.calls, dict(total.refused), dict(total.ended)) == (1, {"POLICY_DENIED": 1}, {})


def test_without_a_sidecar_at_the_callee_the_callers_side_counts() -> None:
    """One side is enough to see who calls what."""
    alone = intent(1, would_deny="NO_POLICY_PERMITS", reason="OBSERVED", level=1)
    total = edges(summed(alone, outcome(alone)))[EDGE]
    assert (total.calls, dict(total.would_deny), total.ended["OK"]) == (1, {"NO_POLICY_PERMITS": 1}, 1)
    assert once(None, None).calls == 0


def test_a_caller_that_only_the_callee_can_name_is_one_caller() -> None:
    """At level 1 a call without its token passes: nobody's at the caller's sidecar, the workload's at the callee's."""
    nobody = intent(1, caller="", authn="", would_deny="CALLER_UNIDENTIFIED", level=1)
    named = callee_side(intent(2), "b")
    kept_back = refusal(3, caller="", authn="", reason="CALLER_UNIDENTIFIED")
    found = edges(summed(nobody, outcome(nobody), named, outcome(named), kept_back))
    assert found[EDGE].calls == 1
    unknown = found[Edge("", EDGE.service, EDGE.method)]
    assert (unknown.calls, unknown.ended.total()) == (1, 0)
    assert (unknown.refused.total(), unknown.would_deny.total()) == (1, 1)


def test_what_level_four_would_refuse_is_not_counted_by_both_sides() -> None:
    """Both decide under the same policy: the larger of the two is what there was."""
    inbound, outbound = Totals(calls=3), Totals(calls=3)
    inbound.would_deny["POLICY_DENIED"], outbound.would_deny["POLICY_DENIED"] = 2, 3
    assert dict(once(inbound, outbound).would_deny) == {"POLICY_DENIED": 3}


def test_sums_of_sums_are_the_sums_in_any_order() -> None:
    """Two control planes, or a minute and an hour, must not differ."""
    records = both_sides(range(1, 30))
    whole = summed(*records)
    first, second = summed(*records[:40]), summed(*records[40:])
    for key, total in whole.items():
        merged = Totals()
        merged.merge(second.get(key, Totals()))
        merged.merge(first.get(key, Totals()))
        assert merged == total


def test_a_call_whose_end_nobody_saw_has_no_duration() -> None:
    """A crash is no fast call."""
    opened = intent(1)
    total = edges(summed(opened, outcome(opened, ending=Ending.INTERRUPTED, status="", duration_us=0)))[EDGE]
    assert (dict(total.ended), total.latency.total()) == ({INTERRUPTED: 1}, 0)


@pytest.mark.parametrize("us", [0, 1, 2, 3, 10, 999, 1_000, 12_345, 10**6, 3_600 * 10**6])
def test_a_duration_is_told_within_nine_percent(us: int) -> None:
    """The bound that the documentation states."""
    assert step_middle_us(latency_step(us)) == pytest.approx(max(us, 1), rel=0.091)


def test_steps_grow_with_durations_and_end_somewhere() -> None:
    """A node that claims a million years must not make a label of any length."""
    steps = [latency_step(2**power) for power in range(63)]
    assert steps == sorted(steps)
    assert latency_step(2**63 - 1) == latency_step(2**50)


def test_quantiles_of_nothing_are_zero_and_the_highest_is_the_slowest() -> None:
    """Ranks at both ends."""
    total = Totals()
    assert total.quantile_ms(0.99) == 0
    for us in (1_000,) * 98 + (50_000, 900_000):
        total.latency[latency_step(us)] += 1
    assert total.quantile_ms(0.5) == pytest.approx(1, rel=0.1)
    assert total.quantile_ms(0.99) == pytest.approx(50, rel=0.1)
    assert total.quantile_ms(1.0) == pytest.approx(900, rel=0.1)


def test_a_wrong_clock_writes_neither_into_the_future_nor_far_into_the_past() -> None:
    """A lying node could otherwise fill the store with buckets that are never read or forgotten."""
    ahead, behind = intent(1, wall_ms=NOW_MS + 10**10), intent(2, wall_ms=NOW_MS - 10**9 * 100)
    buckets = {(d[0], d[1]) for d in deltas([(ahead, key_of(ahead))], now_ms=NOW_MS)}
    assert buckets == {(r, NOW_MS // 1000 // r * r) for r in RETENTION_S}
    assert deltas([(behind, key_of(behind))], now_ms=NOW_MS) == {}
    week = intent(3, wall_ms=NOW_MS - 7 * DAY_S * 1000)
    assert {d[0] for d in deltas([(week, key_of(week))], now_ms=NOW_MS)} == {HOUR_S, DAY_S}


@pytest.mark.parametrize(
    ("by", "names"),
    [
        (By.CALLER, {(workload("alice"), "", ""), (workload("bob"), "", "")}),
        (By.SERVICE, {("", "payments", ""), ("", "stock", "")}),
        (By.METHOD, {("", "payments", "shop.Payments/Pay"), ("", "stock", "shop.Payments/Pay")}),
        (By.NODE, {("a", "outbound", ""), ("b", "inbound", "")}),
    ],
)
def test_groups_are_named_by_what_they_are_grouped_by(by: By, names: set[tuple[str, str, str]]) -> None:
    """The same sums, seen from four sides."""
    records = [*both_sides(range(1, 4)), intent(9, caller=workload("bob"), service="stock")]
    found = summary(summed(*records), by, Filter())
    assert set(found) == names
    assert sum(t.calls for t in found.values()) == (7 if by is By.NODE else 4)


def test_a_filter_narrows_every_grouping() -> None:
    """Also that by node."""
    records = [*both_sides(range(1, 4)), intent(9, caller=workload("bob"))]
    for by in By:
        found = summary(summed(*records), by, Filter(caller=workload("bob")))
        assert sum(t.calls for t in found.values()) == 1
    assert summary(summed(*records), By.EDGE, Filter(method="x.Y/Z")) == {}


NOW_S = 20_000 * DAY_S + 13 * HOUR_S + 37 * MINUTE_S + 20


def test_a_short_time_is_read_in_minutes_and_whole_hours() -> None:
    """Nothing twice, nothing left out, few buckets."""
    start, parts = windows(NOW_S - 2 * HOUR_S, NOW_S, now_s=NOW_S)
    assert start == NOW_S - 2 * HOUR_S - 20
    assert [p[0] for p in parts] == [MINUTE_S, HOUR_S, MINUTE_S]
    assert parts[0][1] == start
    assert parts[-1][2] == NOW_S + 40


@pytest.mark.parametrize("days", [1, 2, 7, 30, 400])
def test_a_long_time_is_read_in_hours_and_days(days: int) -> None:
    """A week reads some fifty buckets of an edge, not ten thousand."""
    start, parts = windows(NOW_S - days * DAY_S, NOW_S, now_s=NOW_S)
    assert start % HOUR_S == 0
    assert MINUTE_S not in {p[0] for p in parts}
    assert sum((end - begin) // step for step, begin, end in parts) <= days + 48
    assert all(left[2] == right[1] for left, right in itertools.pairwise(parts))


def test_minutes_that_are_forgotten_already_are_not_asked_for() -> None:
    """An hour of last month is in whole hours."""
    start, parts = windows(NOW_S - 30 * DAY_S, NOW_S - 30 * DAY_S + 600, now_s=NOW_S)
    assert {p[0] for p in parts} == {HOUR_S}
    assert start % HOUR_S == 0


def test_a_time_that_ends_before_it_begins_is_refused() -> None:
    """Said, rather than answered with nothing."""
    with pytest.raises(InputError) as caught:
        windows(10, 10, now_s=100)
    assert caught.value.reason is Reason.INPUT_INVALID


def test_the_numbers_of_measures_are_as_they_are_stored() -> None:
    """Renumbering would turn calls into bytes in every store there is."""
    assert {m.name: m.value for m in Measure} == {
        "CALLS": 1,
        "REFUSED": 2,
        "WOULD_DENY": 3,
        "ENDED": 4,
        "LATENCY": 5,
        "DURATION_US": 6,
        "REQUEST_BYTES": 7,
        "RESPONSE_BYTES": 8,
    }


def test_a_key_stands_for_itself_and_others_for_a_node() -> None:
    """Parts that run into each other are different keys."""
    one = Key("a", Side.INBOUND, "x", "yz", "m")
    assert one.digest != Key("a", Side.INBOUND, "xy", "z", "m").digest
    assert one.other() == Key("a", Side.INBOUND, OTHER, OTHER, OTHER)
    assert limits.MAX_ANALYTICS_KEYS_PER_NODE > 1_000


def test_a_few_records_of_one_side_do_not_stand_for_the_durations_of_all_calls() -> None:
    """One made-up record of a callee's side would otherwise hide that a thousand calls were slow."""
    slow, made_up = Totals(calls=1_000), Totals(calls=1)
    slow.latency[latency_step(2_000_000)] = 1_000
    slow.ended["INTERNAL"] = 1_000
    made_up.latency[latency_step(10)] = 1
    made_up.ended["OK"] = 1
    merged = once(made_up, slow)
    assert (merged.calls, merged.errors) == (1_000, 999)
    assert merged.quantile_ms(0.95) > 1_000
