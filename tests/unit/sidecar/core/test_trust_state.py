"""Who counts as attested: this node on both clocks, callers by the credential that their permit names."""

from collections.abc import Callable
from typing import Any

import pytest

from sidecar.core.attester import (
    Bundles,
    Challenge,
    Schedule,
    check_clock,
    check_reached,
    statement_of,
    struck_out,
)
from sidecar.core.carriage import HELD_KEY, Carriage
from sidecar.core.trust_state import Standing, TrustState
from tests.support import sidecar_core
from tests.support.attestation import (
    DOMAIN,
    MEASUREMENT,
    NONCE,
    NOW_MS,
    NOW_S,
    AttestedNode,
    WitnessHolder,
    credential_of,
    holders,
    roster_of,
    settings_of,
)
from tests.support.emergency import FIRST, rules
from tests.support.fake_tpm import FakeTpm
from trust.attestation.credential import credential_sha256
from trust.attestation.measurement import AcceptedDistribution, ReferenceValues
from trust.attestation.roster import Roster
from trust.attestation.statement import parse_statement, write_statement
from trust.denials import Denials
from trust.errors import EvidenceError, MeshError, Reason, StateError
from trust.mesh import MeshSettings, PermanentRevocation
from trust.node_key import ed25519_spki_sha256
from trust.revocation import Kind
from trust.verified import VerifiedPolicy

A, B, C = WITNESSES = holders("a", "b", "c")
ROSTER = roster_of(WITNESSES)
MESH = MeshSettings(trust_domain=DOMAIN, attestation=settings_of(WITNESSES))
OPEN_MESH = MeshSettings(trust_domain=DOMAIN)
MONO = 50_000
TTL = 60_000


def verified(version: int) -> VerifiedPolicy:
    return sidecar_core.verified(version, lease_expires_ms=2**50, digest=f"{version:064x}")


class World:
    """A node's trust state under a policy that a test may replace."""

    def __init__(self, mesh: MeshSettings | None = MESH, **options: Any) -> None:
        self.mesh = mesh
        self.node = AttestedNode("n")
        self.state = TrustState(self.node.id, lambda: self.mesh, **options)

    def adopt(self, witnesses: list[WitnessHolder], *, node: AttestedNode | None = None) -> None:
        data = credential_of((node or self.node).evidence(), witnesses)
        self.state.adopt(data, now_ms=NOW_S * 1000, monotonic_ms=MONO)

    def check(
        self, caller: AttestedNode, sha256: bytes | None, carried: bytes | None, now_ms: int = NOW_MS
    ) -> None:
        self.state.check_peer(
            sha256,
            carried,
            node=caller.id,
            public_key=caller.private.public_key().public_bytes_raw(),
            now_ms=now_ms,
        )


def reason(world: World, *args: Any, **options: Any) -> Reason:
    with pytest.raises(MeshError) as error:
        world.check(*args, **options)
    return error.value.reason


def made(caller: AttestedNode, witnesses: list[WitnessHolder], time_s: int = NOW_S) -> tuple[bytes, bytes]:
    data = credential_of(caller.evidence(), witnesses, time_s=time_s)
    return credential_sha256(data), data


# this node


def test_without_witnesses_in_the_policy_nothing_is_asked() -> None:
    """Level 5 without attestation: the standing says so."""
    world = World(OPEN_MESH)
    assert world.state.attested(NOW_MS, MONO)
    assert world.state.standing(NOW_MS, MONO) is Standing.NO_WITNESSES
    assert World(None).state.standing(NOW_MS, MONO) is Standing.NO_POLICY
    with pytest.raises(MeshError):
        world.adopt([A, B])


def test_a_node_is_attested_from_its_credential_to_its_end() -> None:
    """And not a millisecond longer, on either clock."""
    world = World()
    assert not world.state.attested(NOW_MS, MONO)
    world.adopt([A, B])
    end = NOW_S * 1000 + TTL
    assert world.state.attested(end - 1, MONO)
    assert not world.state.attested(end, MONO)
    assert world.state.attested(NOW_S * 1000, MONO + TTL - 1)
    assert not world.state.attested(NOW_S * 1000, MONO + TTL)


def test_a_wall_clock_that_is_set_back_lengthens_nothing() -> None:
    """The monotonic end stands."""
    world = World()
    world.adopt([A, B])
    assert not world.state.attested(NOW_MS - 3_600_000, MONO + TTL)


