"""What a proposal ends by leaving it out is told, as lines that keep it."""

import yaml

from control_plane.core.amend import settings_of
from control_plane.core.left_out import as_lines, left_out
from trust.policy.source import SETTINGS, build

PLAIN = b"name: shop\ntrust_domain: mesh.local\nlevel: 4\nservices: {shop: {}}\n"
HELD = (
    PLAIN
    + b"emergency_keys: {emergency-1: c42330d39c2f4da554c95ec2668b182785ad8c9d1454f054de1486eb9cc55198}\n"
    + b"detection: {respond: true, responses: [{on: severity high, do: [alert]}]}\n"
    + b"alerts: {gone: {when: node_silent, window_s: 120, to: [mqtt]}}\n"
    + b"revocations: [{kind: workload, value: mallory, reason: gone}]\n"
)


def test_settings_that_a_proposal_does_not_name_are_told_and_their_lines_keep_them() -> None:
    """A folder that knows nothing of what `egm up` added must not end it unnoticed."""
    held, plain = settings_of(build({SETTINGS: HELD})), settings_of(build({SETTINGS: PLAIN}))
    dropped = left_out(held, plain)
    assert list(dropped) == ["emergency_keys", "detection", "alerts", "revocations"]
    lines = "\n".join(as_lines(dropped))
    assert yaml.safe_load(lines) == dropped
    assert settings_of(build({SETTINGS: PLAIN + lines.encode() + b"\n"})) == held


def test_what_is_changed_and_what_never_was_is_not_left_out() -> None:
    """Another value is a decision that the review shows; a first policy and a namespace leave nothing out."""
    held = settings_of(build({SETTINGS: HELD}))
    other = settings_of(build({SETTINGS: HELD.replace(b"respond: true", b"respond: false")}))
    assert left_out(held, other) == left_out(None, held) == left_out(held, None) == {}
