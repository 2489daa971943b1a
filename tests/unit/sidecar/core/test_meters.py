"""Buckets and budgets: what is taken, what is given back, and what happens when there is no room."""

import pytest

from sidecar.core.meters import Charge, Meters, Spent, Taken
from trust.policy.controls import DAY_MS, Control, control_of

ALICE, BOB, IN, OUT = "spiffe://x/workload/alice", "spiffe://x/workload/bob", "inbound", "outbound"
NOON_MS = 20_000 * DAY_MS + DAY_MS // 2


def control(name: str, text: str, source: str = "p") -> Control:
    found = control_of(name, text, source)
    assert found is not None
    return found


PER_MINUTE = control("rate", "6/m")
PER_DAY = control("budget", "100 per day of amount")


def ask(
    meters: Meters,
    limit: Control,
    amount: int = 1,
    *,
    caller: str = ALICE,
    direction: str = IN,
    at_ms: int = 0,
    now_ms: int = NOON_MS,
) -> Taken | int:
    """Take, or return after how many ms to ask again."""
    charges = [Charge(limit, amount)]
    short = meters.short(direction, caller, charges, now_ms=now_ms, monotonic_ms=at_ms)
    if short is not None:
        return short.retry_ms
    return meters.take(direction, caller, charges, now_ms=now_ms, monotonic_ms=at_ms)


def test_a_bucket_gives_its_burst_and_then_one_at_a_time() -> None:
    """A rate of six a minute: six at once, then one in ten seconds, exactly."""
    meters = Meters()
    assert all(isinstance(ask(meters, PER_MINUTE), Taken) for _ in range(6))
    assert ask(meters, PER_MINUTE) == 10_000
    assert ask(meters, PER_MINUTE, at_ms=9_999) == 1
    assert isinstance(ask(meters, PER_MINUTE, at_ms=10_000), Taken)
    assert ask(meters, PER_MINUTE, at_ms=10_000) == 10_000


@pytest.mark.parametrize("count", [1, 3, 7, 999, 1_000_000])
def test_never_more_than_the_burst_at_once_whatever_the_count(count: int) -> None:
    """Rounding gives nobody one more."""
    limit, meters = control("rate", f"{count}/s"), Meters()
    if count < 1000:
        assert sum(isinstance(ask(meters, limit), Taken) for _ in range(count + 5)) == count
    else:  # as if all but one were taken
        for _ in range(3):
            ask(meters, limit)
        key = next(iter(meters._rates))
        meters._rates[key] = 1_000 * (count - 1)
        assert isinstance(ask(meters, limit), Taken) and not isinstance(ask(meters, limit), Taken)


def test_callers_directions_and_policies_are_metered_apart() -> None:
    """One caller cannot use up another's; a call between two workloads of one node passes it twice."""
    once, meters = control("rate", "1/d"), Meters()
    other = control("rate", "1/d", "q")
    assert isinstance(ask(meters, once), Taken)
    assert isinstance(ask(meters, once, caller=BOB), Taken)
    assert isinstance(ask(meters, once, direction=OUT), Taken)
    assert isinstance(ask(meters, other), Taken)
    assert ask(meters, once) == DAY_MS


def test_two_restrictions_of_one_caller_are_two_buckets() -> None:
    """They have no policy to tell them apart by; each is counted in its own."""
    meters = Meters()
    both = [Charge(control("rate", text, ""), 1) for text in ("1/m", "2/m")]
    meters.take(IN, ALICE, both, now_ms=NOON_MS, monotonic_ms=0)
    short = meters.short(IN, ALICE, both, now_ms=NOON_MS, monotonic_ms=30_000)
    assert short is not None and short.control.text == "1/m"


def test_a_restriction_and_a_policy_of_the_same_name_are_two_buckets() -> None:
    """An @id may be any text."""
    meters = Meters()
    assert isinstance(ask(meters, control("rate", "1/d", "")), Taken)
    assert isinstance(ask(meters, control("rate", "1/d", "1/d")), Taken)


