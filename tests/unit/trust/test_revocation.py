"""Directives: one spelling, one signature, one mesh, a bounded time."""

import base64
from dataclasses import replace

import pytest

from tests.support.emergency import FIRST, MAX_TTL_S, SECOND, TD
from trust.errors import EvidenceError, InputError, Reason
from trust.note import Verifier, cosign
from trust.revocation import (
    Directive,
    Kind,
    Subject,
    open_directive,
    read_directive,
    sign_directive,
    subject_of,
)

NOW_MS = 1_795_400_000_000
KEYS = {FIRST.name: FIRST.public}
ALICE = Directive(TD, 7, Subject(Kind.WORKLOAD, "alice"), 1_795_400_000, 1_795_403_600, "lost laptop")


def opened(data: bytes, **changes: object) -> Directive:
    """Open as a node of TD would."""
    settings = {"keys": KEYS, "trust_domain": TD, "max_ttl_s": MAX_TTL_S, **changes}
    return open_directive(data, **settings).directive  # type: ignore[arg-type]


def test_signed_directive_opens_to_what_was_signed_and_names_its_key() -> None:
    """The one good case, byte for byte."""
    data = FIRST.sign(ALICE)
    assert data.startswith(
        b"egm/revocation/v1\nmesh.local\n7\nworkload alice\n1795400000\n1795403600\nlost laptop\n\n"
    )
    assert opened(data) == ALICE == read_directive(data)
    assert open_directive(data, KEYS, trust_domain=TD, max_ttl_s=MAX_TTL_S).key_name == FIRST.name


@pytest.mark.parametrize(
    "body",
    [
        ALICE.body().replace(b"v1", b"v2"),
        ALICE.body().replace(b"\n7\n", b"\n07\n"),
        ALICE.body().replace(b"\n7\n", b"\n0\n"),
        ALICE.body().replace(b"workload alice", b"workload Alice"),
        ALICE.body().replace(b"workload alice", b"workload  alice"),
        ALICE.body().replace(b"workload alice", b"operator alice"),
        ALICE.body().replace(b"1795403600", b"1795400000"),
        ALICE.body().replace(b"1795403600", b"9795403600"),
        ALICE.body().replace(b"lost laptop", b""),
        ALICE.body().replace(b"lost laptop", "\u202elost".encode()),
        ALICE.body() + b"more\n",
        ALICE.body()[:-1],
        b"",
        b"\xff\n" * 7,
    ],
)
def test_text_that_is_not_canonical_is_no_directive(body: bytes) -> None:
    """Two spellings would have two ids, and a reader might see less than the key signed."""
    with pytest.raises(EvidenceError) as caught:
        Directive.parse(body)
    assert caught.value.reason is Reason.REVOCATION_INVALID


def test_directive_of_a_key_that_policy_does_not_name_is_refused_naming_those_it_does() -> None:
    """Only the quorum decides who may deny."""
    with pytest.raises(EvidenceError, match="there are: emergency-1") as caught:
        opened(SECOND.sign(ALICE))
    assert caught.value.reason is Reason.REVOCATION_INVALID


def test_key_of_another_name_does_not_sign_under_this_one() -> None:
    """The name is part of what the key id binds."""
    forged = sign_directive(ALICE, FIRST.name, SECOND.private.sign, public_key=SECOND.public)
    with pytest.raises(EvidenceError, match="no emergency key"):
        opened(forged)


def test_directive_of_another_mesh_is_refused() -> None:
    """One key may serve two meshes; its word counts in the one that it names."""
    other = replace(ALICE, trust_domain="other.mesh")
    with pytest.raises(EvidenceError, match="no emergency key"):
        opened(FIRST.sign(other))


def test_changed_byte_is_refused_wherever_it_is() -> None:
    """Signature and text belong together."""
    data = FIRST.sign(ALICE)
    for place in range(len(data)):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(EvidenceError) as caught:
            opened(changed)
        assert caught.value.reason is Reason.REVOCATION_INVALID


def test_second_signature_line_is_refused_known_or_not() -> None:
    """A directive has one encoding: others could grow it without end."""
    data = FIRST.sign(ALICE)
    line = data[data.rindex(b"\n\n") + 2 :]
    stranger = cosign(ALICE.body(), "w", SECOND.private.sign, public_key=SECOND.public, time_s=1)
    for longer in (data + line, data + stranger):
        with pytest.raises(EvidenceError, match="exactly one signature"):
            opened(longer)


