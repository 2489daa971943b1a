"""Whether a quorum of witnesses vouched for the node of each permit when it minted it: trust credentials in evidence.

The credential that a permit names (`att`) is held against the witness roster of the policy that the permit names
(`bnd`): too few cosignatures, or bad ones, contradict the authority; another node or key the identity; cosignatures of
another time the time. A permit whose policy has a roster and that names no credential, or one that the file does not
have, leaves the authority open; so does a callee's record under a policy whose roster did not sign.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from trust import limits
from trust.attestation.credential import (
    Credential,
    check_live,
    credential_sha256,
    live_until_ms,
    open_credential,
)
from trust.attestation.roster import Roster
from trust.bundle import read_bundle
from trust.errors import MeshError, Reason, StateError
from trust.evidence_case import Case
from trust.evidence_report import Attested, Section
from trust.permit import read_claims
from trust.permit_claims import PermitClaims
from trust.record import Intent, Side
from trust.verified import BASE_ROLE


@dataclass(frozen=True, slots=True)
class _Named:
    """A permit with the record that holds it."""

    where: str
    intent: Intent
    claims: PermitClaims


@dataclass(slots=True)
class _Held:
    """The credentials of the file and the rosters of its policies, each opened once."""

    credentials: dict[bytes, tuple[str, bytes]]  # by digest: its place and bytes
    rosters: dict[bytes, Roster | None] = field(default_factory=dict)  # by digest of the base bundle
    opened: dict[tuple[bytes, str], Credential | MeshError] = field(default_factory=dict)
    used: set[bytes] = field(default_factory=set)
    unreadable: set[str] = field(default_factory=set)  # places of policies


def check_credentials(case: Case) -> None:
    """Authority, identity and time of every credential that a permit names; none is there that none names."""
    listed = case.evidence.credentials
    held = _Held({credential_sha256(data): (f"credentials[{n}]", data) for n, data in enumerate(listed)})
    for one in _named(case):
        sha256 = one.claims.credential_sha256
        if sha256 is None:
            _check_none_needed(case, held, one)
        else:
            held.used.add(sha256)
            _check_named(case, held, one, sha256)
    for sha256, (where, _) in held.credentials.items():
        if sha256 not in held.used:
            case.wrong(Section.AUTHORITY, where, "no permit in the file names it", Reason.ATTESTATION_INVALID)
    for where in sorted(held.unreadable):
        case.open(Section.AUTHORITY, where, "whether it asks for witnesses: its base bundle cannot be read")


def _named(case: Case) -> Iterator[_Named]:
    for where, intent in case.intents():
        if intent.permit:
            try:
                yield _Named(where, intent, read_claims(intent.permit.decode("ascii", "replace")))
            except MeshError:
                continue  # told where permits are checked


def _check_none_needed(case: Case, held: _Held, one: _Named) -> None:
    decided = {one.claims.policy_digest}  # by the node that minted it, and by the callee
    if one.intent.side is Side.INBOUND and one.intent.allowed:
        decided.add(one.intent.policy_sha256)
    if any(_roster(case, held, policy) is not None for policy in decided):
        what = (
            f"whether a quorum vouched for {one.claims.issuer}: a policy that it was decided under names witnesses, "
            "its permit no trust credential (att)"
        )
        case.open(Section.AUTHORITY, one.where, what)


def _check_named(case: Case, held: _Held, one: _Named, sha256: bytes) -> None:
    issuer = one.claims.issuer
    if sha256 not in held.credentials:
        what = (
            f"whether a quorum vouched for {issuer}: the trust credential {sha256.hex()} is not in the file"
        )
        case.open(Section.AUTHORITY, one.where, what)
        return
    policy = one.claims.policy_digest
    if policy not in case.policies:
        what = (
            f"whether a quorum vouched for {issuer}: the policy that names the witnesses is not in the file"
        )
        case.open(Section.AUTHORITY, one.where, what)
        return
    roster = _roster(case, held, policy)
    if roster is None:
        if case.policies[policy][0] not in held.unreadable:
            what = "its permit names a trust credential, and the policy of the permit no witnesses"
            case.wrong(Section.AUTHORITY, one.where, what, Reason.ATTESTATION_INVALID)
        return
    first = (sha256, roster.digest) not in held.opened
    credential = _open(held, sha256, roster)
    if isinstance(credential, MeshError):
        case.wrong(Section.AUTHORITY, one.where, credential)
        return
    if first:
        case.attested.append(_attested(held, credential, case.policies[policy][0], roster))
    _check_bound(case, one, credential)
    _check_alive(case, one, credential, roster)
    _check_callee(case, held, one, sha256, roster)


def _check_bound(case: Case, one: _Named, credential: Credential) -> None:
    """Identity: it is of the node that minted the permit, and of the key that signed it."""
    signer = case.signers.get(one.where)
    if str(credential.node) != one.claims.issuer:
        what = f"its permit names the trust credential of {credential.node}"
    elif (
        signer is not None
        and credential.evidence.statement.public_key != signer.public_key.public_bytes_raw()
    ):
        what = (
            "the trust credential that its permit names is of another key than the one that signed the permit"
        )
    else:
        return  # without a known signer the identity is open already
    case.wrong(Section.IDENTITY, one.where, what, Reason.ATTESTATION_INVALID)


def _check_alive(case: Case, one: _Named, credential: Credential, roster: Roster) -> None:
    """Authority and time: enough of the roster signed, and at the time of the permit."""
    issued_ms = one.claims.issued_s * 1000
    if _alive(credential, roster, issued_ms):
        return
    try:
        check_live(credential, roster, now_ms=issued_ms)
    except StateError as error:
        what = f"the trust credential that its permit names was not alive when the permit was minted: {error.detail}"
        case.wrong(Section.TIME, one.where, what, error.reason)
    except MeshError as error:
        case.wrong(Section.AUTHORITY, one.where, error)


def _check_callee(case: Case, held: _Held, one: _Named, sha256: bytes, first: Roster) -> None:
    """Authority: the callee decided under a policy of its own, whose roster should have vouched, too."""
    if one.intent.side is not Side.INBOUND or not one.intent.allowed:
        return
    roster = _roster(case, held, one.intent.policy_sha256)
    if roster is None or roster.digest == first.digest:
        return
    credential = _open(held, sha256, roster)
    if isinstance(credential, MeshError) or not _alive(credential, roster, one.claims.issued_s * 1000):
        what = (
            f"whether {one.claims.issuer} was vouched for under the callee's policy: its witnesses are others than "
            "those of the permit's policy, and too few of them signed"
        )
        case.open(Section.AUTHORITY, one.where, what)


def _alive(credential: Credential, roster: Roster, issued_ms: int) -> bool:
    """Whether it was alive then, or just before: a node decides first and mints a moment later."""
    times = (issued_ms, issued_ms - limits.MAX_CLOCK_SKEW_MS)
    return any(live_until_ms(credential, roster, now_ms=at_ms) > at_ms for at_ms in times)


def _open(held: _Held, sha256: bytes, roster: Roster) -> Credential | MeshError:
    key = (sha256, roster.digest)
    if key not in held.opened:
        try:
            held.opened[key] = open_credential(held.credentials[sha256][1], roster)
        except MeshError as error:
            held.opened[key] = error
    return held.opened[key]


def _roster(case: Case, held: _Held, policy: bytes) -> Roster | None:
    """Return who vouches for nodes under a policy of the file; None when nobody does, or it cannot be told."""
    if policy not in case.policies:
        return None
    if policy not in held.rosters:
        where, verified = case.policies[policy]
        held.rosters[policy] = None
        try:
            mesh = read_bundle(verified.base.data, role=BASE_ROLE).mesh
        except MeshError:
            held.unreadable.add(where)
        else:
            held.rosters[policy] = None if mesh is None else mesh.roster()
    return held.rosters[policy]


def _attested(held: _Held, credential: Credential, policy: str, roster: Roster) -> Attested:
    return Attested(
        held.credentials[credential.sha256][0],
        str(credential.node),
        credential.sha256.hex(),
        policy,
        tuple(sorted((*credential.attested_s, *credential.logged_s))),
        roster.needed + roster.log_needed,
    )
