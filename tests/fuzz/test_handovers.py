"""Whatever arrives at a service as a hand-over, or beside one, is accepted once or refused by our own errors."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sidecar.core.permits import presented
from sidecar.edge.node_signer import write_public_key
from sidecar.interceptors.verification import Guard
from tests.support.permits import ALICE, EXECUTION, NOW_MS, NOW_S, PAY, PAYMENTS, REQUEST, b64, payload_of
from tests.support.sidecar_core import ManualClock
from trust.errors import MeshError
from trust.handover import HANDOVER_KEY, Handover, authenticate_handover, mint_handover
from trust.node_key import ENDORSEMENT_KEY
from trust.permit import PERMIT_KEY, permit_sha256

quick = settings(max_examples=200, deadline=None)
KEY = Ed25519PrivateKey.generate()
PERMIT = "a.permit.token"
HEADER = b'{"alg":"EdDSA","typ":"egm-handover+jwt"}'
_drawn = itertools.count(1)


def token() -> str:
    """Return a hand-over that is right in every claim, and was never used."""
    return mint_handover(
        Handover(
            audience=PAYMENTS,
            issued_s=NOW_S,
            expires_s=NOW_S + 30,
            token_id=next(_drawn).to_bytes(16),
            execution_id=EXECUTION,
            method=PAY,
            caller=ALICE,
            permit_sha256=permit_sha256(PERMIT),
            request_sha256=REQUEST,
        ),
        KEY.sign,
    )


def signed(payload: Any, header: Any = HEADER) -> str:
    """Return a token with any header and payload under the real key."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    text = ".".join(b64(part) for part in parts)
    return f"{text}.{b64(KEY.sign(text.encode()))}"


def accepts(text: str) -> bool:
    """Return whether `text` is a hand-over for this workload; only our own errors may come out."""
    try:
        authenticate_handover(text, KEY.public_key(), audience=PAYMENTS, now_ms=NOW_MS)
    except MeshError:
        return False
    return True


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Guard:
    """Return a guard that started a minute ago."""
    file: Path = tmp_path_factory.mktemp("key") / "node-key.pub"
    write_public_key(file, KEY.public_key())
    clock = ManualClock(NOW_MS - 60_000)
    made = Guard(file, PAYMENTS, (), clock)
    clock.wall = NOW_MS
    return made


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(ALICE),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)


@quick
@given(st.text(max_size=300) | st.text("AQgw.-_=", max_size=300))
@example("..")
@example(token().rpartition(".")[0] + ".")
@example("\ud800.\ud800.\ud800")
def test_hand_overs_from_any_text(text: str) -> None:
    """Noise is never a hand-over."""
    assert not accepts(text)


@quick
@given(st.sampled_from([*sorted(payload_of(token())), "iss", "att", ""]), json_values)
def test_hand_overs_with_any_value_in_any_claim(name: str, value: Any) -> None:
    """Signed by the real key: every claim has its shape, and there are no others."""
    payload = payload_of(token())
    same = name in payload and json.dumps(payload[name]) == json.dumps(value)
    texts = name in {"sub", "mth"} and isinstance(value, str) and value != ""
    times = name in {"iat", "exp"} and isinstance(value, int) and not isinstance(value, bool)
    accepted = accepts(signed({**payload, name: value}))
    assert accepted if same else (texts or times or not accepted)


@quick
@given(st.sampled_from(["aud", "iat", "exp", "jti", "eid", "mth"]))
def test_hand_overs_that_lack_a_claim(name: str) -> None:
    """None of these may be left out."""
    payload = payload_of(token())
    del payload[name]
    assert not accepts(signed(payload))


@quick
@given(st.binary(max_size=300))
def test_hand_overs_with_any_bytes_as_claims_or_header(data: bytes) -> None:
    """Signed by the real key, too."""
    assert not accepts(signed(data))
    assert accepts(signed(payload_of(token()), data)) == (data == HEADER)


@quick
@given(st.integers(0, 10_000), st.integers(0, 127))
def test_no_character_of_a_hand_over_can_be_changed(position: int, replacement: int) -> None:
    """Header, claims and signature, spare bits included."""
    text = token()
    position %= len(text)
    changed = text[:position] + chr(replacement) + text[position + 1 :]
    assert accepts(text)
    assert changed == text or not accepts(changed)


keys = st.sampled_from(
    [HANDOVER_KEY, PERMIT_KEY, ENDORSEMENT_KEY, "egm-handover-bin", "EGM-HANDOVER", "other"]
)
good = st.sampled_from(["good", "good", "permit"])
pairs = st.lists(st.tuples(keys, good | st.text(max_size=20) | st.binary(max_size=20)), max_size=6)


@quick
@given(pairs)
def test_whatever_metadata_come_a_call_is_handed_over_once_or_not_at_all(
    guard: Guard, sent: list[tuple[str, str | bytes]]
) -> None:
    """Exactly one token and exactly its permit, each once and as text; then a second time never."""
    fresh = {"good": token(), "permit": PERMIT}
    metadata = [(key, fresh.get(value, value) if isinstance(value, str) else value) for key, value in sent]
    tokens = [value for key, value in metadata if key == HANDOVER_KEY]
    permits = [value for key, value in metadata if key == PERMIT_KEY]
    right = tokens == [fresh["good"]] and permits == [PERMIT]
    for attempt in range(2):
        try:
            claims, call = guard.admit(f"/{PAY}", metadata)
        except MeshError:
            assert not right or attempt == 1
        else:
            assert right and attempt == 0
            assert (claims.caller, call.permit) == (ALICE, PERMIT)


@quick
@given(pairs)
def test_whatever_metadata_come_a_sidecar_sees_one_permit_and_one_endorsement_or_none(
    sent: list[tuple[str, str | bytes]],
) -> None:
    """Two of one could be read differently by two readers; so they are refused."""
    permits = [value for key, value in sent if key == PERMIT_KEY]
    endorsements = [value for key, value in sent if key == ENDORSEMENT_KEY]
    proper = all(isinstance(value, str) for value in permits)
    proper = proper and all(isinstance(value, bytes) for value in endorsements)
    proper = proper and max(len(permits), len(endorsements)) <= 1
    try:
        permit, endorsement = presented(sent)
    except MeshError:
        assert not proper
    else:
        assert proper
        assert permit == (permits[0] if permits else None)
        assert endorsement == (endorsements[0] if endorsements else None)
