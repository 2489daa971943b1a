"""The guards that the simulation is held against: each is removed in turn, and the simulation must notice.

Guards are removed here, by patching; the product has no switch for any of them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from sidecar.core import attester, permits
from sidecar.core.bundle_state import BundleState, Lease
from sidecar.core.feed_state import FeedState
from sidecar.core.pipeline import Pipeline
from sidecar.core.replay import ReplayCache
from sidecar.core.trust_state import TrustState
from sidecar.edge.attestation_files import WitnessStore
from sidecar.edge.notary import Notary
from tests.sim import attesting
from tests.sim.runs import SHORT_MS
from tests.sim.trouble import TROUBLE_MS
from trust import chain, denials, limits
from trust.attestation import credential, witness
from trust.attestation.memory import Memory
from trust.attestation.witness import Challenges
from trust.denials import Denials
from trust.edge import denial_keeper
from trust.edge.denial_keeper import DenialKeeper
from trust.gossip import Sequences
from trust.misbehaviour import Finding, proof_id, read_proof
from trust.quorum import quorum_of
from trust.revocation import SignedDirective, read_directive

Patch = pytest.MonkeyPatch


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One guard that is gone. `fells`: what the violation must say, a regular expression."""

    name: str
    remove: Callable[[Patch], None]
    fells: str
    extra: tuple[tuple[int, str, int], ...] = ()  # steps that bring about what the guard is against
    trouble_ms: int = SHORT_MS


def _nothing(*_: Any, **__: Any) -> None:
    """Check nothing."""


def _signs_at_any_time(patch: Patch) -> None:
    def median_alone(challenges: Any, *, now_ms: int, **_: Any) -> None:
        attester.check_clock(challenges, now_ms=now_ms)

    patch.setattr(attesting, "check_clock", median_alone)


def _no_nonce(patch: Patch) -> None:
    patch.setattr(Challenges, "answer", _nothing)


def _no_counter(patch: Patch) -> None:
    patch.setattr(witness, "_check_history", _nothing)


def _no_consistency(patch: Patch) -> None:
    patch.setattr(witness, "_forked", lambda *_: False)
    patch.setattr(witness, "check_consistency", _nothing)


def _may_shrink(patch: Patch) -> None:
    """A shorter ledger counts as if nothing was seen of it before."""
    real = witness._check_ledger

    def check(memory: Memory, now: Any, evidence: Any) -> Any:
        size = witness._own_checkpoint(evidence).checkpoint.size
        return real(Memory() if size < memory.size else memory, now, evidence)

    patch.setattr(witness, "_check_ledger", check)


def _no_quarantine(patch: Patch) -> None:
    real = witness.judge

    def judge(memory: Any, submission: Any, evidence: Any, view: Any, **when: Any) -> Any:
        return real(memory, submission, evidence, dataclasses.replace(view, quarantined=frozenset()), **when)

    patch.setattr("sidecar.edge.witness_desk.judge", judge)


def _answers_before_it_persists(patch: Patch) -> None:
    """The memory is in a cache that a crash empties."""
    read = WitnessStore.read

    def swap(self: Any, node: str, before: Any, after: Any) -> None:
        vars(self).setdefault("cache", {})[node] = after

    def cached(self: Any, node: str) -> Any:
        return vars(self).get("cache", {}).get(node) or read(self, node)

    patch.setattr(WitnessStore, "swap", swap)
    patch.setattr(WitnessStore, "read", cached)


def _no_lag(patch: Patch) -> None:
    patch.setattr(witness, "_check_policy", _nothing)


def _one_cosignature(patch: Patch) -> None:
    real = credential._ends

    def ends(times: Any, known: Any, needed: int, ttl_ms: int, now_ms: int) -> int:
        return real(times, known, min(needed, 1), ttl_ms, now_ms)

    patch.setattr(credential, "_ends", ends)


