"""What a permit says: every claim has one shape, none is left out, repeated or added (ASCII JSON, in any order).

iss sub aud      SPIFFE IDs: the node that minted it, the calling workload, the workload that may execute
iat exp          Unix seconds, at most MAX_PERMIT_LIFETIME_S apart
jti              128 random bits, base64url
txn eid parent   UUIDv7 of the root execution and of this one; base64url SHA-256 of the parent permit. A root
                 has no parent and is its own transaction
mth req          "package.Service/Method"; base64url SHA-256 of the request as received (of a stream: of its
                 opening message; `NO_MESSAGE` when it ended without one), absent when the method alone is bound
att              base64url SHA-256 of the trust credential of the node that minted it; absent where the policy
                 names no witnesses
bnd cnf          {"v": policy version, "d": base64url digest}; {"x5t#S256": base64url SHA-256 of the client
                 certificate} (RFC 8705, section 3.1)
"""

import functools
import json
import re
from typing import Any, Final, NoReturn

from trust import limits
from trust.compact import (
    bytes_claim,
    from_base64url,
    number_claim,
    parse_object,
    text_claim,
    to_base64url,
    uuid7_claim,
)
from trust.errors import EvidenceError, Reason
from trust.per_call import per_call

# `req` of a stream that was half-closed before its first message: no message is known to have this SHA-256, and
# least of all the empty one, which is a message.
NO_MESSAGE: Final = bytes(32)
_DIGEST_BYTES: Final = 32
_ID_BYTES: Final = 16
_REQUIRED: Final = frozenset({"iss", "sub", "aud", "iat", "exp", "jti", "txn", "eid", "mth", "bnd", "cnf"})
_KNOWN: Final = _REQUIRED | {"parent", "req", "att"}
_BUNDLE: Final = frozenset({"v", "d"})
_CONFIRMATION: Final = frozenset({"x5t#S256"})
_MAX_NUMBER: Final = 2**40  # of seconds and versions
_KEPT: Final = 1_024
# What `write_claims` writes when no text needs an escape: printable ASCII but for " and \\.
_TEXT: Final = rb'"([ !#-\[\]-~]+)"'
_NUMBER: Final = rb"(0|[1-9][0-9]{0,12})"
_ID: Final = rb'"([0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12})"'
_SHA256: Final = rb'"([A-Za-z0-9_-]{42}[AEIMQUYcgkosw048])"'  # the spare bits of the last character are zero
_USUAL: Final = re.compile(
    rb'\{"iss":%b,"sub":%b,"aud":%b,"iat":%b,"exp":%b,"jti":"([A-Za-z0-9_-]{21}[AQgw])","txn":%b,"eid":%b,"mth":%b'
    rb',"bnd":\{"v":%b,"d":%b\},"cnf":\{"x5t#S256":%b\}(?:,"parent":%b)?(?:,"req":%b)?(?:,"att":%b)?\}\Z'
    % (_TEXT, _TEXT, _TEXT, _NUMBER, _NUMBER, _ID, _ID, _TEXT, _NUMBER, *[_SHA256] * 5)
)


@per_call()
class PermitClaims:
    """What a permit says. Digests are 32 raw bytes (SHA-256), ids 16."""

    issuer: str  # SPIFFE ID of the node that minted it
    subject: str  # SPIFFE ID of the calling workload
    audience: str  # SPIFFE ID of the workload that may execute it
    issued_s: int  # Unix seconds
    expires_s: int
    permit_id: bytes  # jti: 128 random bits
    root_id: bytes  # txn: execution (UUIDv7) at the start of the chain
    execution_id: bytes  # eid: this execution (UUIDv7)
    method: str  # "package.Service/Method"
    policy_version: int  # of the base bundle that the minting node decided under
    policy_digest: bytes  # of what it enforced
    certificate_sha256: bytes  # of the client certificate (DER) that the call comes with
    request_sha256: bytes | None = (
        None  # of the (opening) request, or NO_MESSAGE; None: bound by method alone
    )
    parent_sha256: bytes | None = None  # of the permit of the execution that makes this call; None: a root
    credential_sha256: bytes | None = None  # of the minting node's trust credential; None: it has none


