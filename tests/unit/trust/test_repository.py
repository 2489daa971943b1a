"""What may be published: quorum, versions, digests, rotation; on real metadata with real signatures."""

import pytest
from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, Root, Targets

from tests.support.tuf_world import World, public, sign_raw, signer, twin
from trust.errors import EvidenceError, InputError, MeshError, Reason, StateError
from trust.metadata import expires_ms
from trust.quorum import quorum_of
from trust.repository import (
    Holders,
    RepositoryState,
    add_signature,
    delegator_of,
    delegators_of,
    digest_of,
    find_key,
    first_targets,
    new_root,
    next_root,
    parse_metadata,
    publish,
    quorums_of,
    renew,
    sign,
    signable_bytes,
)

BASE = b"base bundle"


def refuses(reason: Reason, world: World, *args: object, **kwargs: object) -> str:
    before = (world.state, dict(world.files))
    with pytest.raises(MeshError) as caught:
        world.publish(*args, **kwargs)  # type: ignore[arg-type]
    assert caught.value.reason is reason, caught.value
    assert (world.state, world.files) == before
    return caught.value.detail


def test_first_publication_adds_the_whole_layout_with_the_timestamp_last() -> None:
    """A reader that follows timestamp.json must find everything it names already written."""
    world = World()
    files = list(world.release(BASE))
    assert files[-1] == "metadata/timestamp.json"
    assert files[1:-1] == ["metadata/1.targets.json", "metadata/1.snapshot.json"]
    assert files[0].startswith("targets/") and files[0].endswith(".base.tar.gz")
    assert world.state.versions() == {"root": 1, "targets": 1, "snapshot": 1, "timestamp": 1}


def test_one_signature_below_the_threshold_is_refused_naming_who_is_missing() -> None:
    """k-1 signatures publish nothing."""
    world = World()
    data = sign_raw(world.proposal(BASE), world.approvers[:1])
    detail = refuses(Reason.QUORUM_NOT_MET, world, {"targets": data}, {"base.tar.gz": BASE})
    assert "signed by approver-1" in detail and "approver-2, approver-3" in detail


def test_signature_by_a_stranger_or_over_other_bytes_does_not_count() -> None:
    """Only keys of the role count, and only over these bytes."""
    world = World()
    mallory = signer("mallory")
    metadata = world.proposal(BASE)
    data = sign_raw(metadata, [world.approvers[0], mallory])
    refuses(Reason.QUORUM_NOT_MET, world, {"targets": data}, {"base.tar.gz": BASE})
    other = world.proposal(b"other")
    other.sign(world.approvers[1])
    metadata.signatures |= other.signatures
    refuses(Reason.QUORUM_NOT_MET, world, {"targets": metadata.to_bytes()}, {"base.tar.gz": BASE})


def test_add_signature_refuses_strangers_and_signatures_of_another_proposal() -> None:
    """An approver is a verified key, never a claim."""
    world = World()
    metadata = world.proposal(BASE)
    delegator = delegator_of("targets", world.state)
    with pytest.raises(EvidenceError) as caught:
        sign(metadata, world.roots[0], delegator)
    assert caught.value.reason is Reason.NOT_AUTHORIZED
    approver = world.approvers[0]
    wrong = approver.sign(signable_bytes(world.proposal(b"other"))).signature
    for hostile in (wrong, "zz", "", "00" * 64):
        with pytest.raises(EvidenceError) as caught:
            add_signature(metadata, approver.public_key.keyid, hostile, delegator)
        assert caught.value.reason is Reason.SIGNATURE_INVALID
    signed = sign(metadata, approver, delegator)
    assert not metadata.signatures and list(signed.signatures) == [approver.public_key.keyid]
    assert digest_of(signed) == digest_of(metadata)


def test_one_key_under_two_ids_counts_once_even_in_unlinted_metadata() -> None:
    """Key ids are labels: a quorum counts key material."""
    world = World()
    alice = world.approvers[0]
    root = Metadata[Root].from_bytes(world.root).signed
    root.add_key(twin(alice).public_key, "targets")
    metadata = world.proposal(BASE)
    sign_raw(metadata, [alice, twin(alice)])
    root.verify_delegate("targets", metadata.signed_bytes, metadata.signatures)  # python-tuf is content
    quorum = quorum_of(root, "targets", metadata)
    assert not quorum.met and len(quorum.signed) == 1