def test_a_credential_of_another_node_or_of_too_few_is_not_adopted() -> None:
    """A node verifies its own as others will."""
    world = World()
    with pytest.raises(EvidenceError):
        world.adopt([A, B], node=AttestedNode("m"))
    with pytest.raises(EvidenceError):
        world.adopt([A])
    assert world.state.standing(NOW_MS, MONO) is Standing.NOT_ATTESTED
    assert world.state.own() is None


def test_a_new_roster_ends_what_the_old_one_vouched_for() -> None:
    """A compromised witness that the approvers removed vouches for nobody from then on."""
    world = World()
    world.adopt([A, B])
    sha256, data = made(caller := AttestedNode("x"), [A, B])
    world.check(caller, sha256, data)
    world.mesh = MeshSettings(trust_domain=DOMAIN, attestation=settings_of(holders("a", "b", "c")))
    assert not world.state.attested(NOW_S * 1000, MONO)
    assert world.state.own() is None
    assert reason(world, caller, sha256, None) is Reason.ATTESTATION_INVALID
    assert reason(world, caller, sha256, None) is Reason.ATTESTATION_UNKNOWN, "it is not kept any more"
    assert reason(world, caller, sha256, data) is Reason.ATTESTATION_INVALID


def denying(kind: Kind, value: str) -> tuple[Denials, Callable[[], object]]:
    """Return denials under a policy with an emergency key, and what revokes a subject for a minute."""
    denials = Denials(DOMAIN)
    denials.govern(rules(), now_ms=NOW_MS, monotonic_ms=MONO)
    data = FIRST.revoke(kind, value, now_ms=NOW_MS, ttl_s=60, trust_domain=DOMAIN)
    return denials, lambda: denials.offer(data, now_ms=NOW_MS, monotonic_ms=MONO)


def key_of(one: WitnessHolder) -> str:
    """Return how a revocation names a witness's key."""
    return ed25519_spki_sha256(one.key.public_key).hex()


@pytest.mark.parametrize("kind", [Kind.NODE, Kind.KEY], ids=str)
def test_a_witness_that_is_denied_counts_towards_nobodys_quorum_from_then_on(kind: Kind) -> None:
    """Its node or its key: what it vouched for before is worth nothing either, here and in what callers show."""
    denials, deny = denying(kind, "b" if kind is Kind.NODE else key_of(B))
    world, caller, other = World(denials=denials), AttestedNode("x"), AttestedNode("y")
    world.adopt([A, B])
    sha256, data = made(caller, [A, B])
    world.check(caller, sha256, data)
    three = made(other, [A, B, C])
    world.check(other, *three)
    before = world.state.roster
    deny()
    assert not world.state.attested(NOW_S * 1000, MONO)
    assert world.state.own() is None
    with pytest.raises(EvidenceError, match=r"1 of 2 witnesses.*revoked or convicted: b"):
        world.check(caller, sha256, None)
    assert reason(world, caller, sha256, data) is Reason.ATTESTATION_INVALID
    with pytest.raises(EvidenceError):
        world.adopt([A, B])
    world.check(other, three[0], None)
    world.adopt([A, C])
    assert world.state.attested(NOW_S * 1000, MONO)
    roster = world.state.roster
    assert before is not None
    assert roster is not None
    assert (roster.needed, sorted(roster.counting), roster.tolerates_lost) == (2, ["a", "c"], 0)
    schedule = Schedule()
    schedule.wake_at_ms(before, monotonic_ms=MONO)
    schedule.succeeded(before, monotonic_ms=MONO, jitter=0.0)
    assert schedule.wake_at_ms(roster, monotonic_ms=MONO + 1) == MONO + 1, "it asks the others at once"
    assert struck_out(roster).keys() == {"b"}


def test_a_credential_that_more_than_the_quorum_signed_survives_a_convicted_witness() -> None:
    """And its life is that of those who still count."""
    denials, deny = denying(Kind.NODE, "b")
    world = World(denials=denials)
    world.adopt([A, B, C])
    deny()
    assert world.state.attested(NOW_S * 1000, MONO)
    own = world.state.own()
    assert own is not None
    assert sorted(own.attested_s) == ["a", "c"]


def test_a_witness_counts_again_when_its_revocation_is_over() -> None:
    """An emergency directive has an end; the quorum did not remove the witness."""
    denials, deny = denying(Kind.NODE, "b")
    world = World(denials=denials)
    world.adopt([A, B, C])
    deny()
    assert world.state.attested(NOW_S * 1000, MONO)
    denials.tick(monotonic_ms=MONO + 60_000)
    world.adopt([A, B])
    assert world.state.attested(NOW_S * 1000, MONO)


