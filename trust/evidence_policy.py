"""Whether the quorums that lead to the reader's root signed the policies that the decisions name (authority)."""

import hashlib

from tuf.api.metadata import Root, Timestamp
from tuf.api.serialization.json import JSONSerializer

from trust.authoring import parse_metadata
from trust.chain import VerifiedMetadata, verify_metadata, verify_policy, verify_roots
from trust.errors import EvidenceError, MeshError, Reason
from trust.evidence import PolicyPart
from trust.evidence_case import Case
from trust.evidence_report import Approved, Section
from trust.permit import read_claims
from trust.verified import VerifiedPolicy

_EARLIER = "it may have been signed under an earlier root than yours: verify with the root.json of that time"


def check_policies(case: Case) -> None:
    """Authority: each policy is signed by the quorums that lead to the reader's root; who they were."""
    for number, part in enumerate(case.evidence.policies):
        where = f"policies[{number}]"
        earlier = _is_earlier(case.trusted_root, part)
        try:
            root = _newest_root(case.trusted_root, part, where)
            _check_exact(part.metadata.timestamp, Timestamp, f"{where}.timestamp")
            verified = verify_metadata(root, part.metadata)
            if set(verified.roles) != set(part.metadata.roles):
                raise EvidenceError(Reason.METADATA_INVALID, "it has a role that is not delegated")
            archives = {hashlib.sha256(data).hexdigest(): data for _, data in part.archives}
            policy = verify_policy(verified, archives.get)
            for place, (role, data) in enumerate(part.archives):
                target = policy.target(role)
                if target is None or target.data != data:
                    what = f"roles[{place}].archive is not the one that {role} signed"
                    raise EvidenceError(Reason.DIGEST_MISMATCH, what)
        except MeshError as error:
            if earlier and error.reason is Reason.QUORUM_NOT_MET:
                case.open(Section.AUTHORITY, where, f"{error.detail}; {_EARLIER}")
            else:
                case.wrong(Section.AUTHORITY, where, error)
            continue
        case.policies[bytes.fromhex(policy.base.sha256)] = (where, policy)
        case.approved += _approved(where, verified, policy)


def _is_earlier(trusted: bytes, part: PolicyPart) -> bool:
    """Whether the policy may have been signed under an earlier root than the reader trusts: none leads back to it."""
    roots = part.metadata.roots
    try:
        version = parse_metadata(trusted, Root).signed.version
        newest = parse_metadata(roots[-1], Root).signed.version if roots else 1
    except MeshError:
        return False  # told where it is verified
    return trusted not in roots and newest < version


def _newest_root(trusted: bytes, part: PolicyPart, where: str) -> Root:
    roots = part.metadata.roots
    for number, data in enumerate(roots):
        _check_exact(data, Root, f"{where}.roots[{number}]")
    if _is_earlier(trusted, part):
        return verify_roots(trusted, ())
    # the reader may trust a later root than the node did: what is before it is of no use, what is after it is
    start = roots.index(trusted) + 1 if trusted in roots else 0
    return verify_roots(trusted, roots[start:])


def _check_exact(data: bytes, kind: type[Root] | type[Timestamp], where: str) -> None:
    """Refuse a second encoding of a file that no other file pins: one spelling, and every signature in it counts."""
    metadata = parse_metadata(data, Root) if kind is Root else parse_metadata(data, Timestamp)
    if data not in {metadata.to_bytes(JSONSerializer(compact=c)) for c in (False, True)}:
        raise EvidenceError(Reason.METADATA_INVALID, f"{where} is not in the encoding of TUF's reference")


def _approved(where: str, verified: VerifiedMetadata, policy: VerifiedPolicy) -> list[Approved]:
    found = []
    for role, quorum in sorted(verified.quorums.items()):
        target = policy.target(role)
        if target is not None:
            names = tuple(sorted(map(quorum.name, quorum.signed)))
            found.append(Approved(where, role, target.version, target.sha256, quorum.threshold, names))
    return found


def check_authority(case: Case) -> None:
    """Authority: each decision names the bundle and version that a quorum signed."""
    used = _named_by_permits(case)
    for where, record in case.intents():
        if not record.policy_sha256:
            if record.allowed:
                case.open(Section.AUTHORITY, where, "by what authority: it was allowed without a policy")
            continue
        held = case.policies.get(record.policy_sha256)
        if held is None:
            what = f"the policy it was decided under ({record.policy_sha256.hex()}) is not in the file"
            case.open(Section.AUTHORITY, where, what)
            continue
        used.add(held[0])
        if held[1].base.version != record.policy_version:
            what = f"it names policy version {record.policy_version}, signed as {held[1].base.version}"
            case.wrong(Section.AUTHORITY, where, what, Reason.DIGEST_MISMATCH)
    for where, _ in case.policies.values():
        if where not in used:
            case.wrong(Section.AUTHORITY, where, "no record names this policy", Reason.DIGEST_MISMATCH)


def _named_by_permits(case: Case) -> set[str]:
    """Return the places of the policies that permits name: the caller's node may have decided under another."""
    found: set[str] = set()
    for _, record in case.intents():
        if record.permit:
            try:
                digest = read_claims(record.permit.decode("ascii", "replace")).policy_digest
            except MeshError:
                continue  # told where permits are checked
            if digest in case.policies:
                found.add(case.policies[digest][0])
    return found
