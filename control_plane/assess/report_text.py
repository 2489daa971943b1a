"""An assessment as Markdown; and the catalogue as the page docs/egmm.md."""

from collections.abc import Sequence
from datetime import UTC, datetime

from control_plane.assess.catalogue import Catalogue
from control_plane.assess.model import Assessment, Check, ServiceGrade, Verdict
from control_plane.assess.roadmap import reached, roadmap

_MARKS = {
    Verdict.MET: "met",
    Verdict.NOT_MET: "**not met**",
    Verdict.NOT_ESTABLISHED: "not established",
    Verdict.FOUND_WANTING: "**found wanting**",
    Verdict.OVERCOME: "overcome",
}
_FRAMEWORKS = {
    "owasp_agentic": "OWASP Agentic",
    "owasp_aisvs": "OWASP AISVS",
    "nist_ai_rmf": "NIST AI RMF",
    "iso_42001": "ISO/IEC 42001",
    "eu_ai_act": "EU AI Act",
}


def moment(milliseconds: int) -> str:
    """Return a Unix time in ms for people, UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def cell(text: str) -> str:
    """Return text that cannot break out of a Markdown table cell, nor become markup."""
    shown = legible(text.replace("\r", " ").replace("\n", " "))
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>|#" else c for c in shown)


def legible(text: str) -> str:
    """Return text with what is invisible, reorders, or steers a terminal written out; line feeds stay."""
    return "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def to_markdown(catalogue: Catalogue, assessment: Assessment) -> str:
    """Return a report for people who read text."""
    level = assessment.level
    lines = [
        f"# Assessment of {cell(assessment.target)}: level {level}, {catalogue.levels[level].name}",
        "",
        f"{moment(assessment.started_ms)}, run {assessment.run}, probe {assessment.probe}, policy version "
        f"{assessment.policy_version}, egm {assessment.version}. {reached(catalogue, assessment).capitalize()}.",
        "",
        "| service | level | signed level |",
        "|---|---|---|",
        *(
            f"| {cell(one.service)} | {one.level} | {'-' if one.signed_level is None else one.signed_level} |"
            for one in assessment.services
        ),
        "",
        *(
            ["## To be known", "", *(f"- {cell(note)}" for note in assessment.notes), ""]
            if assessment.notes
            else ()
        ),
        *_roadmap(catalogue, assessment),
        *(line for one in assessment.services for line in _service(catalogue, one)),
    ]
    return "\n".join(lines)


def _roadmap(catalogue: Catalogue, assessment: Assessment) -> Sequence[str]:
    steps = roadmap(catalogue, assessment)
    if not steps:
        return ["Every characteristic of every level is met.", ""]
    lines = [f"## To level {assessment.level + 1}, in order of effort", ""]
    for number, step in enumerate(steps, 1):
        found = "found" if step.established else "could not be told"
        lines += [
            f"{number}. **{step.name}** ({step.characteristic}; {cell(', '.join(step.services))}): {step.does}. "
            f"What {found}: {cell(step.why)}",
            "",
            *(f"       {command}" for command in step.commands),
            "",
        ]
    return lines


def _service(catalogue: Catalogue, grade: ServiceGrade) -> Sequence[str]:
    lines = [
        f"## {cell(grade.service)}: level {grade.level}",
        "",
        "| id | characteristic | verdict | established by | evidence |",
        "|---|---|---|---|---|",
    ]
    for result in grade.results:
        one = catalogue.characteristic(result.id)
        lines.append(
            f"| {one.id} | {one.name} | {_MARKS[result.verdict]} | {result.basis or '-'} | "
            f"{'; '.join(_evidence(check) for check in result.checks)} |"
        )
    return [*lines, ""]


def _evidence(check: Check) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in check.evidence.items())
    return cell(f"{check.tried}: {check.answered}" + (f" ({facts})" if facts else ""))[:600]


def catalogue_page(catalogue: Catalogue) -> str:
    """Return docs/egmm.md."""
    lines = [
        "# The Execution Governance Maturity Model",
        "",
        "A ladder from open to cryptographically governed execution, and the grade that `egm assess` measures. Each "
        "level has characteristics; a level is reached when all of its characteristics, and all of those below, were "
        "seen to hold. What somebody merely declares never counts ([how it is measured](assessment.md)).",
        "",
        "This page is made of one data file of the product, `control_plane/assess/catalogue.yaml`:",
        "`egm assess catalogue --markdown`.",
        "",
        "| level | name | what it means |",
        "|---|---|---|",
        *(f"| {one.level} | {one.name} | {one.meaning} |" for one in catalogue.levels),
        "",
    ]
    for level in catalogue.levels:
        lines += [f"## Level {level.level}: {level.name}", ""]
        if level.level == 0:
            lines += ["What is found wanting where nothing governs execution.", ""]
        for one in catalogue.of_level(level.level):
            lines += [f"### {one.id}: {one.name}", "", f"- Provided by: {one.provides}."]
            for test in one.tests:
                check = catalogue.checks[test]
                lines.append(f"- Tested by `{test}` ({check.basis}): {check.does}.")
            lines.append(f"- Evidence kept: {one.evidence}.")
            if one.remedy is not None:
                commands = ", ".join(f"`{command}`" for command in one.remedy.commands)
                lines.append(f"- To get there (effort {one.remedy.effort}): {one.remedy.does}; {commands}.")
            if one.maps:
                said = "; ".join(f"{_FRAMEWORKS[name]} {', '.join(ids)}" for name, ids in one.maps.items())
                lines.append(f"- Maps to: {said}.")
            lines.append("")
    lines += [
        "## Sources of the ids",
        "",
        "Ids only: what the frameworks say, and whether a characteristic satisfies them, is for whoever applies them.",
        "",
        *(f"- {_FRAMEWORKS[name]}: {one.title}, <{one.url}>" for name, one in catalogue.sources.items()),
        "",
    ]
    return "\n".join(lines)
