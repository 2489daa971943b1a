"""What a lab ends, whatever has failed in it."""

from typing import Any

from control_plane.lab.harness import LabMesh


class FailedLoad:
    """A load whose worker has failed: it says so to whoever stops it."""

    async def stop(self) -> None:
        """Raise what the worker failed with."""
        raise ValueError("a wrong descriptor")


class Part:
    """Something that is closed once."""

    def __init__(self) -> None:
        self.closed = 0

    async def close(self) -> None:
        """Count."""
        self.closed += 1


async def test_a_load_that_failed_keeps_no_process_running() -> None:
    """Whoever did not stop it before would be left with a mesh that nobody ends."""
    mesh: Any = LabMesh.__new__(LabMesh)
    notes: list[str] = []
    mesh._loads, mesh._caller, mesh.fleet, mesh.note = [FailedLoad()], Part(), Part(), notes.append
    await mesh.close()
    assert (mesh._caller.closed, mesh.fleet.closed) == (1, 1)
    assert any("a wrong descriptor" in note for note in notes)
