"""An assessment as one HTML file for people: nothing is loaded from elsewhere; light, dark, and on paper."""

from collections.abc import Iterable
from html import escape as escape_markup
from typing import Final

from control_plane.assess.catalogue import Catalogue
from control_plane.assess.model import Assessment, Check, Outcome, Result, ServiceGrade, Verdict
from control_plane.assess.report_text import legible, moment
from control_plane.assess.roadmap import Step, reached, roadmap

_CLASS: Final = {
    Verdict.MET: "good",
    Verdict.OVERCOME: "good",
    Verdict.NOT_MET: "bad",
    Verdict.FOUND_WANTING: "bad",
    Verdict.NOT_ESTABLISHED: "open",
}
_SIGN: Final = {"good": "✓", "bad": "✗", "open": "?"}
_EFFORT: Final = {1: "a look", 2: "a change of configuration", 3: "a change of signed policy"}
_STYLE: Final = """
:root{--bg:#fff;--fg:#1d2430;--dim:#5b6675;--line:#dfe4ea;--card:#f6f8fa;--good:#1a7f4b;--bad:#b3261e;--open:#8a6100;
--accent:#2456a6;color-scheme:light dark}
@media (prefers-color-scheme:dark){:root{--bg:#12161c;--fg:#e6eaf0;--dim:#9aa6b5;--line:#2b333e;--card:#1a2028;
--good:#4fc58a;--bad:#ff8a80;--open:#e3b341;--accent:#8ab4f8}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:60rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.5rem;margin:0 0 .25rem}h2{font-size:1.2rem;margin:2.5rem 0 .75rem}
h3{font-size:1rem;margin:1.5rem 0 .5rem}
p{margin:.25rem 0}.dim{color:var(--dim)}.small{font-size:.875rem}
.hero{display:flex;gap:1.5rem;align-items:center;margin:1.5rem 0;padding:1.25rem;background:var(--card);
border:1px solid var(--line);border-radius:.75rem}
.grade{font-size:3.5rem;font-weight:700;line-height:1;color:var(--accent);min-width:4rem;text-align:center}
.ladder{display:flex;gap:.25rem;margin-top:.75rem;flex-wrap:wrap}
.ladder span{padding:.15rem .6rem;border:1px solid var(--line);border-radius:1rem;font-size:.8rem;color:var(--dim)}
.ladder span.reached{background:var(--accent);border-color:var(--accent);color:var(--bg)}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.5rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
th{font-size:.8rem;font-weight:600;color:var(--dim)}
.scroll{overflow-x:auto}
.good{color:var(--good)}.bad{color:var(--bad)}.open{color:var(--open)}
.mark{white-space:nowrap;font-weight:600}
ol.steps{padding-left:1.4rem}ol.steps li{margin:0 0 1rem}
ul.notes{border-left:.25rem solid var(--open);margin:0;padding:.25rem 0 .25rem 1.75rem;overflow-wrap:anywhere}
pre{background:var(--card);border:1px solid var(--line);border-radius:.4rem;padding:.5rem .75rem;margin:.4rem 0;
overflow-x:auto;font:.85rem/1.5 ui-monospace,Menlo,Consolas,monospace}
details{margin:.3rem 0}summary{cursor:pointer;color:var(--accent);font-size:.875rem}
dl{margin:.4rem 0 .8rem;font-size:.85rem}
dt{font-weight:600;margin-top:.4rem}dd{margin:0 0 0 1rem;overflow-wrap:anywhere}
dd code{font:.8rem ui-monospace,Menlo,Consolas,monospace;color:var(--dim)}
section.service{border:1px solid var(--line);border-radius:.75rem;padding:.25rem 1.25rem 1rem;margin:1.5rem 0}
section.service h2{margin:1rem 0 .5rem}section.service td{padding:.35rem .6rem}
section.service td.mark{width:10.5rem}section.service td:last-child{width:6rem}
@media (max-width:34rem){main{padding:1rem .75rem 3rem}.hero{gap:.75rem;padding:1rem}.grade{min-width:2.5rem}
th,td{padding:.35rem .2rem;font-size:.8rem}th{font-size:.7rem}td:first-child{overflow-wrap:anywhere}
.mark{white-space:normal}section.service{padding:.25rem .6rem 1rem}section.service td{padding:.35rem .2rem}
section.service td.mark{width:5.8rem}section.service td:last-child{width:5rem;font-size:.7rem}}
@media print{body{font-size:11pt}main{max-width:none;padding:0}section.service{break-inside:auto;border:0;padding:0}
tr,li{break-inside:avoid}.hero{border:1px solid #999}.noprint{display:none}}
"""


def escape(text: str) -> str:
    """Return text that is no markup, and has nothing invisible or reordering in it."""
    return escape_markup(legible(text))


def to_html(catalogue: Catalogue, assessment: Assessment) -> str:
    """Return the report. Everything that came from elsewhere is escaped; there is no script in it."""
    level = catalogue.levels[assessment.level]
    title = f"{assessment.target}: level {assessment.level}, {level.name}"
    steps = roadmap(catalogue, assessment)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>",
        "<h1>Execution governance assessment</h1>",
        f'<p class="dim">{escape(assessment.target)}, {moment(assessment.started_ms)}</p>',
        _hero(catalogue, assessment),
        _remarks(assessment),
        _services(catalogue, assessment),
        _steps(catalogue, assessment, steps),
        *(_service(catalogue, grade) for grade in assessment.services),
        _notes(assessment),
        "</main></body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _hero(catalogue: Catalogue, assessment: Assessment) -> str:
    level = catalogue.levels[assessment.level]
    ladder = "".join(
        f'<span class="{"reached" if one.level <= assessment.level else "ahead"}">{one.level} {escape(one.name)}</span>'
        for one in catalogue.levels
    )
    return (
        f'<div class="hero"><div class="grade" aria-label="level">{assessment.level}</div><div>'
        f"<p><strong>{escape(level.name.capitalize())}</strong>: {escape(reached(catalogue, assessment))}.</p>"
        '<p class="dim small">The grade of the weakest service. It was measured: a characteristic counts only when a '
        "probe or an observation of the running installation shows it.</p>"
        f'<div class="ladder">{ladder}</div></div></div>'
    )