def test_two_of_three_convicted_leave_nobody_attested() -> None:
    """The quorum stays what the approvers signed: fewer witnesses never make it easier."""
    denials, deny = denying(Kind.NODE, "b")
    world = World(denials=denials)
    deny()
    data = FIRST.revoke(Kind.NODE, "c", now_ms=NOW_MS, ttl_s=60, sequence=2, trust_domain=DOMAIN)
    denials.offer(data, now_ms=NOW_MS, monotonic_ms=MONO)
    with pytest.raises(EvidenceError):
        world.adopt([A, B, C])
    assert not world.state.attested(NOW_S * 1000, MONO)


def test_a_policy_that_revokes_a_witness_takes_its_word_as_well() -> None:
    """For good: `revocations` of the signed policy."""
    world = World()
    world.adopt([A, B])
    gone = PermanentRevocation(kind="node", value="b", reason="stolen")
    world.mesh = MeshSettings(trust_domain=DOMAIN, attestation=settings_of(WITNESSES), revocations=(gone,))
    assert not world.state.attested(NOW_S * 1000, MONO)
    world.adopt([A, C])
    assert world.state.attested(NOW_S * 1000, MONO)


def test_what_is_denied_but_no_witness_changes_nothing() -> None:
    """No credential is verified again for it."""
    denials, deny = denying(Kind.NODE, "x")
    world = World(denials=denials)
    world.adopt([A, B])
    before = world.state.roster
    deny()
    assert world.state.attested(NOW_S * 1000, MONO)
    after = world.state.roster
    assert before is not None
    assert after is not None
    assert after.digest == before.digest


def test_a_policy_with_the_same_roster_keeps_everything() -> None:
    """Publishing a policy does not make the whole mesh attest anew."""
    world = World()
    world.adopt([A, B])
    world.mesh = MeshSettings(trust_domain=DOMAIN, level=5, attestation=settings_of(WITNESSES))
    assert world.state.attested(NOW_S * 1000, MONO)


def another_roster(**changes: Any) -> MeshSettings:
    """A later version of the policy whose roster has the same witnesses, and something else."""
    return MeshSettings(trust_domain=DOMAIN, attestation=settings_of(WITNESSES, **changes))


def test_a_roster_that_accepts_it_as_well_keeps_what_the_old_one_vouched_for() -> None:
    """A longer life, another lag, a witness more or less: nobody is refused until the next round."""
    world, caller = World(), AttestedNode("x")
    world.adopt([A, B])
    sha256, data = made(caller, [A, B])
    world.check(caller, sha256, data)
    fewer = MeshSettings(trust_domain=DOMAIN, attestation=settings_of([A, B]))
    for mesh in (another_roster(max_lag_s=7), another_roster(ttl_s=90), fewer, MESH):
        world.mesh = mesh
        assert world.state.attested(NOW_S * 1000, MONO)
        own = world.state.own()
        roster = world.state.roster
        assert own is not None
        assert roster is not None
        assert own.roster == roster.digest
        world.check(caller, sha256, None)


def test_what_is_verified_again_has_the_life_that_the_new_roster_gives() -> None:
    """Shorter from its cosignatures on; and a wall clock that was set back since lengthens nothing."""
    world, caller = World(), AttestedNode("x")
    world.adopt([A, B])
    sha256, data = made(caller, [A, B])
    world.check(caller, sha256, data)
    world.mesh = another_roster(ttl_s=10)
    assert world.state.attested(NOW_S * 1000, MONO + 9_999)
    assert not world.state.attested(NOW_S * 1000 - 3_600_000, MONO + 10_000)
    assert reason(world, caller, sha256, None, now_ms=NOW_S * 1000 + 10_000) is Reason.ATTESTATION_EXPIRED


def test_a_policy_without_witnesses_in_between_forgets_nobody() -> None:
    """Down to a level without attestation and up again: whoever carried a credential does not carry it again."""
    world, caller = World(), AttestedNode("x")
    world.adopt([A, B])
    sha256, data = made(caller, [A, B])
    world.check(caller, sha256, data)
    world.mesh = OPEN_MESH
    assert world.state.own() is None
    world.check(caller, sha256, None)
    world.mesh = MeshSettings(trust_domain=DOMAIN, attestation=settings_of(WITNESSES))
    assert world.state.attested(NOW_S * 1000, MONO)
    world.check(caller, sha256, None)