def test_a_budget_is_per_utc_day_and_says_when_the_next_begins() -> None:
    """What does not fit is not taken; a smaller request still is."""
    meters = Meters()
    assert isinstance(ask(meters, PER_DAY, 900_000), Taken)
    assert ask(meters, PER_DAY, 100_001) == DAY_MS // 2
    assert isinstance(ask(meters, PER_DAY, 100_000), Taken)
    assert ask(meters, PER_DAY, 1) == DAY_MS // 2
    assert isinstance(ask(meters, PER_DAY, 0), Taken)
    assert isinstance(ask(meters, PER_DAY, 1_000_000, now_ms=NOON_MS + DAY_MS // 2), Taken)


def test_a_clock_that_is_set_back_opens_no_new_window() -> None:
    """Else yesterday's budget could be spent again."""
    meters = Meters()
    assert isinstance(ask(meters, PER_DAY, 1_000_000), Taken)
    assert not isinstance(ask(meters, PER_DAY, 1, now_ms=NOON_MS - DAY_MS), Taken)
    assert [one.window for one in meters.changed()] == [NOON_MS // DAY_MS]


def test_what_is_given_back_can_be_taken_again() -> None:
    """A call that was not forwarded has used nothing."""
    meters, once = Meters(), control("rate", "1/d")
    taken = [ask(meters, once), ask(meters, PER_DAY, 1_000_000)]
    assert not isinstance(ask(meters, once), Taken) and not isinstance(ask(meters, PER_DAY, 1), Taken)
    for one in taken:
        assert isinstance(one, Taken)
        meters.give_back(one, monotonic_ms=0)
    assert isinstance(ask(meters, once), Taken) and isinstance(ask(meters, PER_DAY, 1_000_000), Taken)


def test_calls_that_are_held_and_given_up_save_up_no_burst() -> None:
    """What came back to the bucket while a call waited for approvers is not given a second time."""
    meters, once = Meters(), control("rate", "1/s")
    held = [ask(meters, once, at_ms=second * 1_000) for second in range(5)]
    for one in held:
        assert isinstance(one, Taken)
        meters.give_back(one, monotonic_ms=4_500)
    assert isinstance(ask(meters, once, at_ms=4_500), Taken)
    assert ask(meters, once, at_ms=4_500) == 1_000


def test_what_is_given_back_after_its_window_fills_no_other() -> None:
    """A call that took yesterday and fails today leaves today's budget as it is."""
    meters = Meters()
    late = ask(meters, PER_DAY, 1_000_000)
    assert isinstance(late, Taken)
    assert isinstance(ask(meters, PER_DAY, 600_000, now_ms=NOON_MS + DAY_MS), Taken)
    meters.give_back(late, monotonic_ms=DAY_MS)
    assert not isinstance(ask(meters, PER_DAY, 500_000, now_ms=NOON_MS + DAY_MS), Taken)


def test_a_full_table_gives_nobody_a_fresh_bucket() -> None:
    """Callers that are not known share one then; who is known keeps what it has used."""
    meters, once = Meters(max_entries=2), control("rate", "1/m")
    assert isinstance(ask(meters, once), Taken) and isinstance(ask(meters, once, caller=BOB), Taken)
    crowd = [f"spiffe://x/workload/w{number}" for number in range(10)]
    assert sum(isinstance(ask(meters, once, caller=one), Taken) for one in crowd) == 1
    assert meters.shared == 1
    assert not isinstance(ask(meters, once), Taken) and not isinstance(ask(meters, once, caller=BOB), Taken)


def test_buckets_that_are_full_again_make_room() -> None:
    """Forgetting them gives nobody anything."""
    meters, once = Meters(max_entries=2), control("rate", "1/m")
    for caller in (ALICE, BOB, "spiffe://x/workload/c", "spiffe://x/workload/d"):
        ask(meters, once, caller=caller)
    assert isinstance(ask(meters, once, caller="spiffe://x/workload/e", at_ms=60_000), Taken)
    assert len(meters) <= 3


def test_a_full_table_of_budgets_is_shared_too_and_makes_room_when_a_window_is_over() -> None:
    """The next day everybody has a budget of their own again."""
    meters = Meters(max_entries=1)
    assert isinstance(ask(meters, PER_DAY, 1), Taken)
    assert isinstance(ask(meters, PER_DAY, 600_000, caller=BOB), Taken)
    assert not isinstance(ask(meters, PER_DAY, 600_000, caller="spiffe://x/workload/c"), Taken)
    assert meters.shared == 1
    assert isinstance(ask(meters, PER_DAY, 600_000, caller=BOB, now_ms=NOON_MS + DAY_MS), Taken)


def test_budgets_survive_a_restart_and_what_is_over_does_not() -> None:
    """The last word on each counts."""
    meters = Meters()
    ask(meters, PER_DAY, 300_000)
    ask(meters, PER_DAY, 300_000)
    (spent,) = meters.changed()
    assert spent.amount == 600_000 and meters.changed() == [] and meters.spent(NOON_MS) == [spent]
    after = Meters()
    after.restore([spent._replace(amount=1), Spent("00" * 32, DAY_MS, 1, 5), spent], now_ms=NOON_MS)
    assert len(after) == 1
    assert not isinstance(ask(after, PER_DAY, 400_001), Taken) and isinstance(
        ask(after, PER_DAY, 400_000), Taken
    )
    assert after.spent(NOON_MS + DAY_MS) == []
