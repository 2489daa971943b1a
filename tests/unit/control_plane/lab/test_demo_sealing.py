"""The step of the demonstration that has to be quicker than a lease's grace."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from control_plane.lab.calls import Outcome
from control_plane.lab.demo_sealing import stale
from control_plane.lab.demo_world import CheckError
from trust.errors import Reason

DONE = Outcome(True, "OK", reply={"id": "7"})
LATE = Outcome(False, "UNAVAILABLE", Reason.POLICY_STALE.value, "the lease and its grace are over")
DENIED = Outcome(False, "PERMISSION_DENIED", Reason.POLICY_DENIED.value, "forbidden")


class Slow:
    """A world on a machine that is busy for some tries: what nodes say, and what becomes of alice's call."""

    def __init__(self, *tries: tuple[str, Outcome]) -> None:
        self._tries, self._said, self.killed = list(tries), [tries[0][0]], 0
        self.lab = SimpleNamespace(
            control_plane=SimpleNamespace(kill=self._kill, start=self._nothing), wait_until=self._nothing
        )

    async def wait(self, wanted: Callable[[Mapping[str, Any]], object]) -> Mapping[str, Any]:
        """Return what nodes say."""
        shown = {"alarms": ["x"], "lease_remaining_ms": 0}
        nodes = {"a": {"lease": self._said[0]} | shown, "b": {"lease": "STALE"} | shown}
        assert wanted(nodes)
        return nodes

    async def transfer(self, _caller: str, _amount: int) -> Outcome:
        """Return what becomes of it."""
        said, done = self._tries.pop(0)
        self._said = [said]
        return done

    async def executed(self, *_: object, **__: object) -> str:
        """Succeed, when the control plane is back."""
        return "8"

    async def _kill(self) -> None:
        self.killed += 1

    async def _nothing(self, *_: object) -> None:
        return


async def test_a_machine_that_is_busier_than_the_grace_is_long_tries_again() -> None:
    """Once it is in time, what was to be shown is shown."""
    world: Any = Slow(("STALE", LATE), ("SEALED", DONE), ("STALE", DONE))
    assert "lease STALE" in await stale(world)
    assert world.killed == 3


@pytest.mark.parametrize(
    "tries",
    [[("STALE", DENIED)], [("STALE", LATE)] * 3, [("SEALED", DONE)] * 3],
    ids=["refused", "too-late", "sealed"],
)
async def test_what_does_not_hold_is_not_tried_until_it_does(tries: list[tuple[str, Outcome]]) -> None:
    """A refusal for another reason is one, and so is a node that never is STALE together with the others."""
    with pytest.raises(CheckError):
        await stale(Slow(*tries))  # type: ignore[arg-type]  # as much of a world as the step looks at
