"""What holds for every permit: it comes back as it went in, and not one bit of it can be changed."""

import base64
import hashlib
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.call import Attempt, Decision, Direction
from sidecar.core.endorsements import Endorsements
from sidecar.core.permits import Verifier, check_enough
from sidecar.core.replay import ReplayCache
from sidecar.interceptors.opening import checking_first, open_requests
from tests.support.permits import ALICE, CERTIFICATE, NOW_MS, NOW_S, PAY, PAYMENTS, Signing, claims, token
from trust import limits
from trust.compact import from_base64url, to_base64url
from trust.errors import MeshError, Reason
from trust.handover import Handover, check_handed_request
from trust.permit import NO_MESSAGE, PermitClaims, mint, verify
from trust.policy.types import Authn

SIGNING = Signing()
quick = settings(max_examples=150, deadline=None)
TOKEN = token(SIGNING)

digests = st.binary(min_size=32, max_size=32)
uuids = st.binary(min_size=16, max_size=16).map(
    lambda raw: raw[:6] + bytes([0x70 | raw[6] & 15, raw[7], 0x80 | raw[8] & 63]) + raw[9:]
)
texts = st.text(min_size=1, max_size=80)


def _sha256(message: bytes) -> bytes:
    return hashlib.sha256(message).digest()


@st.composite
def any_claims(draw: st.DrawFn) -> PermitClaims:
    """Any claims that make sense and are in time."""
    execution, root = draw(uuids), draw(uuids)
    parent = draw(st.none() | digests)
    if parent is None or root == execution:
        root, parent = execution, None
    issued = NOW_MS // 1000 + draw(st.integers(-29, 5))
    return PermitClaims(
        issuer=str(SIGNING.node),
        subject=draw(texts),
        audience=draw(texts),
        issued_s=issued,
        expires_s=issued + draw(st.integers(max(1, NOW_MS // 1000 - issued), 30)),
        permit_id=draw(st.binary(min_size=16, max_size=16)),
        root_id=root,
        execution_id=execution,
        method=draw(texts),
        policy_version=draw(st.integers(0, 2**40 - 1)),
        policy_digest=draw(digests),
        certificate_sha256=draw(digests),
        request_sha256=draw(st.none() | digests),
        parent_sha256=parent,
        credential_sha256=draw(st.none() | digests),
    )


def check(text: str, told: PermitClaims) -> PermitClaims:
    return verify(
        text,
        key_of=SIGNING.key_of,
        caller=told.subject,
        audience=told.audience,
        method=told.method,
        request_sha256=told.request_sha256,
        client_cert_sha256=told.certificate_sha256,
        now_ms=NOW_MS,
    ).claims


@quick
@given(any_claims())
def test_what_is_minted_is_verified_unchanged(told: PermitClaims) -> None:
    """For every claims that a node may mint, verify(mint(x)) == x."""
    assert check(mint(told, SIGNING.private.sign, SIGNING.kid), told) == told


@quick
@given(st.integers(0, len(TOKEN) - 1), st.integers(0, 127))
def test_no_character_of_a_permit_can_be_changed(position: int, replacement: int) -> None:
    """Header, claims and signature, spare bits included."""
    text = TOKEN[:position] + chr(replacement) + TOKEN[position + 1 :]
    if text == TOKEN:
        return
    with pytest.raises(MeshError) as error:
        check(text, claims())
    assert error.value.reason in {Reason.PERMIT_INVALID, Reason.PERMIT_UNVERIFIABLE}


def test_no_character_of_a_permit_can_be_left_out_or_doubled() -> None:
    """Every position, both ways."""
    for position in range(len(TOKEN)):
        for text in (
            TOKEN[:position] + TOKEN[position + 1 :],
            TOKEN[: position + 1] + TOKEN[position:],
        ):
            with pytest.raises(MeshError):
                check(text, claims())


@quick
@given(st.text(max_size=40) | st.binary(max_size=40).map(lambda raw: base64.b64encode(raw).decode()))
def test_base64url_has_one_spelling(text: str) -> None:
    """What is decoded is encoded back to the same text; everything else is a ValueError."""
    try:
        data = from_base64url(text)
    except ValueError:
        return
    assert to_base64url(data) == text


@quick
@given(st.binary(max_size=100))
def test_base64url_decodes_what_it_encodes(data: bytes) -> None:
    """And agrees with the standard library."""
    assert from_base64url(to_base64url(data)) == data
    assert to_base64url(data) == base64.urlsafe_b64encode(data).decode().rstrip("=")


steps = st.lists(
    st.tuples(st.integers(0, 12), st.integers(-40, 10), st.integers(1, 30), st.integers(-50, 50)), max_size=80
)


@settings(max_examples=300, deadline=None)
@given(steps)
def test_nothing_is_spent_twice_whatever_the_clock_does(script: list[tuple[int, int, int, int]]) -> None:
    """A model without forgetting: what it has seen is never accepted again by the cache, even as time jumps."""
    cache = ReplayCache(boot_ms=NOW_MS - 100_000, remember=lambda _ms: None, capacity=8)
    seen: dict[int, tuple[int, int]] = {}
    accepted: set[int] = set()
    now_ms = NOW_MS
    for jti, age_s, life_s, step_s in script:
        now_ms += step_s * 1000
        iat_ms = now_ms + age_s * 1000
        # a permit is one thing: presented again it has the same dates
        iat_ms, exp_ms = seen.setdefault(jti, (iat_ms, iat_ms + life_s * 1000))
        in_time = iat_ms <= now_ms + limits.MAX_CLOCK_SKEW_MS and now_ms < exp_ms + limits.MAX_CLOCK_SKEW_MS
        if not in_time:
            continue
        try:
            cache.spend(str(jti), iat_ms=iat_ms, exp_ms=exp_ms, now_ms=now_ms)
        except MeshError:
            continue
        assert jti not in accepted
        accepted.add(jti)
        assert len(cache) <= 8


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-5_000, 5_000), st.integers(0, 20_000)), min_size=1, max_size=20),
    st.integers(0, 20_000),
)
def test_nothing_spent_before_a_restart_is_spent_after_it(
    spent: list[tuple[int, int]], pause_ms: int
) -> None:
    """For callers whose clocks differ by up to the skew, and any length of the restart."""
    stored = [0]
    cache = ReplayCache(boot_ms=NOW_MS - 60_000, remember=stored.append)
    now_ms, used = NOW_MS, []
    for number, (skew_ms, step_ms) in enumerate(spent):
        now_ms += step_ms
        iat_ms = now_ms + skew_ms
        cache.spend(str(number), iat_ms=iat_ms, exp_ms=iat_ms + 30_000, now_ms=now_ms)
        used.append((str(number), iat_ms))
    now_ms += pause_ms
    after = ReplayCache(boot_ms=max(now_ms, *stored), remember=stored.append)
    for jti, iat_ms in used:
        for moment_ms in (now_ms, now_ms + 5_000, now_ms + 40_000):
            with pytest.raises(MeshError):
                after.spend(jti, iat_ms=iat_ms, exp_ms=iat_ms + 30_000, now_ms=moment_ms)


