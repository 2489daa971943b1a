"""An assessment as JSON, in the one shape that `assessment.schema.json` describes; and read back, strictly."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, Final

from control_plane.assess.catalogue import Catalogue
from control_plane.assess.model import Assessment, Basis, Check, Outcome, Result, ServiceGrade, Verdict
from control_plane.assess.roadmap import roadmap
from trust import limits
from trust.errors import InputError, Reason

FORMAT: Final = 1
_HIGHEST: Final = 5
_END_OF_TIME_MS: Final = 253_402_300_800_000  # the year 10000
SCHEMA_FILE: Final = "assessment.schema.json"


@cache
def schema() -> Mapping[str, Any]:
    """Return the JSON Schema (draft 2020-12) of `to_json`."""
    found: Mapping[str, Any] = json.loads(resources.files(__package__).joinpath(SCHEMA_FILE).read_bytes())
    return found


def to_json(catalogue: Catalogue, assessment: Assessment) -> dict[str, Any]:
    """Return an assessment as JSON values."""
    names = {one.id: one for one in catalogue.characteristics}
    return {
        "format": FORMAT,
        "run": assessment.run,
        "started_ms": assessment.started_ms,
        "ended_ms": assessment.ended_ms,
        "target": assessment.target,
        "probe": assessment.probe,
        "policy_version": assessment.policy_version,
        "version": assessment.version,
        "level": assessment.level,
        "level_name": catalogue.levels[assessment.level].name,
        "services": [
            {
                "service": grade.service,
                "level": grade.level,
                "signed_level": grade.signed_level,
                "results": [
                    {
                        "id": result.id,
                        "name": names[result.id].name,
                        "level": names[result.id].level,
                        "verdict": result.verdict.value,
                        "basis": None if result.basis is None else result.basis.value,
                        "why": result.why,
                        "checks": [_check(check) for check in result.checks],
                    }
                    for result in grade.results
                ],
            }
            for grade in assessment.services
        ],
        "roadmap": [
            {
                "characteristic": step.characteristic,
                "name": step.name,
                "level": step.level,
                "effort": step.effort,
                "does": step.does,
                "commands": list(step.commands),
                "services": list(step.services),
                "why": step.why,
                "established": step.established,
            }
            for step in roadmap(catalogue, assessment)
        ],
        "notes": list(assessment.notes),
    }


def _check(check: Check) -> dict[str, Any]:
    return {
        "id": check.id,
        "subject": check.subject,
        "outcome": check.outcome.value,
        "basis": check.basis.value,
        "tried": check.tried,
        "answered": check.answered,
        "evidence": dict(check.evidence),
    }


def dump(catalogue: Catalogue, assessment: Assessment) -> bytes:
    """Return the bytes of a JSON report."""
    return (
        json.dumps(to_json(catalogue, assessment), indent=2, sort_keys=True, ensure_ascii=False).encode()
        + b"\n"
    )


def parse(data: bytes) -> Assessment:
    """Return the assessment that a JSON report holds. What it claims of grades is taken from its results alone.

    Raises:
        InputError: INPUT_INVALID, when it is no report of this format.
    """
    if len(data) > limits.MAX_ASSESSMENT_BYTES:
        raise InputError(
            Reason.INPUT_INVALID, f"the report is larger than {limits.MAX_ASSESSMENT_BYTES} bytes"
        )
    try:
        value = json.loads(data)
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']!r}")
        return Assessment(
            run=_text(value["run"]),
            started_ms=_count(value["started_ms"]),
            ended_ms=_count(value["ended_ms"]),
            target=_text(value["target"]),
            probe=_text(value["probe"]),
            policy_version=_count(value["policy_version"]),
            version=_text(value["version"]),
            services=tuple(_grade(one) for one in value["services"]),
            notes=tuple(_text(one) for one in value["notes"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(
            Reason.INPUT_INVALID,
            f"this is no JSON report of 'egm assess -o FILE.json' ({type(error).__name__}: {error})"[:300],
        ) from None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    value.encode()  # half of a surrogate pair is no text: it could be neither shown nor written
    return value


def _count(value: object) -> int:
    """Return a number that can also be a time in ms, before the year 10000."""
    if type(value) is not int or not 0 <= value < _END_OF_TIME_MS:
        raise ValueError(f"{value!r} is no number of its kind")
    return value


def _grade(value: Mapping[str, Any]) -> ServiceGrade:
    level, signed = _count(value["level"]), value["signed_level"]
    shown = _level_of(value["results"])
    if level != shown:
        raise ValueError(f"{value['service']!r} claims level {level}, and its results show {shown}")
    results = tuple(_result(one) for one in value["results"])
    return ServiceGrade(_text(value["service"]), level, results, None if signed is None else _count(signed))


def _level_of(results: Sequence[Mapping[str, Any]]) -> int:
    """Return the level that results show, by the levels that they name: the catalogue may be another version's."""
    wanted: dict[int, bool] = {}
    for one in results:
        level = _count(one["level"])
        wanted[level] = wanted.get(level, True) and one["verdict"] == Verdict.MET
    reached = 0
    while wanted.get(reached + 1) and reached < _HIGHEST:
        reached += 1
    return reached


def _result(value: Mapping[str, Any]) -> Result:
    basis = value["basis"]
    return Result(
        _text(value["id"]),
        Verdict(value["verdict"]),
        None if basis is None else Basis(basis),
        tuple(_read_check(one) for one in value["checks"]),
        _text(value["why"]),
    )


def _read_check(value: Mapping[str, Any]) -> Check:
    return Check(
        _text(value["id"]),
        _text(value["subject"]),
        Outcome(value["outcome"]),
        Basis(value["basis"]),
        _text(value["tried"]),
        _text(value["answered"]),
        {_text(name): _text(one) for name, one in value["evidence"].items()},
    )
