"""Whether the permits in the records are genuine, were valid, and say what both sides recorded.

What a permit says must be what the record says that holds it (integrity), and for the side that minted it the policy
that it was decided under (authority); the key of the node that it names must have signed it, and a certificate that
leads to the CA must vouch for that key (identity); its own times, and those of what vouches, hold (time).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from trust import limits
from trust.errors import EvidenceError, MeshError, Reason, StateError
from trust.evidence_case import Case
from trust.evidence_report import Permitted, Section
from trust.execution import id_text
from trust.levels import CRYPTOGRAPHIC
from trust.node_key import NODE_KIND, NodeKey, endorsement_digest, verify_endorsement
from trust.permit import authenticate, read_claims
from trust.permit_claims import PermitClaims
from trust.record import Intent, Side
from trust.spiffe import SpiffeId


@dataclass(frozen=True, slots=True)
class _Found:
    """A permit with the record that holds it."""

    where: str
    intent: Intent
    token: str
    claims: PermitClaims


class _AbsentError(Exception):
    """The file has no endorsement with this key id."""


def check_permits(case: Case) -> None:
    """Integrity, authority, identity and time of every permit in the records."""
    found = [one for where, intent in case.intents() if (one := _read(case, where, intent)) is not None]
    minted = {one.intent.execution_id: one for one in found if one.intent.side is Side.OUTBOUND}
    by_digest = {one.intent.permit_sha256: one for one in found}
    callers = {i.execution_id: i.node for _, i in case.intents() if i.side is Side.OUTBOUND}
    vouchers = _vouchers(case)
    used: set[str] = set()
    for one in found:
        _check_claims(case, one)
        _check_parent(case, one, by_digest)
        _check_policy(case, one, seen_by_minter=one.intent.execution_id in minted)
        verified = _check_signature(case, one, vouchers, used)
        _check_issuer(case, one, callers.get(one.intent.execution_id))
        _check_times(case, one)
        case.permits.append(_permitted(one, verified=verified))
    _check_use(case, used)


def _read(case: Case, where: str, intent: Intent) -> _Found | None:
    if not intent.permit:
        if intent.permit_sha256:
            what = "who signed its permit: the record holds the digest alone; permits were not kept when it was written"
            case.open(Section.IDENTITY, where, what)
        elif intent.allowed and intent.level >= CRYPTOGRAPHIC:
            case.open(Section.AUTHORITY, where, "by which permit: it was allowed at level 5 and names none")
        return None
    try:
        token = intent.permit.decode("ascii")
        return _Found(where, intent, token, read_claims(token))
    except UnicodeDecodeError:
        case.wrong(Section.INTEGRITY, where, "its permit is not ASCII", Reason.PERMIT_INVALID)
    except MeshError as error:
        case.wrong(Section.INTEGRITY, where, error)
    return None


def _check_claims(case: Case, one: _Found) -> None:
    """Integrity: each claim has the value that the record has."""
    said, recorded = one.claims, one.intent
    pairs = {
        "eid": (said.execution_id, recorded.execution_id),
        "txn": (said.root_id, recorded.root_id),
        "parent": (said.parent_sha256 or b"", recorded.parent_permit_sha256),
        "sub": (said.subject, recorded.caller),
        "aud": (said.audience, recorded.callee),
        "mth": (said.method, recorded.method),
    }
    if said.request_sha256 is not None:  # without it the method alone is bound
        pairs["req"] = (said.request_sha256, recorded.request_sha256)
    for name, (claim, value) in pairs.items():
        if claim != value:
            what = f"its permit says another {name} than the record"
            case.wrong(Section.INTEGRITY, one.where, what, Reason.PERMIT_MISMATCH)


def _check_parent(case: Case, one: _Found, by_digest: Mapping[bytes, _Found]) -> None:
    """Integrity: a permit that names a parent in the file continues that one's chain, as the workload it was for."""
    if one.claims.parent_sha256 is None:
        return
    parent = by_digest.get(one.claims.parent_sha256)
    if parent is None:
        return
    above = parent.claims
    if (above.root_id, above.audience) != (one.claims.root_id, one.claims.subject) or (
        one.intent.parent_id not in {b"", above.execution_id}
    ):
        what = (
            "its permit names a parent of another chain, or one that was for another workload than its caller"
        )
        case.wrong(Section.INTEGRITY, one.where, what, Reason.PERMIT_MISMATCH)


