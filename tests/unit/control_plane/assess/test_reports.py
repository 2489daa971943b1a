"""Reports say what the assessment found, in every form, and nothing that came from elsewhere can break out of them."""

import json
import re
import uuid
from dataclasses import replace

import jsonschema
import pytest

from control_plane.assess.catalogue import load_catalogue
from control_plane.assess.compare import compare
from control_plane.assess.model import Assessment
from control_plane.assess.report_html import to_html
from control_plane.assess.report_json import dump, parse, schema, to_json
from control_plane.assess.report_oscal import to_oscal
from control_plane.assess.report_text import catalogue_page, to_markdown
from control_plane.assess.roadmap import roadmap
from tests.support.assessments import assessment
from tests.support.breakages import BREAKAGES, GOOD, LET_IN, with_node, with_reactions
from trust.errors import InputError, Reason

CATALOGUE = load_catalogue()
WEAK = replace(GOOD, stranger=LET_IN)
EVIL = '"><script>alert(1)</script>|`x`\n# heading'


@pytest.mark.parametrize(
    "breakage", [None, *BREAKAGES[::5]], ids=lambda one: "good" if one is None else one.name
)
def test_json_fits_its_schema_and_reads_back_the_same(breakage: object) -> None:
    """Pipelines read this: the schema is the promise."""
    found = assessment() if breakage is None else assessment(shop=breakage.world())  # type: ignore[attr-defined]

    jsonschema.validate(to_json(CATALOGUE, found), schema())
    assert parse(dump(CATALOGUE, found)) == found


def test_the_schema_itself_is_valid_and_refuses_what_is_no_report() -> None:
    """A schema that accepts anything promises nothing."""
    jsonschema.Draft202012Validator.check_schema(schema())
    value = to_json(CATALOGUE, assessment())
    for wrong in (
        {**value, "level": 6},
        {**value, "extra": 1},
        {k: v for k, v in value.items() if k != "services"},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'{"format": 2}',
        b"\xff",
        b"[" * 100_000,
        b'{"format": 1, "run": 5}',
        dump(CATALOGUE, assessment()).replace(b'"started_ms": 1795000000000', b'"started_ms": 1e999'),
        dump(CATALOGUE, assessment()).replace(
            b'"started_ms": 1795000000000', b'"started_ms": 9795000000000000'
        ),
        dump(CATALOGUE, assessment()).replace(b'"run": "0123', b'"run": "\\ud800'),
        dump(CATALOGUE, assessment(shop=WEAK)).replace(b'      "level": 3', b'      "level": 5'),
    ],
    ids=[
        "empty",
        "no-members",
        "list",
        "null",
        "later-format",
        "no-text",
        "deep",
        "wrong-type",
        "infinite",
        "no-time",
        "half-a-character",
        "level-that-its-results-deny",
    ],
)
def test_a_file_that_is_no_report_is_refused_with_a_reason(data: bytes) -> None:
    """Comparing with a damaged file must not look like a comparison."""
    with pytest.raises(InputError) as caught:
        parse(data)
    assert caught.value.reason is Reason.INPUT_INVALID


def test_the_fleet_is_as_good_as_its_weakest_service() -> None:
    """One ungoverned service is the way into the others."""
    found = assessment(shop=GOOD, payments=WEAK)

    assert [one.level for one in found.services] == [5, 3]
    assert found.level == 3
    assert assessment().level == 5
    assert replace(found, services=()).level == 0


def test_the_roadmap_leads_to_the_next_level_in_order_of_effort_with_commands() -> None:
    """The first thing on the list is what to do first; what belongs to later levels is not on it yet."""
    broken = replace(
        with_node("shop", reported_s_ago=60.0), reactions=with_reactions(alerts=(), incidents=()).reactions
    )
    steps = roadmap(CATALOGUE, assessment(shop=GOOD, payments=broken))

    assert [step.characteristic for step in steps] == ["EGMM-L1-02", "EGMM-L1-04"]
    assert all(step.services == ("payments",) and step.commands and step.why for step in steps)
    assert [step.effort for step in steps] == sorted(step.effort for step in steps)
    assert roadmap(CATALOGUE, assessment()) == []


def test_html_is_one_file_that_loads_nothing_and_runs_nothing() -> None:
    """It is mailed around: no address is contacted when somebody opens it."""
    page = to_html(CATALOGUE, assessment(shop=GOOD, payments=WEAK, notes=("a note",)))

    assert "<script" not in page.lower()
    assert not re.search(r"(src|href)\s*=|url\(|@import", page, re.IGNORECASE)
    assert "default-src 'none'" in page
    assert "prefers-color-scheme:dark" in page and "@media print" in page
    for words in ("mesh.local", "payments", "a note", "What is missing for level 4", "EGMM-L4-01"):
        assert words in page


def test_html_names_every_characteristic_and_keeps_its_evidence() -> None:
    """A manager reads the grade, an auditor unfolds the evidence."""
    page = to_html(CATALOGUE, assessment())

    for one in CATALOGUE.characteristics:
        assert one.id in page
    assert "NO_POLICY_PERMITS" in page and "decision" in page


