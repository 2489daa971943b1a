"""Processes of a lab that are given up while they start."""

import asyncio
from pathlib import Path

import pytest

from control_plane.lab.processes import Process
from tests.support.eventually import eventually


class Told(Process):
    """A process that is ready when the test says so."""

    def __init__(self, log: Path) -> None:
        super().__init__("p", ["60"], log=log, program=["sleep"])
        self.asked = asyncio.Event()
        self.told: asyncio.Future[dict[str, object]] = asyncio.get_running_loop().create_future()

    async def until_ready(self, process: asyncio.subprocess.Process) -> dict[str, object]:
        """Wait for the test."""
        self.asked.set()
        return await self.told


async def test_one_that_gets_ready_the_moment_it_is_given_up_is_ended_all_the_same(tmp_path: Path) -> None:
    """Ctrl-C at that moment was forgotten, and the mesh went on starting."""
    process = Told(tmp_path / "log")
    starting = asyncio.create_task(process.start())
    await process.asked.wait()
    process.told.set_result({"event": "ready"})
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await eventually(lambda: not process.running, "it has ended")