def _services(catalogue: Catalogue, assessment: Assessment) -> str:
    head = "".join(f"<th>Level {number}</th>" for number in range(1, 6))
    rows = "".join(
        f"<tr><td>{escape(grade.service)}</td><td><strong>{grade.level}</strong></td>"
        f"<td>{'-' if grade.signed_level is None else grade.signed_level}</td>"
        + "".join(f"<td>{_share(catalogue, grade, number)}</td>" for number in range(1, 6))
        + "</tr>"
        for grade in assessment.services
    )
    return (
        '<h2>Services</h2><div class="scroll"><table><thead><tr><th>Service</th><th>Grade</th><th>Signed level</th>'
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        '<p class="dim small">Characteristics met, of each level. Signed level: what the approvers asked for.</p>'
    )


def _share(catalogue: Catalogue, grade: ServiceGrade, level: int) -> str:
    wanted = catalogue.of_level(level)
    met = sum(grade.result(one.id).verdict is Verdict.MET for one in wanted)
    kind = "good" if met == len(wanted) else "bad" if _any_failed(catalogue, grade, level) else "open"
    return f'<span class="mark {kind}">{_SIGN[kind]} {met} of {len(wanted)}</span>'


def _any_failed(catalogue: Catalogue, grade: ServiceGrade, level: int) -> bool:
    return any(grade.result(one.id).verdict is Verdict.NOT_MET for one in catalogue.of_level(level))


def _steps(catalogue: Catalogue, assessment: Assessment, steps: list[Step]) -> str:
    if not steps:
        return (
            '<h2>What is missing</h2><p class="good">Nothing: every characteristic of every level is met.</p>'
        )
    target = catalogue.levels[min(assessment.level + 1, 5)]
    items = "".join(_step(step) for step in steps)
    return (
        f"<h2>What is missing for level {target.level}, {escape(target.name)}</h2>"
        f'<p class="dim small">In order of level and effort.</p><ol class="steps">{items}</ol>'
    )


def _step(step: Step) -> str:
    kind = "bad" if step.established else "open"
    found = "Found" if step.established else "Could not be told"
    commands = escape("\n".join(step.commands))
    return (
        f'<li><strong>{escape(step.name)}</strong> <span class="dim small">{escape(step.characteristic)}, '
        f"{escape(_EFFORT.get(step.effort, f'effort {step.effort}'))}; {escape(', '.join(step.services))}</span>"
        f'<p>{escape(step.does)}.</p><p class="small {kind}">{found}: {escape(step.why)}</p><pre>{commands}</pre></li>'
    )


def _service(catalogue: Catalogue, grade: ServiceGrade) -> str:
    rows = []
    for level in catalogue.levels:
        meaning = "what is found wanting without governance" if level.level == 0 else level.name
        rows.append(f'<tr><th colspan="3">Level {level.level}: {escape(meaning)}</th></tr>')
        rows += [_row(catalogue, grade.result(one.id)) for one in catalogue.of_level(level.level)]
    return (
        f'<section class="service"><h2>{escape(grade.service)}: level {grade.level}</h2>'
        f'<div class="scroll"><table><tbody>{"".join(rows)}</tbody></table></div></section>'
    )


def _row(catalogue: Catalogue, result: Result) -> str:
    one, kind = catalogue.characteristic(result.id), _CLASS[result.verdict]
    why = f'<p class="small {kind}">{escape(result.why)}</p>' if result.why else ""
    return (
        f'<tr><td class="mark {kind}">{_SIGN[kind]} {escape(result.verdict)}</td>'
        f'<td>{escape(one.name)} <span class="dim small">{escape(one.id)}</span>{why}'
        f"<details><summary>evidence</summary>{_evidence(result.checks)}</details></td>"
        f'<td class="small dim">{escape(result.basis or "")}</td></tr>'
    )


def _evidence(checks: Iterable[Check]) -> str:
    parts = []
    for check in checks:
        kind = {Outcome.HELD: "good", Outcome.FAILED: "bad", Outcome.UNKNOWN: "open"}[check.outcome]
        facts = "".join(
            f"<dd><code>{escape(name)}: {escape(value)}</code></dd>" for name, value in check.evidence.items()
        )
        parts.append(
            f'<dt class="{kind}">{_SIGN[kind]} {escape(check.id)} ({escape(check.basis)})</dt>'
            f"<dd>{escape(check.tried)}</dd><dd>{escape(check.answered)}</dd>{facts}"
        )
    return f"<dl>{''.join(parts)}</dl>"


def _notes(assessment: Assessment) -> str:
    facts = (
        f"Run {assessment.run}, probe {assessment.probe}, policy version {assessment.policy_version}, egm "
        f"{assessment.version}; took {(assessment.ended_ms - assessment.started_ms) / 1000:.0f} s."
    )
    return f'<h2>About this report</h2><p class="small dim">{escape(facts)}</p>'


def _remarks(assessment: Assessment) -> str:
    """Return what a reader must know, right below the grade."""
    notes = "".join(f"<li>{escape(note)}</li>" for note in assessment.notes)
    return f'<h2>To be known</h2><ul class="notes small">{notes}</ul>' if notes else ""