def test_what_an_attacker_put_into_answers_stays_text_in_every_report() -> None:
    """Refusals and names come from others: they must not become markup, rows or scripts."""
    answer = replace(LET_IN, replied=False, code="UNKNOWN", detail=EVIL)
    found = assessment(shop=replace(GOOD, stranger=answer), notes=(EVIL,))
    hostile = replace(found, target=EVIL)

    page = to_html(CATALOGUE, hostile)
    assert "<script>" not in page and "&lt;script&gt;" in page
    text = to_markdown(CATALOGUE, hostile)
    assert "<script>" not in text and "\n# heading" not in text
    rows = [line for line in text.splitlines() if line.startswith("| EGMM-")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {6}
    assert parse(dump(CATALOGUE, hostile)) == hostile


def test_markdown_shows_grade_roadmap_and_evidence() -> None:
    """For people who read text."""
    text = to_markdown(CATALOGUE, assessment(shop=WEAK))

    assert text.startswith("# Assessment of mesh.local: level 3, policy-aware")
    assert "To level 4" in text and "egm policy publish ID" in text and "**not met**" in text


def _oscal_result(found: Assessment) -> dict[str, object]:
    document = to_oscal(CATALOGUE, found)
    json.dumps(document)
    assert document["assessment-results"]["metadata"]["oscal-version"] == "1.1.3"
    return dict(document["assessment-results"]["results"][0])


def test_oscal_has_an_observation_per_check_and_a_finding_per_verdict() -> None:
    """Whoever imports it must be able to go from a finding to what was observed."""
    found = assessment(shop=GOOD, payments=WEAK)
    result = _oscal_result(found)
    observations, findings = result["observations"], result["findings"]
    assert isinstance(observations, list) and isinstance(findings, list)
    known = {one["uuid"] for one in observations}
    components = {one["uuid"] for one in result["local-definitions"]["components"]}  # type: ignore[index]

    assert len(findings) == 2 * len(CATALOGUE.characteristics)
    assert len(known) == len(observations) == 2 * len(CATALOGUE.checks)
    for one in findings:
        assert (
            one["related-observations"]
            and {r["observation-uuid"] for r in one["related-observations"]} <= known
        )
        assert one["target"]["status"]["state"] in {"satisfied", "not-satisfied"}
        assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", one["target"]["target-id"])
    for one in observations:
        assert set(one["methods"]) <= {"TEST", "EXAMINE", "INTERVIEW"}
        assert {subject["subject-uuid"] for subject in one["subjects"]} <= components
    for identifier in known | components:
        assert uuid.UUID(identifier).version == 5
    unsatisfied = [one["title"] for one in findings if one["target"]["status"]["state"] == "not-satisfied"]
    assert any("EGMM-L4-01" in title for title in unsatisfied)


def test_oscal_of_the_same_assessment_is_the_same_document() -> None:
    """Identifiers follow from the run: importing twice must not double anything."""
    assert to_oscal(CATALOGUE, assessment()) == to_oscal(CATALOGUE, assessment())
    assert to_oscal(CATALOGUE, assessment()) != to_oscal(CATALOGUE, assessment(run="ba9876543210"))


def test_a_comparison_names_what_got_worse_and_better() -> None:
    """A pipeline stops on what got worse."""
    before, after = assessment(shop=GOOD), assessment(run="ba9876543210", shop=WEAK, new=GOOD)
    worse, better = compare(before, after), compare(after, before)

    assert worse.worse and (worse.before_level, worse.after_level) == (5, 3)
    assert worse.levels == {"new": (None, 5), "shop": (5, 3)}
    assert {one.characteristic for one in worse.changes} == {
        "EGMM-L0-04",
        "EGMM-L0-05",
        "EGMM-L0-01",
        "EGMM-L4-01",
    }
    assert all(one.better is False for one in worse.changes)
    assert not better.worse and all(one.better for one in better.changes)
    assert not compare(before, before).changes


def test_a_comparison_with_a_report_of_another_version_says_so() -> None:
    """A characteristic that came or went changes what a level means."""
    before = assessment()
    fewer = replace(before.services[0], results=before.services[0].results[:-1])
    after = replace(before, version="0.2.0", services=(fewer,), started_ms=before.started_ms - 1)
    notes = compare(before, after).notes

    assert ["0.2.0" in notes[0], "EGMM-L5-08" in notes[1], "before the first" in notes[2]] == [True] * 3


def test_nothing_invisible_or_steering_gets_into_a_report() -> None:
    """A detail that turns text around, or clears the terminal of who prints the file."""
    evil = "a\x1b[2Jb\u202ec"
    found = assessment(
        shop=replace(GOOD, stranger=replace(LET_IN, replied=False, detail=evil)), notes=(evil,)
    )

    for text in (to_html(CATALOGUE, found), to_markdown(CATALOGUE, found)):
        assert "\x1b" not in text and "\u202e" not in text
        assert "x1b" in text and "u202e" in text


def test_what_must_be_known_is_said_right_below_the_grade() -> None:
    """A service that its own machine reaches past the sidecar: nobody reads the end of a report."""
    found = assessment(notes=("only processes of its own machine reach it",))

    page, text = to_html(CATALOGUE, found), to_markdown(CATALOGUE, found)
    assert page.index("only processes") < page.index("<h2>Services</h2>")
    assert text.index("only processes") < text.index("Every characteristic")


def test_a_comparison_says_when_two_reports_cannot_fairly_be_compared() -> None:
    """A safe assessment of one mesh beside a full one of another."""
    before = assessment()
    after = replace(before, target="other.mesh", probe="safe")

    assert len(compare(before, after).notes) == 2


def test_the_page_of_the_catalogue_names_everything_that_the_file_has() -> None:
    """docs/egmm.md is this page."""
    page = catalogue_page(CATALOGUE)

    for one in CATALOGUE.characteristics:
        assert f"### {one.id}: {one.name}" in page
    for name in CATALOGUE.checks:
        assert f"`{name}`" in page
    for source in CATALOGUE.sources.values():
        assert source.url in page
