"""An assessment as OSCAL assessment-results (NIST, 1.1.3), in JSON: an observation per check, a finding per verdict."""

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from control_plane.assess.catalogue import Catalogue
from control_plane.assess.model import Assessment, Basis, Check, Result, ServiceGrade, Verdict
from control_plane.assess.roadmap import reached

OSCAL_VERSION: Final = "1.1.3"
_NAMESPACE: Final = uuid.UUID("7d2d9a53-37b8-5c0c-a1f0-5a2f3d0f6c11")
_EGM: Final = "urn:egm:oscal"
_METHODS: Final = {Basis.PROBED: "TEST", Basis.OBSERVED: "EXAMINE", Basis.DECLARED: "INTERVIEW"}
_SATISFIED: Final = frozenset({Verdict.MET, Verdict.OVERCOME})


def to_oscal(catalogue: Catalogue, assessment: Assessment) -> dict[str, Any]:
    """Return the document. The same assessment gives the same identifiers."""
    results = [_observations(assessment, grade, catalogue) for grade in assessment.services]
    observations = [one for found, _ in results for one in found]
    findings = [one for _, found in results for one in found]
    subjects = [grade.service for grade in assessment.services]
    result: dict[str, Any] = {
        "uuid": _id(assessment, "result"),
        "title": f"Execution Governance Maturity Model: level {assessment.level}",
        "description": reached(catalogue, assessment),
        "start": _time(assessment.started_ms),
        "end": _time(assessment.ended_ms),
        "props": [
            _prop("level", str(assessment.level)),
            *(_prop("service-level", str(one.level), one.service) for one in assessment.services),
        ],
        "reviewed-controls": {
            "control-selections": [
                {"include-controls": [{"control-id": _control(one.id)} for one in catalogue.characteristics]}
            ]
        },
    }
    if subjects:
        result["local-definitions"] = {"components": [_component(assessment, one) for one in subjects]}
    if observations:
        result["observations"] = observations
    if findings:
        result["findings"] = findings
    if assessment.notes:
        result["remarks"] = "\n".join(assessment.notes)
    return {
        "assessment-results": {
            "uuid": _id(assessment, "document"),
            "metadata": {
                "title": f"Assessment of {assessment.target}",
                "last-modified": _time(assessment.ended_ms),
                "version": assessment.run,
                "oscal-version": OSCAL_VERSION,
            },
            "import-ap": {
                "href": "#plan",
                "remarks": "The checks of the catalogue of egm; there is no separate assessment plan.",
            },
            "results": [result],
        }
    }


def _observations(
    assessment: Assessment, grade: ServiceGrade, catalogue: Catalogue
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    observations: dict[str, dict[str, Any]] = {}
    findings = []
    for result in grade.results:
        related = []
        for check in result.checks:
            identifier = _id(assessment, "observation", grade.service, check.id)
            observations.setdefault(identifier, _observation(assessment, identifier, grade.service, check))
            related.append({"observation-uuid": identifier})
        findings.append(_finding(assessment, grade, result, related, catalogue))
    return list(observations.values()), findings


def _observation(assessment: Assessment, identifier: str, service: str, check: Check) -> dict[str, Any]:
    found: dict[str, Any] = {
        "uuid": identifier,
        "title": check.id,
        "description": f"{check.tried}: {check.answered}",
        "methods": [_METHODS[check.basis]],
        "props": [_prop("outcome", check.outcome.value), _prop("basis", check.basis.value)],
        "subjects": [{"subject-uuid": _id(assessment, "component", service), "type": "component"}],
        "collected": _time(assessment.ended_ms),
    }
    if check.evidence:
        said = "; ".join(f"{name}={value}" for name, value in check.evidence.items())
        found["relevant-evidence"] = [{"description": said}]
    return found


def _finding(
    assessment: Assessment,
    grade: ServiceGrade,
    result: Result,
    related: Sequence[dict[str, str]],
    catalogue: Catalogue,
) -> dict[str, Any]:
    one = catalogue.characteristic(result.id)
    satisfied = result.verdict in _SATISFIED
    return {
        "uuid": _id(assessment, "finding", grade.service, result.id),
        "title": f"{one.id} {one.name}: {result.verdict}",
        "description": f"{grade.service}: {result.why or 'as its observations show'}",
        "props": [_prop("verdict", result.verdict.value.replace(" ", "-")), _prop("service", grade.service)],
        "target": {
            "type": "objective-id",
            "target-id": _control(one.id),
            "status": {
                "state": "satisfied" if satisfied else "not-satisfied",
                "reason": "pass"
                if satisfied
                else "other"
                if result.verdict is Verdict.NOT_ESTABLISHED
                else "fail",
            },
        },
        "related-observations": list(related),
    }


def _component(assessment: Assessment, service: str) -> dict[str, Any]:
    return {
        "uuid": _id(assessment, "component", service),
        "type": "service",
        "title": service,
        "description": f"The service {service} of {assessment.target}",
        "status": {"state": "operational"},
    }


def _prop(name: str, value: str, remarks: str = "") -> dict[str, str]:
    found = {"name": name, "ns": _EGM, "value": value}
    return {**found, "remarks": remarks} if remarks else found


def _control(identifier: str) -> str:
    return identifier.lower()


def _id(assessment: Assessment, *parts: str) -> str:
    """Return a UUID (RFC 4122 version 5, as OSCAL asks for 4 or 5)."""
    return str(uuid.uuid5(_NAMESPACE, "\n".join((assessment.target, assessment.run, *parts))))


def _time(milliseconds: int) -> str:
    return (
        datetime.fromtimestamp(milliseconds / 1000, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )
