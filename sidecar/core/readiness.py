"""Whether this node may be sent calls, and if not, why: never ready without an activated policy."""

import enum
from dataclasses import dataclass, field

from sidecar.core.bundle_state import Lease
from trust import limits
from trust.errors import Reason
from trust.levels import CRYPTOGRAPHIC, GOVERNED


@enum.unique
class NodeState(enum.StrEnum):
    """The words of `egm.v1.NodeStatus.state`."""

    STARTING = "STARTING"
    READY = "READY"
    NOT_READY = "NOT_READY"
    DRAINING = "DRAINING"


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything readiness depends on, at one moment."""

    lease: Lease
    levels: dict[str, int]  # of every service that this node carries calls for
    listening: bool = False
    draining: bool = False
    identity_problem: str = ""  # empty: every SVID is held and valid
    starting: bool = False
    not_attested: str = (
        ""  # why too few witnesses vouch for this node; empty: enough do, or none are asked for
    )


@dataclass(frozen=True, slots=True)
class Readiness:
    """The node's state, why it is not ready (empty when it is), and which services can be served."""

    state: NodeState
    not_ready: tuple[str, ...]
    serving: frozenset[str] = field(default_factory=frozenset)


_WHY_LEASE = {
    Lease.NONE: f"{Reason.POLICY_MISSING}: no policy has been activated; is the control plane reachable, "
    "and has a policy been published?",
    Lease.SEALED: f"{Reason.POLICY_STALE}: the lease and its grace are over; is the control plane reachable?",
    Lease.EXPIRED: f"{Reason.POLICY_EXPIRED}: the signed policy has expired; approvers must sign a new one",
}


def assess(facts: Facts) -> Readiness:
    """Decide readiness; a service below level 4 stays ready when its lease is over, one below 5 without attestation."""
    common: list[str] = []
    if facts.draining:
        common.append(f"{Reason.DRAINING}: shutting down; calls in flight finish")
    if not facts.listening:
        common.append("listeners are not up yet")
    if facts.identity_problem:
        common.append(f"{Reason.IDENTITY_UNAVAILABLE}: {facts.identity_problem}")
    why = _WHY_LEASE.get(facts.lease)
    if facts.lease is Lease.NONE:
        sealed = set(facts.levels)
    else:
        sealed = {name for name, level in facts.levels.items() if level >= GOVERNED} if why else set()
    if why and (sealed or facts.lease is Lease.NONE):
        common.append(why)
    if not why and facts.not_attested:
        unvouched = {name for name, level in facts.levels.items() if level >= CRYPTOGRAPHIC}
        if unvouched:
            sealed |= unvouched
            common.append(f"{Reason.NODE_NOT_ATTESTED}: {facts.not_attested}")
    usable = not (facts.draining or facts.identity_problem or not facts.listening)
    serving = frozenset(set(facts.levels) - sealed) if usable else frozenset()
    if facts.draining:
        state = NodeState.DRAINING
    elif not common:
        state = NodeState.READY
    else:
        state = NodeState.STARTING if facts.starting else NodeState.NOT_READY
    return Readiness(state, tuple(common), serving)


class Alarms:
    """What a person should look at now, by kind; the newest text of a kind replaces the older one."""

    def __init__(self) -> None:
        """Start silent."""
        self._texts: dict[str, str] = {}

    def set(self, kind: str, text: str) -> bool:
        """Raise or update an alarm; return whether its text is new. Kinds beyond the limit are dropped."""
        if self._texts.get(kind) == text:
            return False
        if kind not in self._texts and len(self._texts) >= limits.MAX_ALARMS:
            return False
        self._texts[kind] = text
        return True

    def clear(self, *kinds: str) -> None:
        """Withdraw alarms whose cause is gone."""
        for kind in kinds:
            self._texts.pop(kind, None)

    def texts(self) -> tuple[str, ...]:
        """Return every alarm, oldest kind first."""
        return tuple(self._texts.values())