# What a stream begins with: a message, its end, or nothing yet (the door did not wait).
openings = st.none() | st.just(NO_MESSAGE) | st.sampled_from([b"", bytes(32), b"a", b"b"]).map(_sha256)


@quick
@given(bound=openings, shown=openings, here=st.booleans())
def test_a_stream_is_admitted_exactly_when_its_permit_binds_what_it_begins_with_or_policy_here_asks_for_less(
    bound: bytes | None, shown: bytes | None, here: bool
) -> None:
    """For every permit that any sidecar can mint, and whatever the caller then sends; `here`: the callee's policy."""
    endorsements = Endorsements(lambda: b"", "mesh.local")
    endorsements.hold(SIGNING.public)
    verifier = Verifier(endorsements, ReplayCache(boot_ms=NOW_MS - 60_000, remember=lambda _ms: None))
    attempt = Attempt(Direction.INBOUND, "payments", PAY, ALICE, Authn.MTLS)
    decision = Decision("d", True, Reason.ALLOWED, level=5, policy_version=7, method_alone=here)
    text = token(SIGNING, request_sha256=bound)
    permit = verifier.present(
        text, None, attempt, audience=PAYMENTS, client_cert_sha256=CERTIFICATE, now_ms=NOW_MS
    )
    # the door waits for the opening message exactly when the permit binds one
    begins = shown if bound is not None else None
    try:
        verifier.bind(permit, begins)
        check_enough(permit, decision)
        admitted = True
    except MeshError as error:
        assert error.reason is Reason.PERMIT_MISMATCH
        admitted = False
    assert admitted == (here if bound is None else bound == shown)
    with pytest.raises(MeshError):
        verifier.present(
            text, None, attempt, audience=PAYMENTS, client_cert_sha256=CERTIFICATE, now_ms=NOW_MS
        )


@quick
@given(handed=openings, first=st.none() | st.sampled_from([b"", b"a", b"b"]))
def test_a_handler_gets_a_stream_whole_or_not_at_all(handed: bytes | None, first: bytes | None) -> None:
    """Reading the first request to check it loses, repeats and reorders nothing."""
    claims = Handover(PAYMENTS, NOW_S, NOW_S + 30, bytes(16), bytes(16), PAY, request_sha256=handed)
    messages = [] if first is None else [first, b"second", b"third"]
    check = partial(check_handed_request, claims)
    read = checking_first(None, check)
    try:
        got = list(open_requests(map(read, messages), check))
    except MeshError as error:
        assert error.reason is Reason.PERMIT_MISMATCH
        assert handed not in {None, NO_MESSAGE if first is None else _sha256(first)}
    else:
        assert got == messages
        assert handed in {None, NO_MESSAGE if first is None else _sha256(first)}