def _check_policy(case: Case, one: _Found, *, seen_by_minter: bool) -> None:
    """Authority: a permit names the policy under which the node that minted it decided."""
    said, recorded = one.claims, one.intent
    if recorded.side is Side.OUTBOUND:
        if (said.policy_digest, said.policy_version) != (recorded.policy_sha256, recorded.policy_version):
            what = "its permit names another policy (bnd) than the record"
            case.wrong(Section.AUTHORITY, one.where, what, Reason.PERMIT_MISMATCH)
    elif not seen_by_minter:  # the callee decided by itself, perhaps under another policy
        held = case.policies.get(said.policy_digest)
        if held is None:
            what = f"the policy that the caller's node decided under ({said.policy_digest.hex()}) is not in the file"
            case.open(Section.AUTHORITY, one.where, what)
        elif held[1].base.version != said.policy_version:
            what = f"its permit names policy version {said.policy_version}, signed as {held[1].base.version}"
            case.wrong(Section.AUTHORITY, one.where, what, Reason.PERMIT_MISMATCH)


def _vouchers(case: Case) -> dict[str, bytes]:
    """Return key id to endorsement, of all that the file has."""
    evidence = case.evidence
    found = [node.endorsement for node in evidence.nodes if node.endorsement is not None]
    return {endorsement_digest(data): data for data in (*found, *evidence.endorsements)}


def _check_signature(case: Case, one: _Found, vouchers: Mapping[str, bytes], used: set[str]) -> bool:
    """Identity: the key that the permit names signed it, and a certificate of its issuer vouches for the key."""
    anchors, issued_ms = case.believed, one.claims.issued_s * 1000

    def key_of(kid: str) -> NodeKey:
        used.add(kid)
        if kid not in vouchers:
            raise _AbsentError(kid)
        if anchors is None:
            raise EvidenceError(Reason.IDENTITY_INVALID, "its permit leads to no CA that can be believed")
        domain = case.trust_domain or SpiffeId.parse(one.claims.issuer).trust_domain
        # when it was minted, not now: certificates live for hours, evidence for years
        return verify_endorsement(vouchers[kid], anchors, domain, issued_ms)

    try:
        permit = authenticate(one.token, key_of=key_of, audience=one.claims.audience, now_ms=issued_ms)
    except _AbsentError as absent:
        what = f"whether {one.claims.issuer} signed its permit: the endorsement {absent} is not in the file"
        case.open(Section.IDENTITY, one.where, what)
    except StateError as error:
        case.wrong(Section.TIME, one.where, f"its permit: {error.detail}", error.reason)
    except MeshError as error:
        case.wrong(Section.IDENTITY, one.where, f"its permit: {error.detail}", error.reason)
    else:
        case.signers[one.where] = permit.key
        return True
    return False


def _check_issuer(case: Case, one: _Found, caller_node: str | None) -> None:
    """Identity: the node that minted it is the one that recorded the caller's side."""
    try:
        issuer = SpiffeId.parse(one.claims.issuer)
    except MeshError as error:
        case.wrong(Section.IDENTITY, one.where, f"its permit: {error.detail}", error.reason)
        return
    if issuer.kind != NODE_KIND or (caller_node is not None and issuer.name != caller_node):
        what = f"its permit is of {issuer}, the caller's side is of node {caller_node}"
        case.wrong(Section.IDENTITY, one.where, what, Reason.PERMIT_MISMATCH)


def _check_times(case: Case, one: _Found) -> None:
    """Time: it was recorded while it was valid."""
    wall_ms, skew = one.intent.wall_ms, limits.MAX_CLOCK_SKEW_MS
    if not one.claims.issued_s * 1000 - skew <= wall_ms < one.claims.expires_s * 1000 + skew:
        what = "it was recorded at another time than its permit was valid (iat, exp)"
        case.wrong(Section.TIME, one.where, what, Reason.PERMIT_EXPIRED)


def _check_use(case: Case, used: set[str]) -> None:
    """Identity: the file has no endorsement that nothing needs, and none twice."""
    own = {node.endorsement for node in case.evidence.nodes}
    for number, data in enumerate(case.evidence.endorsements):
        if data in own or endorsement_digest(data) not in used:
            what = "no permit in the file names it, or a node has the same"
            case.wrong(Section.IDENTITY, f"endorsements[{number}]", what)


def _permitted(one: _Found, *, verified: bool) -> Permitted:
    said = one.claims
    return Permitted(
        one.where,
        id_text(said.execution_id),
        said.issuer,
        said.subject,
        said.audience,
        said.method,
        said.issued_s,
        said.expires_s,
        verified,
    )
