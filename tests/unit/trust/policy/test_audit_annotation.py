"""`@audit("payload")`: what lint refuses, what the engine knows of it, and where the auditors come from."""

import pytest

from control_plane.core.bundle_checks import check_bundles
from tests.support.auditing import Auditor
from tests.support.control_plane import TRUST_DOMAIN
from tests.support.folders import NAMESPACE_POLICIES, SETTINGS, folder, namespace_folder
from trust.bundle import read_bundle
from trust.errors import InputError
from trust.policy.diff import diff
from trust.policy.engine import Engine
from trust.policy.lint import lint
from trust.policy.problems import Problem, Severity, errors_of
from trust.policy.source import archive_of, load
from trust.verified import BASE_ROLE

ANN, BEN = Auditor("ann"), Auditor("ben")
WITH = SETTINGS + f"auditors: {{ann: {ANN.key.text}}}\n"
PERMIT = 'permit(principal in Role::"buyers", action == Action::"shop.Orders/Place", resource == Service::"payments");'
ASKS = f'@id("a")\n@audit("payload")\n{PERMIT}\n'


def errors(policies: str, settings: str = WITH) -> list[Problem]:
    return errors_of(lint(folder(settings=settings, policies=policies, tests="")))


def bundle(policies: str = ASKS, settings: str = WITH, *, namespace: bool = False) -> bytes:
    files = (
        namespace_folder(policies=policies)
        if namespace
        else folder(settings=settings, policies=policies, tests="")
    )
    parsed, problems = load(files)
    assert parsed is not None, problems
    return archive_of(parsed)


def test_a_permit_may_ask_for_the_payload_when_there_is_an_auditor() -> None:
    """The signed settings carry the key to every sidecar."""
    assert errors(ASKS) == []
    mesh = read_bundle(bundle(), role=BASE_ROLE).mesh
    assert mesh is not None and mesh.auditor_keys() == (ANN.key,)


@pytest.mark.parametrize(
    ("policies", "settings", "words"),
    [
        (ASKS, SETTINGS, "names no auditor"),
        (ASKS.replace('"payload"', '"everything"'), WITH, 'write @audit("payload")'),
        (ASKS.replace('("payload")', ""), WITH, 'write @audit("payload")'),
        (ASKS.replace("permit(", "forbid("), WITH, "does nothing on a forbid"),
    ],
    ids=["no auditor", "another value", "no value", "on a forbid"],
)
def test_an_audit_that_cannot_be_met_is_an_error_at_its_line(
    policies: str, settings: str, words: str
) -> None:
    """Calls would be refused; approvers learn it before they sign."""
    (problem,) = errors(policies, settings)
    assert (problem.file, problem.line) == ("policies/shop.cedar", 2)
    assert words in str(problem)


@pytest.mark.parametrize(
    ("auditors", "words"),
    [
        (f"{{ann: {ANN.key.text}, bob: {ANN.key.text}}}", "auditors ann and bob have the same key"),
        (f"{{ann: {'A' * 43}}}", "small order"),
        ("{ann: short}", "43 characters"),
        (f"{{Ann: {ANN.key.text}}}", "auditors"),
        ("[x]", "auditors"),
    ],
    ids=["one key twice", "small order", "no key", "no name", "no mapping"],
)
def test_an_unusable_auditor_is_an_error_of_bundle_yaml(auditors: str, words: str) -> None:
    """With its line."""
    found = errors(PERMIT.replace("permit", '@id("a")\npermit', 1), SETTINGS + f"auditors: {auditors}\n")
    assert len(found) == 1, found
    assert found[0].file == "bundle.yaml" and found[0].line >= SETTINGS.count("\n")
    assert words in found[0].message


def test_a_namespace_uses_the_auditors_of_the_base_and_names_none_itself() -> None:
    """Its approvers may ask to keep payloads, not choose who reads them."""
    asks = NAMESPACE_POLICIES.replace('@id("staff-count")', '@id("staff-count")\n@audit("payload")')
    with_auditor = read_bundle(bundle(), role=BASE_ROLE)
    without = read_bundle(bundle(ASKS.replace('@audit("payload")\n', ""), SETTINGS), role=BASE_ROLE)
    files = namespace_folder(policies=asks)
    assert errors_of(lint(files, base=with_auditor)) == []
    assert any("names no auditor" in p.message for p in errors_of(lint(files, base=without)))
    own = {**files, "bundle.yaml": files["bundle.yaml"] + f"auditors: {{ann: {ANN.key.text}}}\n".encode()}
    assert any("belongs to the base bundle alone" in p.message for p in errors_of(lint(own)))


def test_the_last_auditor_cannot_be_removed_while_a_namespace_asks() -> None:
    """The base would be signed, and the namespace's calls be refused."""
    asks = bundle(
        NAMESPACE_POLICIES.replace('@id("staff-count")', '@id("staff-count")\n@audit("payload")'),
        namespace=True,
    )
    base = bundle("", SETTINGS.replace("mesh.local", TRUST_DOMAIN))
    with pytest.raises(InputError, match=r'auditors: none, but store:staff-count says @audit\("payload"\)'):
        check_bundles(BASE_ROLE, base, {"store": asks}, trust_domain=TRUST_DOMAIN)


def test_the_engine_knows_which_calls_may_be_asked_for_their_payload() -> None:
    """A stream must then be read before it is decided."""
    engine = Engine.build(read_bundle(bundle(), role=BASE_ROLE), {})
    assert engine.payload_policies() == ("a",)
    alice, carol = (f"spiffe://mesh.local/workload/{name}" for name in ("alice", "carol"))
    assert engine.audits_payload(alice, "shop.Orders/Place", "payments")
    assert not engine.audits_payload(carol, "shop.Orders/Place", "payments")
    assert not engine.audits_payload(alice, "shop.Orders/Place", "stock")


def test_reviewers_see_who_may_newly_read() -> None:
    """A changed auditor is a changed setting."""
    old, new = (
        read_bundle(bundle(settings=SETTINGS + f"auditors: {{ann: {key.text}}}\n"), role=BASE_ROLE)
        for key in (ANN.key, BEN.key)
    )
    (change,) = diff(old, new).settings
    assert (change.name, change.before, change.after) == (
        "auditors.ann",
        f'"{ANN.key.text}"',
        f'"{BEN.key.text}"',
    )


def test_a_method_that_nothing_describes_is_warned_about() -> None:
    """Its response would not be kept, which the annotation does not say."""
    undescribed = ASKS.replace("shop.Orders/Place", "old.Other/Do").replace("payments", "legacy")
    (warning,) = [
        p
        for p in lint(folder(settings=WITH, policies=undescribed, tests=""))
        if p.severity is Severity.WARNING and "no test" not in p.message
    ]
    assert "old.Other/Do" in warning.message and warning.line == 2
    assert not any("descriptor" in p.message for p in lint(folder(settings=WITH, policies=ASKS, tests="")))
