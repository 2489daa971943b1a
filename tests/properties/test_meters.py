"""Limits hold whatever the order of calls, returns, times and restarts; their file is read strictly."""

from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.meters import Charge, Meters, Taken
from sidecar.edge.meter_file import _line, parse
from trust.policy.controls import BUDGET, RATE, Control, control_of

CALLERS = st.sampled_from(["spiffe://x/workload/a", "spiffe://x/workload/b", "spiffe://x/workload/c"])
STEPS = st.lists(
    st.tuples(st.integers(0, 30_000), CALLERS, st.integers(0, 40), st.booleans()), min_size=1, max_size=60
)


def control(name: str, text: str) -> Control:
    found = control_of(name, text, "p")
    assert found is not None
    return found


@given(count=st.integers(1, 20), steps=STEPS, room=st.integers(1, 4))
def test_no_caller_gets_more_than_its_burst_and_its_rate(
    count: int, steps: list[tuple[int, str, int, bool]], room: int
) -> None:
    """In any stretch of time: the burst, and what the rate adds in it. Also in a table that is too small."""
    limit, meters, now_ms = control(RATE, f"{count}/m"), Meters(max_entries=room), 0
    given_to: dict[str, list[int]] = {}
    waiting: list[tuple[int, Taken]] = []  # until which step, and what they took
    for step, (wait_ms, caller, hold, forwarded) in enumerate(steps):
        now_ms += wait_ms
        for until, held in waiting:
            if until == step:
                meters.give_back(held, monotonic_ms=now_ms)
        charges = [Charge(limit, 1)]
        if meters.short("in", caller, charges, now_ms=0, monotonic_ms=now_ms) is None:
            taken = meters.take("in", caller, charges, now_ms=0, monotonic_ms=now_ms)
            if forwarded:
                given_to.setdefault(caller, []).append(now_ms)
            elif hold % 8:  # it waits, say for approvers, and is given up then
                waiting.append((step + hold % 8, taken))
            else:
                meters.give_back(taken, monotonic_ms=now_ms)
    for times in given_to.values():
        for first, begin in enumerate(times):
            for last in range(first, len(times)):
                allowed = count + (times[last] - begin) * count / 60_000
                # a caller that moves between the shared bucket and its own may have used some of both
                assert last - first + 1 <= allowed * (1 if room >= 3 else 2) + 1e-6


@given(most=st.integers(1, 100), steps=STEPS, crashes=st.sets(st.integers(0, 59)))
def test_a_budget_holds_in_every_window_across_crashes(
    most: int, steps: list[tuple[int, str, int, bool]], crashes: set[int]
) -> None:
    """Whatever is written before a crash counts after it, and nothing is spent twice."""
    limit, meters, now_ms, disk = control(BUDGET, f"{most} per minute"), Meters(), 60_000, b""
    spent: dict[tuple[str, int], int] = {}
    for number, (wait_ms, caller, amount, forwarded) in enumerate(steps):
        now_ms += wait_ms
        charges = [Charge(limit, amount)]
        if meters.short("in", caller, charges, now_ms=now_ms, monotonic_ms=0) is None:
            taken: Taken = meters.take("in", caller, charges, now_ms=now_ms, monotonic_ms=0)
            if forwarded:
                key = (caller, now_ms // 60_000)
                spent[key] = spent.get(key, 0) + amount
            else:
                meters.give_back(taken, monotonic_ms=0)
            disk += b"".join(map(_line, meters.changed()))
        if number in crashes:
            meters = Meters()
            meters.restore(parse(disk + b"torn"), now_ms=now_ms)
    assert all(amount <= most for amount in spent.values())


@given(st.text(max_size=40), st.sampled_from([RATE, BUDGET]))
def test_whatever_an_annotation_says_is_a_limit_above_zero_or_none(text: str, name: str) -> None:
    """Never an error, never a limit without a bound."""
    found = control_of(name, text)
    assert found is None or (found.most >= 1 and found.window_ms >= 1000 and found.text == text)


@given(st.binary(max_size=200), st.integers(0, 3))
def test_whatever_is_in_the_file_is_read_or_refused(noise: bytes, good: int) -> None:
    """A line that was not written by us counts for nothing."""
    meters = Meters()
    meters.take("in", "a", [Charge(control(BUDGET, "9 per day"), 1)], now_ms=10**12, monotonic_ms=0)
    written = meters.changed() * good
    try:
        found = list(parse(b"".join(map(_line, written)) + noise))
    except ValueError:
        return
    assert found == written
