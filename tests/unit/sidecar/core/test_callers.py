"""When nodes with open streams are asked for renewed credentials, and whose time is over."""

from sidecar.core.callers import Callers, Due
from sidecar.core.trust_state import Caller
from trust.spiffe import SpiffeId

A: Caller = (SpiffeId.of("mesh.local", "node", "a"), b"\x01" * 32)
B: Caller = (SpiffeId.of("mesh.local", "node", "b"), b"\x02" * 32)
TTL = 60_000
START = 1_000_000


class World:
    """Credentials with their ends, and one clock."""

    def __init__(self, at_once: int = 16) -> None:
        self.callers = Callers(at_once=at_once)
        self.until = {A: START + TTL, B: START + TTL}
        self.open = [A, B]
        self.now = START

    def tick(self, pass_ms: int = 0) -> Due:
        self.now += pass_ms
        return self.callers.tick(
            self.open, lambda one: self.until.get(one, 0), ttl_ms=TTL, now_ms=self.now, monotonic_ms=self.now
        )

    def answered(self, caller: Caller) -> None:
        self.callers.answered(caller, ttl_ms=TTL, monotonic_ms=self.now, jitter=0.0)


def test_nobody_is_asked_in_the_first_half_of_a_life() -> None:
    """By then its node has a newer one."""
    world = World()
    assert world.tick() == Due()
    assert world.tick(TTL // 2) == Due()
    assert world.tick(1) == Due(ask=(A, B))


def test_a_node_is_asked_once_at_a_time_and_again_after_a_pause() -> None:
    """And not at all once another call brought a newer credential."""
    world = World()
    assert world.tick(TTL // 2 + 1).ask == (A, B)
    assert world.tick(1).ask == ()
    world.answered(A)
    world.answered(B)
    assert world.tick().ask == ()
    world.until[B] += TTL
    assert world.tick(200).ask == (A,)
    world.answered(A)
    assert world.tick(200).ask == (), "the pauses grow"
    assert world.tick(200).ask == (A,)


def test_a_node_whose_witnesses_recover_late_is_asked_until_the_end() -> None:
    """At least ten times in half of a life, however often it failed."""
    world = World()
    world.open = [A]
    tries = 0
    while world.now < START + TTL:
        for caller in world.tick(250).ask:
            world.answered(caller)
            tries += 1
    assert tries >= 10


def test_a_lapse_is_told_once_and_again_after_a_renewal() -> None:
    """Streams below level 5 stay open; they are not decided again four times a second."""
    world = World()
    world.open = [A]
    assert world.tick(TTL - 1).lapsed == ()
    assert world.tick(1).lapsed == (A,)
    assert world.tick(250).lapsed == ()
    world.until[A] = world.now + 1_000
    assert world.tick(250).lapsed == ()
    assert world.tick(1_000).lapsed == (A,)


def test_a_node_whose_credential_holds_no_longer_under_a_new_policy_has_lapsed() -> None:
    """Its end is 0: asked at once, and its streams are decided again."""
    world = World()
    world.tick()
    world.until[B] = 0
    assert world.tick(1) == Due(ask=(B,), lapsed=(B,))


def test_questions_under_way_are_bounded_and_closed_streams_are_forgotten() -> None:
    """The next waits for its turn; a node without streams is not asked."""
    world = World(at_once=1)
    assert world.tick(TTL - 1_000).ask == (A,)
    world.open = [B]
    assert world.tick(1).ask == ()
    world.answered(A)
    assert world.tick(1).ask == (B,)
