"""The door inside a service: every hand-over that it refuses, and the one that it accepts, once."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sidecar.interceptors.current import CurrentCall
from sidecar.interceptors.verification import HEALTH, REFLECTION, Guard
from tests.support.permits import ALICE, EXECUTION, NOW_MS, NOW_S, PAY, PAYMENTS, REQUEST, Signing, b64, forge
from tests.support.sidecar_core import ManualClock
from trust import limits
from trust.edge.grpc_errors import STATUS_OF
from trust.errors import EvidenceError, MeshError, Reason
from trust.handover import HANDOVER_KEY, Handover, check_handed_request, mint_handover
from trust.permit import PERMIT_KEY, permit_sha256
from trust.permit_claims import NO_MESSAGE, format_id

NODE_KEY = Ed25519PrivateKey.generate()
PATH = f"/{PAY}"
PERMIT = "a.permit.token"
HEADER = {"alg": "EdDSA", "typ": "egm-handover+jwt"}


def pem(key: Any) -> bytes:
    data: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return data


def claims(**changes: Any) -> Handover:
    right = Handover(
        audience=PAYMENTS,
        issued_s=NOW_S,
        expires_s=NOW_S + 30,
        token_id=b"\x33" * 16,
        execution_id=EXECUTION,
        method=PAY,
        caller=ALICE,
        permit_sha256=permit_sha256(PERMIT),
        request_sha256=REQUEST,
    )
    return dataclasses.replace(right, **changes)


def token(key: Ed25519PrivateKey = NODE_KEY, **changes: Any) -> str:
    return mint_handover(claims(**changes), key.sign)


class Door:
    """A guard that started a minute ago, and its key file."""

    def __init__(self, home: Path, started_ms: int = NOW_MS - 60_000) -> None:
        self.file = home / "node-key.pub"
        self.file.write_bytes(pem(NODE_KEY))
        self.file.chmod(0o644)
        self.clock = ManualClock(started_ms)
        self.guard = Guard(self.file, PAYMENTS, HEALTH, self.clock)
        self.clock.wall = NOW_MS

    def admit(self, text: str | None, permit: str | None = PERMIT, path: str = PATH) -> Any:
        sent: list[tuple[str, str | bytes]] = [("other", "x")]
        if text is not None:
            sent.append((HANDOVER_KEY, text))
        if permit is not None:
            sent.append((PERMIT_KEY, permit))
        return self.guard.admit(path, sent)

    def refuses(self, text: str | None, **how: Any) -> tuple[Reason, str]:
        with pytest.raises(MeshError) as error:
            self.admit(text, **how)
        return error.value.reason, STATUS_OF[error.value.reason].name


@pytest.fixture
def door(tmp_path: Path) -> Door:
    return Door(tmp_path)


def test_a_hand_over_is_accepted_once_and_tells_who_calls(door: Door) -> None:
    """Then it is used up."""
    text = token()
    assert door.admit(text) == (claims(), CurrentCall(ALICE, format_id(EXECUTION), PERMIT))
    assert door.refuses(text) == (Reason.PERMIT_REPLAYED, "ALREADY_EXISTS")


def test_below_level_five_a_hand_over_comes_without_permit_and_maybe_without_caller(door: Door) -> None:
    """What is absent in the token must be absent in the call."""
    bare: dict[str, Any] = {"permit_sha256": None, "caller": None, "request_sha256": None}
    assert door.admit(token(**bare), permit=None)[1] == CurrentCall(None, format_id(EXECUTION), None)
    added = token(token_id=b"\x34" * 16, **bare)
    assert door.refuses(added, permit=PERMIT) == (Reason.PERMIT_MISMATCH, "PERMISSION_DENIED")


def test_a_call_past_the_sidecar_is_refused(door: Door) -> None:
    """A permit alone opens nothing: it was the sidecar's to judge."""
    assert door.refuses(None) == (Reason.PERMIT_MISSING, "FAILED_PRECONDITION")
    assert door.refuses(None, permit=None) == (Reason.PERMIT_MISSING, "FAILED_PRECONDITION")