def test_a_build_that_the_approvers_accept_no_longer_is_refused_at_once() -> None:
    """Not only when its credential ends: this node's own, and those of callers."""
    accepted = ReferenceValues(
        distributions=(
            AcceptedDistribution(version=MEASUREMENT.version, sha256=MEASUREMENT.distribution.hex()),
        )
    )
    other = ReferenceValues(distributions=(AcceptedDistribution(version="9", sha256="00" * 32),))
    values = [accepted]
    world, caller = World(references=lambda: values[-1]), AttestedNode("x")
    world.adopt([A, B])
    sha256, data = made(caller, [A, B])
    world.check(caller, sha256, data)
    values.append(other)
    world.mesh = MeshSettings(trust_domain=DOMAIN, attestation=settings_of(WITNESSES))
    assert not world.state.attested(NOW_S * 1000, MONO)
    assert reason(world, caller, sha256, None) is Reason.MEASUREMENT_REFUSED
    assert reason(world, caller, sha256, data) is Reason.MEASUREMENT_REFUSED


# callers


def test_the_newest_credential_of_a_caller_counts_for_its_streams() -> None:
    """One that was fetched, or came with another call; of its key alone, and only while it lives."""
    world, caller = World(), AttestedNode("x")
    who = (caller.id, caller.private.public_key().public_bytes_raw())
    with pytest.raises(StateError) as unknown:
        world.state.check_caller(who, now_ms=NOW_MS)
    assert unknown.value.reason is Reason.ATTESTATION_UNKNOWN
    world.check(caller, *made(caller, [A, B]))
    end = NOW_S * 1000 + TTL
    assert world.state.check_caller(who, now_ms=NOW_MS) == end
    with pytest.raises(StateError) as ended:
        world.state.check_caller(who, now_ms=end)
    assert ended.value.reason is Reason.ATTESTATION_EXPIRED
    later = credential_of(caller.evidence(counter=9), [A, B], time_s=NOW_S + 30)
    world.state.learn(later, who, now_ms=NOW_MS + 30_000)
    assert world.state.check_caller(who, now_ms=end) == end + 30_000
    world.check(caller, credential_sha256(later), None)
    older = credential_of(caller.evidence(counter=5), [A, B], time_s=NOW_S + 20)
    world.state.learn(older, who, now_ms=NOW_MS + 30_000)
    assert world.state.check_caller(who, now_ms=end) == end + 30_000
    stranger = AttestedNode("y")
    with pytest.raises(EvidenceError) as borrowed:
        world.state.learn(made(stranger, [A, B])[1], who, now_ms=NOW_MS)
    assert borrowed.value.reason is Reason.ATTESTATION_INVALID
    assert world.state.check_caller(who, now_ms=end) == end + 30_000
    world.mesh = OPEN_MESH
    assert world.state.check_caller((stranger.id, b""), now_ms=NOW_MS) > NOW_MS


def test_where_a_node_says_that_it_answers_is_a_bounded_hint() -> None:
    """The newest counts; the oldest leaves."""
    state = World(capacity=2).state
    nodes = [AttestedNode(name).id for name in "xyz"]
    for node in nodes:
        state.met(node, "h:1")
    state.met(nodes[2], "h:2")
    assert [state.address_of(node) for node in nodes] == ["", "h:1", "h:2"]


def test_a_caller_is_accepted_by_reference_after_its_credential_came_once() -> None:
    """Cached by digest."""
    world, caller = World(), AttestedNode("x")
    sha256, data = made(caller, [B, C])
    assert reason(world, caller, sha256, None) is Reason.ATTESTATION_UNKNOWN
    world.check(caller, sha256, data)
    world.check(caller, sha256, None)


def test_a_permit_without_credential_is_refused_where_the_policy_names_witnesses() -> None:
    """And accepted where it does not."""
    caller = AttestedNode("x")
    assert reason(World(), caller, None, None) is Reason.ATTESTATION_MISSING
    World(OPEN_MESH).check(caller, None, None)


def test_a_borrowed_credential_is_refused() -> None:
    """Of another node, or of the same name with another key; carried or cached."""
    world, owner, thief = World(), AttestedNode("x"), AttestedNode("y")
    sha256, data = made(owner, [A, B])
    assert reason(world, thief, sha256, data) is Reason.ATTESTATION_INVALID
    world.check(owner, sha256, data)
    assert reason(world, thief, sha256, None) is Reason.ATTESTATION_INVALID
    assert reason(world, AttestedNode("x"), sha256, None) is Reason.ATTESTATION_INVALID


