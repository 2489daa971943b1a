"""`mesh.broker` and `mesh.control_plane`: one member of a lab mesh, to stop and start."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from control_plane.lab.harness import LabMesh


class Member:
    """One member that is not a node."""

    def __init__(self, mesh: "LabMesh", name: str) -> None:
        self._mesh, self.name = mesh, name

    @property
    def running(self) -> bool:
        """Whether its process runs."""
        return self._mesh.fleet.process(self.name).running

    async def stop(self) -> None:
        """Ask it to end, and wait."""
        await self._mesh.stop(self.name)

    async def kill(self) -> None:
        """End it at once (SIGKILL)."""
        await self._mesh.kill(self.name)

    async def start(self) -> None:
        """Start it again; it goes on from its disk."""
        await self._mesh.start_member(self.name)
