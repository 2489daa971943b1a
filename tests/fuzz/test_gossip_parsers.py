"""Directives, misbehaviour proofs and gossip messages of anybody: a value or a reasoned error, never anything else."""

import contextlib
from pathlib import Path
from typing import NoReturn

from hypothesis import given
from hypothesis import strategies as st

from egm.v1 import gossip_pb2
from tests.support.emergency import FIRST, MAX_TTL_S, TD
from trust.edge.denial_keeper import DenialKeeper
from trust.edge.gossip import Member, from_wire
from trust.edge.lookout import Lookout
from trust.errors import EvidenceError, InputError, MeshError, Reason
from trust.misbehaviour import Anchors, Proof, read_proof, verify_proof
from trust.revocation import Directive, Kind, open_directive, read_directive
from trust.spiffe import SpiffeId

NOW_MS = 1_795_400_000_000
GOOD = FIRST.revoke(Kind.WORKLOAD, "alice", now_ms=NOW_MS)
KEYS = {FIRST.name: FIRST.public}


def bent(data: bytes) -> st.SearchStrategy[bytes]:
    """Return `data` with a piece replaced, removed or put in."""

    @st.composite
    def make(draw: st.DrawFn) -> bytes:
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 20)))
        return data[:start] + draw(st.binary(max_size=20)) + data[end:]

    return make()


@given(st.one_of(st.binary(max_size=500), bent(GOOD)))
def test_directive_parser_is_total_and_accepts_only_what_was_signed(data: bytes) -> None:
    """Bytes of a broker."""
    for read in (read_directive, Directive.parse):
        with contextlib.suppress(MeshError):
            read(data)
    try:
        opened = open_directive(data, KEYS, trust_domain=TD, max_ttl_s=MAX_TTL_S)
    except MeshError as error:
        assert error.reason is Reason.REVOCATION_INVALID
    else:
        assert (opened.data, data) == (GOOD, GOOD)


@given(
    st.one_of(st.binary(max_size=500), bent(Proof("ledger-fork", "x", b"e", (b"a", b"b"), (b"p",)).encode()))
)
def test_proof_parser_is_total_and_canonical(data: bytes) -> None:
    """Bytes of a peer."""
    try:
        assert read_proof(data).encode() == data
    except MeshError as error:
        assert error.reason is Reason.MISBEHAVIOUR_UNPROVEN
    with contextlib.suppress(MeshError):
        verify_proof(data, Anchors(TD, b"no CA", None, b"no root"))


@given(
    st.sampled_from(
        [
            "ledger-fork",
            "ledger-shrunk",
            "counter-back",
            "policy-back",
            "witness-rollback",
            "cosigned-fork",
            "policy-split",
        ]
    ),
    st.sampled_from([f"spiffe://{TD}/node/a", "targets", "timestamp", "", "x"]),
    st.lists(st.binary(max_size=200), min_size=2, max_size=2),
    st.binary(max_size=100),
    st.lists(st.binary(max_size=64), max_size=4),
)
def test_judges_are_total(
    kind: str, accused: str, statements: list[bytes], endorsement: bytes, parts: list[bytes]
) -> None:
    """Well-formed proofs of nonsense."""
    data = Proof(kind, accused, endorsement, (statements[0], statements[1]), tuple(parts)).encode()
    try:
        verify_proof(data, Anchors(TD, b"no CA", None, b"{}"))
    except MeshError as error:
        assert error.reason is Reason.MISBEHAVIOUR_UNPROVEN
    else:
        raise AssertionError("nonsense was proven")


def unknown() -> NoReturn:
    """Refuse an endorsement."""
    raise EvidenceError(Reason.PERMIT_INVALID, "nobody is known")


@given(st.binary(max_size=300), st.lists(st.binary(max_size=100), max_size=3))
def test_gossip_message_of_nonsense_changes_nothing(data: bytes, items: list[bytes]) -> None:
    """A hostile peer may say anything."""
    peer = SpiffeId.of(TD, "node", "b")
    keeper = DenialKeeper(
        Path("/nonexistent/denials.json"),
        TD,
        now_ms=lambda: NOW_MS,
        monotonic_ms=lambda: 0,
        anchors=lambda: Anchors(TD),
    )
    lookout = Lookout(keeper, lambda _data: unknown(), lambda: None)
    member = Member(
        SpiffeId.of(TD, "node", "a"),
        "boot",
        keeper,
        timestamp=lambda: (0, b""),
        saw=lookout.saw,
        vouched=lookout.vouched,
    )
    message = gossip_pb2.GossipMessage(
        sender=str(peer),
        sequence=1,
        held_sha256=data,
        held=items,
        lists_held=True,
        directives=items,
        proofs=items,
        heads=[gossip_pb2.SignedHead(checkpoint=data, endorsement=data)],
        credentials=[data],
        relay=len(data),
    )
    member.receive(message, peer)
    assert not keeper.denials.any
    assert from_wire(message).directives == tuple(items)


@given(st.binary(max_size=200))
def test_damaged_file_of_denials_stops_the_start_with_what_to_do(data: bytes) -> None:
    """Not knowing what was revoked is not the same as nothing being revoked."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "denials.json"
        path.write_bytes(data)
        try:
            DenialKeeper(path, TD, now_ms=lambda: NOW_MS, monotonic_ms=lambda: 0, anchors=lambda: Anchors(TD))
        except InputError as error:
            assert "delete it if you are sure" in error.detail
        else:
            raise AssertionError("a damaged file was taken for an empty one")
