"""What a partition cuts, and what a link may do to bytes."""

import pytest

from control_plane.lab.network import NONE, RETRANSMIT_S, Fault, Network, between
from trust.errors import InputError


def test_a_partition_cuts_both_ways_between_groups_and_nothing_within() -> None:
    """b and c stay together; a is alone."""
    assert between([{"a"}, {"b", "c"}], one_way=False) == {("a", "b"), ("b", "a"), ("a", "c"), ("c", "a")}


def test_a_one_way_partition_cuts_from_the_earlier_group_only() -> None:
    """What a sends is lost; what is sent to a arrives."""
    assert between([{"a"}, {"b", "c"}], one_way=True) == {("a", "b"), ("a", "c")}


def test_three_groups_are_cut_from_each_other() -> None:
    """Nobody reaches another group."""
    assert len(between([{"a"}, {"b"}, {"c"}], one_way=False)) == 6


@pytest.mark.parametrize("groups", [[], [{"a"}], [{"a"}, {"a", "b"}]])
def test_what_is_no_partition_is_refused(groups: list[set[str]]) -> None:
    """One group, or a member on two sides, is a mistake of the test."""
    with pytest.raises(InputError):
        between(groups, one_way=False)


@pytest.mark.parametrize(
    "wrong", [{"delay_ms": -1}, {"jitter_ms": -1}, {"loss": 1.5}, {"loss": -0.1}, {"bytes_per_s": 0}]
)
def test_a_fault_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    """A negative delay would be a network that knows the future."""
    with pytest.raises(InputError):
        Fault(**wrong)  # type: ignore[arg-type]


def test_faults_are_set_by_direction_and_taken_away_by_heal() -> None:
    """A pair that no fault names is a good network."""
    network = Network(0)
    network.apply([("a", "b")], Fault(drop=True))
    assert network.dropped("a", "b")
    assert not network.dropped("b", "a")
    network.heal()
    assert network.fault("a", "b") == NONE
    assert not network.faults()


def test_applying_no_fault_mends_one_direction() -> None:
    """So that one link can be mended while others stay broken."""
    network = Network(0)
    network.apply([("a", "b"), ("b", "a")], Fault(delay_ms=5))
    network.apply([("a", "b")], NONE)
    assert network.faults() == {("b", "a"): Fault(delay_ms=5)}


def test_a_reset_is_told_to_the_links_at_once() -> None:
    """Open connections are reset, not only later ones."""
    network, told = Network(0), list[tuple[str, str]]()
    network.on_reset(told.append)
    network.apply([("a", "b")], Fault(reset=True))
    network.apply([("b", "a")], Fault(drop=True))
    assert told == [("a", "b")]


def test_a_lost_segment_costs_a_retransmission_and_a_delay_its_time() -> None:
    """Loss 1 is lost until the sender has tried often enough; a good network costs nothing."""
    network = Network(0)
    assert network.stall_s(NONE) == 0
    assert network.stall_s(Fault(delay_ms=40)) == 0.04
    assert network.stall_s(Fault(loss=1)) > RETRANSMIT_S


def test_the_same_seed_gives_the_same_jitter() -> None:
    """A scenario can be repeated."""
    fault = Fault(delay_ms=1, jitter_ms=100, loss=0.5)
    first, second, other = Network(1), Network(1), Network(2)
    drawn = [first.stall_s(fault) for _ in range(20)]
    assert drawn == [second.stall_s(fault) for _ in range(20)]
    assert drawn != [other.stall_s(fault) for _ in range(20)]