def refuse(why: str) -> NoReturn:
    """Raise EvidenceError PERMIT_INVALID."""
    raise EvidenceError(Reason.PERMIT_INVALID, f"permit refused: {why}")


def format_id(identifier: bytes) -> str:
    """Return an execution id (16 bytes) in the spelling of RFC 9562."""
    text = identifier.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def write_claims(claims: PermitClaims) -> bytes:
    """Return the JSON of `claims`.

    Raises:
        EvidenceError: PERMIT_INVALID, naming the claim that `parse_claims` would refuse to read.
    """
    _check_mintable(claims)
    root = format_id(claims.root_id)
    own = root if claims.execution_id == claims.root_id else format_id(claims.execution_id)
    # The members are in one order and nearly all are plain: cheaper than an encoder, and the same bytes (tests).
    text = (
        f'{{"iss":{_quoted(claims.issuer)},"sub":{_quoted(claims.subject)},"aud":{_quoted(claims.audience)}'
        f',"iat":{claims.issued_s:d},"exp":{claims.expires_s:d},"jti":"{to_base64url(claims.permit_id)}"'
        f',"txn":"{root}","eid":"{own}","mth":{_quoted(claims.method)}'
        f',"bnd":{{"v":{claims.policy_version:d},"d":"{_digest(claims.policy_digest)}"}}'
        f',"cnf":{{"x5t#S256":"{_digest(claims.certificate_sha256)}"}}'
    )
    if claims.parent_sha256 is not None:
        text += f',"parent":"{to_base64url(claims.parent_sha256)}"'
    if claims.request_sha256 is not None:
        text += f',"req":"{to_base64url(claims.request_sha256)}"'
    if claims.credential_sha256 is not None:
        text += f',"att":"{_digest(claims.credential_sha256)}"'
    return f"{text}}}".encode("ascii")


def parse_claims(data: bytes) -> PermitClaims:
    """Return the claims that `data` spells.

    Raises:
        EvidenceError: PERMIT_INVALID, naming the claim.
    """
    usual = _read_usual(data)
    if usual is not None:
        _check_sense(usual)
        return usual
    try:
        payload = parse_object(data)
    except (ValueError, RecursionError):
        refuse("its claims are not one JSON object, each claim once")
    try:
        return _claims(payload)
    except ValueError as error:
        refuse(str(error))


def _claims(payload: dict[str, Any]) -> PermitClaims:
    names = payload.keys()
    if not names >= _REQUIRED:
        refuse("it lacks " + ", ".join(sorted(_REQUIRED - names)))
    if not names <= _KNOWN:
        refuse("it has claims that this version does not know")
    bundle, confirmation = payload["bnd"], payload["cnf"]
    if not isinstance(bundle, dict) or bundle.keys() != _BUNDLE:
        refuse("its policy (bnd) is not exactly v and d")
    if not isinstance(confirmation, dict) or confirmation.keys() != _CONFIRMATION:
        refuse("its certificate (cnf) is not exactly x5t#S256")
    claims = PermitClaims(
        issuer=text_claim(payload, "iss"),
        subject=text_claim(payload, "sub"),
        audience=text_claim(payload, "aud"),
        issued_s=number_claim(payload["iat"], "iat"),
        expires_s=number_claim(payload["exp"], "exp"),
        permit_id=bytes_claim(payload["jti"], _ID_BYTES, "jti"),
        root_id=uuid7_claim(payload["txn"], "txn"),
        execution_id=uuid7_claim(payload["eid"], "eid"),
        method=text_claim(payload, "mth"),
        policy_version=number_claim(bundle["v"], "bnd.v"),
        policy_digest=bytes_claim(bundle["d"], _DIGEST_BYTES, "bnd.d"),
        certificate_sha256=bytes_claim(confirmation["x5t#S256"], _DIGEST_BYTES, "cnf"),
        request_sha256=bytes_claim(payload["req"], _DIGEST_BYTES, "req") if "req" in names else None,
        parent_sha256=bytes_claim(payload["parent"], _DIGEST_BYTES, "parent") if "parent" in names else None,
        credential_sha256=bytes_claim(payload["att"], _DIGEST_BYTES, "att") if "att" in names else None,
    )
    _check_sense(claims)
    return claims


