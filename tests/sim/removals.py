"""How each guard is taken away, by patching; the product has no switch for any of them."""

import dataclasses
from typing import Any

import pytest
from tuf.api.metadata import Root

from sidecar.core import approvals, attester, permits, pipeline
from sidecar.core.approvals import SpentApprovals
from sidecar.core.bundle_state import BundleState, Lease
from sidecar.core.feed_state import FeedState
from sidecar.core.pipeline import Pipeline
from sidecar.core.replay import ReplayCache
from sidecar.core.streams import Streams
from sidecar.core.trust_state import TrustState
from sidecar.edge import spent_file
from sidecar.edge.attestation_files import WitnessStore
from sidecar.edge.notary import Notary
from sidecar.edge.spent_file import SpentFile
from tests.sim import attesting
from tests.sim.realm import root
from trust import approval, chain, denials, limits
from trust.attestation import credential, witness
from trust.attestation.memory import Memory
from trust.attestation.witness import Challenges
from trust.authoring import parse_metadata
from trust.denials import Denials
from trust.edge import denial_keeper
from trust.edge.denial_keeper import DenialKeeper
from trust.edge.policy_cache import VersionFloor
from trust.errors import StateError
from trust.gossip import Sequences
from trust.misbehaviour import Finding, proof_id, read_proof
from trust.policy import engine
from trust.quorum import quorum_of
from trust.revocation import SignedDirective, read_directive
from trust.ticket import Ticket
from trust.verified import BASE_ROLE

Patch = pytest.MonkeyPatch


def _nothing(*_: Any, **__: Any) -> None:
    """Check nothing."""


def signs_at_any_time(patch: Patch) -> None:
    def median_alone(challenges: Any, *, now_ms: int, **_: Any) -> None:
        attester.check_clock(challenges, now_ms=now_ms)

    patch.setattr(attesting, "check_clock", median_alone)


def no_nonce(patch: Patch) -> None:
    patch.setattr(Challenges, "answer", _nothing)


def no_counter(patch: Patch) -> None:
    patch.setattr(witness, "_check_history", _nothing)


def no_consistency(patch: Patch) -> None:
    patch.setattr(witness, "_forked", lambda *_: False)
    patch.setattr(witness, "check_consistency", _nothing)


def may_shrink(patch: Patch) -> None:
    """A shorter ledger counts as if nothing was seen of it before."""
    real = witness._check_ledger

    def check(memory: Memory, now: Any, evidence: Any) -> Any:
        size = witness._own_checkpoint(evidence).checkpoint.size
        return real(Memory() if size < memory.size else memory, now, evidence)

    patch.setattr(witness, "_check_ledger", check)


def no_quarantine(patch: Patch) -> None:
    real = witness.judge

    def judge(memory: Any, submission: Any, evidence: Any, view: Any, **when: Any) -> Any:
        return real(memory, submission, evidence, dataclasses.replace(view, quarantined=frozenset()), **when)

    patch.setattr("sidecar.edge.witness_desk.judge", judge)


def answers_before_it_persists(patch: Patch) -> None:
    """The memory is in a cache that a crash empties."""
    read = WitnessStore.read

    def swap(self: Any, node: str, before: Any, after: Any) -> None:
        vars(self).setdefault("cache", {})[node] = after

    def cached(self: Any, node: str) -> Any:
        return vars(self).get("cache", {}).get(node) or read(self, node)

    patch.setattr(WitnessStore, "swap", swap)
    patch.setattr(WitnessStore, "read", cached)


def no_lag(patch: Patch) -> None:
    patch.setattr(witness, "_check_policy", _nothing)


def one_cosignature(patch: Patch) -> None:
    real = credential._ends

    def ends(times: Any, known: Any, needed: int, ttl_ms: int, now_ms: int) -> int:
        return real(times, known, min(needed, 1), ttl_ms, now_ms)

    patch.setattr(credential, "_ends", ends)


def endless_credential(patch: Patch) -> None:
    real = credential._ends

    def ends(times: Any, known: Any, needed: int, ttl_ms: int, now_ms: int) -> int:
        return real(times, known, needed, ttl_ms * 1_000, now_ms)

    patch.setattr(credential, "_ends", ends)


def own_standing(patch: Patch) -> None:
    patch.setattr(TrustState, "attested", lambda *_: True)


def peer_standing(patch: Patch) -> None:
    patch.setattr(Notary, "_check_attested", _nothing)


def no_sequence(patch: Patch) -> None:
    patch.setattr(Sequences, "is_new", lambda *_: True)


def no_directive_signature(patch: Patch) -> None:
    def opened(data: bytes, *_: Any, **__: Any) -> SignedDirective:
        return SignedDirective(read_directive(data), "emergency-1", data)

    patch.setattr(denials, "open_directive", opened)


def no_proof_check(patch: Patch) -> None:
    def believed(data: bytes, _anchors: Any) -> Finding:
        proof = read_proof(data)
        return Finding(proof_id(data), proof.kind, proof.accused, proof.accused, "believed")

    patch.setattr(denial_keeper, "verify_proof", believed)


def no_bound(patch: Patch) -> None:
    patch.setattr(limits, "MAX_GOSSIP_HEADS", 10**6)


def endless_directive(patch: Patch) -> None:
    patch.setattr(Denials, "tick", lambda *_, **__: [])


def directive_not_kept(patch: Patch) -> None:
    patch.setattr(DenialKeeper, "_persist", _nothing)


def directive_not_asked(patch: Patch) -> None:
    patch.setattr(Pipeline, "_denial", lambda *_: None)


