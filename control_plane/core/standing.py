"""For whom a node's records speak: (what it was enrolled for, record) -> whether anything is concluded from it.

An operator says at enrolment which workloads a node holds, and it has keys for no others: so the caller's side of a
call is only ever recorded by a node of the caller, and the callee's side by a node of the callee. What a node records
beyond that it made up. Such records stay in the index (its ledger has them, and they are evidence against it); no sum
and no profile learns from them, and nobody is accused by them.

What a node of the callee says of a remote caller remains its word: below level 5 nothing signed by the caller's node
comes with a call, and a refused permit is no evidence to anybody else.
"""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trust import limits
from trust.record import Intent, Side

Serves = Callable[
    [str], str | None
]  # service -> workload that may serve it, by signed policy; None: not a word of it


@enum.unique
class Weight(enum.IntEnum):
    """What one record counts for; in the store, so never renumbered."""

    FOREIGN = -1  # it names a workload that the node does not hold: a finding about the node
    NOTHING = 0
    COUNTS = 1


@dataclass(frozen=True, slots=True)
class Standing:
    """What one node was enrolled for: workload ("" is the node itself) -> until Unix ms, None: still.

    None instead of a mapping: it never joined by a token of ours (its identity comes from elsewhere, such as SPIRE), so
    nobody here knows what it holds and its word counts as it is.
    """

    trust_domain: str
    held: Mapping[str, int | None] | None = None

    def weigh(self, intent: Intent, serves: Serves) -> Weight:
        """Return what a record of this node counts for.

        Args:
            intent: as the node recorded it.
            serves: who may serve a service by the policy in force.
        """
        if self.held is None:
            return Weight.COUNTS
        if self.held.get("", 0) is not None:
            return Weight.NOTHING  # it was removed: what it still ships is nobody's fault, and moves nothing
        if intent.side is Side.OUTBOUND:
            own = not intent.caller or self._holds(intent.caller, intent.wall_ms)
            return Weight.COUNTS if own else Weight.FOREIGN
        if not self._holds(intent.callee, intent.wall_ms):
            return Weight.FOREIGN
        # policy may have moved a service meanwhile, so that is no lie; but the service has another sidecar now
        signed = serves(intent.service)
        moved = signed is not None and not self._has(signed, intent.wall_ms)
        return Weight.NOTHING if moved else Weight.COUNTS

    def _holds(self, member: str, at_ms: int) -> bool:
        prefix = f"spiffe://{self.trust_domain}/workload/"
        return member.startswith(prefix) and self._has(member[len(prefix) :], at_ms)

    def _has(self, workload: str, at_ms: int) -> bool:
        """Whether it held a workload then; what it gave up it may still speak of, with the time at which it held it."""
        if not workload or self.held is None or workload not in self.held:
            return False
        until_ms = self.held[workload]
        return until_ms is None or at_ms <= until_ms + limits.MAX_CLOCK_SKEW_MS


def foreign_text(intent: Intent) -> str:
    """Return what a record claims that its node has no standing for, for people."""
    if intent.side is Side.OUTBOUND:
        return f"records calls by {intent.caller}, which it was not enrolled for"
    return f"records calls to {intent.callee}, which it was not enrolled for"
