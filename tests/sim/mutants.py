"""The guards that the simulation is held against: each is removed in turn, and the simulation must notice.

How each is taken away is in `tests.sim.removals`.
"""

import dataclasses
from collections.abc import Callable

import pytest

from tests.sim import removals
from tests.sim.runs import SHORT_MS
from tests.sim.trouble import TROUBLE_MS

Patch = pytest.MonkeyPatch


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One guard that is gone. `fells`: what the violation must say, a regular expression."""

    name: str
    remove: Callable[[Patch], None]
    fells: str
    extra: tuple[tuple[int, str, int], ...] = ()  # steps that bring about what the guard is against
    trouble_ms: int = SHORT_MS


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
_WIDE = ((3_000, "widen", 1),)
_MIXED = tuple((at, "mix", at) for at in range(2_500, 6_500, 400))
_DESK = ((2_500, "desk", 1),)
_PAUSED = tuple((at, "revoke", 1_600) for at in (5_000, 9_500))  # for 3 s each: approvals end meanwhile
_DESK_CRASHES = (*_DESK, *((at, "restart", at) for at in (5_500, 8_500, 11_500)))
_LONGER_MS = 18_000  # a credential and its slack after they are alone
_BOAST_LATER = ((400, "watch", 1), (500, "boast", 1), (5_000, "alone", 1))
_ONE_REVOKED = tuple((6_000 + 50 * number, "revoke", number) for number in range(1, 4))
_UNVOUCHED = "invariant 2.*stream of n[03], for which nobody"
_NO_LEASE = ((1_500, "control_plane", 1),)
_LOST = tuple(
    step
    for at in range(1_500, 6_500, 400)
    for step in ((at, "publish", at), (at + 100, "wipe", at), (at + 200, "broker", 1))
)
_STOLEN = ((2_000, "steal", 1), (2_600, "heal", 1))
_NEWER = tuple((at, "publish", at) for at in range(1_500, 6_500, 400))
_KEPT_BACK = ((2_500, "intercept", 1), *((at, "tamper", at) for at in range(2_600, 6_900, 200)))
_FORK = ((2_500, "fork", 1),)

_AHEAD = ((2_000, "ahead", 1),)

MUTANTS = (
    Mutant(
        "attester: a quorum agrees on the time",
        removals.signs_at_any_time,
        "invariant 8.*not attested",
        _AHEAD,
    ),
    Mutant("witness: nonce", removals.no_nonce, "invariant 2.*did not ask for", _MISDIRECTED, TROUBLE_MS),
    Mutant("witness: counter", removals.no_counter, "invariant 3.*vouches", _OLD_DISK),
    Mutant(
        "witness: ledger consistency proof", removals.no_consistency, "invariant 6.*itself cosigned", _REWRITE
    ),
    Mutant("witness: ledger never shrinks", removals.may_shrink, "invariant 3.*vouches", _REWRITE),
    Mutant("witness: quarantine", removals.no_quarantine, "invariant 4.*quarantined", _FORK),
    Mutant(
        "witness: persist before answer",
        removals.answers_before_it_persists,
        "invariant 3.*vouches",
        _OLD_DISK + _RESTARTS,
    ),
    Mutant("witness: policy lag and rollback", removals.no_lag, "invariant 3.*behind", _FROZEN, TROUBLE_MS),
    Mutant(
        "credential: k distinct", removals.one_cosignature, "invariant 2.*cosignatures", _BOAST, TROUBLE_MS
    ),
    Mutant(
        "credential: time to live",
        removals.endless_credential,
        "invariant 2.*cosignatures",
        _BOAST,
        TROUBLE_MS,
    ),
    Mutant("trust state: own", removals.own_standing, "invariant 2"),
    Mutant("trust state: peer", removals.peer_standing, "invariant 2", _BOAST, TROUBLE_MS),
    Mutant("gossip: sequence", removals.no_sequence, "gossip:.*second time"),
    Mutant("gossip: bound", removals.no_bound, "gossip:.*bounds"),
    Mutant("gossip: proof verified", removals.no_proof_check, "invariant 4.*never lied"),
    Mutant("revocation: signature", removals.no_directive_signature, "invariant 4.*no emergency key"),
    Mutant(
        "revocation: expiry", removals.endless_directive, "invariant 4.*still denies", _REVOKED, TROUBLE_MS
    ),
    Mutant("revocation: persisted", removals.directive_not_kept, "invariant 4.*revoked there", _ALL_RESTART),
    Mutant(
        "revocation: asked for every call",
        removals.directive_not_asked,
        "invariant 4.*(revoked|quarantined)",
        _REVOKED,
    ),
    Mutant("replay cache", removals.not_spent, "invariant 7.*second time"),
    Mutant(
        "replay cache: floor across restarts",
        removals.spent_forgotten_at_restart,
        "invariant 7.*second time",
        _RESTARTS_REPLAYED,
        TROUBLE_MS,
    ),
    Mutant("permit: request bytes", removals.no_request_check, "invariant 7", _KEPT_BACK),
    Mutant("namespace: its own services alone", removals.any_scope, "invariant [14]", _WIDE),
    Mutant("namespace: quorum of its approvers", removals.no_space_quorum, "invariant 1.*namespace", _MIXED),
    Mutant("namespace: there while delegated", removals.space_may_vanish, "invariant 3.*namespace", _MIXED),
    Mutant("approval: once", removals.approval_again, "invariant 7.*one approval", _DESK),
    Mutant("approval: use on disk first", removals.use_in_memory_alone, "invariant 5.*not on disk"),
    Mutant(
        "approval: use known after a restart",
        removals.use_forgotten_at_restart,
        "invariant 7.*one app",
        _DESK_CRASHES,
    ),
    Mutant("approval: k distinct", removals.one_approver, "invariant 1.*1 of 2 approvers", _DESK),
    Mutant("approval: this request", removals.any_request, "invariant 1.*another request", _DESK),
    Mutant(
        "approval: its end", removals.endless_approval, "invariant 1.*approval ended", _PAUSED, TROUBLE_MS
    ),
    Mutant(
        "streams: doubted after a change",
        removals.streams_not_doubted,
        "invariant [24].*stream",
        _ONE_REVOKED,
        TROUBLE_MS,
    ),
    Mutant(
        "streams: a right that is gone",
        removals.streams_kept,
        "invariant [24].*stream",
        _ONE_REVOKED,
        TROUBLE_MS,
    ),
    Mutant(
        "streams: lapse of the caller", removals.callers_not_doubted, _UNVOUCHED, _BOAST_LATER, _LONGER_MS
    ),
    Mutant(
        "streams: caller vouched for", removals.callers_not_asked_for, _UNVOUCHED, _BOAST_LATER, _LONGER_MS
    ),
    Mutant("lease", removals.endless_lease, "invariant 2", _NO_LEASE, TROUBLE_MS),
    Mutant("version floor: state", removals.no_floor, "invariant 3", _LOST),
    Mutant("version floor: policy client", removals.no_client_floor, "invariant 3.*kept", _LOST),
    Mutant(
        "root: seen, and nothing kept", removals.root_forgotten, "invariant 1.*replaced", _STOLEN, TROUBLE_MS
    ),
    Mutant(
        "root: quorum of the one before",
        removals.any_root,
        "invariant 1.*no quorum",
        ((3_000, "forge_root", 1),),
    ),
    Mutant("root: replaced keys", removals.replaced_keys_count, "invariant 1.*replaced", _STOLEN, TROUBLE_MS),
    Mutant("quorum of approvers", removals.no_quorum, "invariant 1", ((2_000, "no_quorum", 1),)),
    Mutant("intent durable before forward", removals.not_durable, "invariant 5"),
    Mutant("feed: looks by itself", removals.never_looks, "invariant 8"),
)
