"""Proposals: their states, what is refused on arrival, and who counts."""

import hashlib

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Targets

from control_plane.core.proposals import (
    NEXT,
    Event,
    ExpectedFile,
    Proposal,
    State,
    Upload,
    advance,
    check_publishable,
    check_room,
    check_title,
    expected_file,
    open_proposal,
    sign,
    signed_metadata,
    standing,
)
from trust import limits
from trust.authoring import Holders, first_targets, new_root, next_targets, signable_bytes
from trust.errors import CapacityError, EvidenceError, InputError, MeshError, Reason, StateError
from trust.repository import RepositoryState
from trust.spiffe import SpiffeId

NOW = 1_800_000_000_000
WHO = SpiffeId.parse("spiffe://mesh.test/operator/olga")
APPROVERS = [CryptoSigner.generate_ed25519() for _ in range(3)]
ROOTS = [CryptoSigner.generate_ed25519() for _ in range(2)]
ONLINE = [CryptoSigner.generate_ed25519() for _ in range(2)]
BUNDLE = b"an archive"


def in_force(*, development: bool = False) -> RepositoryState:
    """Return a repository with a root and nothing published."""
    root = new_root(
        trust_domain="mesh.test",
        root=Holders([s.public_key for s in ROOTS], 2),
        approvers=Holders([s.public_key for s in APPROVERS], 2),
        snapshot=ONLINE[0].public_key,
        timestamp=ONLINE[1].public_key,
        now_ms=NOW,
        development=development,
    )
    for signer in ROOTS:
        root.sign(signer, append=True)
    return RepositoryState(root=root.to_bytes())


STATE = in_force()


def proposed(metadata: Metadata[Targets] | None = None, **changes: object) -> Proposal:
    """Open a proposal for the first base policy."""
    arguments = {
        "role": "targets",
        "title": "first",
        "metadata": (metadata or first_targets(BUNDLE, now_ms=NOW)).to_bytes(),
        "who": WHO,
        "now_ms": NOW,
        **changes,
    }
    return open_proposal(STATE, **arguments)  # type: ignore[arg-type]


def signature(signer: CryptoSigner, proposal: Proposal) -> tuple[str, str]:
    """Return one holder's signature over a proposal."""
    made = signer.sign(signable_bytes(Metadata.from_bytes(proposal.metadata)))
    return made.keyid, made.signature


def refused(reason: Reason, **changes: object) -> str:
    """Expect a proposal to be refused."""
    with pytest.raises(MeshError) as caught:
        proposed(**changes)  # type: ignore[arg-type]
    assert caught.value.reason is reason, caught.value
    return caught.value.detail


def test_the_state_machine_is_total_and_every_closed_state_is_final() -> None:
    """No event may be forgotten in any state; nothing reopens."""
    assert set(NEXT) == {(state, event) for state in State for event in Event}
    for (state, _), following in NEXT.items():
        assert (following is None) == (state is not State.OPEN)


@pytest.mark.parametrize("state", [State.PUBLISHED, State.WITHDRAWN, State.SUPERSEDED])
@pytest.mark.parametrize("event", list(Event))
def test_a_closed_proposal_refuses_everything_and_says_what_it_is(state: State, event: Event) -> None:
    """The operator learns that it was withdrawn, published or superseded."""
    closed = Proposal("id", "targets", 1, "d", state, "", "o", 0, 0, b"")
    with pytest.raises(StateError) as caught:
        advance(closed, event)
    assert caught.value.reason is Reason.CONFLICT
    assert state.value in caught.value.detail


def test_a_proposal_is_named_by_what_is_signed() -> None:
    """Two proposals with one id would let a signature move from one to the other."""
    proposal = proposed()
    signed = signable_bytes(Metadata.from_bytes(proposal.metadata))
    assert proposal.digest == hashlib.sha256(signed).hexdigest()
    assert proposal.id == proposal.digest[:16]
    assert (proposal.version, proposal.state, proposal.proposed_by) == (1, State.OPEN, str(WHO))


