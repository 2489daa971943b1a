"""Who hears of decisions: ports of the pipeline."""

from typing import Protocol

from sidecar.core.call import Attempt, Decision, Direction
from trust.policy.types import Call


class Journal(Protocol):
    """Hears of decisions that a person may want to read: refusals, and what level 4 would have refused."""

    def notable(self, attempt: Attempt, decision: Decision) -> None:
        """Note one decision."""
        ...


class Shadow(Protocol):
    """Sees every call that is decided, to decide it under a candidate as well; `sidecar.core.shadow.Comparison`."""

    def compare(
        self, call: Call, direction: Direction, decision: Decision, *, identified: bool, now_ms: int
    ) -> None:
        """Take one decided call; must neither fail nor wait."""
        ...