def test_root_with_one_key_under_two_ids_is_refused_although_its_quorum_signed() -> None:
    """Rotation cannot smuggle in a second label of one approver."""
    world = World()
    world.release(BASE)
    root = world.rotate(threshold=2)
    root.signed.add_key(twin(world.approvers[0]).public_key, "targets")
    root.signatures.clear()
    data = sign_raw(root, world.roots[:2])
    assert "same key" in refuses(Reason.METADATA_UNSAFE, world, {"root": data})


@pytest.mark.parametrize("step", [0, 2, 10])
def test_version_must_be_exactly_the_next(step: int) -> None:
    """A replayed or skipping version is refused: propose again."""
    world = World()
    world.release(BASE)
    metadata = world.proposal(b"new")
    metadata.signed.version = 1 + step
    data = sign_raw(metadata, world.approvers[:2])
    assert "propose again" in refuses(Reason.CONFLICT, world, {"targets": data}, {"base.tar.gz": b"new"})


def test_file_that_is_missing_swapped_or_unknown_is_refused() -> None:
    """The published archive is the one that was signed, and nothing rides along."""
    world = World()
    data = {"targets": sign_raw(world.proposal(BASE), world.approvers[:2])}
    refuses(Reason.DIGEST_MISMATCH, world, data)
    refuses(Reason.DIGEST_MISMATCH, world, data, {"base.tar.gz": b"swapped....."})
    refuses(Reason.METADATA_INVALID, world, data, {"base.tar.gz": BASE, "extra": b""})


def test_metadata_of_one_role_is_not_accepted_for_another() -> None:
    """Swapped metadata: a namespace's approvers cannot speak for the base, nor the reverse."""
    world = World()
    world.release(BASE)
    payers = [signer("pay-1"), signer("pay-2")]
    world.delegate("payments", Holders(public(payers), 2))
    base = sign_raw(world.proposal(b"evil"), payers)
    refuses(Reason.QUORUM_NOT_MET, world, {"targets": base}, {"base.tar.gz": b"evil"})
    swapped = sign_raw(first_targets(b"evil", now_ms=world.now_ms), payers)
    refuses(Reason.METADATA_UNSAFE, world, {"payments": swapped}, {"payments/bundle.tar.gz": b"evil"})
    world.release(b"payments 1", "payments", payers)
    assert world.state.version_of("payments") == 1
    refuses(Reason.NOT_AUTHORIZED, world, {"other": swapped}, {})
    refuses(Reason.NOT_AUTHORIZED, world, {"snapshot": swapped}, {})


def test_delegation_with_one_approver_is_refused_outside_development() -> None:
    """A namespace's threshold is held to the same minimum as the base's."""
    world = World()
    world.release(BASE)
    metadata = world.proposal(None, delegate={"payments": Holders(public([signer("solo")]), 1)})
    data = sign_raw(metadata, world.approvers[:2])
    assert "threshold" in refuses(Reason.METADATA_UNSAFE, world, {"targets": data})


def test_online_key_may_not_become_an_approver() -> None:
    """A stolen control plane must not hold a vote."""
    world = World()
    world.release(BASE)
    holders = Holders([world.online.snapshot.public_key, signer("a").public_key], 2)
    data = sign_raw(world.proposal(None, delegate={"payments": holders}), world.approvers[:2])
    assert "online" in refuses(Reason.METADATA_UNSAFE, world, {"targets": data})
    with pytest.raises(EvidenceError) as caught:
        next_root(world.state.root_metadata(), now_ms=world.now_ms, add=[world.online.timestamp.public_key])
    assert caught.value.reason is Reason.METADATA_UNSAFE


