"""What is missing for the next level, in order of effort, with the commands that bring it."""

from collections.abc import Sequence
from dataclasses import dataclass

from control_plane.assess.catalogue import Catalogue
from control_plane.assess.model import Assessment, Verdict


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do.

    Args:
        characteristic: that it brings.
        name: of it.
        level: that needs it.
        effort: 1 a look, 2 a change of configuration, 3 a change of signed policy, 4 and 5 more.
        does: in words.
        commands: to run.
        services: that lack it.
        why: what the assessor found.
        established: whether it was found lacking, or could not be told.
    """

    characteristic: str
    name: str
    level: int
    effort: int
    does: str
    commands: tuple[str, ...]
    services: tuple[str, ...]
    why: str
    established: bool


def reached(catalogue: Catalogue, assessment: Assessment) -> str:
    """Say what the grade means, without claiming the worst of an installation that lacks a little."""
    if assessment.level == 0:
        return "some characteristic of level 1 was not seen to hold everywhere"
    return catalogue.levels[assessment.level].meaning


def roadmap(catalogue: Catalogue, assessment: Assessment) -> list[Step]:
    """Return the steps from the fleet's level to the next one; empty at level 5."""
    target = assessment.level + 1
    steps = []
    for one in catalogue.characteristics:
        if not 1 <= one.level <= target or one.remedy is None:
            continue
        lacking = [
            (grade.service, result)
            for grade in assessment.services
            if (result := grade.result(one.id)).verdict is not Verdict.MET
        ]
        if lacking:
            first = lacking[0][1]
            steps.append(
                Step(
                    one.id,
                    one.name,
                    one.level,
                    one.remedy.effort,
                    one.remedy.does,
                    one.remedy.commands,
                    tuple(service for service, _ in lacking),
                    first.why,
                    any(result.verdict is Verdict.NOT_MET for _, result in lacking),
                )
            )
    return sorted(steps, key=lambda step: (step.level, step.effort, step.characteristic))


def missing(assessment: Assessment, catalogue: Catalogue) -> Sequence[str]:
    """Return the ids of characteristics that some service lacks, of any level."""
    return [
        one.id
        for one in catalogue.characteristics
        if one.level and any(g.result(one.id).verdict is not Verdict.MET for g in assessment.services)
    ]
