"""Alert rules of the signed policy: what they may say, when lint doubts them, and signatures of webhooks."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.control_plane import source
from trust import limits
from trust.alerting import AlertRule, doubts, sign, topic, verify
from trust.bundle import read_claimed_bundle
from trust.errors import InputError
from trust.policy.diff import diff
from trust.policy.lint import lint
from trust.policy.problems import Severity
from trust.policy.source import build

RULES = """\
alerts:
  refused: {when: refusals, above: 10, service: payments, reason: POLICY_DENIED, to: [webhook:oncall, mqtt]}
  quiet: {when: no_calls, window_s: 3600, caller: alice, to: [mqtt]}
  gone: {when: node_silent, window_s: 120, node: b, severity: critical, to: [mqtt]}
  told: {when: event, events: [node_alarm, incident_opened], to: [mqtt]}
"""


def folder(alerts: str) -> dict[str, bytes]:
    """Return a policy folder with these lines in bundle.yaml."""
    files = source()
    return files | {"bundle.yaml": files["bundle.yaml"] + alerts.encode()}


def test_rules_travel_in_the_signed_bundle_and_a_change_is_shown_to_reviewers() -> None:
    """What is watched is part of what the quorum signs."""
    old, new = read_claimed_bundle(build(source())), read_claimed_bundle(build(folder(RULES)))
    assert old.mesh is not None
    assert new.mesh is not None
    assert old.mesh.alerts is None
    assert b'"alerts"' not in old.mesh.model_dump_json(exclude_none=True).encode()
    rules = new.mesh.alerts
    assert rules is not None
    assert rules["refused"].above == 10
    assert rules["quiet"].caller_id("mesh.test") == "spiffe://mesh.test/workload/alice"
    shown = {change.name: change.after for change in diff(old, new).settings}
    assert json.loads(shown["alerts.refused.above"]) == 10
    assert "alerts.quiet.when" in shown
    assert [p for p in lint(folder(RULES)) if "alert" in p.message] == []


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"when": "calls"}, "needs `above`"),
        ({"when": "no_calls", "above": 1.0}, "has no `above`"),
        ({"when": "calls", "above": 1.0, "reason": "POLICY_DENIED"}, "narrows refusals"),
        ({"when": "refusals", "above": 1.0, "reason": "nope"}, "is not a reason"),
        ({"when": "node_silent", "service": "payments"}, "cannot be narrowed"),
        ({"when": "calls", "above": 1.0, "node": "b"}, "narrows node_silent"),
        ({"when": "event"}, "names the kinds"),
        ({"when": "calls", "above": 1.0, "events": ["node_alarm"]}, "for that alone"),
        ({"when": "calls", "above": 1.0, "to": ["https://evil.test/"]}, "is no channel"),
        ({"when": "calls", "above": 1.0, "to": ["webhook:../x"]}, "a name"),
        ({"when": "calls", "above": 1.0, "window_s": 10}, "greater than or equal to 60"),
        ({"when": "calls", "above": -1.0}, "greater than or equal to 0"),
        ({"when": "calls", "above": 1.0, "caller": "spiffe://x"}, "SPIFFE"),
        ({"when": "weather"}, "Input should be"),
    ],
)
def test_a_rule_that_says_nothing_clear_is_refused(rule: dict[str, Any], says: str) -> None:
    """In particular a bundle names channels, never addresses."""
    with pytest.raises(ValidationError) as caught:
        AlertRule.model_validate(rule)
    assert says in str(caught.value)


def test_a_wrong_rule_is_an_error_at_its_line_and_a_namespace_may_have_none() -> None:
    """An author reads where it is."""
    with pytest.raises(InputError) as caught:
        build(folder("alerts:\n  x: {when: calls}\n"))
    assert "bundle.yaml" in caught.value.detail
    assert "needs `above`" in caught.value.detail


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("{when: calls, above: 1, service: paymnts, to: [mqtt]}", "there is no service 'paymnts'"),
        ("{when: calls, above: 1, method: shop.Payments/Pya, to: [mqtt]}", "no service has a method"),
        ("{when: would_deny, above: 1, to: [mqtt]}", "never fires"),
        ("{when: error_percent, above: 100, to: [mqtt]}", "never more than 100"),
        ("{when: calls, above: 1}", "names no channel"),
    ],
)
def test_lint_warns_of_a_rule_that_can_never_fire(rule: str, says: str) -> None:
    """A rule with a misspelled service would be silent for ever."""
    (problem,) = [p for p in lint(folder(f"alerts:\n  x: {rule}\n")) if "alert 'x'" in p.message]
    assert says in problem.message
    assert problem.severity is Severity.WARNING
    assert (problem.file, problem.line > 0, bool(problem.hint)) == ("bundle.yaml", True, True)


def test_refusals_below_level_three_and_anything_at_level_zero_never_fire() -> None:
    """Nothing is refused there, or nothing recorded."""
    refused = AlertRule.model_validate({"when": "refusals", "above": 1.0, "to": ["mqtt"]})
    quiet = AlertRule.model_validate({"when": "no_calls", "to": ["mqtt"]})
    services: dict[str, tuple[str, ...]] = {"a": ()}
    assert "below level 3" in doubts({"x": refused}, services=services, levels={"a": 1})[0][1]
    assert "records nothing" in doubts({"x": quiet}, services=services, levels={"a": 0})[0][1]
    assert doubts({"x": refused}, services=services, levels={"a": 4}) == []
    method = AlertRule.model_validate({"when": "calls", "above": 1.0, "method": "a.B/C", "to": ["mqtt"]})
    assert doubts({"x": method}, services=services, levels={"a": 4}) == []


def test_a_signature_is_for_this_body_this_secret_and_this_time() -> None:
    """A receiver refuses what was changed, replayed later, or sent by somebody else."""
    header = sign(b"secret", b"{}", now_s=1_000)
    assert verify(b"secret", b"{}", header, now_s=1_010)
    assert not verify(b"secret", b"{} ", header, now_s=1_010)
    assert not verify(b"other", b"{}", header, now_s=1_010)
    assert not verify(b"secret", b"{}", header, now_s=1_001 + limits.ALERT_SIGNATURE_AGE_S)
    assert not verify(b"secret", b"{}", header.replace("t=1000", "t=1001"), now_s=1_010)
    assert not verify(b"secret", b"{}", "t=1000", now_s=1_010)


def test_the_topic_is_of_one_trust_domain() -> None:
    """A name with a slash or a wildcard could reach other topics."""
    assert topic("mesh.test") == "egm/v1/mesh.test/alerts"
