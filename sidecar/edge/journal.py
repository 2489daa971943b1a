"""Which decisions a person may read in the log, and which of them need one."""

import logging
from typing import Final

from sidecar.core.call import Attempt, Decision
from sidecar.core.levels import ALARMING
from sidecar.core.readiness import Alarms
from trust.edge.logs import fields
from trust.errors import Reason

decisions = logging.getLogger("egm.decisions")
# Kinds of alarms that decisions raise; a new policy or lease clears them.
RESTRICTED: Final = "decision.RESTRICTED"
DECISION_ALARMS = (*(f"decision.{reason}" for reason in sorted(ALARMING)), RESTRICTED)


class LogJournal:
    """A `sidecar.core.pipeline.Journal` that logs, and raises an alarm for what needs a person."""

    def __init__(self, alarms: Alarms) -> None:
        """Raise alarms in `alarms`."""
        self._alarms = alarms

    def notable(self, attempt: Attempt, decision: Decision) -> None:
        """Log one decision; never its request."""
        for reason in (decision.reason, decision.would_deny):
            if reason in ALARMING:
                self._alarm(reason, decision)
        if decision.restrictions and not decision.allowed:
            asked = ", ".join(" ".join(pair) for pair in decision.restrictions)
            self._alarms.set(
                RESTRICTED,
                f"{decision.reason}: incident response restricts {attempt.principal} ({asked}); see `egm revoke list`",
            )
        if not decisions.isEnabledFor(logging.INFO):
            return
        told = {
            "decision_id": decision.id,
            "allowed": decision.allowed,
            "reason": decision.reason,
            "would_deny": decision.would_deny,
            "direction": attempt.direction,
            "caller": attempt.principal,
            "service": attempt.service,
            "method": attempt.method[:200],
            "policy_version": decision.policy_version,
            "level": decision.level,
            "policies": decision.policies[:20],
            "errors": [error[:300] for error in decision.errors[:5]],
            "detail": decision.detail[:500],
        }
        # One caller's flood must not hide what happens to the others.
        kind = (attempt.principal, attempt.service, decision.reason)
        decisions.info("allowed" if decision.allowed else "refused", extra=fields(told, kind=kind))

    def _alarm(self, reason: Reason, decision: Decision) -> None:
        broken = f" ({', '.join(decision.errors)})" if decision.errors else ""
        self._alarms.set(
            f"decision.{reason}",
            f"{reason}: calls are affected under policy version {decision.policy_version}{broken}",
        )
