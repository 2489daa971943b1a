"""Whatever lies where a sealed payload should be is answered or refused; only our own errors come out."""

import contextlib
import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.auditing import BINDING, Auditor, sealed
from trust.auditor import parse_auditors
from trust.errors import EvidenceError, Reason
from trust.payload import open_sealed, parse_sealed, write_sealed

ANN = Auditor("ann")
PAYLOAD = b"payload"
SEALED = sealed(PAYLOAD, ANN)
quick = settings(max_examples=200, deadline=None)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def check(data: bytes) -> None:
    """Nothing but the sealed payload itself opens, and only our own errors come out."""
    try:
        parse_sealed(data)
        opened = open_sealed(data, BINDING, ANN.private)
    except EvidenceError as error:
        assert error.reason in {Reason.PAYLOAD_INVALID, Reason.NOT_FOUND}
        return
    assert (data, opened) == (SEALED, PAYLOAD)


@quick
@given(st.binary(max_size=400))
@example(b"{}")
@example(SEALED)
def test_any_bytes(data: bytes) -> None:
    """Total over bytes."""
    check(data)


@quick
@given(st.integers(0, len(SEALED) - 1), st.integers(1, 255))
def test_every_changed_byte_is_noticed(position: int, mask: int) -> None:
    """No byte of it is free."""
    data = bytearray(SEALED)
    data[position] ^= mask
    check(bytes(data))


@quick
@given(st.integers(0, len(SEALED) - 1), st.integers(0, 40))
def test_every_cut_is_noticed(position: int, count: int) -> None:
    """Nor may one be missing."""
    check(SEALED[:position] + SEALED[position + count :])


@quick
@given(st.sampled_from(["ciphertext", "iv", "protected", "recipients", "tag", "aad", "unprotected"]), JSON)
def test_any_value_for_a_member(name: str, value: Any) -> None:
    """Also members that a JWE may have and ours has not."""
    check(write_sealed({**json.loads(SEALED), name: value}))


@quick
@given(st.sampled_from(["kid", "epk", "alg", "apu", "apv"]), JSON)
def test_any_value_in_the_header_of_a_recipient(name: str, value: Any) -> None:
    """What the key agreement reads is fixed."""
    document = json.loads(SEALED)
    document["recipients"][0]["header"][name] = value
    check(write_sealed(document))


@quick
@given(st.dictionaries(st.text(max_size=6), st.text(max_size=50), max_size=3))
def test_any_auditors(auditors: dict[str, str]) -> None:
    """The signed settings of a mesh are parsed, too."""
    with contextlib.suppress(EvidenceError):
        parse_auditors(auditors)
