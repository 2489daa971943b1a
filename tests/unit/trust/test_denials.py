"""What is denied when: directives, the quorum's lists, quarantine, ends."""

import pytest

from tests.support.emergency import FIRST, SECOND, TD, rules
from trust import limits
from trust.denials import By, Changed, Denials, Effect, Persist, Proven, Rules, Spread
from trust.errors import CapacityError, EvidenceError, Reason
from trust.mesh import MeshSettings, PermanentRevocation
from trust.revocation import Directive, Kind, Subject, read_directive

NOW = 1_795_400_000_000
MONO = 10_000
ALICE = f"spiffe://{TD}/workload/alice"
NODE_B = f"spiffe://{TD}/node/b"
PAY = "shop.Payments/Pay"


def governed(under: Rules | None = None) -> Denials:
    """Return denials under a policy."""
    denials = Denials(TD)
    denials.govern(under or rules(), now_ms=NOW, monotonic_ms=MONO)
    return denials


def offer(denials: Denials, data: bytes, *, after_ms: int = 0) -> list[Effect]:
    """Offer a directive some time after the start."""
    return denials.offer(data, now_ms=NOW + after_ms, monotonic_ms=MONO + after_ms)


def denied(
    denials: Denials, workload: str = ALICE, *, nodes: tuple[str, ...] = (), method: str = PAY
) -> bool:
    """Whether a call is denied."""
    found = denials.check(workloads=(workload,), nodes=nodes, keys=(b"k" * 32,), method=method)
    return found is not None


def alice(*, ttl_s: int = 3600, sequence: int = 1) -> bytes:
    """Return a revocation of alice."""
    return FIRST.revoke(Kind.WORKLOAD, "alice", now_ms=NOW, ttl_s=ttl_s, sequence=sequence)


def proven(number: int = 1, node: str = NODE_B) -> Proven:
    """Return a verified proof."""
    return Proven(f"{number:064x}", node, "two histories", b"proof %d" % number)


def test_directive_denies_at_once_and_spreads_and_persists_after_that() -> None:
    """Deny first: a disk that hangs must not keep a stolen key alive."""
    denials = governed()
    effects = offer(denials, alice())
    assert [type(effect) for effect in effects] == [Changed, Spread, Persist]
    assert denied(denials)
    assert not denied(denials, f"spiffe://{TD}/workload/bob")


def test_known_directive_is_no_news() -> None:
    """MQTT, the control plane and every peer deliver it."""
    denials = governed()
    offer(denials, alice())
    assert offer(denials, alice()) == []


@pytest.mark.parametrize(
    ("kind", "value", "hit"),
    [
        (Kind.WORKLOAD, "alice", {"workload": ALICE}),
        (Kind.NODE, "b", {"node": NODE_B}),
        (Kind.KEY, (b"k" * 32).hex(), {"key": b"k" * 32}),
        (Kind.METHOD, PAY, {"method": PAY}),
        (Kind.METHOD, "shop.Payments/*", {"method": PAY}),
    ],
)
def test_each_kind_denies_exactly_its_calls(kind: Kind, value: str, hit: dict[str, object]) -> None:
    """No more, no less."""
    denials = governed()
    offer(denials, FIRST.revoke(kind, value, now_ms=NOW))
    call = {"workload": "w", "node": "n", "key": b"x" * 32, "method": "other.Service/Do"}
    for changed, expected in ((call, False), (call | hit, True)):
        found = denials.check(
            workloads=(str(changed["workload"]),),
            nodes=(str(changed["node"]),),
            keys=(changed["key"],),  # type: ignore[arg-type]
            method=str(changed["method"]),
        )
        assert (found is not None) is expected


def test_directive_ends_by_the_monotonic_clock_whatever_the_wall_clock_does() -> None:
    """Setting the clock ahead must not end a revocation, setting it back must not matter."""
    denials = governed()
    offer(denials, alice(ttl_s=60))
    assert denials.tick(monotonic_ms=MONO + 59_999) == []
    assert denied(denials)
    effects = denials.tick(monotonic_ms=MONO + 60_000)
    assert [type(effect) for effect in effects] == [Changed, Persist]
    assert not denied(denials)


def test_directive_that_has_ended_is_refused_so_that_a_replay_does_nothing() -> None:
    """Gossip repeats old news."""
    denials = governed()
    with pytest.raises(EvidenceError, match="ended 1 s ago"):
        offer(denials, alice(ttl_s=60), after_ms=61_000)
    assert not denied(denials)


def test_later_end_replaces_an_earlier_one_and_never_the_reverse() -> None:
    """One key can prolong, not lift: what it signed first stays until it ends."""
    denials = governed()
    offer(denials, alice(ttl_s=600))
    assert offer(denials, alice(ttl_s=60, sequence=2)) == []
    offer(denials, alice(ttl_s=900, sequence=3))
    denials.tick(monotonic_ms=MONO + 600_000)
    assert denied(denials)
    assert len(denials.directives) == 1


def test_directive_dated_ahead_denies_now_but_not_beyond_the_signed_bound() -> None:
    """A clock that is behind must not keep a revocation out; a date in ten years must not make it eternal."""
    denials = governed(rules(max_ttl_s=3600))
    year_ms = 365 * 24 * 3600 * 1000
    offer(denials, FIRST.revoke(Kind.WORKLOAD, "alice", now_ms=NOW + year_ms, ttl_s=3600))
    assert denied(denials)
    denials.tick(monotonic_ms=MONO + 3_600_000)
    assert not denied(denials)


