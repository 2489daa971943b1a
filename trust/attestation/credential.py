"""Whether a quorum vouches for a node now: evidence with the cosignatures of distinct witnesses of the signed roster.

    {"evidence":ENVELOPE,"attested":LINES,"logged":LINES}     ASCII JSON, in this order, no spaces

`attested` has the witnesses' lines over the evidence digest, `logged` cosignature/v1 lines over the checkpoint in the
evidence (C2SP tlog-cosignature); both ascending. A credential is known by the SHA-256 of its bytes: `att` in permits.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from trust import limits
from trust.attestation.cosignature import attested_text, signature_lines, verify_attestation
from trust.attestation.roster import Roster, Witness
from trust.attestation.statement import Evidence, open_evidence
from trust.checkpoint import SignedCheckpoint, open_checkpoint
from trust.compact import parse_object, write_object
from trust.errors import EvidenceError, MeshError, Reason, StateError
from trust.note import Verifier, open_note
from trust.spiffe import SpiffeId

CREDENTIAL_KEY: Final = "egm-attestation-bin"  # gRPC metadata key
_MEMBERS: Final = ["evidence", "attested", "logged"]


@dataclass(frozen=True, slots=True)
class Credential:
    """A credential whose every signature of the roster was verified. Whether it is live, `check_live` decides."""

    evidence: Evidence
    data: bytes
    sha256: bytes  # of `data`: its name
    attested_s: Mapping[str, int]  # witness whose word counts -> when it vouched, Unix seconds
    logged_s: Mapping[str, int]  # log witness -> when it cosigned the checkpoint
    checkpoint: SignedCheckpoint
    roster: str  # digest of the roster that it was verified under

    @property
    def node(self) -> SpiffeId:
        """Whose it is."""
        return self.evidence.statement.node


def credential_sha256(data: bytes) -> bytes:
    """Return the digest that names a credential."""
    return hashlib.sha256(data).digest()


def log_origin(node: SpiffeId) -> str:
    """Return the name of a node's ledger: TRUST_DOMAIN/node/NAME."""
    return f"{node.trust_domain}/{node.path}"


def log_verifier(evidence: Evidence) -> Verifier:
    """Return the key that must have signed the checkpoint in the evidence: the node's, under its ledger's name."""
    said = evidence.statement
    return Verifier(log_origin(said.node), said.public_key)


def write_credential(evidence: Evidence, attested: Iterable[bytes], logged: Iterable[bytes]) -> bytes:
    """Return the bytes of a credential. Verify them with `open_credential` before using them.

    Args:
        evidence: of the node.
        attested: each witness's line of `cosign_attestation`.
        logged: cosignature/v1 lines over its checkpoint.
    """
    return write_object(
        {
            "evidence": parse_object(evidence.envelope),
            "attested": b"".join(sorted(set(attested))).decode(),
            "logged": b"".join(sorted(set(logged))).decode(),
        }
    )


def check_lines(evidence: Evidence, witness: Witness, attested: bytes, logged: bytes) -> None:
    """Accept what one witness answered: exactly its two lines, both good. One bad line would spoil a credential.

    Raises:
        EvidenceError: ATTESTATION_INVALID.
    """
    text = attested_text(evidence.statement.node, evidence.sha256)
    note = evidence.statement.checkpoint
    one_each = len(signature_lines(text, attested)) == len(signature_lines(text, logged)) == 1
    if not one_each or witness.name not in verify_attestation(text, attested, [witness]).times_s:
        raise _invalid(f"{witness.name} did not answer with its own line")
    try:
        open_note(note + logged, [witness.key])
    except MeshError as error:
        raise _invalid(f"{witness.name} did not cosign the checkpoint: {error.detail}") from None