def test_root_rotation_needs_the_old_and_the_new_quorum() -> None:
    """Neither leavers nor newcomers can replace the holders alone."""
    world = World()
    world.release(BASE)
    new = [signer("root-4"), signer("root-5")]
    changes = {
        "role": "root",
        "add": public(new),
        "remove": [key.keyid for key in public(world.roots[:2])],
    }
    only_old = world.rotate(signers=world.roots[:2], **changes)
    assert "own holders" in refuses(Reason.QUORUM_NOT_MET, world, {"root": only_old.to_bytes()})
    only_new = world.rotate(signers=new, **changes)
    assert "in force" in refuses(Reason.QUORUM_NOT_MET, world, {"root": only_new.to_bytes()})
    both = world.rotate(signers=[*world.roots[:2], *new], **changes)
    assert [q.met for q in quorums_of("root", both, world.state)] == [True, True]
    world.publish({"root": both.to_bytes()})
    assert world.state.version_of("root") == 2
    third = world.rotate(signers=new, threshold=2)
    world.publish({"root": third.to_bytes()})


def test_replaced_approver_no_longer_counts() -> None:
    """After rotation the old approver's signature is worth nothing."""
    world = World()
    gone, *staying = world.approvers
    world.release(BASE, signers=staying)
    dave = signer("dave")
    root = world.rotate(add=[dave.public_key], remove=[gone.public_key.keyid])
    world.publish({"root": root.to_bytes()})
    data = sign_raw(world.proposal(b"new"), [gone, staying[0]])
    refuses(Reason.QUORUM_NOT_MET, world, {"targets": data}, {"base.tar.gz": b"new"})
    world.release(b"new", signers=[dave, staying[0]])
    assert world.state.version_of("targets") == 2


def test_rotation_that_would_orphan_the_policy_in_force_is_refused_with_advice() -> None:
    """Nodes would refuse the policy; say what to do instead of breaking the mesh."""
    world = World()
    world.release(BASE)
    gone = world.approvers[0].public_key.keyid
    root = world.rotate(add=[signer("dave").public_key], remove=[gone])
    detail = refuses(Reason.QUORUM_NOT_MET, world, {"root": root.to_bytes()})
    assert "must sign a new version first" in detail


def test_namespace_and_its_new_approvers_can_be_published_together() -> None:
    """Replacing all approvers of a namespace works in one publication and not in halves."""
    world = World()
    world.release(BASE)
    old, new = [signer("o1"), signer("o2")], [signer("n1"), signer("n2")]
    world.delegate("payments", Holders(public(old), 2))
    world.release(b"p1", "payments", old)
    base = sign_raw(world.proposal(None, delegate={"payments": Holders(public(new), 2)}), world.approvers[:2])
    refuses(Reason.QUORUM_NOT_MET, world, {"targets": base})
    payments = sign_raw(world.proposal(b"p2", "payments"), new)
    world.publish({"targets": base, "payments": payments}, {"payments/bundle.tar.gz": b"p2"})
    assert world.state.version_of("payments") == 2


def test_ended_delegation_stays_in_the_snapshot_and_its_version_goes_on() -> None:
    """Clients treat a vanished role as an attack; a namespace that comes back continues its versions."""
    world = World()
    world.release(BASE)
    payers = [signer("p1"), signer("p2")]
    world.delegate("payments", Holders(public(payers), 2))
    world.release(b"p1", "payments", payers)
    world.delegate("payments", None)
    with pytest.raises(EvidenceError) as caught:
        delegator_of("payments", world.state)
    assert caught.value.reason is Reason.NOT_AUTHORIZED
    world.delegate("payments", Holders(public(payers), 2))
    world.release(b"p2", "payments", payers)
    assert world.state.version_of("payments") == 2


def test_renewal_extends_only_the_lease_until_the_snapshot_grows_old() -> None:
    """The common case writes one file."""
    world = World()
    assert renew(world.state, world.online, now_ms=world.now_ms, lease_ttl_s=60) == {}
    world.release(BASE)
    assert list(world.renew(now_ms=world.now_ms + 30_000)) == ["metadata/timestamp.json"]
    assert world.state.lease_expires_ms() == (world.now_ms + 90_000) // 1000 * 1000
    later = world.now_ms + 25 * 24 * 3600 * 1000
    last = world.files["metadata/timestamp.json"]
    new = world.renew(now_ms=later)
    kept = "metadata/superseded/1.timestamp.json"  # evidence of today needs it later
    assert list(new) == [kept, "metadata/2.snapshot.json", "metadata/timestamp.json"]
    assert new[kept] == last