def test_policy_that_drops_the_key_or_ends_the_id_ends_the_denial() -> None:
    """The quorum may allow again, and nobody else."""
    data = alice()
    for under in (rules(SECOND), rules(ended=frozenset({read_directive(data).id}))):
        denials = governed()
        offer(denials, data)
        effects = denials.govern(under, now_ms=NOW, monotonic_ms=MONO)
        assert [type(effect) for effect in effects] == [Changed, Persist]
        assert not denied(denials)
        with pytest.raises(EvidenceError):
            offer(denials, data)


def test_policy_that_keeps_the_key_keeps_the_end_that_was_set_by_the_monotonic_clock() -> None:
    """A wall clock set back between two policies must not prolong, one set ahead must not shorten."""
    denials = governed()
    offer(denials, alice(ttl_s=60))
    denials.govern(rules(FIRST, SECOND), now_ms=NOW + 10**9, monotonic_ms=MONO + 1_000)
    assert denied(denials)
    denials.tick(monotonic_ms=MONO + 60_000)
    assert not denied(denials)


def test_quorum_makes_it_permanent() -> None:
    """No end, no key, not even an emergency key left."""
    permanent = PermanentRevocation(kind="workload", value="alice", reason="left")
    denials = governed(Rules(TD, permanent=(permanent,)))
    assert denied(denials)
    assert denials.active[0].by is By.QUORUM
    denials.tick(monotonic_ms=2**60)
    assert denied(denials)


def test_what_was_persisted_denies_again_with_the_first_policy() -> None:
    """A restart must not be a way out, and until there is a policy everything is refused anyway."""
    denials = Denials(TD)
    denials.restore([alice(), b"garbage", SECOND.revoke(Kind.NODE, "b", now_ms=NOW)])
    effects = denials.govern(rules(), now_ms=NOW, monotonic_ms=5)
    assert denied(denials)
    assert [type(effect) for effect in effects] == [Changed, Persist]  # what does not verify goes
    assert isinstance(effects[1], Persist)
    assert effects[1].directives == (alice(),)


# The real bound takes ten seconds.
@pytest.mark.parametrize("room", [50, pytest.param(limits.MAX_REVOCATIONS_PER_KEY, marks=pytest.mark.lab)])
def test_one_key_cannot_use_up_the_room_of_another(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stolen emergency key may deny everything, but the other key still gets its word in."""
    monkeypatch.setattr("trust.denials._PER_KEY", room)
    denials = governed(rules(FIRST, SECOND))
    for number in range(room):
        offer(denials, FIRST.revoke(Kind.WORKLOAD, f"w{number}", now_ms=NOW))
    with pytest.raises(CapacityError) as caught:
        offer(denials, alice())
    assert caught.value.reason is Reason.LIMIT_EXCEEDED
    offer(denials, SECOND.revoke(Kind.WORKLOAD, "alice", now_ms=NOW))
    assert denied(denials)


def test_proof_quarantines_its_node_until_the_quorum_settles_it() -> None:
    """Without an operator; and an operator cannot undo it."""
    denials = governed()
    effects = denials.accuse(proven(), now_ms=NOW)
    assert [type(effect) for effect in effects] == [Changed, Spread, Persist]
    found = denials.of_node(NODE_B)
    assert found is not None
    assert (found.by, found.reason) == (By.PROOF, Reason.NODE_QUARANTINED)
    assert denied(denials, nodes=(NODE_B,))
    assert denials.accuse(proven(), now_ms=NOW) == []
    denials.govern(rules(released=frozenset({proven().id})), now_ms=NOW, monotonic_ms=MONO)
    assert denials.of_node(NODE_B) is None
    assert denials.accuse(proven(), now_ms=NOW) == []  # settled: an old proof that returns changes nothing
    assert denials.accuse(proven(2), now_ms=NOW) != []


def test_proofs_of_one_node_do_not_fill_the_room() -> None:
    """A node that equivocates for ever makes endless proofs; a few are enough."""
    denials = governed()
    for number in range(limits.MAX_PROOFS_PER_NODE + 3):
        denials.accuse(proven(number), now_ms=NOW)
    assert len(denials.proofs) == limits.MAX_PROOFS_PER_NODE
    for number in range(limits.MAX_PROOFS - limits.MAX_PROOFS_PER_NODE):
        denials.accuse(proven(1000 + number, f"spiffe://{TD}/node/n{number}"), now_ms=NOW)
    with pytest.raises(CapacityError):
        denials.accuse(proven(9999, f"spiffe://{TD}/node/last"), now_ms=NOW)


def test_rules_come_from_mesh_json_and_it_refuses_keys_that_prove_nothing() -> None:
    """The quorum signs who may deny."""
    mesh = MeshSettings.model_validate(
        {
            "trust_domain": TD,
            "emergency_keys": {"emergency-1": FIRST.public.hex()},
            "revocations": [{"kind": "node", "value": "b", "reason": "gone"}],
        }
    )
    assert Rules.of(mesh).keys == {"emergency-1": FIRST.public}
    assert Rules.of(mesh).permanent[0].subject == Subject(Kind.NODE, "b")
    same = {"a": FIRST.public.hex(), "b": FIRST.public.hex()}
    for bad in ({"emergency_keys": {"x": "00" * 32}}, {"emergency_keys": same}):
        with pytest.raises(EvidenceError):
            MeshSettings.model_validate({"trust_domain": TD, **bad})


def test_sequence_tells_directives_of_one_key_apart() -> None:
    """Two of the same subject and time are two directives."""
    first = Directive(TD, 1, Subject(Kind.NODE, "b"), 1, 2, "x")
    assert first.id != Directive(TD, 2, Subject(Kind.NODE, "b"), 1, 2, "x").id