def test_a_credential_other_than_the_permit_names_is_refused() -> None:
    """The digest binds."""
    world, caller = World(), AttestedNode("x")
    sha256, _ = made(caller, [A, B])
    _, other = made(caller, [A, B])
    assert reason(world, caller, sha256, other) is Reason.ATTESTATION_INVALID


def test_a_cached_credential_still_ends() -> None:
    """The cache remembers signatures, not life."""
    world, caller = World(), AttestedNode("x")
    sha256, data = made(caller, [A, B])
    world.check(caller, sha256, data)
    assert reason(world, caller, sha256, None, now_ms=NOW_S * 1000 + TTL) is Reason.ATTESTATION_EXPIRED
    fresh = World()
    assert reason(fresh, caller, *made(caller, [A, B], NOW_S - 60)) is Reason.ATTESTATION_EXPIRED


def test_signed_time_counts_where_the_wall_clock_was_set_back() -> None:
    """A callee whose clock an attacker sets back does not accept an old credential."""
    world = World(trusted=lambda now_ms: max(now_ms, NOW_S * 1000 + TTL))
    caller = AttestedNode("x")
    assert reason(world, caller, *made(caller, [A, B])) is Reason.ATTESTATION_EXPIRED


def test_kept_credentials_are_bounded() -> None:
    """The oldest leaves; its owner carries it again."""
    world = World(capacity=2)
    callers = [AttestedNode(f"x{i}") for i in range(3)]
    names = []
    for caller in callers:
        sha256, data = made(caller, [A, B])
        world.check(caller, sha256, data)
        names.append(sha256)
    assert reason(world, callers[0], names[0], None) is Reason.ATTESTATION_UNKNOWN
    world.check(callers[2], names[2], None)


# carrying


def test_a_credential_travels_until_the_callee_says_that_it_holds_it() -> None:
    """First use carries it, the callee's word ends that, a new credential starts again."""
    carriage = Carriage()
    assert carriage.needed("pay", b"1")
    carriage.ended("pay", carried=True, status="UNAVAILABLE")
    carriage.ended("pay", carried=True, status="OK")
    carriage.answered("pay", b"1", [("x", "y"), (HELD_KEY, b"2")])
    assert carriage.needed("pay", b"1"), (
        "a callee at a lower level takes the call, and looks at no credential"
    )
    carriage.answered("pay", b"1", [(HELD_KEY, b"1")])
    assert not carriage.needed("pay", b"1")
    assert carriage.needed("other", b"1")
    assert carriage.needed("pay", b"2")


def test_a_service_with_several_sidecars_always_gets_it_after_one_lacked_it() -> None:
    """One refused call, not one per replica and renewal."""
    carriage = Carriage()
    carriage.answered("pay", b"1", [(HELD_KEY, b"1")])
    carriage.ended("pay", carried=False, status="UNAVAILABLE")
    carriage.answered("pay", b"1", [(HELD_KEY, b"1")])
    assert carriage.needed("pay", b"1")


# asking


def test_a_round_is_due_at_once_then_at_a_third_of_the_life() -> None:
    """Jitter only brings it forward."""
    schedule = Schedule()
    assert schedule.wake_at_ms(ROSTER, monotonic_ms=MONO) == MONO
    schedule.succeeded(ROSTER, monotonic_ms=MONO, jitter=0.0)
    assert schedule.wake_at_ms(ROSTER, monotonic_ms=MONO) == MONO + TTL // 3
    schedule.succeeded(ROSTER, monotonic_ms=MONO, jitter=0.99)
    assert MONO + TTL // 6 < schedule.wake_at_ms(ROSTER, monotonic_ms=MONO) < MONO + TTL // 4
    other = roster_of(holders("a", "b", "c"))
    assert schedule.wake_at_ms(other, monotonic_ms=MONO + 1) == MONO + 1
    schedule.succeeded(other, monotonic_ms=MONO + 1, jitter=0.0)
    pinned = ReferenceValues(
        distributions=(AcceptedDistribution(version="1", sha256="00" * 32),),
        tpm={"a": FakeTpm().reference(0)},
    )
    assert schedule.wake_at_ms(other, monotonic_ms=MONO + 2, references=pinned) == MONO + 2
    schedule.succeeded(other, monotonic_ms=MONO + 2, jitter=0.0)
    assert schedule.wake_at_ms(other, monotonic_ms=MONO + 3, references=pinned.model_copy()) > MONO + 3
    assert schedule.wake_at_ms(None, monotonic_ms=MONO) > MONO


