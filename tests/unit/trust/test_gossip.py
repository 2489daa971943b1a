"""What two members say to each other so that both know what either knew."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trust import limits
from trust.edge.gossip import from_wire, to_wire
from trust.errors import EvidenceError, Reason
from trust.gossip import Inventory, Sequences, Told, answer, everything, follow_up, opening


def named(*items: bytes) -> dict[str, bytes]:
    """Return items by their digest."""
    return {hashlib.sha256(one).hexdigest(): one for one in items}


class Side:
    """A member that believes everything."""

    def __init__(self, directives: set[bytes], proofs: set[bytes], version: int = 0) -> None:
        self.directives, self.proofs, self.version = directives, proofs, version
        self.messages = 0

    @property
    def inventory(self) -> Inventory:
        """What it holds."""
        lease = b"lease %d" % self.version
        return Inventory(self.version, lease, named(*self.directives), named(*self.proofs))

    def hear(self, told: Told) -> None:
        """Take everything in."""
        self.messages += 1
        self.directives |= set(told.directives)
        self.proofs |= set(told.proofs)
        if told.timestamp_json:
            self.version = max(self.version, told.timestamp_version)


def exchange(one: Side, two: Side, *, news: tuple[str, ...] = ()) -> None:
    """Do what the edge does."""
    first = opening(one.inventory, news=news)
    two.hear(first)
    reply = answer(first, two.inventory)
    one.hear(reply)
    second = follow_up(reply, one.inventory)
    if second is not None:
        two.hear(second)
        one.hear(answer(second, two.inventory))


ITEMS = st.sets(st.binary(min_size=1, max_size=6).map(b"d".__add__), max_size=12)
PROOFS = st.sets(st.binary(min_size=1, max_size=6).map(b"p".__add__), max_size=12)  # no proof is a directive


@given(ITEMS, PROOFS, ITEMS, PROOFS, st.integers(0, 3), st.integers(0, 3))
def test_one_exchange_makes_both_sides_equal(
    d1: set[bytes], p1: set[bytes], d2: set[bytes], p2: set[bytes], v1: int, v2: int
) -> None:
    """Whatever each held, in at most two round trips."""
    one, two = Side(set(d1), set(p1), v1), Side(set(d2), set(p2), v2)
    exchange(one, two)
    assert one.directives == two.directives == d1 | d2
    assert one.proofs == two.proofs == p1 | p2
    assert one.version == two.version == max(v1, v2)
    assert one.messages <= 2
    assert two.messages <= 2


def test_members_that_agree_send_digests_alone() -> None:
    """The usual case must cost next to nothing, however much both hold."""
    held = {bytes([number]) * 50 for number in range(200)}
    one, two = Side(set(held), set(), 3), Side(set(held), set(), 3)
    first = opening(one.inventory)
    reply = answer(first, two.inventory)
    assert (first.held, first.directives, reply.held, reply.directives) == (None, (), None, ())
    assert reply.timestamp_json == b""
    assert follow_up(reply, one.inventory) is None


def test_news_goes_with_the_first_message() -> None:
    """A revocation must not wait for a round trip."""
    one = Side({b"old", b"new"}, set())
    first = opening(one.inventory, news=list(named(b"new")))
    assert first.directives == (b"new",)


def test_message_stays_within_its_bound_and_denials_come_before_proofs() -> None:
    """What does not fit comes with the next exchange."""
    directives = {bytes([number]) * 4000 for number in range(20)}
    proofs = {bytes([number]) * 200_000 for number in range(20)}
    told = everything(Side(directives, proofs).inventory)
    assert set(told.directives) == directives
    assert 0 < len(told.proofs) < 20
    assert sum(map(len, told.directives + told.proofs)) < limits.MAX_GOSSIP_BYTES


def test_many_small_items_stay_within_what_a_receiver_takes() -> None:
    """A receiver refuses a message with more: each item costs it a look, however small it is."""
    many = {f"{number:064x}": b"x" for number in range(limits.MAX_GOSSIP_ITEMS + 5)}
    told = everything(Inventory(directives=many, proofs={f"{2**200:064x}": b"y"}))
    assert (len(told.directives), len(told.proofs)) == (limits.MAX_GOSSIP_ITEMS, 0)
    message = to_wire(told, sender="s", boot_id="b", sequence=1)
    assert from_wire(message).directives == told.directives
    message.proofs.append(b"z")
    with pytest.raises(EvidenceError) as error:
        from_wire(message)
    assert error.value.reason is Reason.INPUT_INVALID


def test_message_repeated_or_delivered_late_is_noticed() -> None:
    """Networks duplicate and reorder; a repeated message is no news."""
    seen = Sequences()
    assert [seen.is_new("a", "boot", n) for n in (1, 3, 2, 3, 2, 1, 4)] == [
        True,
        True,
        True,
        False,
        False,
        False,
        True,
    ]
    assert seen.is_new("b", "boot", 1)
    assert seen.is_new("a", "next boot", 1)
    assert not seen.is_new("a", "next boot", 1)


@given(st.lists(st.integers(1, 200), max_size=80))
def test_a_window_never_takes_one_message_twice(numbers: list[int]) -> None:
    """Whatever the order."""
    seen, taken = Sequences(), []
    for number in numbers:
        if seen.is_new("a", "boot", number):
            taken.append(number)
    assert len(taken) == len(set(taken))


def test_far_behind_the_newest_counts_as_repeated_and_the_oldest_sender_leaves() -> None:
    """Bounded memory: what cannot be told is not news."""
    seen = Sequences(capacity=2)
    assert seen.is_new("a", "boot", 1000)
    assert not seen.is_new("a", "boot", 900)
    assert seen.is_new("a", "boot", 940)
    for sender in ("b", "c"):
        assert seen.is_new(sender, "boot", 1)
    assert seen.is_new("a", "boot", 1000)


def test_another_content_of_the_same_version_is_a_split_view_and_another_version_is_not() -> None:
    """TUF alone does not notice two contents of one version on two nodes."""
    mine = (3, b"\x01" * 32)
    assert Told(policy=(3, b"\x02" * 32)).splits_from(mine)
    for other in ((3, b"\x01" * 32), (2, b"\x02" * 32), (4, b"\x02" * 32), (0, b"")):
        assert not Told(policy=other).splits_from(mine)
    assert not Told(policy=(0, b"x")).splits_from((0, b""))
