"""`egm demo --climb`: one service goes from level 0 to 5 by signed policy, its grade measured at each step."""

from collections.abc import Awaitable, Callable
from typing import Final

from control_plane.assess.catalogue import Catalogue, load_catalogue
from control_plane.assess.edge.run import Assessor
from control_plane.assess.model import Assessment, Verdict
from control_plane.assess.roadmap import roadmap
from control_plane.lab.bootstrap import publish
from control_plane.lab.demo_governing import domain, start
from control_plane.lab.demo_world import WAIT_S, World, expect, lines, standing
from control_plane.lab.processes import Process

SERVICE: Final = "payments"
ENFORCING: Final = 3  # the first level at which policy refuses
CRYPTOGRAPHIC: Final = 5
LEVELS: Final = (
    "untrusted",
    "observable",
    "reactive",
    "policy-aware",
    "governed",
    "cryptographically governed",
)


def climb(level: int) -> Callable[[World], Awaitable[str]]:
    """Return the step that raises the mesh to `level`, shows what a stranger gets, and measures the grade."""

    async def step(world: World) -> str:
        version = await publish(world.mesh, world.archive(level=level), title=f"Level {level}")
        await world.mesh.settled(version=version)
        if level == CRYPTOGRAPHIC:
            await world.wait(lambda nodes: all(standing(one) == "ATTESTED" for one in nodes.values()))
        seen = await _calls(world, level, version)
        world.say(f"measuring the grade of {SERVICE} by probes")
        return lines(*seen, *await _measured(world, level))

    return step


async def _calls(world: World, level: int, version: int) -> list[str]:
    await world.executed("alice", 10, within_s=WAIT_S)
    stranger = await world.transfer("mallory", 10)
    refused = level >= ENFORCING
    expect(
        stranger.ok is not refused, f"that a stranger {'is not' if refused else 'is'} let through: {stranger}"
    )
    got = f"is refused: {stranger.reason}" if refused else "is let through"
    return [f"policy version {version} at level {level}: alice transfers; mallory {got}"]


async def _measured(world: World, level: int) -> list[str]:
    def known(name: str, process: Process) -> None:
        world.lab.fleet.processes[name] = process  # or the links of the lab refuse it as a stranger

    catalogue = load_catalogue()
    assessor = Assessor(world.mesh.mesh, world.directory, only=SERVICE, say=world.say, started=known)
    found = await assessor.run()
    expect(
        found.level == level,
        f"the measured grade {level}, got {found.level}: {_why(catalogue, found, level)}",
    )
    said = [f"measured: level {found.level}, {LEVELS[found.level]}; {_count(catalogue, found)}"]
    following = roadmap(catalogue, found)
    if following:
        first = following[0]
        said.append(f"to level {level + 1}, first {first.characteristic} {first.name}: {first.does}")
    return said


def _count(catalogue: Catalogue, found: Assessment) -> str:
    (one,) = found.services
    parts = []
    for level in range(1, len(LEVELS)):
        wanted = catalogue.of_level(level)
        met = sum(one.result(each.id).verdict is Verdict.MET for each in wanted)
        parts.append(f"L{level} {met}/{len(wanted)}")
    return "characteristics met: " + " ".join(parts)


def _why(catalogue: Catalogue, found: Assessment, level: int) -> str:
    (one,) = found.services
    lacking = [
        f"{each.id} {one.result(each.id).why}"
        for number in range(1, level + 1)
        for each in catalogue.of_level(number)
        if one.result(each.id).verdict is not Verdict.MET
    ]
    return "; ".join([*lacking, *found.notes]) or "it has everything of that level, and of the next"


PARTS: Final[tuple[tuple[str, tuple[tuple[str, Callable[[World], Awaitable[str]]], ...]], ...]] = (
    (
        "One service climbs the maturity model; every grade is measured, none is declared",
        (
            ("a trust domain: 3 approvers, 2 must sign", domain),
            ("a mesh: control plane, broker, three sidecars", start),
            *((f"level {level}, {name}", climb(level)) for level, name in enumerate(LEVELS)),
        ),
    ),
)
