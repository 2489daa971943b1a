"""News down the tree: whoever can be reached hears it once, whichever members cannot, and nobody talks to many."""

from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.gossip import Rounds, Talk
from trust import limits

MEMBERS = [f"n{number:02}" for number in range(limits.MAX_PEERS)]


@st.composite
def meshes(draw: st.DrawFn) -> tuple[list[str], str, frozenset[str], frozenset[str]]:
    """Draw members, where the news is first, who cannot be reached, and who of those is known to be away."""
    members = draw(st.lists(st.sampled_from(MEMBERS), min_size=1, max_size=len(MEMBERS) - 1, unique=True))
    first = draw(st.sampled_from(members))
    dead = draw(st.frozensets(st.sampled_from(members))) - {first}
    known = draw(st.frozensets(st.sampled_from(members)))
    return members, first, dead, known & dead


@given(meshes())
def test_everybody_who_can_be_reached_hears_it_once(
    mesh: tuple[list[str], str, frozenset[str], frozenset[str]],
) -> None:
    """A dead member costs whoever notices one message more, and nobody their news."""
    members, first, dead, away = mesh
    nodes = {name: Rounds(now_ms=0, me=name) for name in members}
    for name, rounds in nodes.items():
        rounds.met([other for other in members if other != name])
        for other in away - {name}:
            rounds.failed(other, now_ms=0)
    heard: list[str] = []
    sent: dict[str, int] = dict.fromkeys(members, 0)
    due: list[tuple[str, Talk]] = [(first, talk) for talk in nodes[first].learned(now_ms=0, origin=True)]
    while due:
        sender, talk = due.pop()
        sent[sender] += 1
        if talk.peer in dead:
            due += [(sender, other) for other in nodes[sender].instead(talk)]
            continue
        heard.append(talk.peer)
        assert talk.relay is not None
        due += [(talk.peer, other) for other in nodes[talk.peer].learned(now_ms=0, relay=talk.relay)]
    assert sorted(heard) == sorted(set(members) - dead - {first})
    assert all(count <= limits.GOSSIP_FANOUT + len(dead) for count in sent.values())