def test_failed_rounds_are_repeated_with_pauses_that_end_before_the_life_does() -> None:
    """Three tries fit into a life, however often they failed before."""
    schedule = Schedule()
    delays = []
    for _ in range(20):
        schedule.failed(ROSTER, monotonic_ms=MONO, jitter=0.0)
        schedule.wake_at_ms(ROSTER, monotonic_ms=MONO)
        schedule.failed(ROSTER, monotonic_ms=MONO, jitter=0.0)
        delays.append(schedule.wake_at_ms(ROSTER, monotonic_ms=MONO) - MONO)
    assert delays == sorted(delays)
    assert max(delays) <= TTL // 3


def test_too_few_answers_name_who_is_missing() -> None:
    """A person reads why the node is not attested."""
    with pytest.raises(MeshError) as error:
        check_reached(ROSTER, [Challenge("a", NONCE, 0, NOW_MS)], {"b": "no address", "c": "refused"})
    assert error.value.reason is Reason.NODE_NOT_ATTESTED
    assert "1 of 3" in error.value.detail
    assert "b: no address; c: refused" in error.value.detail


def test_a_node_does_not_sign_with_a_clock_that_its_witnesses_contradict() -> None:
    """One liar among them changes nothing: the median counts."""
    fine = [Challenge(name, NONCE, 0, NOW_MS) for name in "ab"]
    check_clock([*fine, Challenge("c", NONCE, 0, 0)], now_ms=NOW_MS)
    with pytest.raises(MeshError) as error:
        check_clock(fine, now_ms=NOW_MS + 10_000)
    assert error.value.reason is Reason.CLOCK_WRONG
    check_clock([], now_ms=NOW_MS)


def test_two_nodes_whose_clocks_jumped_together_sign_nothing_that_keeps_them_out_afterwards() -> None:
    """Statement times never go back: one from an hour ahead that no quorum vouches for must not be made."""
    hour_ms = 3_600_000
    times = [
        NOW_MS + hour_ms,
        NOW_MS + hour_ms,
        NOW_MS,
    ]  # this node's own desk, the other wrong one, a right one
    asked = [Challenge(name, NONCE, 0, time_ms) for name, time_ms in zip("abc", times, strict=True)]
    check_clock(asked, now_ms=NOW_MS + hour_ms, needed=2)
    with pytest.raises(MeshError) as error:
        check_clock(asked, now_ms=NOW_MS + hour_ms, needed=3)
    assert error.value.reason is Reason.CLOCK_WRONG
    assert "2 of 3" in error.value.detail


def test_a_statement_holds_every_nonce_and_what_is_in_force() -> None:
    """One statement answers every witness at once."""
    node = AttestedNode("n")
    policy = verified(3)
    said = statement_of(
        node.id,
        node.private.public_key().public_bytes_raw(),
        [Challenge("b", b"\x02" * 32, 0, 0), Challenge("a", b"\x01" * 32, 0, 0)],
        policy,
        MEASUREMENT,
        boot=b"12345678",
        counter=9,
        issued_s=NOW_S,
        level=5,
        checkpoint=node.statement().checkpoint,
    )
    assert parse_statement(write_statement(said)) == said
    assert said.nonces == (b"\x01" * 32, b"\x02" * 32)
    assert said.policy.version == policy.base.version


def test_the_age_of_a_bundle_counts_from_when_it_came_into_force() -> None:
    """A renewed lease does not make it younger; new content does."""
    bundles = Bundles()
    assert bundles.seen(verified(3), monotonic_ms=10)["targets"][1] == 10
    assert bundles.seen(verified(3), monotonic_ms=20)["targets"][1] == 10
    assert bundles.seen(verified(4), monotonic_ms=30)["targets"][1] == 30


def test_while_new_terms_are_worked_out_the_old_ones_are_not_taken_for_them() -> None:
    """Without witnesses in the policy of before, a look at that moment would let level 5 run unattested."""

    class Looking(Denials):
        looked: list[bool]

        def struck(self, roster: Roster) -> frozenset[str]:
            if not self.looked:
                self.looked.append(True)
                self.looked[0] = world.state.attested(NOW_MS, MONO)
            return frozenset()

    denials = Looking(DOMAIN)
    denials.looked = []
    world = World(OPEN_MESH, denials=denials)
    assert world.state.attested(NOW_MS, MONO), "this policy asks for no witnesses"
    world.mesh = MESH
    assert not world.state.attested(NOW_MS, MONO)
    assert denials.looked == [False]
