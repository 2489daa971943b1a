"""What an assessment consists of: checks, verdicts on characteristics, grades. A grade is measured, never declared.

A check either held, failed, or could not be told. A characteristic is met when each of its checks held by probe or
observation; not met as soon as one failed; else not established. A level is reached when all of its characteristics
and all of those below are met.
"""

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from control_plane.assess.catalogue import Catalogue, Characteristic, Scope

MESH: Final = ""  # the subject of what concerns every service
UNCHECKED: Final = "the assessor did not get to this check"


@enum.unique
class Basis(enum.StrEnum):
    """How something is known. PROBED: the assessor tried and something answered; OBSERVED: the running installation
    showed its state; DECLARED: somebody says so, which never raises a grade."""

    PROBED = "PROBED"
    OBSERVED = "OBSERVED"
    DECLARED = "DECLARED"


@enum.unique
class Outcome(enum.StrEnum):
    """What came of a check."""

    HELD = "held"
    FAILED = "failed"
    UNKNOWN = "unknown"


@enum.unique
class Verdict(enum.StrEnum):
    """What is said of a characteristic. The last two are of level 0, which lists what is found wanting."""

    MET = "met"
    NOT_MET = "not met"
    NOT_ESTABLISHED = "not established"
    FOUND_WANTING = "found wanting"
    OVERCOME = "overcome"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing tried or looked at, and what came of it.

    Args:
        id: of the catalogue.
        subject: the service; "" for the whole mesh.
        tried: what was done, in words.
        answered: what came of it, in words.
        evidence: names and values that can be looked up: decision ids, digests, versions.
    """

    id: str
    subject: str
    outcome: Outcome
    basis: Basis
    tried: str
    answered: str
    evidence: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """The verdict on one characteristic of one service.

    `basis` is the weakest of the checks that carry the verdict; None when nothing could be told.
    """

    id: str
    verdict: Verdict
    basis: Basis | None
    checks: Sequence[Check]
    why: str = ""  # what failed or is unknown; empty when it is met


@dataclass(frozen=True, slots=True)
class ServiceGrade:
    """One service. `signed_level`: what the signed policy asks for; None when it does not speak of the service."""

    service: str
    level: int
    results: Sequence[Result]
    signed_level: int | None = None

    def result(self, characteristic: str) -> Result:
        """Return the verdict on a characteristic. Raises KeyError."""
        for one in self.results:
            if one.id == characteristic:
                return one
        raise KeyError(characteristic)


@dataclass(frozen=True, slots=True)
class Assessment:
    """One run. `level` is that of the weakest service; 0 when there is none."""

    run: str
    started_ms: int
    ended_ms: int
    target: str  # trust domain, or the address that was looked at from outside
    probe: str  # "safe", "full" or "outside"
    policy_version: int
    version: str  # of egm
    services: Sequence[ServiceGrade]
    notes: Sequence[str] = ()

    @property
    def level(self) -> int:
        """The fleet's grade."""
        return min((one.level for one in self.services), default=0)


def grade(
    catalogue: Catalogue,
    service: str,
    checks: Iterable[Check],
    *,
    signed_level: int | None = None,
    unmade: str = UNCHECKED,
) -> ServiceGrade:
    """Return the grade of one service from what was found of it and of the mesh.

    Args:
        catalogue: of the model.
        service: its name.
        checks: of any service; those of others are left out.
        signed_level: what signed policy asks for.
        unmade: why a check that is not among them was not made.
    """
    found = {name: (together(same),) for name, same in _by_id(service, checks).items()}
    results = tuple(judge(catalogue, one, service, found, unmade) for one in catalogue.characteristics)
    return ServiceGrade(service, _level(catalogue, results), results, signed_level)


def judge(
    catalogue: Catalogue,
    characteristic: Characteristic,
    service: str,
    found: Mapping[str, Sequence[Check]],
    unmade: str = UNCHECKED,
) -> Result:
    """Return the verdict on one characteristic; a check that nobody made is unknown."""
    checks = [
        check
        for name in characteristic.tests
        for check in found.get(name) or (_unmade(catalogue, name, service, unmade),)
    ]
    failed = [check for check in checks if check.outcome is Outcome.FAILED]
    unknown = [check for check in checks if _untold(check)]
    if failed:
        basis, verdict, why = _weakest(failed), Verdict.NOT_MET, failed
    elif unknown:
        basis, verdict, why = None, Verdict.NOT_ESTABLISHED, unknown
    else:
        basis, verdict, why = _weakest(checks), Verdict.MET, []
    if characteristic.level == 0:
        verdict = {Verdict.MET: Verdict.OVERCOME, Verdict.NOT_MET: Verdict.FOUND_WANTING}.get(
            verdict, verdict
        )
    return Result(
        characteristic.id,
        verdict,
        basis,
        tuple(checks),
        "; ".join(dict.fromkeys(check.answered for check in why)),
    )


def together(checks: Sequence[Check]) -> Check:
    """Return one check for several looks at one control, say at each replica: no better than the worst of them."""
    if len(checks) == 1:
        return checks[0]
    for outcome in (Outcome.FAILED, Outcome.UNKNOWN, Outcome.HELD):
        worst = [one for one in checks if one.outcome is outcome]
        if worst:
            break
    evidence = {name: value for one in reversed(checks) for name, value in one.evidence.items()}
    evidence |= {name: value for one in worst for name, value in one.evidence.items()}
    return replace(
        worst[0],
        basis=_weakest(checks) or worst[0].basis,
        tried="; ".join(dict.fromkeys(one.tried for one in checks)),
        answered="; ".join(dict.fromkeys(one.answered for one in worst)),
        evidence=evidence,
    )


def at(node: str, check: Check) -> Check:
    """Return a check that says at which replica it was made."""
    return replace(
        check,
        answered=f"{node}: {check.answered}",
        evidence={f"{node}.{name}": value for name, value in check.evidence.items()},
    )


def _untold(check: Check) -> bool:
    """Whether a check says nothing that counts: what somebody only declares is not established."""
    return check.outcome is Outcome.UNKNOWN or (
        check.outcome is Outcome.HELD and check.basis is Basis.DECLARED
    )


def _by_id(service: str, checks: Iterable[Check]) -> dict[str, list[Check]]:
    found: dict[str, list[Check]] = {}
    for check in checks:
        if check.subject in {service, MESH}:
            found.setdefault(check.id, []).append(check)
    return found


def _unmade(catalogue: Catalogue, name: str, service: str, why: str) -> Check:
    test = catalogue.checks[name]
    subject = service if test.scope is Scope.SERVICE else MESH
    return Check(name, subject, Outcome.UNKNOWN, Basis(test.basis), test.does, why)


def _weakest(checks: Iterable[Check]) -> Basis | None:
    order = (Basis.DECLARED, Basis.OBSERVED, Basis.PROBED)
    return min((check.basis for check in checks), key=order.index, default=None)


def _level(catalogue: Catalogue, results: Sequence[Result]) -> int:
    verdicts = {result.id: result.verdict for result in results}
    reached = 0
    for level in range(1, 6):
        wanted = [one for one in catalogue.characteristics if one.level == level]
        if not wanted or any(verdicts[one.id] is not Verdict.MET for one in wanted):
            break
        reached = level
    return reached
