"""`@require_approval` and its kin: what lint refuses, what becomes of them, and where the groups come from."""

import pytest

from tests.support.approvers import ANN, BEN, GROUPS
from tests.support.folders import NAMESPACE_POLICIES, SETTINGS, folder, namespace_folder
from trust.bundle import read_bundle
from trust.policy.diff import diff
from trust.policy.engine import Engine
from trust.policy.lint import lint
from trust.policy.problems import Problem, Severity, errors_of
from trust.policy.source import archive_of, load
from trust.policy.types import Authn, Call
from trust.verified import BASE_ROLE

WITH = SETTINGS + f"approver_groups: {{ops: {{ann: {ANN.public.hex()}, ben: {BEN.public.hex()}}}}}\n"
PERMIT = 'permit(principal in Role::"buyers", action == Action::"shop.Orders/Place", resource == Service::"payments");'
ONE = '@require_approval("1 of ops")'


def problems(annotations: str, settings: str = WITH, *, rule: str = PERMIT) -> list[Problem]:
    """Return what lint says of one policy."""
    return lint(folder(settings=settings, policies=f'@id("a")\n{annotations}\n{rule}\n', tests=""))


def engine(policies: str) -> Engine:
    """Compile a folder, whatever lint thinks of it."""
    parsed, wrong = load(folder(settings=WITH, policies=policies, tests=""))
    assert parsed is not None, wrong
    return Engine.build(read_bundle(archive_of(parsed), role=BASE_ROLE), {})


def test_a_permit_may_ask_for_approvers_with_a_wait_and_a_window() -> None:
    """The signed settings carry the groups to every sidecar."""
    assert errors_of(problems(f'{ONE}\n@approval_wait("30s")\n@approval_window("10m")')) == []


@pytest.mark.parametrize(
    ("annotations", "settings", "rule", "words"),
    [
        (ONE, SETTINGS, PERMIT, "no approver group 'ops'"),
        ('@require_approval("3 of ops")', WITH, PERMIT, "fewer than 3"),
        ('@require_approval("1 of dev")', WITH, PERMIT, "no approver group 'dev'"),
        ("@require_approval", WITH, PERMIT, "how many of which group"),
        ('@require_approval("some of ops")', WITH, PERMIT, "how many of which group"),
        ('@require_approval("1 of ops, window 10m")', WITH, PERMIT, "how many of which group"),
        (f'{ONE} @approval_wait("soon")', WITH, PERMIT, "no duration"),
        (f'{ONE} @approval_wait("1h")', WITH, PERMIT, "longer than"),
        (f'{ONE} @approval_window("2d")', WITH, PERMIT, "longer than"),
        ('@approval_wait("30s")', WITH, PERMIT, "means nothing without"),
        (ONE, WITH, PERMIT.replace("permit(", "forbid("), "does nothing on a forbid"),
    ],
    ids=["no groups", "k over n", "no such group", "no value", "no number", "window inside", "no duration", "long wait",
         "long window", "alone", "on a forbid"],
)  # fmt: skip
def test_an_approval_that_cannot_be_given_is_an_error_at_its_line(
    annotations: str, settings: str, rule: str, words: str
) -> None:
    """Calls would be refused; the approvers of policy learn it before they sign."""
    found = errors_of(problems(annotations, settings, rule=rule))
    assert found and any(words in one.message and one.file.startswith("policies") for one in found), found


def test_a_group_in_which_everybody_must_agree_is_doubtful() -> None:
    """One who is away stops the calls."""
    warned = [one for one in problems('@require_approval("2 of ops")') if one.severity is Severity.WARNING]
    assert any("every member of ops" in one.message for one in warned)


def test_namespaces_use_the_groups_of_the_base_and_cannot_name_their_own() -> None:
    """Who approves calls is for the quorum of the base to say."""
    files = namespace_folder(policies=NAMESPACE_POLICIES.replace("permit", f"{ONE}\npermit", 1))
    parsed, wrong = load(folder(settings=WITH, tests=""))
    assert parsed is not None, wrong
    base = read_bundle(archive_of(parsed), role=BASE_ROLE)
    assert not [one for one in errors_of(lint(files, base=base)) if "approv" in one.message]
    own = {
        **files,
        "bundle.yaml": files["bundle.yaml"]
        + f"approver_groups: {{ops: {{ann: {ANN.public.hex()}}}}}\n".encode(),
    }
    assert any("belongs to the base bundle alone" in one.message for one in errors_of(lint(own, base=base)))


def test_each_determining_permit_asks_and_windows_do_not_mix() -> None:
    """Obligations are the union; a permit without approvers takes nothing away."""
    built = engine(
        f'@id("a") {ONE} @approval_window("10m")\n{PERMIT}\n@id("b") @require_approval("2 of ops")\n{PERMIT}\n'
        f'@id("c")\n{PERMIT}\n'
    )
    call = Call("spiffe://mesh.local/workload/alice", "shop.Orders/Place", "payments", Authn.MTLS, "n", 4)
    verdict = built.decide(call, now_ms=0)
    assert verdict.allowed
    assert verdict.obligations == (
        ("require_approval", "1 of ops, window 10m"),
        ("require_approval", "2 of ops"),
    )
    assert built.awaits_approval(call.principal, call.method, call.service)


def test_a_reviewer_sees_who_may_newly_approve() -> None:
    """Every name and key of a group is a setting of the diff."""
    parsed, _ = load(folder(settings=SETTINGS, tests=""))
    after, _ = load(folder(settings=WITH, tests=""))
    assert parsed is not None and after is not None
    old, new = (read_bundle(archive_of(one), role=BASE_ROLE) for one in (parsed, after))
    changed = {one.name: one.after for one in diff(old, new).settings}
    assert changed["approver_groups.ops.ann"] == f'"{GROUPS["ops"]["ann"]}"'