def _endless_credential(patch: Patch) -> None:
    real = credential._ends

    def ends(times: Any, known: Any, needed: int, ttl_ms: int, now_ms: int) -> int:
        return real(times, known, needed, ttl_ms * 1_000, now_ms)

    patch.setattr(credential, "_ends", ends)


def _own_standing(patch: Patch) -> None:
    patch.setattr(TrustState, "attested", lambda *_: True)


def _peer_standing(patch: Patch) -> None:
    patch.setattr(Notary, "_check_attested", _nothing)


def _no_sequence(patch: Patch) -> None:
    patch.setattr(Sequences, "is_new", lambda *_: True)


def _no_directive_signature(patch: Patch) -> None:
    def opened(data: bytes, *_: Any, **__: Any) -> SignedDirective:
        return SignedDirective(read_directive(data), "emergency-1", data)

    patch.setattr(denials, "open_directive", opened)


def _no_proof_check(patch: Patch) -> None:
    def believed(data: bytes, _anchors: Any) -> Finding:
        proof = read_proof(data)
        return Finding(proof_id(data), proof.kind, proof.accused, proof.accused, "believed")

    patch.setattr(denial_keeper, "verify_proof", believed)


def _no_bound(patch: Patch) -> None:
    patch.setattr(limits, "MAX_GOSSIP_HEADS", 10**6)


def _endless_directive(patch: Patch) -> None:
    patch.setattr(Denials, "tick", lambda *_, **__: [])


def _directive_not_kept(patch: Patch) -> None:
    patch.setattr(DenialKeeper, "_persist", _nothing)


def _directive_not_asked(patch: Patch) -> None:
    patch.setattr(Pipeline, "_denial", lambda *_: None)


def _not_spent(patch: Patch) -> None:
    patch.setattr(ReplayCache, "spend", _nothing)


def _spent_forgotten_at_restart(patch: Patch) -> None:
    real = ReplayCache.__init__

    def born(self: Any, *, boot_ms: int, **rest: Any) -> None:
        real(self, boot_ms=0, **rest)

    patch.setattr(ReplayCache, "__init__", born)


def _no_request_check(patch: Patch) -> None:
    patch.setattr(permits, "check_request", _nothing)


def _endless_lease(patch: Patch) -> None:
    patch.setattr(BundleState, "lease", lambda self, *_: Lease.FRESH if self.in_force else Lease.NONE)


def _no_floor(patch: Patch) -> None:
    patch.setattr(BundleState, "check", lambda *_, **__: True)


def _no_quorum(patch: Patch) -> None:
    def signed_or_not(delegator: Any, role: str, metadata: Any, **_: Any) -> Any:
        return quorum_of(delegator, role, metadata)

    patch.setattr(chain, "require_quorum", signed_or_not)


def _not_durable(patch: Patch) -> None:
    patch.setattr(Notary, "_must_be_durable", lambda *_: False)


def _never_looks(patch: Patch) -> None:
    patch.setattr(FeedState, "tick", _nothing)
    patch.setattr(FeedState, "announced", _nothing)


_REWRITE = tuple((at, "rewrite", at) for at in (4_500, 5_500))
_OLD_DISK = ((2_800, "backup", 1), *((at, "restore", at) for at in range(4_000, 6_800, 300)))
_ALL_RESTART = tuple(
    step
    for at in range(2_000, 6_500, 1_500)
    for step in (
        (at, "revoke", at),
        (at + 300, "partition", at),
        (at + 350, "crash_all", 1),
        (at + 1_000, "heal", 1),
    )
)
_RESTARTS_REPLAYED = (
    *((at, "bounce", at) for at in (3_500, 6_000, 8_500, 11_000)),
    *((at, "replay", at) for at in range(4_000, 13_500, 300)),
)
_MISDIRECTED = ((1_000, "misdirect", 1),)
_REVOKED = tuple((at, "revoke", at) for at in range(1_600, 4_000, 300))
_RESTARTS = tuple((at, "bounce", at) for at in range(3_600, 6_400, 400))
_BOAST = ((500, "boast", 1), (2_500, "alone", 1), (6_000, "alone", 1))
_FROZEN = tuple(
    step
    for at in (1_500, 2_000, 2_500)
    for step in ((at, "publish", at), (at + 100, "freeze", at), (at + 200, "publish", at))
)
_NO_LEASE = ((1_500, "control_plane", 1),)
_NEWER = tuple((at, "publish", at) for at in range(1_500, 6_500, 400))
_KEPT_BACK = ((2_500, "intercept", 1), *((at, "tamper", at) for at in range(2_600, 6_900, 200)))
_FORK = ((2_500, "fork", 1),)

