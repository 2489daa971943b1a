"""Whether a witness vouches for a node: `(memory, evidence, now) -> (memory', answer)`, to be persisted in this order.

Everything is checked against what the witness saw of the same node before, so that a node cannot show it two
histories, an older disk or an older policy. The memory must be durable before the answer leaves.
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from trust import limits
from trust.attestation.accepted import check_accepted
from trust.attestation.cosignature import attested_text
from trust.attestation.credential import log_verifier
from trust.attestation.measurement import ReferenceValues
from trust.attestation.memory import Memory
from trust.attestation.roster import Roster
from trust.attestation.statement import Enforced, Evidence, Statement, evidence_key_id, open_evidence
from trust.checkpoint import Checkpoint, SignedCheckpoint, open_checkpoint
from trust.errors import EvidenceError, MeshError, Reason, StateError
from trust.merkle import HASH_BYTES, check_consistency, grown_roots
from trust.node_key import NodeKey, verify_endorsement
from trust.spiffe import SpiffeId
from trust.verified import BASE_ROLE

__all__ = [
    "Answer",
    "Challenges",
    "Contradiction",
    "ContradictionError",
    "Memory",
    "Seen",
    "Submission",
    "View",
    "authenticate",
    "judge",
]

MAX_OPEN_NONCES: Final = 2  # of one node: the newest challenges


@dataclass(frozen=True, slots=True)
class Seen:
    """A bundle that the witness itself enforces, and since when (its monotonic clock, ms)."""

    enforced: Enforced
    since_mono_ms: int


@dataclass(frozen=True, slots=True)
class View:
    """What the witness knows besides the node's own past: the policy that it enforces, and who is locked out."""

    roster: Roster
    bundles: Mapping[str, Seen]  # TUF role -> the bundle in force here; "targets" is the base
    level: int  # that the policy in force asks of every node
    references: ReferenceValues | None
    anchors_pem: bytes  # CA certificates to trust now
    quarantined: AbstractSet[str] = frozenset()  # names or SPIFFE IDs of nodes


@dataclass(frozen=True, slots=True)
class Submission:
    """What a node sends. `peer` is who the connection proves."""

    peer: SpiffeId
    evidence: bytes
    endorsement: bytes
    consistency: Sequence[bytes]  # hashes, from the size that the challenge named to the checkpoint's
    root: bytes = b""  # of its own ledger at that size: alone shows a fork at a power of two


@dataclass(frozen=True, slots=True)
class Answer:
    """What to sign, once `memory` is durable, with `time_s`: the attestation and the checkpoint (cosignature/v1)."""

    memory: Memory
    text: bytes
    checkpoint: bytes
    time_s: int


@enum.unique
class Contradiction(enum.StrEnum):
    """How two signed statements of one node cannot both be honest."""

    COUNTER = "counter"  # a counter that does not go up
    BOOT = "boot"  # an earlier boot speaks again
    CHECKPOINT = "checkpoint"  # two roots at one size, or a shorter tree
    POLICY = "policy"  # an older policy than before


class ContradictionError(StateError):
    """A refusal with its material: what the node signed before, and what it signs now. Both verify by themselves."""

    def __init__(
        self, reason: Reason, detail: str, *, kind: Contradiction, before: Memory, now: Submission
    ) -> None:
        super().__init__(reason, detail)
        self.kind = kind
        self.before_evidence, self.before_endorsement = before.evidence, before.endorsement
        self.now_evidence, self.now_endorsement = now.evidence, now.endorsement
        self.consistency, self.root = tuple(now.consistency), now.root


class Challenges:
    """The open nonces of a witness. In memory alone: after a restart every node is asked anew."""

    def __init__(self) -> None:
        """Start without any."""
        self._open: dict[str, list[tuple[bytes, int]]] = {}

    def open(self, node: SpiffeId, nonce: bytes, *, monotonic_ms: int) -> None:
        """Remember a challenge to `node`.

        Args:
            node: who is asked.
            nonce: 32 random bytes.
            monotonic_ms: now.
        """
        name = str(node)
        if name not in self._open and len(self._open) >= limits.MAX_WITNESSED_NODES:
            del self._open[next(iter(self._open))]
        newest = [*self._open.pop(name, []), (nonce, monotonic_ms)]
        self._open[name] = newest[-MAX_OPEN_NONCES:]

    def answer(self, statement: Statement, *, monotonic_ms: int) -> None:
        """Accept a statement that holds a nonce that is open for its node; every nonce of the node ends by it.

        Raises:
            StateError: NONCE_UNKNOWN.
        """
        nonces = self._open.pop(str(statement.node), [])
        said = frozenset(statement.nonces)
        if not any(
            nonce in said and monotonic_ms - since < limits.NONCE_LIFETIME_MS for nonce, since in nonces
        ):
            raise StateError(
                Reason.NONCE_UNKNOWN,
                "the evidence holds no nonce that this witness gave out and that is still open",
            )