def not_spent(patch: Patch) -> None:
    patch.setattr(ReplayCache, "spend", _nothing)


def spent_forgotten_at_restart(patch: Patch) -> None:
    real = ReplayCache.__init__

    def born(self: Any, *, boot_ms: int, **rest: Any) -> None:
        real(self, boot_ms=0, **rest)

    patch.setattr(ReplayCache, "__init__", born)


def approval_again(patch: Patch) -> None:
    real = SpentApprovals.spend

    def spend(self: SpentApprovals, key: str, **when: Any) -> int:
        self._held.pop(key, None)
        return real(self, key, **when)

    patch.setattr(SpentApprovals, "spend", spend)
    patch.setattr(SpentApprovals, "is_spent", lambda *_: False)


def use_in_memory_alone(patch: Patch) -> None:
    patch.setattr(SpentFile, "_write", _nothing)


def use_forgotten_at_restart(patch: Patch) -> None:
    patch.setattr(spent_file, "parse_spent", lambda _data: (0, 0, {}))


def one_approver(patch: Patch) -> None:
    real = approval._missing

    def missing(approved: Any, wanted: Any, groups: Any) -> Any:
        return () if approved else real(approved, wanted, groups)

    patch.setattr(approval, "_missing", missing)


def any_request(patch: Patch) -> None:
    """An approval is of caller, service and method alone."""
    patch.setattr(Ticket, "call", property(lambda self: (*self.lines[:4], *self.lines[5:-1])))


def endless_approval(patch: Patch) -> None:
    def judge(signed: Any, ticket: Any, requirements: Any, groups: Any, _now_ms: int) -> Any:
        first_s = min((one.approval.issued_s for one in signed), default=0)
        return approval.judge(signed, ticket, requirements, groups, first_s * 1000)

    patch.setattr(approvals, "judge", judge)


def approvals_follow_the_clock(patch: Patch) -> None:
    """What was forgotten counts again when the clock goes back."""
    patch.setattr(SpentApprovals, "now_ms", lambda _self, now_ms: now_ms)


def no_request_check(patch: Patch) -> None:
    patch.setattr(permits, "check_request", _nothing)


def endless_lease(patch: Patch) -> None:
    patch.setattr(BundleState, "lease", lambda self, *_: Lease.FRESH if self.in_force else Lease.NONE)


def no_floor(patch: Patch) -> None:
    patch.setattr(BundleState, "check", lambda *_, **__: True)


def no_client_floor(patch: Patch) -> None:
    patch.setattr(VersionFloor, "check", _nothing)


def root_forgotten(patch: Patch) -> None:
    """A root counts only once something under it could be kept."""
    patch.setattr(VersionFloor, "learned", _nothing)


def any_root(patch: Patch) -> None:
    """The next root is asked for its own quorum alone, not for that of the root before it."""
    real = chain.require_quorum

    def its_own(delegator: Any, role: str, metadata: Any, *, by: str = "") -> Any:
        return real(metadata.signed if role == "root" else delegator, role, metadata)

    patch.setattr(chain, "require_quorum", its_own)


def replaced_keys_count(patch: Patch) -> None:
    """Whoever was an approver once is one for ever."""

    def ever(delegator: Any, role: str, metadata: Any) -> Any:
        quorum = quorum_of(delegator, role, metadata)
        if quorum.met or not isinstance(delegator, Root):
            return quorum
        first = quorum_of(parse_metadata(root(), Root).signed, role, metadata)
        return first if first.met else quorum

    patch.setattr(chain, "quorum_of", ever)


def no_quorum(patch: Patch) -> None:
    def signed_or_not(delegator: Any, role: str, metadata: Any, **_: Any) -> Any:
        return quorum_of(delegator, role, metadata)

    patch.setattr(chain, "require_quorum", signed_or_not)


def not_durable(patch: Patch) -> None:
    patch.setattr(Notary, "_must_be_durable", lambda *_: False)


def never_looks(patch: Patch) -> None:
    patch.setattr(FeedState, "tick", _nothing)
    patch.setattr(FeedState, "announced", _nothing)


def streams_not_doubted(patch: Patch) -> None:
    patch.setattr(Streams, "doubt_all", _nothing)


def callers_not_doubted(patch: Patch) -> None:
    patch.setattr(Streams, "doubt", _nothing)


def callers_not_asked_for(patch: Patch) -> None:
    """A stream is decided again as if its caller's node were vouched for."""
    patch.setattr(Pipeline, "_still_vouched", lambda _self, _permit, again, _now_ms: again)


def streams_kept(patch: Patch) -> None:
    patch.setattr(pipeline, "withdrawal", _nothing)


def any_scope(patch: Patch) -> None:
    """A namespace may speak of every service."""
    patch.setattr(engine, "_check_scopes", _nothing)


def no_space_quorum(patch: Patch) -> None:
    """Whoever has the online keys can sign for a namespace."""
    real = chain.require_quorum

    def required(delegator: Any, role: str, metadata: Any, **by: str) -> Any:
        if role in {"root", BASE_ROLE, "snapshot", "timestamp"}:
            return real(delegator, role, metadata, **by)
        return quorum_of(delegator, role, metadata)

    patch.setattr(chain, "require_quorum", required)


def space_may_vanish(patch: Patch) -> None:
    """A namespace that is delegated need not be there."""
    real = VersionFloor.check

    def check(self: VersionFloor, verified: Any) -> None:
        try:
            real(self, verified)
        except StateError as error:
            if "is gone" not in error.detail:
                raise

    patch.setattr(VersionFloor, "check", check)