def test_renewal_of_expired_policy_or_with_a_replaced_key_is_refused() -> None:
    """The control plane does not vouch for what nodes would refuse."""
    world = World()
    world.release(BASE)
    with pytest.raises(EvidenceError) as caught:
        world.renew(now_ms=world.now_ms + 366 * 24 * 3600 * 1000)
    assert caught.value.reason is Reason.POLICY_EXPIRED
    world.online = type(world.online)(world.online.snapshot, signer("stolen"))
    with pytest.raises(EvidenceError) as caught:
        world.renew()
    assert caught.value.reason is Reason.NOT_AUTHORIZED


def test_expired_proposal_is_refused() -> None:
    """Signatures collected too late need a new proposal."""
    world = World()
    metadata = world.proposal(BASE)
    late = expires_ms(metadata.signed)
    data = {"targets": sign_raw(metadata, world.approvers[:2])}
    refuses(Reason.POLICY_EXPIRED, world, data, {"base.tar.gz": BASE}, now_ms=late)


@pytest.mark.parametrize("ttl_s", [0, 1, 24 * 3600 + 1])
def test_lease_outside_the_limits_is_refused(ttl_s: int) -> None:
    """A lease that never ends would hide a frozen mesh."""
    world = World()
    with pytest.raises(InputError):
        world.release(BASE, lease_ttl_s=ttl_s)


def test_state_is_read_back_from_the_files_of_a_repository() -> None:
    """What was written is what is in force, after rotations and namespaces too."""
    world = World()
    with pytest.raises(StateError) as caught:
        RepositoryState.load(lambda _path: None)
    assert caught.value.reason is Reason.POLICY_MISSING
    assert RepositoryState.load(world.files.get) == world.state
    world.release(BASE)
    world.publish({"root": world.rotate(threshold=2).to_bytes()})
    payers = [signer("p1"), signer("p2")]
    world.delegate("payments", Holders(public(payers), 2))
    world.release(b"p1", "payments", payers)
    assert RepositoryState.load(world.files.get) == world.state
    del world.files["metadata/1.payments.json"]
    with pytest.raises(EvidenceError, match="backup"):
        RepositoryState.load(world.files.get)


def test_domain_cannot_turn_into_a_development_one_or_change_its_name() -> None:
    """The minimum threshold cannot be switched off later."""
    for field, value in (("x-egm-development", True), ("x-egm-trust-domain", "evil.test")):
        world = World()
        metadata = world.rotate(threshold=2)
        metadata.signed.unrecognized_fields[field] = value
        metadata.signatures.clear()
        refuses(Reason.METADATA_UNSAFE, world, {"root": sign_raw(metadata, world.roots[:2])})


def test_root_with_one_signature_needed_exists_only_in_development() -> None:
    """Thresholds of one are a development convenience that the root itself declares."""
    keys = [signer(str(i)).public_key for i in range(4)]
    one, two = Holders(keys[:1], 1), Holders(keys[1:2], 1)
    common = {"trust_domain": "mesh.local", "snapshot": keys[2], "timestamp": keys[3], "now_ms": 10**12}
    with pytest.raises(EvidenceError) as caught:
        new_root(root=one, approvers=two, **common)  # type: ignore[arg-type]
    assert caught.value.reason is Reason.METADATA_UNSAFE
    assert new_root(root=one, approvers=two, development=True, **common)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"null", b'{"signed":{"_type":"root"}}', b"\xff", b"[" * 100_000]
)
def test_bytes_that_are_not_metadata_are_refused(data: bytes) -> None:
    """Parsing is total."""
    with pytest.raises(EvidenceError) as caught:
        parse_metadata(data, Targets)
    assert caught.value.reason is Reason.METADATA_INVALID


def test_metadata_of_another_type_too_large_or_without_canonical_form_is_refused() -> None:
    """Confused, oversized and ambiguous metadata never reaches a signature check."""
    world = World()
    with pytest.raises(EvidenceError, match="expected targets"):
        parse_metadata(world.root, Targets)
    with pytest.raises(MeshError) as caught:
        parse_metadata(b" " * (1024 * 1024 + 1), Root)
    assert caught.value.reason is Reason.LIMIT_EXCEEDED
    metadata = world.proposal(BASE)
    metadata.signed.unrecognized_fields["x"] = 1.5
    with pytest.raises(EvidenceError, match="canonical"):
        parse_metadata(metadata.to_bytes(), Targets)


