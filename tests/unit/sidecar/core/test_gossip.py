"""Whom a node talks to: a constant number, everybody in turn, and everybody hears news."""

import random

import pytest

from sidecar.core.gossip import Rounds
from trust import limits


def names(count: int) -> list[str]:
    """Return node names."""
    return [f"n{number}" for number in range(count)]


@pytest.mark.parametrize("count", [1, 3, 10, 64, 1000])
def test_a_round_costs_the_same_however_large_the_mesh(count: int) -> None:
    """Messages of one node do not grow with the number of nodes."""
    rounds = Rounds(now_ms=0)
    rounds.met(names(count))
    for turn in range(20):
        talks = rounds.tick(now_ms=turn * limits.GOSSIP_PERIOD_MS)
        assert len(talks) == min(count, limits.GOSSIP_PEERS)
        assert len({talk.peer for talk in talks}) == len(talks)


def test_everybody_has_a_turn() -> None:
    """No peer is starved, in as many rounds as it takes at the least."""
    rounds = Rounds(now_ms=0)
    rounds.met(names(10))
    met = [t.peer for turn in range(5) for t in rounds.tick(now_ms=turn * limits.GOSSIP_PERIOD_MS)]
    assert set(met) == set(names(10))


def test_between_rounds_nothing_is_said() -> None:
    """A caller may ask as often as it likes."""
    rounds = Rounds(now_ms=0)
    rounds.met(names(3))
    assert rounds.tick(now_ms=0)
    assert rounds.tick(now_ms=limits.GOSSIP_PERIOD_MS - 1) == []
    assert rounds.wake_at_ms() == limits.GOSSIP_PERIOD_MS


def test_news_goes_out_at_once_and_once_more_to_others() -> None:
    """Twice the fan-out hears of it within a moment."""
    rounds = Rounds(now_ms=0)
    rounds.met(names(20))
    rounds.tick(now_ms=0)
    first = rounds.learned(now_ms=10)
    assert len(first) == limits.GOSSIP_FANOUT
    assert rounds.hot
    assert rounds.wake_at_ms() == 10 + limits.GOSSIP_HOT_MS
    second = rounds.tick(now_ms=10 + limits.GOSSIP_HOT_MS)
    assert not {t.peer for t in first} & {t.peer for t in second}
    assert not rounds.hot


def test_peer_that_does_not_answer_is_passed_over_for_longer_each_time_and_never_given_up() -> None:
    """A dead peer must not cost a live one its turn."""
    rounds = Rounds(now_ms=0, peers=1)
    rounds.met(["dead", "live"])
    now_ms = 0
    for _ in range(12):
        now_ms += limits.GOSSIP_PERIOD_MS
        for talk in rounds.tick(now_ms=now_ms):
            (rounds.failed("dead", now_ms=now_ms) if talk.peer == "dead" else rounds.answered("live"))
    assert rounds.failures()["dead"] < 6
    rounds.met(["dead"])
    assert [t.peer for t in rounds.tick(now_ms=now_ms + limits.GOSSIP_PERIOD_MS)] == ["dead"]
    rounds.answered("dead")
    assert rounds.failures() == {}


def test_being_told_the_same_peers_again_does_not_start_the_ring_anew() -> None:
    """Otherwise the first in the list would hear everything and the last nothing."""
    rounds = Rounds(now_ms=0, peers=1)
    met = []
    for turn in range(6):
        rounds.met(names(3))
        met += [t.peer for t in rounds.tick(now_ms=turn * limits.GOSSIP_PERIOD_MS)]
    assert met == names(3) * 2


@pytest.mark.parametrize("seed", range(5))
def test_rumour_reaches_nearly_all_of_a_thousand_nodes_in_a_few_steps(seed: int) -> None:
    """Push alone, each node knowing 64 others; what it misses the periodic exchanges mend."""
    chance = random.Random(seed)
    everybody = names(1000)
    nodes = {}
    for name in everybody:
        nodes[name] = Rounds(now_ms=0)
        nodes[name].met(chance.sample([other for other in everybody if other != name], limits.MAX_PEERS))
    informed, messages = {"n0"}, 0
    due = [(0, t.peer) for t in nodes["n0"].learned(now_ms=0)]
    hot = [("n0", limits.GOSSIP_HOT_MS)]
    step_ms, now_ms = 10, 0
    while (due or hot) and now_ms < 2000:
        now_ms += step_ms
        arriving, due = due, []
        for _, peer in arriving:
            messages += 1
            if peer not in informed:
                informed.add(peer)
                due += [(now_ms, t.peer) for t in nodes[peer].learned(now_ms=now_ms)]
                hot.append((peer, now_ms + limits.GOSSIP_HOT_MS))
        for peer, at_ms in [one for one in hot if one[1] <= now_ms]:
            hot.remove((peer, at_ms))
            due += [(now_ms, t.peer) for t in nodes[peer].tick(now_ms=now_ms)]
    assert len(informed) >= 990
    assert messages <= 1000 * limits.GOSSIP_FANOUT * limits.GOSSIP_HOT_ROUNDS
    assert now_ms <= 1000