def authenticate(
    submission: Submission, view: View, *, now_ms: int, known: Callable[[bytes], NodeKey] | None = None
) -> tuple[Evidence, NodeKey]:
    """Return the evidence and the key that signed it, when the node itself sent it and its certificate vouches.

    Args:
        submission: what came.
        view: what this witness enforces.
        now_ms: Unix time, ms.
        known: verifies an endorsement as `verify_endorsement` does, and may remember it; default: each time anew.

    Raises:
        EvidenceError: EVIDENCE_INVALID, naming the part.
        StateError: PERMIT_UNVERIFIABLE, if the endorsement is outside its time.
    """
    if known is None:
        domain = view.roster.trust_domain
        key = verify_endorsement(submission.endorsement, view.anchors_pem, domain, now_ms)
    else:
        key = known(submission.endorsement)
    evidence = open_evidence(submission.evidence)
    said = evidence.statement
    if submission.peer != said.node or key.node != said.node:
        raise _invalid(f"it is of {said.node}, but {submission.peer} sent it and {key.node} signed it")
    pinned = view.roster.witnesses.get(said.node.name)
    if pinned is not None and pinned.key.public_key != said.public_key:
        raise _invalid(f"the signed roster pins another key for {said.node}")
    if key.public_key.public_bytes_raw() != said.public_key or key.digest != evidence_key_id(
        submission.evidence
    ):
        raise _invalid("it is signed with another key than its certificate vouches for")
    return evidence, key