_AHEAD = ((2_000, "ahead", 1),)

MUTANTS = (
    Mutant("attester: a quorum agrees on the time", _signs_at_any_time, "invariant 8.*not attested", _AHEAD),
    Mutant("witness: nonce", _no_nonce, "invariant 2.*did not ask for", _MISDIRECTED, TROUBLE_MS),
    Mutant("witness: counter", _no_counter, "invariant 3.*vouches", _OLD_DISK),
    Mutant("witness: ledger consistency proof", _no_consistency, "invariant 6.*itself cosigned", _REWRITE),
    Mutant("witness: ledger never shrinks", _may_shrink, "invariant 3.*vouches", _REWRITE),
    Mutant("witness: quarantine", _no_quarantine, "invariant 4.*quarantined", _FORK),
    Mutant(
        "witness: persist before answer",
        _answers_before_it_persists,
        "invariant 3.*vouches",
        _OLD_DISK + _RESTARTS,
    ),
    Mutant("witness: policy lag and rollback", _no_lag, "invariant 3.*behind", _FROZEN, TROUBLE_MS),
    Mutant("credential: k distinct", _one_cosignature, "invariant 2.*cosignatures", _BOAST, TROUBLE_MS),
    Mutant("credential: time to live", _endless_credential, "invariant 2.*cosignatures", _BOAST, TROUBLE_MS),
    Mutant("trust state: own", _own_standing, "invariant 2"),
    Mutant("trust state: peer", _peer_standing, "invariant 2", _BOAST, TROUBLE_MS),
    Mutant("gossip: sequence", _no_sequence, "gossip:.*second time"),
    Mutant("gossip: bound", _no_bound, "gossip:.*bounds"),
    Mutant("gossip: proof verified", _no_proof_check, "invariant 4.*never lied"),
    Mutant("revocation: signature", _no_directive_signature, "invariant 4.*no emergency key"),
    Mutant("revocation: expiry", _endless_directive, "invariant 4.*still denies", _REVOKED, TROUBLE_MS),
    Mutant("revocation: persisted", _directive_not_kept, "invariant 4.*revoked there", _ALL_RESTART),
    Mutant(
        "revocation: asked for every call",
        _directive_not_asked,
        "invariant 4.*(revoked|quarantined)",
        _REVOKED,
    ),
    Mutant("replay cache", _not_spent, "invariant 7.*second time"),
    Mutant(
        "replay cache: floor across restarts",
        _spent_forgotten_at_restart,
        "invariant 7.*second time",
        _RESTARTS_REPLAYED,
        TROUBLE_MS,
    ),
    Mutant("permit: request bytes", _no_request_check, "invariant 7", _KEPT_BACK),
    Mutant("lease", _endless_lease, "invariant 2", _NO_LEASE, TROUBLE_MS),
    Mutant("version floor", _no_floor, "invariant 3", _NEWER),
    Mutant("quorum of approvers", _no_quorum, "invariant 1", ((2_000, "no_quorum", 1),)),
    Mutant("intent durable before forward", _not_durable, "invariant 5"),
    Mutant("feed: looks by itself", _never_looks, "invariant 8"),
)