def test_only_the_next_version_may_be_proposed() -> None:
    """Neither the same again nor a jump, which would block honest versions."""
    second = next_targets(first_targets(BUNDLE, now_ms=NOW), BUNDLE, now_ms=NOW)
    assert "the next is 1, not 2" in refused(Reason.CONFLICT, metadata=second)


def test_expired_metadata_is_refused() -> None:
    """Nobody should sign what no node would take."""
    refused(Reason.POLICY_EXPIRED, metadata=first_targets(BUNDLE, now_ms=NOW - 2_000, lifetime_s=1))


def test_metadata_that_the_linter_refuses_is_refused_on_arrival() -> None:
    """Approvers see only what nodes would accept."""
    metadata = first_targets(BUNDLE, now_ms=NOW)
    metadata.signed.targets["other.tar.gz"] = metadata.signed.targets["base.tar.gz"]
    refused(Reason.METADATA_UNSAFE, metadata=metadata)


@pytest.mark.parametrize("role", ["snapshot", "timestamp"])
def test_online_roles_cannot_be_proposed(role: str) -> None:
    """The lease is the control plane's alone."""
    refused(Reason.NOT_AUTHORIZED, role=role)


@pytest.mark.parametrize("role", ["../x", "", "Payments", "a/b"])
def test_a_role_that_is_no_name_is_refused(role: str) -> None:
    """Role names become file names."""
    refused(Reason.IDENTITY_INVALID, role=role)


def test_a_namespace_that_nobody_delegated_is_refused() -> None:
    """An operator cannot invent a namespace."""
    metadata = first_targets(BUNDLE, now_ms=NOW, role="payments")
    refused(Reason.NOT_AUTHORIZED, role="payments", metadata=metadata)


def test_a_namespace_cannot_end_the_whole_mesh_soon_by_a_short_lifetime() -> None:
    """Nodes enforce all of it or none: approvers of one namespace must not be able to seal the others' services."""
    holders = Holders([signer.public_key for signer in APPROVERS], 2)
    base = next_targets(first_targets(BUNDLE, now_ms=NOW), None, now_ms=NOW, delegate={"payments": holders})
    state = RepositoryState(root=STATE.root, roles={"targets": base.to_bytes()})
    least_s = limits.MIN_NAMESPACE_LIFETIME_S
    for lifetime_s, accepted in [(60, False), (least_s - 1, False), (least_s + 1, True)]:
        metadata = first_targets(BUNDLE, now_ms=NOW, role="payments", lifetime_s=lifetime_s).to_bytes()
        asked = {"role": "payments", "title": "t", "metadata": metadata}
        if accepted:
            open_proposal(state, **asked, who=WHO, now_ms=NOW)  # type: ignore[arg-type]
            continue
        with pytest.raises(EvidenceError, match="give it longer") as caught:
            open_proposal(state, **asked, who=WHO, now_ms=NOW)  # type: ignore[arg-type]
        assert caught.value.reason is Reason.METADATA_UNSAFE


@pytest.mark.parametrize("title", ["two\nlines", "x" * 201, "bell\a"])
def test_titles_are_one_printable_line(title: str) -> None:
    """A title is shown in terminals: no escape sequences."""
    with pytest.raises(InputError):
        check_title(title)


def test_signatures_that_come_with_the_metadata_are_verified_and_kept() -> None:
    """A holder may sign before proposing; a forged signature spoils the proposal."""
    metadata = first_targets(BUNDLE, now_ms=NOW)
    metadata.sign(APPROVERS[0])
    proposal = proposed(metadata)
    assert [s.key_id for s in proposal.signatures] == [APPROVERS[0].public_key.keyid]
    assert not Metadata.from_bytes(proposal.metadata).signatures
    metadata.signatures[APPROVERS[0].public_key.keyid].signature = "00" * 64
    refused(Reason.SIGNATURE_INVALID, metadata=metadata)
    metadata.sign(CryptoSigner.generate_ed25519())
    refused(Reason.NOT_AUTHORIZED, metadata=metadata)