@pytest.mark.parametrize(
    ("changes", "how"),
    [
        ({"audience": ALICE}, {}),
        ({"method": "shop.Payments/Refund"}, {}),
        ({}, {"path": "/shop.Payments/Refund"}),
        ({}, {"permit": "another.permit.token"}),
        ({}, {"permit": None}),
        ({"permit_sha256": None}, {}),
    ],
)
def test_a_hand_over_of_another_call_is_refused(
    door: Door, changes: dict[str, Any], how: dict[str, Any]
) -> None:
    """Each claim binds."""
    assert door.refuses(token(**changes), **how) == (Reason.PERMIT_MISMATCH, "PERMISSION_DENIED")


def test_a_genuine_token_shown_for_another_call_is_spent(door: Door) -> None:
    """There is no second attempt with it."""
    text = token()
    assert door.refuses(text, path="/shop.Payments/Refund")[0] is Reason.PERMIT_MISMATCH
    assert door.refuses(text)[0] is Reason.PERMIT_REPLAYED


def test_a_hand_over_binds_its_request_where_it_names_one() -> None:
    """Another request, or none in its place, is refused; without a digest any request is good."""
    check_handed_request(claims(), REQUEST)
    check_handed_request(claims(request_sha256=None), REQUEST)
    check_handed_request(claims(request_sha256=None), NO_MESSAGE)
    check_handed_request(claims(request_sha256=NO_MESSAGE), NO_MESSAGE)
    for other in (b"\x12" * 32, NO_MESSAGE):
        with pytest.raises(EvidenceError) as error:
            check_handed_request(claims(), other)
        assert error.value.reason is Reason.PERMIT_MISMATCH


def test_a_token_of_another_node_or_with_a_changed_byte_is_refused(door: Door) -> None:
    """Only the own sidecar's key counts, and every byte of what it signed."""
    assert door.refuses(token(Ed25519PrivateKey.generate())) == (Reason.PERMIT_INVALID, "PERMISSION_DENIED")
    text = token()
    for at in range(0, len(text), 7):
        changed = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
        assert door.refuses(changed)[0] is Reason.PERMIT_INVALID
    door.admit(text)  # a forgery spends nothing


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none", "typ": "egm-handover+jwt"},
        {"alg": "HS256", "typ": "egm-handover+jwt"},
        {"alg": "EdDSA", "typ": "egm-permit+jwt"},
        {**HEADER, "kid": "k"},
        {"typ": "egm-handover+jwt", "alg": "EdDSA"},
    ],
)
def test_no_other_header_is_accepted(door: Door, header: dict[str, str]) -> None:
    """A permit that the same key signed is no hand-over."""
    signing = Signing(private=NODE_KEY)
    assert door.refuses(forge(signing, {}, header=header))[0] is Reason.PERMIT_INVALID


@pytest.mark.parametrize(
    "change",
    [
        {"aud": 1},
        {"iat": "1"},
        {"iat": True},
        {"exp": NOW_S + limits.MAX_HANDOVER_LIFETIME_S + 1},
        {"exp": NOW_S},
        {"jti": b64(b"short")},
        {"eid": "0198f2f3-eaaa-4bbb-8ccc-0123456789ab"},
        {"mth": ""},
        {"sub": ""},
        {"prm": b64(b"\x01" * 31)},
        {"req": None},
        {"extra": 1},
    ],
)
def test_claims_of_another_shape_are_refused_although_the_key_signed_them(
    door: Door, change: dict[str, Any]
) -> None:
    """None left out, none added, each in its one spelling."""
    right = {
        "aud": PAYMENTS,
        "iat": NOW_S,
        "exp": NOW_S + 30,
        "jti": b64(b"\x33" * 16),
        "eid": format_id(EXECUTION),
        "mth": PAY,
        "sub": ALICE,
        "prm": b64(permit_sha256(PERMIT)),
    }
    signing = Signing(private=NODE_KEY)
    assert door.refuses(forge(signing, right | change, header=HEADER))[0] is Reason.PERMIT_INVALID
    name = next(iter(change))
    if name in {"aud", "iat", "exp", "jti", "eid", "mth"}:
        less = {key: value for key, value in right.items() if key != name}
        assert door.refuses(forge(signing, less, header=HEADER))[0] is Reason.PERMIT_INVALID
    door.admit(forge(signing, right, header=HEADER))


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"aud":"a","aud":"b"}', b"\xff"])
def test_claims_that_are_no_object_are_refused(door: Door, body: bytes) -> None:
    """Also when the key signed them."""
    assert door.refuses(forge(Signing(private=NODE_KEY), body, header=HEADER))[0] is Reason.PERMIT_INVALID