def test_directive_that_lasts_longer_than_the_policy_allows_is_refused_saying_what_else_to_do() -> None:
    """What is to last is for the quorum."""
    with pytest.raises(EvidenceError, match="revocation_max_ttl_s"):
        opened(FIRST.sign(ALICE), max_ttl_s=3599)
    assert opened(FIRST.sign(ALICE), max_ttl_s=3600) == ALICE


def test_small_order_key_cannot_be_an_emergency_key() -> None:
    """Anybody could sign for it."""
    with pytest.raises(EvidenceError) as caught:
        opened(FIRST.sign(ALICE), keys={"emergency-1": bytes(32)})
    assert caught.value.reason is Reason.REVOCATION_INVALID


def test_oversized_directive_is_refused_before_it_is_read() -> None:
    """Bounded work for bytes of anybody."""
    with pytest.raises(EvidenceError, match="at most"):
        opened(b"x" * 5000)


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        ("workload", "alice", "alice"),
        ("workload", f"spiffe://{TD}/workload/alice", "alice"),
        ("node", f"spiffe://{TD}/node/a", "a"),
        ("key", "SHA256:".lower() + "AB" * 32, "ab" * 32),
        ("key", ":".join(["ab"] * 32), "ab" * 32),
        ("method", "/shop.Payments/Pay", "shop.Payments/Pay"),
        ("method", "shop.Payments/*", "shop.Payments/*"),
        ("throttle", "alice 10/m", "alice 10/m"),
        ("throttle", f"spiffe://{TD}/workload/alice 1/s", "alice 1/s"),
        ("approval", "alice 2 of ops", "alice 2 of ops"),
    ],
)
def test_subject_may_be_written_as_people_have_it(kind: str, given: str, value: str) -> None:
    """What is signed has one spelling all the same."""
    assert subject_of(kind, given, TD) == Subject(Kind(kind), value)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("workload", "spiffe://other.mesh/workload/alice"),
        ("workload", f"spiffe://{TD}/node/a"),
        ("key", "abc"),
        ("method", "Pay"),
        ("method", "*/*"),
        ("method", "shop.Payments/P*"),
        ("throttle", "alice"),
        ("throttle", "alice 0/m"),
        ("throttle", "alice 010/m"),
        ("throttle", "alice 10/m "),
        ("throttle", "alice  10/m"),
        ("throttle", "alice 10/year"),
        ("throttle", "Alice! 10/m"),
        ("throttle", f"spiffe://{TD}/node/a 10/m"),
        ("approval", "alice 0 of ops"),
        ("approval", "alice 100 of ops"),
        ("approval", "alice 1 of O p s"),
        ("approval", "alice 1 of ops\n"),
        ("approval", "alice"),
    ],
)
def test_subject_that_cannot_be_is_named_with_how_to_write_it(kind: str, given: str) -> None:
    """A revocation that matches nothing would look like one that works."""
    with pytest.raises(InputError):
        subject_of(kind, given, TD)


@pytest.mark.parametrize(
    ("kind", "value", "obligation"),
    [
        (Kind.THROTTLE, "alice 10/m", ("rate", "10/m")),
        (Kind.APPROVAL, "alice 2 of ops", ("require_approval", "2 of ops")),
    ],
)
def test_restriction_is_an_obligation_of_a_workload(
    kind: Kind, value: str, obligation: tuple[str, str]
) -> None:
    """What enforces annotations of policies enforces restrictions, too."""
    subject = Subject(kind, value)
    assert subject.restricts
    assert subject.obligation == obligation
    assert subject.spiffe_id(TD) == f"spiffe://{TD}/workload/alice"


@pytest.mark.parametrize("value", ["alice 10/m", "alice 1 of ops"])
def test_restriction_survives_the_way_through_its_note(value: str) -> None:
    """Its value holds blanks, as no other does."""
    kind = Kind.THROTTLE if "/" in value else Kind.APPROVAL
    data = FIRST.revoke(kind, value, now_ms=1_795_400_000_000)
    assert opened(data).subject == Subject(kind, value)


def test_note_key_of_an_emergency_key_is_published_with_its_purpose() -> None:
    """The same Ed25519 key under another purpose has another key id."""
    data = FIRST.sign(ALICE)
    line = data[data.rindex(b"\n\n") + 2 :].decode()
    name, encoded = line.removeprefix("\u2014 ").split()
    assert name == f"{TD}/emergency/emergency-1"
    assert base64.b64decode(encoded)[:4] == Verifier(name, FIRST.public).key_id
