"""Sums of executions, for whatever is recorded in whatever order: nothing lost, nothing twice."""

import itertools
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.core.analytics import (
    DAY_S,
    HOUR_S,
    MINUTE_S,
    RETENTION_S,
    Key,
    Totals,
    deltas,
    edges,
    key_of,
    latency_step,
    once,
    step_middle_us,
    windows,
)
from tests.support.records import START_MS, callee_side, intent, outcome, refusal, workload
from trust import limits
from trust.alerting import sign, verify
from trust.record import Intent, Outcome

NOW_MS = START_MS + 10 * DAY_S * 1000
NOW_S = NOW_MS // 1000


@st.composite
def calls(draw: st.DrawFn) -> list[Intent | Outcome]:
    """Executions of few callers that one or both sidecars recorded, allowed or refused, ended or not."""
    records: list[Intent | Outcome] = []
    for number in range(draw(st.integers(0, 12))):
        made = draw(st.sampled_from([intent, refusal]))(
            number + 1,
            caller=workload(draw(st.sampled_from(["alice", "bob"]))),
            wall_ms=START_MS + draw(st.integers(0, 9 * DAY_S * 1000)),
        )
        sides = [made, callee_side(made, "b")] if draw(st.booleans()) and made.allowed else [made]
        for side in sides:
            records.append(side)
            if side.allowed and draw(st.booleans()):
                records.append(outcome(side, duration_us=draw(st.integers(0, 10**9))))
    return records


def sums(records: list[Intent | Outcome], resolution: int) -> dict[Key, Totals]:
    """Return the sums of one resolution over all time."""
    began = {(r.execution_id, r.side): key_of(r) for r in records if isinstance(r, Intent)}
    found: dict[Key, Totals] = {}
    keyed = [(record, began[record.execution_id, record.side]) for record in records]
    for (step, _, key, measure, label), count in deltas(keyed, now_ms=NOW_MS).items():
        if step == resolution:
            found.setdefault(key, Totals()).add(measure, label, count)
    return found


@given(calls(), st.randoms(use_true_random=False))
def test_every_resolution_and_every_order_gives_the_same_sums(
    records: list[Intent | Outcome], random: object
) -> None:
    """A week by the hour is the week by the day."""
    hours, days = sums(records, HOUR_S), sums(records, DAY_S)
    assert hours == days
    shuffled = list(records)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert sums(shuffled, DAY_S) == days


@given(calls())
def test_no_call_is_lost_and_none_counts_twice(records: list[Intent | Outcome]) -> None:
    """Between what the larger side saw and what both saw together."""
    by_key = sums(records, DAY_S)
    ids = Counter(r.execution_id for r in records if isinstance(r, Intent))
    counted = sum(total.calls for total in edges(by_key).values())
    assert counted <= len(ids)
    assert counted >= max((sum(t.calls for k, t in by_key.items() if k.node == n) for n in "ab"), default=0)
    refusals = sum(not r.allowed for r in records if isinstance(r, Intent))
    assert sum(total.refused.total() for total in edges(by_key).values()) == refusals


@given(st.integers(0, 2**40))
def test_a_duration_is_told_within_the_bound_that_is_documented(us: int) -> None:
    """Nine percent, at any size."""
    assert abs(step_middle_us(latency_step(us)) - max(us, 1)) <= 0.091 * max(us, 1)


@given(st.lists(st.integers(1, 10**8), min_size=1, max_size=60), st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_a_quantile_is_that_of_the_durations(values: list[int], share: float) -> None:
    """By the nearest rank, within the width of a bucket."""
    total = Totals()
    for value in values:
        total.latency[latency_step(value)] += 1
    exact = sorted(values)[max(0, -(-int(share * 1000) * len(values) // 1000) - 1)]
    assert abs(total.quantile_ms(share) * 1000 - exact) <= 0.091 * exact


@settings(max_examples=300)
@given(st.integers(1, 400 * DAY_S), st.integers(0, 400 * DAY_S))
def test_what_a_query_reads_covers_the_time_once(length_s: int, ago_s: int) -> None:
    """No bucket twice, none left out, none that is forgotten already."""
    until = NOW_S - ago_s
    start, parts = windows(until - length_s, until, now_s=NOW_S)
    assert start <= until - length_s
    assert parts[0][1] == start
    assert parts[-1][2] >= until
    for (_, _, end), (_, begin, _) in itertools.pairwise(parts):
        assert end == begin
    for resolution, begin, end in parts:
        assert resolution in RETENTION_S
        assert begin % resolution == end % resolution == 0
        assert resolution > MINUTE_S or begin > NOW_S - RETENTION_S[MINUTE_S]


@given(st.lists(st.builds(Totals, calls=st.integers(0, 50)), min_size=2, max_size=2))
def test_counting_once_never_counts_less_than_either_side(sides: list[Totals]) -> None:
    """Nor more than both."""
    merged = once(sides[0], sides[1])
    assert max(s.calls for s in sides) <= merged.calls <= sum(s.calls for s in sides)


@given(st.binary(min_size=16), st.binary(), st.text(), st.integers(0, 10**9))
def test_no_text_but_the_signature_verifies(secret: bytes, body: bytes, header: str, now_s: int) -> None:
    """A receiver's check is total over whatever arrives."""
    good = sign(secret, body, now_s=now_s)
    assert verify(secret, body, good, now_s=now_s + limits.ALERT_SIGNATURE_AGE_S)
    assert verify(secret, body, header, now_s=now_s) is (header == good)