def test_key_is_found_by_name_id_or_start_and_ambiguity_is_refused() -> None:
    """A person names a key; two that fit are a question, not a guess."""
    world = World()
    root = world.state.root_metadata().signed
    key = world.approvers[1].public_key
    for text in ("approver-2", key.keyid, key.keyid[:8]):
        assert find_key(root, "targets", text) == key
    with pytest.raises(InputError, match="approver-1"):
        find_key(root, "targets", "nobody")
    world.approvers[0].public_key.unrecognized_fields["x-egm-name"] = "approver-2"
    root.add_key(world.approvers[0].public_key, "targets")
    with pytest.raises(InputError) as caught:
        find_key(root, "targets", "approver-2")
    assert caught.value.reason is Reason.CONFLICT


def test_removing_an_unknown_key_or_role_is_an_input_error() -> None:
    """A typing mistake gives advice, not a traceback."""
    root = World().state.root_metadata()
    for changes in ({"remove": ["00"]}, {"role": "nobody"}):
        with pytest.raises(InputError):
            next_root(root, now_ms=10**12, **changes)


def test_delegators_of_root_are_the_old_and_the_new_root() -> None:
    """A key that only the old root names may sign the new one."""
    world = World()
    metadata = world.rotate(threshold=2)
    old, new = delegators_of("root", metadata, world.state)
    assert (old.version, new.version) == (1, 2)


def test_publish_does_not_change_the_state_it_is_given() -> None:
    """The core returns effects; the caller writes them."""
    world = World()
    before = world.state
    data = sign_raw(world.proposal(BASE), world.approvers[:2])
    publish(
        before, {"targets": data}, {"base.tar.gz": BASE}, world.online, now_ms=world.now_ms, lease_ttl_s=60
    )
    assert before.timestamp is None and not before.roles


def _impostor(victim: Key) -> Key:
    """Return a fresh key whose public key file claims the id of `victim`."""
    made = signer("impostor").public_key
    return type(made)(victim.keyid, made.keytype, made.scheme, dict(made.keyval), {})


def test_a_new_approver_whose_key_file_claims_a_root_holders_id_cannot_take_that_place() -> None:
    """Root keeps one key per id for all roles: the impostor would silently become the root holder."""
    world = World()
    impostor = _impostor(world.roots[2].public_key)
    with pytest.raises(EvidenceError) as added:
        next_root(world.state.root_metadata(), now_ms=world.now_ms, add=[impostor])
    with pytest.raises(EvidenceError) as made:
        new_root(
            trust_domain="mesh.local",
            root=Holders(public(world.roots), 2),
            approvers=Holders([*public(world.approvers), impostor], 2),
            snapshot=world.online.snapshot.public_key,
            timestamp=world.online.timestamp.public_key,
            now_ms=world.now_ms,
        )
    assert added.value.reason is made.value.reason is Reason.KEY_UNSAFE


def test_a_namespace_approver_cannot_take_the_place_of_another_namespaces() -> None:
    """Delegations keep one key per id for all namespaces."""
    world = World()
    world.release(b"bundle")
    payers = [signer("pay-1"), signer("pay-2")]
    world.delegate("payments", Holders(public(payers), 2))
    impostors = [_impostor(payers[0].public_key), signer("second").public_key]
    with pytest.raises(EvidenceError) as caught:
        world.proposal(None, delegate={"shop": Holders(impostors, 2)})
    assert caught.value.reason is Reason.KEY_UNSAFE
    fresh = [signer("pay-3").public_key, _impostor(payers[0].public_key)]
    world.proposal(None, delegate={"payments": Holders(fresh, 2)})  # in its own place: replaced, and shown so


def test_two_keys_with_one_id_in_one_role_are_refused_with_a_reason() -> None:
    """python-tuf would answer with a bare ValueError."""
    world = World()
    twice = [world.approvers[0].public_key, _impostor(world.approvers[0].public_key)]
    with pytest.raises(EvidenceError):
        new_root(
            trust_domain="mesh.local",
            root=Holders(public(world.roots), 2),
            approvers=Holders(twice, 2),
            snapshot=world.online.snapshot.public_key,
            timestamp=world.online.timestamp.public_key,
            now_ms=world.now_ms,
        )
