"""Orders to try a proposed bundle: what they say, and who may give them."""

import json
from dataclasses import replace

import pytest

from tests.support.tuf_world import signer
from trust import limits
from trust.errors import EvidenceError, Reason
from trust.shadow import Order, read_order, sign_order, verify_order

ORDER = Order("mesh.local", "targets", "a" * 64, "b" * 64, 1000, 1_000_000, 1_003_600)
APPROVER = signer("approver-1")
KEYS = {APPROVER.public_key.keyid: APPROVER.public_key}
NOW_S = 1_000_010


def verified(data: bytes) -> Order:
    return verify_order(data, KEYS, trust_domain="mesh.local", now_s=NOW_S)


def reason_of(data: bytes) -> Reason:
    with pytest.raises(EvidenceError) as caught:
        verified(data)
    return caught.value.reason


def test_an_approvers_order_is_read_back() -> None:
    """Text, signature and id survive the way to a node."""
    assert verified(sign_order(ORDER, APPROVER)) == ORDER
    assert Order.parse(ORDER.body()).id == ORDER.id


def test_the_key_of_somebody_else_orders_nothing() -> None:
    """A control plane has no approver's key."""
    assert reason_of(sign_order(ORDER, signer("control-plane"))) is Reason.NOT_AUTHORIZED


def test_another_text_under_the_signature_is_refused() -> None:
    """A longer run than the approver signed."""
    members = json.loads(sign_order(ORDER, APPROVER))
    members["order"] = replace(ORDER, until_s=ORDER.until_s + 60).body().decode()
    assert reason_of(json.dumps(members).encode()) is Reason.SIGNATURE_INVALID


def test_an_order_of_another_mesh_or_one_that_is_over_is_refused() -> None:
    """Orders cannot be taken elsewhere, nor kept."""
    elsewhere = replace(ORDER, trust_domain="other.mesh")
    assert reason_of(sign_order(elsewhere, APPROVER)) is Reason.SHADOW_ORDER_INVALID
    over = replace(ORDER, issued_s=900_000, until_s=NOW_S)
    assert reason_of(sign_order(over, APPROVER)) is Reason.SHADOW_ORDER_INVALID


def test_an_order_that_begins_in_the_future_is_refused() -> None:
    """Else one approver could have every node decide twice for years: the bound is on its length alone."""
    year_s = 365 * 24 * 3600
    later = replace(ORDER, issued_s=ORDER.issued_s + year_s, until_s=ORDER.until_s + year_s)
    assert reason_of(sign_order(later, APPROVER)) is Reason.SHADOW_ORDER_INVALID
    ahead_s = NOW_S + limits.MAX_CLOCK_SKEW_MS // 1000  # the clock of an approver's machine
    assert verified(sign_order(replace(ORDER, issued_s=ahead_s), APPROVER)).issued_s == ahead_s


@pytest.mark.parametrize(
    "wrong",
    [
        {"until_s": ORDER.issued_s},
        {"until_s": ORDER.issued_s + limits.MAX_SHADOW_RUN_S + 1},
        {"bundle_bytes": limits.MAX_BUNDLE_ARCHIVE_BYTES + 1},
        {"bundle_bytes": 0},
        {"bundle_sha256": "B" * 64},
        {"role": "no role"},
    ],
    ids=["no-time", "too-long", "too-large", "empty", "digest", "role"],
)
def test_what_no_order_may_say_cannot_be_made(wrong: dict[str, object]) -> None:
    """So it cannot be parsed either."""
    with pytest.raises(EvidenceError) as caught:
        replace(ORDER, **wrong)  # type: ignore[arg-type]
    assert caught.value.reason is Reason.SHADOW_ORDER_INVALID


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[" * 100_000,
        b'{"order": 1, "keyid": "", "sig": ""}',
        json.dumps({"order": "\ud800", "keyid": "", "sig": ""}).encode(),
        json.dumps({"order": ORDER.body().decode()[:-1], "keyid": "", "sig": ""}).encode(),
        json.dumps(
            {"order": ORDER.body().decode().replace("1000\n", "01000\n"), "keyid": "", "sig": ""}
        ).encode(),
        b"x" * (limits.MAX_SHADOW_ORDER_BYTES + 1),
    ],
    ids=["empty", "object", "deep", "number", "surrogate", "short", "zero", "large"],
)
def test_garbage_is_refused_with_its_reason(data: bytes) -> None:
    """Never with an exception of another kind."""
    with pytest.raises(EvidenceError) as caught:
        read_order(data)
    assert caught.value.reason is Reason.SHADOW_ORDER_INVALID
