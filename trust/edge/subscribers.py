"""Who wants to know that an identity source changed."""

import logging
from collections.abc import Callable

logger = logging.getLogger(__name__)

Notify = Callable[[], None]


class Subscribers:
    """Callbacks in the order they came; one that fails does not hide the change from the rest."""

    def __init__(self) -> None:
        self._all: list[Notify] = []

    def add(self, changed: Notify) -> None:
        """Call `changed` at every `notify`."""
        self._all.append(changed)

    def notify(self) -> None:
        """Tell everyone, in order."""
        for changed in self._all:
            try:
                changed()
            except Exception:
                logger.exception("a subscriber failed to follow an identity rotation")