def tree(count: int, *, dead: frozenset[str] = frozenset(), centres: tuple[str, ...] = ()) -> dict[str, int]:
    """Send news from n0 down the tree, message by message; return how often each heard it."""
    everybody = names(count)
    nodes = {name: Rounds(now_ms=0, me=name) for name in everybody}
    for name, rounds in nodes.items():
        rounds.met([other for other in everybody if other != name], centres=centres)
    heard: dict[str, int] = {}
    depth, due = 0, [(nodes["n0"], talk) for talk in nodes["n0"].learned(now_ms=0, origin=True)]
    while due:
        depth, arriving, due = depth + 1, due, []
        for sender, talk in arriving:
            if talk.peer in dead:
                due += [(sender, other) for other in sender.instead(talk)]
                continue
            heard[talk.peer] = heard.get(talk.peer, 0) + 1
            if talk.peer in nodes:
                rounds = nodes[talk.peer]
                due += [(rounds, other) for other in rounds.learned(now_ms=0, relay=talk.relay)]
    heard["depth"] = depth
    return heard


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 21, 50, 63])
def test_news_reaches_everybody_once_down_the_tree(count: int) -> None:
    """Every node tells at most the fan-out, and nobody hears it twice."""
    heard = tree(count)
    assert heard.pop("depth") <= 4
    assert heard == dict.fromkeys(names(count)[1:], 1)


def test_nodes_that_cannot_be_reached_do_not_cut_off_those_after_them() -> None:
    """Whoever notices tells the next in their place."""
    dead = frozenset({"n1", "n13", "n22", "n23", "n24", "n49"})
    heard = tree(50, dead=dead)
    heard.pop("depth")
    assert heard == {name: 1 for name in names(50)[1:] if name not in dead}


def test_the_one_with_the_news_tells_the_control_planes_which_tell_everybody() -> None:
    """They keep a stream open to every node; nobody else needs to tell them."""
    heard = tree(10, centres=("plane one", "plane two"))
    assert (heard["plane one"], heard["plane two"]) == (1, 1)


def test_a_peer_that_does_not_answer_leads_no_branch() -> None:
    """It is told again by the periodic exchanges."""
    rounds = Rounds(now_ms=0, me="n0")
    rounds.met(names(10)[1:])
    rounds.failed("n1", now_ms=0)
    assert "n1" not in {talk.peer for talk in rounds.learned(now_ms=0, origin=True)}
    everybody = [
        name for talk in rounds.learned(now_ms=0, origin=True) for name in (talk.peer, *(talk.rest or ()))
    ]
    assert sorted(everybody) == names(10)[2:]


def test_a_mesh_of_which_a_node_does_not_know_everybody_hears_by_rumour() -> None:
    """A tree over some of the nodes would end with them."""
    rounds = Rounds(now_ms=0, me="n0")
    rounds.met(names(200)[1:])
    talks = rounds.learned(now_ms=0, origin=True)
    assert [talk.relay for talk in talks] == [None] * limits.GOSSIP_FANOUT


def test_a_made_up_number_of_nodes_to_tell_costs_no_more_than_the_fan_out() -> None:
    """A member that lies cannot make another talk to more than a few."""
    rounds = Rounds(now_ms=0, me="n5")
    rounds.met([name for name in names(30) if name != "n5"])
    for relay in (0, 1, 4, 29, 2**32 - 1):
        talks = rounds.learned(now_ms=0, relay=relay)
        assert len(talks) <= limits.GOSSIP_FANOUT
        assert sum(1 + (talk.relay or 0) for talk in talks) == min(relay, 29)


def test_after_the_tree_a_few_others_are_told_all_the_same() -> None:
    """What broke on the way is mended a moment later."""
    rounds = Rounds(now_ms=0, me="n0")
    rounds.met(names(20)[1:])
    rounds.tick(now_ms=0)
    rounds.learned(now_ms=10, relay=3)
    assert rounds.wake_at_ms() == 10 + limits.GOSSIP_HOT_MS
    assert len(rounds.tick(now_ms=10 + limits.GOSSIP_HOT_MS)) == limits.GOSSIP_FANOUT
    assert not rounds.hot
