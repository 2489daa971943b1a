"""Which execution the running handler serves."""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class CurrentCall:
    """What the own sidecar has vouched for."""

    caller: str | None  # SPIFFE ID; None where the level in force allows unidentified callers
    execution_id: str  # UUIDv7
    permit: str | None  # as it travels; None below level 5


CURRENT: Final[ContextVar[CurrentCall | None]] = ContextVar("egm_current_call", default=None)


def current_call() -> CurrentCall | None:
    """Return the call that the running handler serves; None outside of one, and for exempt methods.

    It follows `contextvars`: tasks that a handler starts see it, threads that it starts do not, unless they are run
    in `contextvars.copy_context()`.
    """
    return CURRENT.get()