def _read_usual(data: bytes) -> PermitClaims | None:
    """Return the claims spelled exactly as `write_claims` does; None for any other spelling, good or not.

    The expression accepts nothing that `_claims` would read otherwise or refuse (tests hold them to that).
    """
    found = _USUAL.match(data)
    if found is None:
        return None
    iss, sub, aud, iat, exp, jti, txn, eid, mth, version, policy, certificate, parent, req, att = (
        found.groups()
    )
    root_id = bytes.fromhex(txn.replace(b"-", b"").decode("ascii"))
    claims = PermitClaims(
        issuer=_kept_text(iss),
        subject=_kept_text(sub),
        audience=_kept_text(aud),
        issued_s=int(iat),
        expires_s=int(exp),
        permit_id=from_base64url(jti.decode("ascii")),
        root_id=root_id,
        execution_id=root_id if eid == txn else bytes.fromhex(eid.replace(b"-", b"").decode("ascii")),
        method=_kept_text(mth),
        policy_version=int(version),
        policy_digest=_kept_digest(policy),
        certificate_sha256=_kept_digest(certificate),
        request_sha256=None if req is None else from_base64url(req.decode("ascii")),
        parent_sha256=None if parent is None else from_base64url(parent.decode("ascii")),
        credential_sha256=None if att is None else _kept_digest(att),
    )
    return claims if max(claims.issued_s, claims.expires_s, claims.policy_version) < _MAX_NUMBER else None


# Pure functions of short texts that come again with every permit of a node; bounded.


@functools.lru_cache(_KEPT)
def _quoted(text: str) -> str:
    return json.dumps(text)


@functools.lru_cache(_KEPT)
def _digest(value: bytes) -> str:
    return to_base64url(value)


@functools.lru_cache(_KEPT)
def _kept_text(text: bytes) -> str:
    return text.decode("ascii")


@functools.lru_cache(_KEPT)
def _kept_digest(text: bytes) -> bytes:
    return from_base64url(text.decode("ascii"))


def _check_sense(claims: PermitClaims) -> None:
    """Refuse what no reader accepts although every claim has its shape."""
    if not 0 < claims.expires_s - claims.issued_s <= limits.MAX_PERMIT_LIFETIME_S:
        refuse(f"it lives not between 1 and {limits.MAX_PERMIT_LIFETIME_S} s (iat, exp)")
    if (claims.parent_sha256 is None) != (claims.root_id == claims.execution_id):
        refuse("a root, and only a root, is its own transaction (txn, eid, parent)")


def _check_mintable(claims: PermitClaims) -> None:
    """Refuse claims that `_claims` would refuse to read."""
    if not (claims.issuer and claims.subject and claims.audience and claims.method):
        refuse("its iss, sub, aud or mth is empty")
    for number in (claims.issued_s, claims.expires_s, claims.policy_version):
        if not 0 <= number < _MAX_NUMBER:
            refuse("its iat, exp or bnd.v is out of bounds")
    for digest in (
        claims.policy_digest,
        claims.certificate_sha256,
        claims.request_sha256,
        claims.parent_sha256,
        claims.credential_sha256,
    ):
        if digest is not None and len(digest) != _DIGEST_BYTES:
            refuse("one of its digests is no SHA-256")
    if len(claims.permit_id) != _ID_BYTES:
        refuse(f"its jti is not {_ID_BYTES} bytes")
    for uuid in (claims.root_id, claims.execution_id):
        if len(uuid) != _ID_BYTES or uuid[6] >> 4 != 7 or uuid[8] >> 6 != 2:
            refuse("its txn or eid is not a UUIDv7")
    _check_sense(claims)
