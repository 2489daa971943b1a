"""A mesh of real processes whose network, disks, clocks and members a test can break, and mend again."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

from control_plane.lab import watch
from control_plane.lab.bootstrap import publish
from control_plane.lab.breaking import Breakable
from control_plane.lab.calls import CALL_TIMEOUT_S, Caller, Messages, Outcome, Payload
from control_plane.lab.fleet import TWIN
from control_plane.lab.handles import Member
from control_plane.lab.load import UNANSWERED, Call, Judge, Load
from control_plane.lab.mesh import CONTROL_PLANE
from control_plane.lab.plan import BROKER, LabPlan, PolicyChange, changed, parse_duration_ms
from control_plane.lab.states import Predicate, Status, Wanted
from trust.bundle import DESCRIPTORS
from trust.errors import InputError, Reason
from trust.policy.source import build

WAIT_S: Final = 30.0
LOG_TAIL_LINES: Final = 40
RECONNECT_S: Final = 1.5  # in which every member has tried again to reach one that is back (trust.edge.tls)
_REPEAT_S: Final = 0.1


class LabMesh(Breakable):
    """A running mesh, for one event loop. `async with LabMesh(plan, directory) as mesh:` starts and ends it.

    Everything is below `directory`: keys, disks, `logs/MEMBER.log`. Nothing outlives the block, nor this process.
    """

    def __init__(self, plan: LabPlan, directory: Path) -> None:
        """Describe a mesh; nothing is started."""
        super().__init__(plan, directory)
        self.policy_version = 0
        self.broker = Member(self, BROKER)
        self.control_plane = Member(self, CONTROL_PLANE)
        self._files = plan.starting_policy()
        self._first = (self._files, plan.level, plan.witnesses)
        self._caller = Caller(Messages(plan.descriptors or self._files.get(DESCRIPTORS)))
        self._loads: list[Load] = []

    # life

    async def __aenter__(self) -> Self:
        """Start everything; ready when every node enforces the first policy."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End everything."""
        await self.close()

    async def start(self) -> None:
        """Start services, broker, control plane and nodes, with the first policy in force.

        Raises:
            MeshError: what is wrong with the plan, or could not be started and where its log is; nothing runs then.
        """
        self.note("start")
        try:
            archive = build(self._files, level_override=self.plan.level)
            self.policy_version = await self.fleet.start(archive)
            for name in self.plan.nodes:
                await self.fleet.snapshot(name)
        except BaseException:
            await self.close()
            raise
        self.note("ready")

    async def close(self) -> None:
        """End every process and close every socket; never fails because something is gone already."""
        ends = await asyncio.gather(*(load.stop() for load in self._loads), return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException):
                self.note(f"a load had failed: {type(end).__name__}: {end}")
        await self._caller.close()
        await self.fleet.close()
        self.note("closed")

    async def restore(self) -> None:
        """Mend everything: links, clocks, stopped members, and the policy that the mesh began with.

        Returns when every node is ready on it, with a new snapshot of each. Raises StateError when one is not.
        """
        broken = bool(self.network.faults())
        self.heal()
        for name in list(self._twins):
            await self.kill(name + TWIN)
        self._twins.clear()
        for name in (*self.plan.nodes, CONTROL_PLANE):
            self.fleet.skew_file(name).set(0)
        for name in self._in_order():
            if self.fleet.process(name).running:
                self.fleet.resume(name)
            else:
                await self.fleet.process(name).start()
                broken = True
        if broken:
            await asyncio.sleep(RECONNECT_S)
        if (self._files, self.plan.level, self.plan.witnesses) != self._first:
            files, level, witnesses = self._first
            self.plan = self.plan.at_level(level)
            self._vouched_by(witnesses)
            await self.publish(lambda _: files)
        await self.fleet.running.settled(version=self.policy_version, timeout_s=2 * WAIT_S)
        for name in self.plan.nodes:
            await self.fleet.snapshot(name)

    # use

    async def call(
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
        """Call "pkg.Service/Method" as `workload`, through its sidecar; return how it ended, refusals too.

        Args:
            workload: who calls.
            method: unary; for streams use your own client at `address`.
            payload: mapping (protobuf JSON), message or bytes; None: an empty request.
            to: the service; may be left out when one alone has the gRPC service.
            timeout_s: deadline of the call.
            within_s: call again, for so long, while nobody answers (UNAVAILABLE, …): members that come back, or whose
                network does, need up to a second or two to find each other.
            metadata: sent along.
            twin: through the second process that `lie(node, "equivocate")` started.
        """
        address = self.address(workload, to or self._only_service(workload, method), twin=twin)
        request, deadline = b"" if payload is None else payload, time.monotonic() + within_s
        while True:
            found = await self._caller.call(address, method, request, timeout_s=timeout_s, metadata=metadata)
            if found.code not in UNANSWERED or time.monotonic() >= deadline:
                return found
            await asyncio.sleep(_REPEAT_S)

    def address(self, workload: str, service: str, *, twin: bool = False) -> str:
        """Return where `workload` reaches `service` in plaintext: give it to your own client.

        Raises:
            InputError: NOT_FOUND, naming the services it may dial.
        """
        node = self.plan.node_of(workload)
        if twin:
            routes = self._twins.get(node, {})
            found = routes.get(f"{workload} {service}")
        else:
            routes = self.fleet.running.mesh.workloads[workload].outbound
            found = routes.get(service)
        if found is None:
            known = ", ".join(routes) or "none"
            raise InputError(
                Reason.NOT_FOUND, f"{workload!r} has no listener for {service!r}; it has: {known}"
            )
        return found if twin else self.fleet.entry(node, found)

    def load(self, calls: Sequence[Call], *, workers: int = 1, pause_s: float = 0.02, judge: Judge) -> Load:
        """Start calling, over and over, until `stop()` of what is returned.

        Args:
            calls: made in turn.
            workers: at the same time.
            pause_s: of each worker after each call.
            judge: (call, outcome) -> what is wrong with it, or "".
        """

        async def once(call: Call) -> Outcome:
            return await self.call(call.workload, call.method, call.payload, to=call.to)

        load = Load(once, calls, workers=workers, pause_s=pause_s, judge=judge)
        self._loads.append(load)
        return load

    async def publish(
        self,
        change: PolicyChange | None = None,
        *,
        level: int | None = None,
        witnesses: Sequence[str] | None = None,
    ) -> int:
        """Have a policy signed by the quorum and published; return its version. Nodes follow when they hear of it.

        Args:
            change: a policy folder; or files to replace (None removes one) in what was published last; or a function
                from those files to the new ones; None: the same again.
            level: instead of the policy's own; stays for later publications.
            witnesses: nodes that vouch for others at level 5 from now on, where the policy itself names none.
        """
        files = changed(self._files, change)
        if witnesses is not None:
            self._vouched_by(witnesses)
        if level is not None:
            self.plan = self.plan.at_level(level)
        archive = build(files, level_override=self.plan.level)
        self.policy_version = await publish(self.fleet.running, archive, title="A policy of the lab")
        self._files = files
        self.note(f"published policy version {self.policy_version}")
        return self.policy_version

    # look

    async def status(self, name: str) -> Status:
        """Return what a node says of itself now (fields of egm.v1.NodeStatus); {"state": "UNREACHABLE"} if nothing."""
        return await watch.status(self.fleet, name)

    async def statuses(self, names: Sequence[str] | None = None) -> dict[str, Status]:
        """Return what nodes (default: all) say of themselves."""
        return await watch.statuses(self.fleet, list(self.plan.nodes if names is None else names))

    async def wait_until(
        self, wanted: Predicate | Wanted | Mapping[str, Wanted], timeout_s: float | str = WAIT_S
    ) -> dict[str, Status]:
        """Wait until nodes are as wanted; return what they say of themselves then.

        Args:
            wanted: "SEALED", {"a": "STALE", "b": {"policy_version_at_least": 2, "lease": "FRESH"}}, or a predicate of
                the statuses of all nodes by name.
            timeout_s: seconds, or text such as "20s".

        Raises:
            StateError: SOURCE_UNAVAILABLE, saying which node lacks what.
        """
        return await watch.wait_until(self.fleet, wanted, parse_duration_ms(timeout_s) / 1000)

    def log(self, name: str, *, lines: int = LOG_TAIL_LINES) -> str:
        """Return the end of a member's log."""
        file = self.fleet.process(self._process_name(name)).log
        text = file.read_text(errors="replace") if file.is_file() else ""
        return "\n".join(text.splitlines()[-lines:])

    # small rules

    def _vouched_by(self, witnesses: Sequence[str] | None) -> None:
        """Have the policies published from now on name these witnesses; None: every node."""
        self.plan.check_witnesses(witnesses)
        self.plan = replace(self.plan, witnesses=witnesses)
        self.fleet.running.plan = replace(self.fleet.running.plan, witnesses=witnesses)

    def _in_order(self) -> list[str]:
        services = [name for name in self.fleet.processes if name.startswith("service ")]
        return [*services, BROKER, CONTROL_PLANE, *self.plan.nodes]

    def _only_service(self, workload: str, method: str) -> str:
        wanted = method.partition("/")[0]
        found = [n for n, s in self.plan.services.items() if wanted in s.names and n != workload]
        if len(found) != 1:
            which = (
                f"several services have {wanted}: {', '.join(found)}"
                if found
                else f"no service names {wanted}"
            )
            raise InputError(Reason.INPUT_INVALID, f"{which}; say which one is called: to=…")
        return found[0]