def judge(
    memory: Memory, submission: Submission, evidence: Evidence, view: View, *, now_ms: int, monotonic_ms: int
) -> Answer:
    """Return what to remember and then to sign. Call `authenticate` and `Challenges.answer` first.

    Args:
        memory: what was seen of this node.
        submission: what came.
        evidence: as `authenticate` returned it.
        view: what this witness enforces.
        now_ms: Unix time, never going back, ms.
        monotonic_ms: since when what is in force counts.

    Raises:
        EvidenceError: MEASUREMENT_REFUSED, LEVEL_TOO_LOW, EVIDENCE_INVALID, PROOF_INVALID, SIGNATURE_INVALID.
        StateError: NODE_QUARANTINED, CLOCK_WRONG, POLICY_BEHIND, POLICY_CONFLICT.
        ContradictionError: COUNTER_REGRESSED, BOOT_RETURNED, CHECKPOINT_REGRESSED, CHECKPOINT_CONFLICT,
            POLICY_ROLLBACK; with both statements.
    """
    said = evidence.statement
    if view.quarantined & {said.node.name, str(said.node)}:
        raise StateError(
            Reason.NODE_QUARANTINED, f"{said.node} is in quarantine; the approvers' quorum may release it"
        )
    _check_clock(said, now_ms)
    check_accepted(view.references, said)
    _check_history(memory, submission, said)
    _check_policy(memory, submission, said, view, monotonic_ms)
    checkpoint = _check_ledger(memory, submission, evidence)
    boots = memory.earlier_boots
    if memory.boot and said.boot != memory.boot:
        boots = (*boots, memory.boot)[-limits.MAX_EARLIER_BOOTS :]
    time_s = max(now_ms // 1000, memory.cosigned_s)
    after = Memory(
        revision=memory.revision + 1,
        size=checkpoint.size,
        root=checkpoint.root,
        counter=said.counter,
        boot=said.boot,
        earlier_boots=boots,
        versions={role: enforced.version for role, enforced in said.enforced().items()},
        evidence=submission.evidence,
        endorsement=submission.endorsement,
        cosigned_s=time_s,
    )
    return Answer(after, attested_text(said.node, evidence.sha256), checkpoint.body(), time_s)


def _check_clock(said: Statement, now_ms: int) -> None:
    # The nonce proves that the statement is young; its time must agree, or its later signatures cannot be ordered.
    off_ms = abs(said.issued_s * 1000 - now_ms)
    if off_ms > limits.MAX_CLOCK_SKEW_MS + limits.NONCE_LIFETIME_MS:
        raise StateError(
            Reason.CLOCK_WRONG,
            f"the clocks of {said.node.name} and its witness differ by {off_ms // 1000} s; synchronise both with NTP",
        )


def _check_history(memory: Memory, now: Submission, said: Statement) -> None:
    if said.counter <= memory.counter:
        raise ContradictionError(
            Reason.COUNTER_REGRESSED,
            f"{said.node.name} signed statement {said.counter} after statement {memory.counter}: an older disk, or two "
            "processes with one key",
            kind=Contradiction.COUNTER,
            before=memory,
            now=now,
        )
    if said.boot in memory.earlier_boots:
        raise ContradictionError(
            Reason.BOOT_RETURNED,
            f"a run of {said.node.name} that had ended speaks again: two processes share its identity",
            kind=Contradiction.BOOT,
            before=memory,
            now=now,
        )


def _check_policy(memory: Memory, now: Submission, said: Statement, view: View, monotonic_ms: int) -> None:
    for role, enforced in said.enforced().items():
        if enforced.version < memory.versions.get(role, 0):
            raise ContradictionError(
                Reason.POLICY_ROLLBACK,
                f"{said.node.name} enforces {role} version {enforced.version}, after version {memory.versions[role]}",
                kind=Contradiction.POLICY,
                before=memory,
                now=now,
            )
    held = said.enforced()
    for role, seen in view.bundles.items():
        enforced = held.get(role, Enforced(0, b""))
        if enforced.version == seen.enforced.version and enforced.sha256 != seen.enforced.sha256:
            raise StateError(
                Reason.POLICY_CONFLICT,
                f"{said.node.name} enforces other content under {role} version {enforced.version} than this witness",
            )
        age_ms = monotonic_ms - seen.since_mono_ms
        if enforced.version < seen.enforced.version and age_ms > view.roster.max_lag_ms:
            raise StateError(
                Reason.POLICY_BEHIND,
                f"{said.node.name} enforces {role} version {enforced.version}; this witness has version "
                f"{seen.enforced.version} for {age_ms // 1000} s, {view.roster.max_lag_ms // 1000} s are allowed",
            )
    base = view.bundles.get(BASE_ROLE)
    # only under the same policy: another version may ask for another level
    if base is not None and said.policy == base.enforced and said.level < view.level:
        raise EvidenceError(
            Reason.LEVEL_TOO_LOW,
            f"{said.node.name} enforces level {said.level}; the signed policy asks for {view.level}",
        )


def _check_ledger(memory: Memory, now: Submission, evidence: Evidence) -> Checkpoint:
    if len(now.consistency) > limits.MAX_CONSISTENCY_HASHES or any(
        len(value) != HASH_BYTES for value in now.consistency
    ):
        raise _invalid("its consistency proof is not at most 64 hashes")
    if len(now.root) not in {0, HASH_BYTES}:
        raise _invalid(f"its root at the cosigned size has {len(now.root)} bytes")
    signed = _own_checkpoint(evidence)
    checkpoint = signed.checkpoint

    def refuse(reason: Reason, detail: str) -> ContradictionError:
        return ContradictionError(reason, detail, kind=Contradiction.CHECKPOINT, before=memory, now=now)

    if checkpoint.size < memory.size:
        raise refuse(
            Reason.CHECKPOINT_REGRESSED,
            f"the ledger of {checkpoint.origin} has {checkpoint.size} records, after {memory.size}: an older disk, or "
            "records were removed",
        )
    if checkpoint.size == memory.size and checkpoint.root != memory.root:
        raise refuse(
            Reason.CHECKPOINT_CONFLICT,
            f"the ledger of {checkpoint.origin} has two histories of {checkpoint.size} records",
        )
    if _forked(memory, checkpoint, now):
        raise refuse(
            Reason.CHECKPOINT_CONFLICT,
            f"the ledger of {checkpoint.origin} has another history of its first {memory.size} records than before",
        )
    check_consistency(memory.size, memory.root, checkpoint.size, checkpoint.root, now.consistency)
    return checkpoint


def _forked(memory: Memory, checkpoint: Checkpoint, now: Submission) -> bool:
    """Whether the node's own proof shows that its tree does not continue the earlier one.

    A proof that leads nowhere shows nothing (it may be of another moment): it is refused, and no contradiction. Where
    the earlier size is a power of two, the path does not hold the root there: the node names it.
    """
    if memory.size in {0, checkpoint.size}:
        return False
    power = memory.size.bit_count() == 1
    root = now.root if power and now.root else memory.root
    old, new = grown_roots(memory.size, root, checkpoint.size, now.consistency)
    return new == checkpoint.root and old != memory.root


def _own_checkpoint(evidence: Evidence) -> SignedCheckpoint:
    """Return the checkpoint in the evidence: signed by the node's own key, and by nobody else."""
    try:
        signed = open_checkpoint(evidence.statement.checkpoint, log_verifier(evidence))
    except MeshError as error:
        raise _invalid(f"its checkpoint: {error.detail}") from None
    if len(signed.note.verified) != 1 or signed.note.unknown or signed.checkpoint.extensions:
        raise _invalid("its checkpoint is not the bare tree head with the node's own signature")
    return signed


def _invalid(what: str) -> EvidenceError:
    return EvidenceError(Reason.EVIDENCE_INVALID, f"evidence refused: {what}")
