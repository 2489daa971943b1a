"""Structured logs: one JSON object per line on stderr, and the decisions that a person may want to read."""

import json
import logging
import sys
import time
from typing import TextIO

from sidecar.core.call import Attempt, Decision
from sidecar.core.levels import ALARMING
from sidecar.core.readiness import Alarms
from trust.errors import Reason

decisions = logging.getLogger("egm.decisions")
_FIELDS = "egm_fields"
# Kinds of alarms that decisions raise; a new policy or lease clears them.
DECISION_ALARMS = tuple(f"decision.{reason}" for reason in sorted(ALARMING))


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON; `extra={"egm_fields": {...}}` adds fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields = getattr(record, _FIELDS, None)
        if isinstance(fields, dict):
            line |= fields
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure(stream: TextIO = sys.stderr, level: int = logging.INFO) -> None:
    """Send every log line of this process to `stream` as JSON."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


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
        if not decisions.isEnabledFor(logging.INFO):
            return
        fields = {
            "decision": decision.id,
            "allowed": decision.allowed,
            "reason": decision.reason,
            "would_deny": decision.would_deny,
            "direction": attempt.direction,
            "caller": attempt.principal,
            "service": attempt.service,
            "method": attempt.method[:200],
            "policy_version": decision.policy_version,
            "level": decision.level,
            "policies": decision.policies,
            "errors": decision.errors,
            "detail": decision.detail[:500],
        }
        decisions.info("allowed" if decision.allowed else "refused", extra={_FIELDS: fields})

    def _alarm(self, reason: Reason, decision: Decision) -> None:
        broken = f" ({', '.join(decision.errors)})" if decision.errors else ""
        self._alarms.set(
            f"decision.{reason}",
            f"{reason}: calls are affected under policy version {decision.policy_version}{broken}",
        )
