"""How many executions ended how, since start; what the node reports and the meters read."""

from sidecar.core.call import Decision, Direction


class Counters:
    """Plain counts; keys are bounded because every part is an enumeration."""

    def __init__(self) -> None:
        """Start at zero."""
        self._decided: dict[tuple[Direction, str], int] = {}
        self._would_deny: dict[tuple[Direction, str], int] = {}
        self._statuses: dict[tuple[Direction, str], int] = {}
        self.streams_cut = 0

    def decided(self, direction: Direction, decision: Decision) -> None:
        """Count one decision by direction and reason, and what level 4 would have refused."""
        key = (direction, decision.reason)
        self._decided[key] = self._decided.get(key, 0) + 1
        if decision.would_deny is not None:
            key = (direction, decision.would_deny)
            self._would_deny[key] = self._would_deny.get(key, 0) + 1

    def forwarded(self, direction: Direction, status: str) -> None:
        """Count the outcome of a permitted execution by its gRPC code name."""
        key = (direction, status)
        self._statuses[key] = self._statuses.get(key, 0) + 1

    def decisions(self) -> dict[str, int]:
        """Return "outbound.ALLOWED" and "outbound.would_deny.NO_POLICY_PERMITS" style counts."""
        counts = {f"{direction}.{reason}": n for (direction, reason), n in self._decided.items()}
        counts |= {
            f"{direction}.would_deny.{reason}": n for (direction, reason), n in self._would_deny.items()
        }
        return counts

    def statuses(self) -> dict[str, int]:
        """Return "inbound.OK" style counts of forwarded executions."""
        return {f"{direction}.{status}": n for (direction, status), n in self._statuses.items()}
