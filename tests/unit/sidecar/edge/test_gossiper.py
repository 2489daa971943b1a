"""What a node passes on: news, and what it is asked to pass on, each item once."""

from pathlib import Path
from typing import Any, cast

from sidecar.edge.gossip import Gossiper
from tests.support.emergency import FIRST
from trust import gossip
from trust.edge.clock import SystemClock
from trust.edge.denial_keeper import DenialKeeper
from trust.edge.gossip import Member, to_wire
from trust.gossip import Inventory
from trust.mesh import MeshSettings
from trust.misbehaviour import Anchors
from trust.revocation import Kind, read_directive
from trust.spiffe import SpiffeId

DOMAIN = "mesh.test"
NOW_MS = 1_800_000_000_000
DATA = FIRST.revoke(Kind.WORKLOAD, "w", now_ms=NOW_MS, trust_domain=DOMAIN)
NAME = read_directive(DATA).id
PEER = SpiffeId.of(DOMAIN, "node", "b")


class Node:
    """A node that hears and does not talk: nothing runs."""

    def __init__(self, home: Path) -> None:
        keeper = DenialKeeper(
            home / "denials.json",
            DOMAIN,
            now_ms=lambda: NOW_MS,
            monotonic_ms=lambda: 0,
            anchors=lambda: Anchors(DOMAIN),
        )
        settings = {
            "format": 1,
            "trust_domain": DOMAIN,
            "level": 4,
            "lease": {"ttl_s": 60, "grace_s": 10},
            "emergency_keys": {FIRST.name: FIRST.public.hex()},
        }
        keeper.govern(MeshSettings.model_validate(settings))
        self.member = Member(SpiffeId.of(DOMAIN, "node", "a"), "boot", keeper, timestamp=lambda: (0, b""))
        self.gossiper = Gossiper(
            self.member,
            cast(Any, None),
            SystemClock(),
            control_planes=[],
            peers=lambda: {"b": "127.0.0.1:1"},
            shuffled=lambda: ["b"],
        )
        self.sequence = 0

    def hears(self, relay: int | None) -> tuple[bool, int | None, bool]:
        """Hear the news from b; return whether there is something to tell, to how many by request, and whose news."""
        inventory = Inventory(directives={NAME: DATA})
        told = gossip.opening(inventory, news=[NAME])
        self.sequence += 1
        message = to_wire(told, sender=str(PEER), boot_id="b", sequence=self.sequence)
        if relay is not None:
            message.relay = relay
        return self.after(lambda: self.member.receive(message, PEER))

    def after(self, event: Any) -> tuple[bool, int | None, bool]:
        """Return what the gossiper would do after an event, and have done it."""
        event()
        one = self.gossiper
        seen = one._fresh, one._relay, one._origin
        one._fresh, one._relay, one._origin = False, None, False
        return seen


async def test_what_is_handed_in_here_is_news_to_everybody(tmp_path: Path) -> None:
    """This node is the root of the tree."""
    node = Node(tmp_path)
    assert node.after(lambda: node.member.keeper.revoke(DATA)) == (True, None, True)


async def test_news_that_comes_with_a_request_is_passed_on_as_asked(tmp_path: Path) -> None:
    """And not once more by rumour, nor again when it comes again."""
    node = Node(tmp_path)
    assert node.hears(7) == (True, 7, False)
    assert node.hears(7) == (False, None, False)
    assert node.gossiper._news == [NAME]


async def test_who_asks_to_tell_nobody_does_not_cut_off_the_branch_and_who_asks_on_is_not_obeyed(
    tmp_path: Path,
) -> None:
    """A node of the tree's first steps could else silence all others; and one item could be told without end."""
    node = Node(tmp_path)
    assert node.hears(0) == (True, 0, False)
    assert node.hears(12) == (True, 12, False)
    obeyed = [relay for relay in range(1_000) if node.hears(relay)[0]]
    assert obeyed == [25, 51]
    assert node.hears(2**32 - 1) == (False, None, False)


async def test_rumour_that_is_quicker_than_the_tree_does_not_cut_off_its_branch(tmp_path: Path) -> None:
    """The request counts although the news is none any more: once."""
    node = Node(tmp_path)
    assert node.hears(None) == (True, None, False)
    assert node.hears(None) == (False, None, False)
    assert node.hears(12) == (True, 12, False)
    assert node.hears(20) == (False, None, False)