@pytest.mark.parametrize("sent", [[(HANDOVER_KEY, b"x")], [(HANDOVER_KEY, "x"), (HANDOVER_KEY, "x")]])
def test_two_tokens_or_bytes_are_refused(door: Door, sent: Any) -> None:
    """Which one would count?"""
    with pytest.raises(EvidenceError) as error:
        door.guard.admit(PATH, sent)
    assert error.value.reason is Reason.PERMIT_INVALID


@pytest.mark.parametrize("now_ms", [NOW_S * 1000 - 1, (NOW_S + 30) * 1000])
def test_a_token_outside_its_time_is_refused(door: Door, now_ms: int) -> None:
    """One machine has one clock: no skew."""
    door.clock.wall = now_ms
    assert door.refuses(token()) == (Reason.PERMIT_EXPIRED, "PERMISSION_DENIED")


def test_a_token_from_before_the_process_started_is_refused(tmp_path: Path) -> None:
    """What the process before it accepted, nobody knows."""
    door = Door(tmp_path, started_ms=NOW_MS)
    assert door.refuses(token()) == (Reason.PERMIT_UNVERIFIABLE, "UNAVAILABLE")


def test_without_a_readable_key_file_nothing_is_accepted(door: Door) -> None:
    """Missing, damaged, of another kind, writable by others: each refuses, also after it has worked."""
    door.admit(token())
    refusal = (Reason.PERMIT_UNVERIFIABLE, "UNAVAILABLE")
    text = token(token_id=b"\x35" * 16)
    door.file.unlink()
    assert door.refuses(text) == refusal
    for damage in (b"", b"no key", pem(ec.generate_private_key(ec.SECP256R1()))):
        door.file.write_bytes(damage)
        assert door.refuses(text) == refusal
    door.file.write_bytes(pem(NODE_KEY))
    door.file.chmod(0o666)
    assert door.refuses(text) == refusal
    door.file.chmod(0o644)
    door.admit(text)


def test_a_new_key_in_the_file_takes_the_place_of_the_old_one(door: Door) -> None:
    """A node that lost its key makes a new one; the old one then counts for nothing."""
    door.admit(token())
    new = Ed25519PrivateKey.generate()
    made = door.file.with_suffix(".new")
    made.write_bytes(pem(new))
    made.chmod(0o644)
    made.replace(door.file)
    assert door.refuses(token(token_id=b"\x36" * 16))[0] is Reason.PERMIT_INVALID
    door.admit(token(new, token_id=b"\x37" * 16))


def test_exempt_are_whole_services_or_single_methods_by_exact_name(tmp_path: Path) -> None:
    """A name that only begins like an exempt one is not exempt."""
    guard = Guard(
        tmp_path / "none", PAYMENTS, (*HEALTH, *REFLECTION, "shop.Payments/Ping"), ManualClock(NOW_MS)
    )
    assert guard.exempts("/grpc.health.v1.Health/Watch")
    assert guard.exempts("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
    assert guard.exempts("/shop.Payments/Ping")
    for path in ("/shop.Payments/Pay", "/shop.Payments/PingPong", "/grpc.health.v1.HealthX/Check", "/x", ""):
        assert not guard.exempts(path)


def test_a_service_must_say_who_it_is(tmp_path: Path) -> None:
    """A workload that is no SPIFFE ID could match nothing."""
    with pytest.raises(EvidenceError) as error:
        Guard(tmp_path / "none", "payments", HEALTH, ManualClock(NOW_MS))
    assert error.value.reason is Reason.IDENTITY_INVALID


def test_a_token_that_no_service_would_accept_is_not_minted() -> None:
    """The sidecar refuses the call with the reason instead."""
    for changes in ({"method": "m" * limits.MAX_PERMIT_BYTES}, {"expires_s": NOW_S + 31}, {"token_id": b""}):
        with pytest.raises(EvidenceError) as error:
            token(**changes)
        assert error.value.reason is Reason.PERMIT_INVALID
