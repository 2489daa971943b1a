"""What a test breaks in a lab mesh, and mends again: links, members, clocks, and what a node says of its past."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from control_plane.lab.fleet import TWIN, Fleet
from control_plane.lab.mesh import CONTROL_PLANE
from control_plane.lab.network import Fault, Network, Pair, between
from control_plane.lab.plan import LabPlan, parse_duration_ms
from trust.errors import InputError, Reason


class Breakable:
    """The members of a lab mesh and the network between them. `control_plane.lab.harness.LabMesh` is one."""

    def __init__(self, plan: LabPlan, directory: Path) -> None:
        """Describe the members; nothing is started."""
        self.plan, self.directory = plan, directory.resolve()
        self.network = Network(plan.seed)
        self.fleet = Fleet(plan, self.directory, self.network)
        self.timeline: list[tuple[float, str]] = []  # (seconds since it was made, what was done to the mesh)
        self._began = time.monotonic()
        self._twins: dict[str, dict[str, str]] = {}

    def note(self, what: str) -> None:
        """Add a line to the timeline."""
        self.timeline.append((time.monotonic() - self._began, what))

    # network

    def partition(
        self, *groups: Sequence[str] | set[str], one_way: bool = False, reset: bool = False
    ) -> None:
        """Cut the links between groups of members; within a group nothing changes.

        A member that no group names keeps every link: to leave "a" quite alone, use `isolate("a")`.

        Args:
            groups: node names, "control-plane", "broker".
            one_way: only from an earlier group to a later one; answers still come back.
            reset: connections are reset instead of left hanging.
        """
        for group in groups:
            self._check_members(group)
        fault = Fault(reset=True) if reset else Fault(drop=True)
        self.network.apply(between(list(groups), one_way=one_way), fault)
        how = ("reset " if reset else "") + ("one-way " if one_way else "")
        self.note(f"{how}partition {' | '.join(', '.join(sorted(group)) for group in groups)}")

    def isolate(self, *names: str, reset: bool = False) -> None:
        """Cut members (together) off from every other member of the mesh."""
        self._check_members(names)
        self.partition(set(names), set(self._reachable()) - set(names), reset=reset)

    def fault(self, source: str, target: str, *, one_way: bool = False, **fault: Any) -> None:
        """Put a fault on the link between two members; fields are those of `Fault`, none of them mends it."""
        self._check_members((source, target))
        try:
            made = Fault(**fault)
        except TypeError as error:
            raise InputError(Reason.INPUT_INVALID, f"no such fault: {error}; see Fault") from None
        pairs: list[Pair] = [(source, target)] if one_way else [(source, target), (target, source)]
        self.network.apply(pairs, made)
        self.note(f"fault {source} {'->' if one_way else '<->'} {target}: {made}")

    def heal(self) -> None:
        """Take every fault of the network away. Clocks, disks and stopped members stay as they are."""
        self.network.heal()
        self.note("heal")

    # members

    async def kill(self, name: str) -> None:
        """End a member at once (SIGKILL), as a crash would."""
        self.note(f"kill {name}")
        await self.fleet.process(self._process_name(name)).kill()

    async def stop(self, name: str) -> None:
        """Ask a member to drain and end (SIGTERM)."""
        self.note(f"stop {name}")
        await self.fleet.process(self._process_name(name)).stop()

    async def start_member(self, name: str) -> None:
        """Start a member that was stopped or killed; it goes on from its disk."""
        self.note(f"start {name}")
        process = self.fleet.process(self._process_name(name))
        if not process.running:
            await process.start()

    async def restart(self, name: str) -> None:
        """Stop a member if it runs, in order, and start it again."""
        await self.stop(name)
        await self.start_member(name)

    def pause(self, name: str) -> None:
        """Freeze a member (SIGSTOP) until `resume`."""
        self.note(f"pause {name}")
        self.fleet.pause(self._process_name(name))

    def resume(self, name: str) -> None:
        """Let a frozen member go on."""
        self.note(f"resume {name}")
        self.fleet.resume(self._process_name(name))

    def skew(self, name: str, offset: str | float) -> None:
        """Set how far a node's (or the control plane's) clock is off, at once: "+90s", "-2m", 0 sets it right."""
        milliseconds = parse_duration_ms(offset)
        if name not in self.plan.nodes and name != CONTROL_PLANE:
            raise InputError(
                Reason.INPUT_INVALID, f"{name!r} has no clock to move; name a node or {CONTROL_PLANE}"
            )
        self.fleet.skew_file(name).set(milliseconds)
        self.note(f"skew {name} {milliseconds:+} ms")

    async def snapshot(self, name: str) -> Path:
        """Copy a member's disk as it is now, for `lie(name, "rollback")`; one copy a member. Return the copy."""
        self.note(f"snapshot {name}")
        return await self.fleet.snapshot(name)

    async def lie(self, name: str, how: str) -> None:
        """Let a node lie.

        Args:
            name: a node ("rollback": or the control plane, after a snapshot).
            how: "rollback" starts it from its last snapshot (each node has one of the mesh's start);
                "equivocate" starts a second process with its identity and a copy of its disk: both go on with one
                history in different ways. `call(…, twin=True)` calls through the second.
        """
        self.note(f"lie {name} {how}")
        if how == "rollback":
            await self.fleet.put_back(name)
        elif how == "equivocate":
            self._check_members([name])
            self._twins[name] = await self.fleet.twin(name)
        else:
            raise InputError(
                Reason.INPUT_INVALID, f"{how!r} is no way to lie here; use rollback or equivocate"
            )

    # small rules

    def _reachable(self) -> tuple[str, ...]:
        return (*self.plan.members(), *(name + TWIN for name in self._twins))

    def _check_members(self, names: Sequence[str] | set[str]) -> None:
        if isinstance(names, str):
            raise InputError(
                Reason.INPUT_INVALID, f"{names!r} is one name; write a group, as in {{{names!r}}}"
            )
        for name in names:
            if name not in self._reachable():
                known = ", ".join(self._reachable())
                raise InputError(Reason.NOT_FOUND, f"no member {name!r} in this mesh; there are: {known}")

    def _process_name(self, name: str) -> str:
        """Nodes and services may have one name: the node is meant, unless it is written "service NAME"."""
        return name if name in self.fleet.processes or name not in self.plan.services else f"service {name}"
