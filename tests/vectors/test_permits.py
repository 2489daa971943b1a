"""Permits as another library writes them, and those that every verifier must refuse (provenance: SOURCES.md)."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from trust.compact import from_base64url
from trust.errors import MeshError, Reason, StateError
from trust.node_key import NodeKey
from trust.permit import Permit, mint, permit_sha256, read_claims, verify
from trust.spiffe import SpiffeId

VECTORS: dict[str, Any] = json.loads(Path(__file__).with_name("permits.json").read_text(encoding="utf-8"))
KEY = Ed25519PrivateKey.from_private_bytes(from_base64url(VECTORS["key"]["d"]))
NODE_KEY = NodeKey(SpiffeId.parse(VECTORS["node"]), KEY.public_key(), 2**50, VECTORS["kid"])


def key_of(kid: str) -> NodeKey:
    if kid != NODE_KEY.digest:
        raise StateError(Reason.PERMIT_UNVERIFIABLE, "unknown key")
    return NODE_KEY


def check(token: str, *, bound: bool = True) -> Permit:
    call = VECTORS["call"]
    return verify(
        token,
        key_of=key_of,
        caller=call["caller"],
        audience=call["audience"],
        method=call["method"],
        request_sha256=hashlib.sha256(call["request"].encode()).digest() if bound else None,
        client_cert_sha256=hashlib.sha256(call["certificate"].encode()).digest(),
        now_ms=call["now_ms"],
    )


def test_the_key_of_the_vectors_is_that_of_rfc_8037() -> None:
    """Appendix A.1, whose private and public halves belong together."""
    assert KEY.public_key().public_bytes_raw() == from_base64url(VECTORS["key"]["x"])


def test_the_signature_of_rfc_8037_verifies_with_our_reading_of_base64url() -> None:
    """Appendix A.4: a JWS with EdDSA that is not ours, so that the building blocks are checked from outside."""
    token = VECTORS["refused"][-1]["token"]
    signed, _, signature = token.rpartition(".")
    KEY.public_key().verify(from_base64url(signature), signed.encode())
    assert from_base64url(token.split(".")[1]) == b"Example of Ed25519 signing"


@pytest.mark.parametrize("vector", VECTORS["accepted"], ids=lambda vector: vector["what"])
def test_a_permit_of_another_writer_is_read_and_written_alike(vector: dict[str, str]) -> None:
    """Accepted with every claim as the standard library reads it, and minted to the same bytes."""
    token = vector["token"]
    body = token.split(".")[1]
    told = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    claims = check(token, bound="req" in told).claims
    assert (claims.issuer, claims.subject, claims.audience) == (told["iss"], told["sub"], told["aud"])
    assert (claims.execution_id.hex(), claims.root_id.hex()) == (
        told["eid"].replace("-", ""),
        told["txn"].replace("-", ""),
    )
    assert claims.policy_digest == hashlib.sha256(b"policy").digest()
    assert mint(claims, KEY.sign, VECTORS["kid"]) == token


def test_the_child_names_its_parent_by_the_digest_of_the_token() -> None:
    """Lineage is checked from the permits alone."""
    root, child = (vector["token"] for vector in VECTORS["accepted"][:2])
    assert read_claims(child).parent_sha256 == permit_sha256(root) == hashlib.sha256(root.encode()).digest()
    assert read_claims(child).root_id == read_claims(root).execution_id
    assert read_claims(root).parent_sha256 is None


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["what"])
def test_what_every_verifier_must_refuse_is_refused_with_its_reason(vector: dict[str, str]) -> None:
    """All but the first two and the last carry good signatures."""
    with pytest.raises(MeshError) as error:
        check(vector["token"])
    assert error.value.reason == vector["reason"]
