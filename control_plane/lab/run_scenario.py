"""Runs a scenario on a real mesh, step by step, and says which expectation did not hold."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from control_plane.lab.calls import Outcome
from control_plane.lab.harness import LabMesh
from control_plane.lab.load import Call, Load, fits, judge_by
from control_plane.lab.scenario import CallStep, Expected, FaultStep, LoadStep, PartitionStep, Scenario, Step
from trust.errors import MeshError

_REPEAT_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step: where it is, what it was, whether it held, and what was seen."""

    place: str
    step: str
    ok: bool
    detail: str
    seconds: float


class ExpectationError(Exception):
    """What was expected did not happen; the text says what did."""


class Runner:
    """Takes the steps of one scenario."""

    def __init__(self, scenario: Scenario, directory: Path, report: Callable[[StepResult], None]) -> None:
        self._scenario, self._directory, self._report = scenario, directory, report
        self._load: Load | None = None
        self.story = ""

    async def run(self) -> bool:
        """Start the mesh, take every step, end the mesh; stop at the first that fails. Return whether all held.

        Raises:
            MeshError: the mesh could not be started.
        """
        mesh = LabMesh(self._scenario.plan, self._directory)
        started = time.monotonic()
        async with mesh:
            members = ", ".join(mesh.plan.members())
            self._report(StepResult("", "mesh", True, f"{members} run", time.monotonic() - started))
            for number, step in enumerate(self._scenario.steps):
                result = await self._take(mesh, number, step)
                self._report(result)
                if not result.ok:
                    self.story = "\n".join(
                        f"--- log of {name} (the end of it)\n{mesh.log(name, lines=8)}"
                        for name in mesh.plan.members()
                    )
                    return False
        return True

    async def _take(self, mesh: LabMesh, number: int, step: Step) -> StepResult:
        started = time.monotonic()
        try:
            detail, ok = await self._do(mesh, step), True
        except (ExpectationError, MeshError) as error:
            detail, ok = str(error), False
        return StepResult(self._scenario.place(number), step.kind, ok, detail, time.monotonic() - started)

    async def _do(self, mesh: LabMesh, step: Step) -> str:
        value = getattr(step, step.kind)
        match step.kind:
            case "say":
                return str(value)
            case "call":
                return await self._call(mesh, value)
            case "load":
                return self._start_load(mesh, value)
            case "stop_load":
                return await self._stop_load(value.answered_at_least)
            case "wait":
                seen = await mesh.wait_until(value.until, value.within)
                return ", ".join(
                    f"{name} {one.get('state')} {one.get('lease', '')} v{one.get('policy_version', 0)}"
                    for name, one in seen.items()
                )
            case "publish":
                version = await mesh.publish(
                    self._scenario.policy(value), level=value.level, witnesses=value.witnesses
                )
                return f"policy version {version} is published"
            case "sleep":
                await asyncio.sleep(value)
                return f"{value:g} s"
            case _:
                return await self._break(mesh, step.kind, value)

    async def _break(self, mesh: LabMesh, kind: str, value: object) -> str:
        """Take a step that changes the mesh or its network; the timeline has the words."""
        match kind, value:
            case _, PartitionStep():
                mesh.partition(*value.groups, one_way=value.one_way, reset=value.reset)
            case "isolate", tuple():
                mesh.isolate(*value)
            case _, FaultStep():
                mesh.fault(value.source, value.to, one_way=value.one_way, **value.fields())
            case "heal", _:
                mesh.heal()
            case "skew", dict():
                for name, offset in value.items():
                    mesh.skew(name, offset)
            case "lie", dict():
                for name, how in value.items():
                    await mesh.lie(name, how)
            case (("pause" | "resume"), str()):
                getattr(mesh, kind)(value)
            case _, str():
                await getattr(mesh, "start_member" if kind == "start" else kind)(value)
        return mesh.timeline[-1][1]

    async def _call(self, mesh: LabMesh, step: CallStep) -> str:
        deadline = time.monotonic() + float(step.within or 0)
        while True:
            outcome = await mesh.call(
                step.source,
                step.method,
                step.request,
                to=step.to,
                timeout_s=float(step.timeout),
                twin=step.twin,
            )
            problem = _unlike(step.expect, outcome)
            if not problem:
                return f"{step.source} -> {step.to or ''} {step.method}: {outcome}"
            if time.monotonic() >= deadline:
                raise ExpectationError(
                    f"{step.source} -> {step.to or ''} {step.method}: {problem}, got: {outcome}"
                )
            await asyncio.sleep(_REPEAT_S)

    def _start_load(self, mesh: LabMesh, step: LoadStep) -> str:
        if self._load is not None:
            raise ExpectationError("a load runs already; stop_load first")
        judges = {}
        calls = []
        for one in step.calls:
            call = Call(one.source, one.method, one.request, one.to)
            calls.append(call)
            judges[id(call)] = judge_by(ok=one.expect.ok, reply=one.expect.reply)
        self._load = mesh.load(
            calls,
            workers=step.workers,
            pause_s=float(step.pause),
            judge=lambda call, outcome: judges[id(call)](call, outcome),
        )
        return f"{len(calls)} kinds of call, {step.workers} at a time"

    async def _stop_load(self, answered_at_least: int) -> str:
        if self._load is None:
            raise ExpectationError("no load runs; start one with the step load")
        load, self._load = self._load, None
        report = await load.stop()
        if report.wrong_count:
            raise ExpectationError(f"{report}; the first: {report.wrong[0]}")
        if report.answered < answered_at_least:
            raise ExpectationError(f"{report}; expected {answered_at_least} answers at least")
        return str(report)


def _unlike(expected: Expected, outcome: Outcome) -> str:
    """Return what is not as expected, or ""."""
    if expected.or_reason is not None and not outcome.ok and outcome.reason == expected.or_reason:
        return ""
    if outcome.ok != expected.ok:
        return "expected an answer" if expected.ok else f"expected a refusal {expected.reason or ''}".rstrip()
    if expected.code is not None and outcome.code != expected.code:
        return f"expected {expected.code}"
    if expected.reason is not None and outcome.reason != expected.reason:
        return f"expected reason {expected.reason}"
    return "" if fits(expected.reply, outcome.reply) else f"expected the reply {expected.reply}"
