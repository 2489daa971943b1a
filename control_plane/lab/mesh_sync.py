"""The lab mesh for tests without an event loop: the same methods, each returning when it is done."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from control_plane.lab.calls import CALL_TIMEOUT_S, Outcome, Payload
from control_plane.lab.harness import LOG_TAIL_LINES, WAIT_S, LabMesh
from control_plane.lab.load import Call, Judge, Load, Report
from control_plane.lab.mesh import CONTROL_PLANE
from control_plane.lab.plan import BROKER, LabPlan, PolicyChange
from control_plane.lab.states import Predicate, Status, Wanted

T = TypeVar("T")
_JOIN_S: Final = 30.0


class Mesh:
    """A running mesh, driven from any thread; its links and processes live in a thread of its own.

    `with Mesh(plan, directory) as mesh:` starts and ends it; the pytest fixture `mesh` does that for you. Every
    method does what the one of `LabMesh` with its name does, and raises what that raises.
    """

    def __init__(self, plan: LabPlan, directory: Path) -> None:
        """Describe a mesh; nothing is started."""
        self.plan, self.directory = plan, directory.resolve()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="egm lab", daemon=True)
        self._thread.start()
        self._mesh = self._call(lambda: LabMesh(plan, directory))
        self.broker = MemberHandle(self, BROKER)
        self.control_plane = MemberHandle(self, CONTROL_PLANE)

    # life

    def __enter__(self) -> Self:
        """Start everything; ready when every node enforces the first policy."""
        try:
            self._run(self._mesh.start())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything."""
        self.close()

    def close(self) -> None:
        """End every process and close every socket, once."""
        if self._loop.is_closed():
            return
        try:
            self._run(self._mesh.close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_JOIN_S)
            self._loop.close()

    def restore(self) -> None:
        """Mend everything, and wait until every node is ready on the newest policy."""
        self._run(self._mesh.restore())

    # network

    def partition(
        self, *groups: Sequence[str] | set[str], one_way: bool = False, reset: bool = False
    ) -> None:
        """Cut the links between groups of members; one that no group names keeps all of its links."""
        self._call(lambda: self._mesh.partition(*groups, one_way=one_way, reset=reset))

    def isolate(self, *names: str, reset: bool = False) -> None:
        """Cut members (together) off from every other."""
        self._call(lambda: self._mesh.isolate(*names, reset=reset))

    def fault(self, source: str, target: str, *, one_way: bool = False, **fault: Any) -> None:
        """Put a fault on the link between two members: delay_ms, jitter_ms, loss, bytes_per_s, drop, reset."""
        self._call(lambda: self._mesh.fault(source, target, one_way=one_way, **fault))

    def heal(self) -> None:
        """Take every fault of the network away."""
        self._call(self._mesh.heal)

    # members

    def kill(self, name: str) -> None:
        """End a member at once (SIGKILL)."""
        self._run(self._mesh.kill(name))

    def stop(self, name: str) -> None:
        """Ask a member to drain and end (SIGTERM)."""
        self._run(self._mesh.stop(name))

    def start_member(self, name: str) -> None:
        """Start a member that was stopped or killed."""
        self._run(self._mesh.start_member(name))

    def restart(self, name: str) -> None:
        """Stop a member if it runs, and start it again."""
        self._run(self._mesh.restart(name))

    def pause(self, name: str) -> None:
        """Freeze a member (SIGSTOP)."""
        self._call(lambda: self._mesh.pause(name))

    def resume(self, name: str) -> None:
        """Let a frozen member go on."""
        self._call(lambda: self._mesh.resume(name))

    def skew(self, name: str, offset: str | float) -> None:
        """Set how far a node's clock is off: "+90s", "-2m", 0."""
        self._call(lambda: self._mesh.skew(name, offset))

    def snapshot(self, name: str) -> Path:
        """Copy a member's disk as it is now; return the copy."""
        return self._run(self._mesh.snapshot(name))

    def lie(self, name: str, how: str) -> None:
        """Let a node lie: "rollback" or "equivocate"."""
        self._run(self._mesh.lie(name, how))

    # use

    def call(
        self,
        workload: str,
        method: str,
        payload: Payload | None = None,
        *,
        to: str | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
        within_s: float = 0.0,
        metadata: Mapping[str, str] | None = None,
        twin: bool = False,
    ) -> Outcome:
        """Call "pkg.Service/Method" as `workload`, through its sidecar; return how it ended, refusals too."""
        return self._run(
            self._mesh.call(
                workload,
                method,
                payload,
                to=to,
                timeout_s=timeout_s,
                within_s=within_s,
                metadata=metadata,
                twin=twin,
            )
        )

    def address(self, workload: str, service: str, *, twin: bool = False) -> str:
        """Return where `workload` reaches `service` in plaintext: give it to your own client."""
        return self._mesh.address(workload, service, twin=twin)

    def load(
        self, calls: Sequence[Call], *, workers: int = 1, pause_s: float = 0.02, judge: Judge
    ) -> "LoadHandle":
        """Start calling, over and over, until `stop()` of what is returned."""
        return LoadHandle(
            self, self._call(lambda: self._mesh.load(calls, workers=workers, pause_s=pause_s, judge=judge))
        )

    def publish(
        self,
        change: PolicyChange | None = None,
        *,
        level: int | None = None,
        witnesses: Sequence[str] | None = None,
    ) -> int:
        """Have a policy signed by the quorum and published; return its version."""
        return self._run(self._mesh.publish(change, level=level, witnesses=witnesses))

    # look

    def status(self, name: str) -> Status:
        """Return what a node says of itself now."""
        return self._run(self._mesh.status(name))

    def statuses(self, names: Sequence[str] | None = None) -> dict[str, Status]:
        """Return what nodes (default: all) say of themselves."""
        return self._run(self._mesh.statuses(names))

    def wait_until(
        self, wanted: Predicate | Wanted | Mapping[str, Wanted], timeout_s: float | str = WAIT_S
    ) -> dict[str, Status]:
        """Wait until nodes are as wanted: "SEALED", {"a": "STALE"}, fields, or a predicate of all statuses."""
        return self._run(self._mesh.wait_until(wanted, timeout_s))

    def log(self, name: str, *, lines: int = LOG_TAIL_LINES) -> str:
        """Return the end of a member's log."""
        return self._mesh.log(name, lines=lines)

    @property
    def policy_version(self) -> int:
        """Of the policy that was published last."""
        return self._mesh.policy_version

    def story(self) -> str:
        """Return what was done to the mesh and the end of every member's log, for whoever reads a failure."""
        lines = [f"{seconds:8.2f} s  {what}" for seconds, what in self._mesh.timeline]
        parts = [f"everything of this mesh is in {self.directory}", *lines]
        for name in self._mesh.fleet.processes:
            parts += [f"--- log of {name} (the end of it)", self._mesh.log(name, lines=15) or "(empty)"]
        return "\n".join(parts)

    # both loops

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C in this thread ends the work in the other
            raise

    def _call(self, work: Callable[[], T]) -> T:
        async def called() -> T:
            return work()

        return self._run(called())


class MemberHandle:
    """`mesh.broker` and `mesh.control_plane`."""

    def __init__(self, mesh: Mesh, name: str) -> None:
        self._mesh, self.name = mesh, name

    def stop(self) -> None:
        """Ask it to end, and wait."""
        self._mesh.stop(self.name)

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        self._mesh.kill(self.name)

    def start(self) -> None:
        """Start it again; it goes on from its disk."""
        self._mesh.start_member(self.name)


class LoadHandle:
    """Calls that go on until `stop`."""

    def __init__(self, mesh: Mesh, load: Load) -> None:
        self._mesh, self._load = mesh, load

    @property
    def report(self) -> Report:
        """What came of the calls so far."""
        return self._load.report

    def stop(self) -> Report:
        """Let calls in flight end; return the report."""
        return self._mesh._run(self._load.stop())