def open_credential(data: bytes, roster: Roster) -> Credential:
    """Return the credential, every signature of a key of the roster verified; it may be anybody's, and too old.

    Raises:
        EvidenceError: ATTESTATION_INVALID, naming the part.
    """
    if len(data) > limits.MAX_CREDENTIAL_BYTES:
        raise _invalid(f"it is larger than {limits.MAX_CREDENTIAL_BYTES} bytes")
    try:
        value = parse_object(data)
        if list(value) != _MEMBERS or write_object(value) != data:
            raise ValueError("not canonical")
        envelope = write_object(value["evidence"])
        attested, logged = value["attested"].encode(), value["logged"].encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise _invalid("it is not in its one encoding") from None
    try:
        evidence = open_evidence(envelope)
        said = evidence.statement
        if said.node.trust_domain != roster.trust_domain:
            raise _invalid("it is of another trust domain")
        pinned = roster.witnesses.get(said.node.name)
        if pinned is not None and pinned.key.public_key != said.public_key:
            raise _invalid(f"the signed roster pins another key for {said.node}")
        text = attested_text(said.node, evidence.sha256)
        cosigned = verify_attestation(text, attested, roster.counting.values())
        checkpoint, logged_s = _logged(evidence, logged, roster)
    except MeshError as error:
        if error.reason is Reason.ATTESTATION_INVALID:
            raise
        raise _invalid(error.detail) from None
    return Credential(
        evidence, data, credential_sha256(data), cosigned.times_s, logged_s, checkpoint, roster.digest
    )


def live_until_ms(credential: Credential, roster: Roster, *, now_ms: int) -> int:
    """Return when fewer than the quorum's cosignatures will be young enough, Unix ms; 0 when it is so already.

    A cosignature counts from its time, of which MAX_CLOCK_SKEW_MS ahead is forgiven, for the roster's time to live.
    """
    ends = [
        _ends(credential.attested_s, roster.witnesses, roster.needed, roster.ttl_ms, now_ms),
        _ends(credential.logged_s, roster.log_witnesses, roster.log_needed, roster.ttl_ms, now_ms),
    ]
    return max(0, min(ends))


def check_live(credential: Credential, roster: Roster, *, now_ms: int) -> int:
    """Return until when the credential is live, Unix ms.

    Args:
        credential: verified under the same roster.
        roster: of the policy in force.
        now_ms: Unix time, ms.

    Raises:
        EvidenceError: ATTESTATION_INVALID, if too few of the roster signed it at all.
        StateError: ATTESTATION_EXPIRED, if too few did in time.
    """
    if credential.roster != roster.digest:
        raise _invalid("it was verified under another roster")
    until_ms = live_until_ms(credential, roster, now_ms=now_ms)
    if until_ms > now_ms:
        return until_ms
    for signed, needed, whom in (
        (credential.attested_s, roster.needed, "witnesses"),
        (credential.logged_s, roster.log_needed, "log witnesses"),
    ):
        if len(signed) < needed:
            names = ", ".join(sorted(signed)) or "nobody"
            struck = f"; revoked or convicted: {', '.join(sorted(roster.struck))}" if roster.struck else ""
            raise _invalid(
                f"{len(signed)} of {needed} {whom} of the signed roster cosigned it ({names}{struck})"
            )
    raise StateError(
        Reason.ATTESTATION_EXPIRED,
        f"the trust credential of {credential.node} is outside its {roster.ttl_ms // 1000} s; its node must renew it, "
        "and the clocks of the nodes must agree",
    )


def _logged(evidence: Evidence, logged: bytes, roster: Roster) -> tuple[SignedCheckpoint, dict[str, int]]:
    """Return the checkpoint with what witnesses of the roster signed under it, and the times of log witnesses."""
    note = evidence.statement.checkpoint
    signature_lines(attested_text(evidence.statement.node, evidence.sha256), logged)  # their form alone
    cosigners = [one.key for one in (*roster.witnesses.values(), *roster.log_witnesses.values())]
    checkpoint = open_checkpoint(note + logged, log_verifier(evidence), cosigners)
    times = {(s.name, s.key_id): s.time_s for s in checkpoint.note.verified if s.time_s is not None}
    found = {
        name: times[one.key.name, one.key.key_id]
        for name, one in roster.log_counting.items()
        if (one.key.name, one.key.key_id) in times
    }
    return checkpoint, found


def _ends(
    times_s: Mapping[str, int], known: Mapping[str, Witness], needed: int, ttl_ms: int, now_ms: int
) -> int:
    """Return when the `needed`-th youngest cosignature ends; a day far away when none is needed."""
    if needed == 0:
        return now_ms + ttl_ms * 2**20
    ends = sorted(
        (
            time_s * 1000 + ttl_ms
            for name, time_s in times_s.items()
            if name in known and time_s * 1000 <= now_ms + limits.MAX_CLOCK_SKEW_MS
        ),
        reverse=True,
    )
    return ends[needed - 1] if len(ends) >= needed else 0


def _invalid(what: str) -> EvidenceError:
    return EvidenceError(Reason.ATTESTATION_INVALID, f"trust credential refused: {what}")