def test_ready_follows_from_distinct_valid_signatures() -> None:
    """k - 1 is not ready; k is; readiness is never stored."""
    proposal = proposed()
    for count, signer in enumerate(APPROVERS, start=1):
        made = sign(proposal, *signature(signer, proposal), STATE, now_ms=NOW)
        proposal = Proposal(
            **{f: getattr(proposal, f) for f in Proposal.__slots__}
            | {"signatures": (*proposal.signatures, made)}
        )
        stands = standing(proposal, STATE)
        assert (stands.ready, stands.threshold, len(stands.missing)) == (count >= 2, 2, 3 - count)
        if count < 2:
            with pytest.raises(EvidenceError) as caught:
                check_publishable(proposal, STATE)
            assert caught.value.reason is Reason.QUORUM_NOT_MET
    check_publishable(proposal, STATE)
    assert len(signed_metadata(proposal).signatures) == 3


def test_a_proposal_whose_namespace_vanished_is_never_ready() -> None:
    """Nobody to sign means nobody has signed, not everybody."""
    orphan = Proposal(
        "id",
        "payments",
        1,
        "d",
        State.OPEN,
        "",
        "o",
        0,
        0,
        first_targets(BUNDLE, now_ms=NOW, role="payments").to_bytes(),
    )
    assert not standing(orphan, STATE).ready
    with pytest.raises(EvidenceError):
        check_publishable(orphan, STATE)


def test_the_one_file_of_a_proposal_is_named_with_length_and_digest() -> None:
    """What will be received is known before the first byte."""
    expected = expected_file(proposed(), STATE)
    assert expected == ExpectedFile(
        "base.tar.gz", len(BUNDLE), hashlib.sha256(BUNDLE).hexdigest(), held=False
    )


EXPECTED = ExpectedFile("base.tar.gz", 4, hashlib.sha256(b"data").hexdigest(), held=False)


def test_an_upload_in_chunks_is_accepted_when_it_is_exactly_the_file() -> None:
    """The honest case."""
    upload = Upload(EXPECTED)
    upload.take("base.tar.gz", b"da", last=False)
    upload.take("base.tar.gz", b"ta", last=True)
    assert upload.finish() == {"base.tar.gz": b"data"}


@pytest.mark.parametrize(
    "chunks",
    [
        [("base.tar.gz", b"datas", True)],
        [("base.tar.gz", b"data", False), ("base.tar.gz", b"!", True)],
        [("base.tar.gz", b"dat", True)],
        [("base.tar.gz", b"DATA", True)],
        [("base.tar.gz", b"da", True), ("base.tar.gz", b"ta", True)],
        [("other", b"data", True)],
        [],
    ],
)
def test_an_upload_that_is_not_exactly_the_file_is_refused(chunks: list[tuple[str, bytes, bool]]) -> None:
    """Too long, too short, another content, another name, or nothing."""
    upload = Upload(EXPECTED)
    with pytest.raises(EvidenceError):
        for path, data, last in chunks:
            upload.take(path, data, last=last)
        upload.finish()


def test_files_that_the_metadata_does_not_name_are_refused() -> None:
    """A root names no file; whatever is sent with it is nobody's."""
    assert Upload(None).finish() == {}
    with pytest.raises(EvidenceError):
        Upload(None).take("x", b"", last=True)


def test_open_proposals_are_bounded() -> None:
    """A script gone wild fills neither the disk nor the approvers' list."""
    check_room(limits.MAX_OPEN_PROPOSALS - 1)
    with pytest.raises(CapacityError):
        check_room(limits.MAX_OPEN_PROPOSALS)
