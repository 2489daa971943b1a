"""What policy may say about detection and responses, and what it may not."""

from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.emergency import FIRST
from trust.detection import RULES, Action, DetectionSettings, ResponseRule, Severity
from trust.mesh import MeshSettings
from trust.policy.diff import _flat
from trust.policy.lint_detection import detection_problems


def settings(**values: Any) -> DetectionSettings:
    """Return what YAML of these values gives."""
    return DetectionSettings.model_validate(values)


def mesh(detection: DetectionSettings | None, *, key: bool = True) -> MeshSettings:
    """Return mesh settings with it."""
    keys = {"emergency-1": FIRST.public.hex()} if key else {}
    return MeshSettings(trust_domain="mesh.local", emergency_keys=keys, detection=detection)


def test_default_detects_everything_and_does_nothing() -> None:
    """Who says nothing gets no automatic responses."""
    default = settings()
    assert not default.respond
    assert not default.responses
    assert not default.off


def test_rule_ids_are_unique_and_of_one_shape() -> None:
    """They are stable: people write them into policy and runbooks."""
    assert len(RULES) == 20
    for rule_id, info in RULES.items():
        assert rule_id == info.id
        assert rule_id.startswith(("EGM-B0", "EGM-T0"))


@pytest.mark.parametrize(
    ("on", "rule", "covered"),
    [
        ("EGM-T002", "EGM-T002", True),
        ("EGM-T002", "EGM-T003", False),
        ("severity high", "EGM-T002", True),
        ("severity high", "EGM-T004", True),  # critical is above
        ("severity high", "EGM-B001", False),
    ],
)
def test_response_is_for_a_rule_or_for_a_severity_and_above(on: str, rule: str, covered: bool) -> None:
    """A severity never means less than itself."""
    assert ResponseRule(on=on, do=(Action.ALERT,)).covers(RULES[rule]) is covered


@pytest.mark.parametrize(
    "value",
    [
        {"on": "EGM-T999", "do": ["alert"]},
        {"on": "severity enormous", "do": ["alert"]},
        {"on": "EGM-T002", "do": []},
        {"on": "EGM-T002", "do": ["explode"]},
        {"on": "EGM-T002", "do": ["alert", "alert"]},
        {"on": "EGM-T002", "do": ["throttle"]},  # at which rate?
        {"on": "EGM-T002", "do": ["throttle"], "rate": "10/year"},
        {"on": "EGM-T002", "do": ["alert"], "rate": "10/m"},  # what for?
        {"on": "EGM-T002", "do": ["require_approval"], "approval": "many of ops"},
        {"on": "EGM-T002", "do": ["quarantine"], "ttl_s": 1},
        {"on": "EGM-T002", "do": ["quarantine"], "min_nodes": 0},
        {"on": "EGM-T002", "do": ["quarantine"], "nodes": 2},
    ],
)
def test_response_that_cannot_be_given_is_refused(value: dict[str, Any]) -> None:
    """A response that silently never happens would be worse than none."""
    with pytest.raises(ValidationError):
        settings(responses=[value])


def test_actions_and_names_are_read_from_yaml_text() -> None:
    """Lists of words, as YAML gives them."""
    got = settings(
        respond=True,
        off=["EGM-B008"],
        protected=["payments", "payments"],
        responses=[{"on": "severity high", "do": ["alert", "throttle"], "rate": "10/m", "ttl_s": 600}],
    )
    assert got.responses[0].do == (Action.ALERT, Action.THROTTLE)
    assert got.protected == ("payments",)
    assert Severity.LOW.rank < Severity.CRITICAL.rank


@pytest.mark.parametrize(
    ("values", "key", "found"),
    [
        ({"respond": True, "responses": [{"on": "EGM-T002", "do": ["cut"]}]}, False, "emergency key"),
        ({"responses": [{"on": "EGM-T002", "do": ["cut"], "ttl_s": 7 * 86400}]}, True, "longer than"),
        (
            {"responses": [{"on": "EGM-T002", "do": ["require_approval"], "approval": "1 of ops"}]},
            True,
            "no call could ever be approved",
        ),
        ({"off": ["EGM-T002"], "responses": [{"on": "EGM-T002", "do": ["alert"]}]}, True, "is off"),
        ({"respond": True, "responses": [{"on": "EGM-T002", "do": ["alert"]}]}, False, ""),
        ({}, False, ""),
        (
            {"responses": [{"on": "EGM-B003", "do": ["alert"], "min_nodes": 2}]},
            True,
            "no two nodes ever show EGM-B003 each",
        ),
        (
            {"responses": [{"on": "EGM-T011", "do": ["alert", "quarantine"]}]},
            True,
            "EGM-T011 names no workload, so nothing but an alert",
        ),
    ],
)
def test_lint_says_what_can_never_happen(values: dict[str, Any], key: bool, found: str) -> None:
    """At authoring, when it can still be mended."""
    problems = [one.message for one in detection_problems(mesh(settings(**values), key=key))]
    assert len(problems) == bool(found)
    assert not found or found in problems[0]


def test_every_setting_of_detection_is_seen_in_a_diff() -> None:
    """An approver who signs a looser response must have seen it."""
    shown = _flat(mesh(settings(respond=True)).model_dump(mode="json", exclude_none=True))
    assert shown["detection.respond"] == "true"
    assert set(DetectionSettings.model_fields) == {
        name.partition(".")[2] for name in shown if name.startswith("detection.")
    }
