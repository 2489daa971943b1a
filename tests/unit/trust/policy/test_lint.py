"""Lint finds what would refuse a bundle, or make a policy silently mean nothing, and says where."""

import pytest

from tests.support.folders import POLICIES, TESTS, folder, namespace_folder
from trust.bundle import read_bundle
from trust.policy.lint import lint
from trust.policy.problems import Problem, Severity, errors_of
from trust.policy.source import archive_of, build, load

OK = '@id("ok") permit(principal in Role::"buyers", action, resource == Service::"payments");\n'


def found(policies: str, severity: Severity = Severity.ERROR) -> list[Problem]:
    """The problems in policies/shop.cedar of a folder that is good otherwise."""
    return [p for p in lint(folder(policies=policies, tests="")) if p.severity is severity]


def test_good_folder_has_no_problem_but_untested_policies() -> None:
    """The warning names the policy and the line to add."""
    assert lint(folder() | {"tests/more.yaml": b""}) == []
    warnings = lint(folder(tests=TESTS.replace("  policy: [no-night-orders]\n", "")))
    assert [(p.severity, p.line) for p in warnings] == [(Severity.WARNING, 8)]
    assert "policy: no-night-orders" in warnings[0].hint


@pytest.mark.parametrize(
    ("policies", "line", "words"),
    [
        ("\npermit(principal, action, resource);", 2, "no @id"),
        ('\n@id("")permit(principal, action, resource);', 2, "no @id"),
        (f'@id("{"x" * 201}")permit(principal, action, resource);', 1, "at most 200 bytes"),
        ('@id("a\\u{7}")permit(principal, action, resource);', 1, "printable"),
        (OK + OK, 2, "is taken by policies/shop.cedar:1"),
        (OK + '@id("t")\npermit(\n principal == ?principal, action, resource);', 4, "a template"),
        ('@id("a")\npermit(principal, action, resource)\nwhen {\n context.x > };', 4, "syntax"),
        ('@id("a")\npermit(principal, action, resource)', 2, "not finished"),
        ('@id("a")\n@id("b")\npermit(principal, action, resource);', 1, "duplicate annotation"),
        ('@id("a") permit(principal, action, resource) when {\n context.foo };', 2, "`foo`"),
        (
            '@id("a") permit(principal,\naction == Action::"shop.Orders/Plaice", resource);',
            2,
            "'shop.Orders/Plaice'",
        ),
        (
            '@id("a") permit(principal,\naction == Action::"shop.Orders/Place", resource) when {\n'
            "context.request.limit > 1 };",
            3,
            "optional",
        ),
        (
            '@id("a") permit(principal, action == Action::"shop.Orders/Place", resource)\n'
            "when { context.request.amuont > 1 };",
            2,
            "amuont",
        ),
        (
            '@id("a") permit(principal, action, resource)\nwhen { context.request.amount > 1 };',
            2,
            "`request`",
        ),
        (
            '@id("a") forbid(principal, action, resource) when {\ncontext.metadata has tenent && '
            'context.metadata["tenent"] == "x" };',
            2,
            "never true",
        ),
        ('@id("a") permit(principal is Robot, action, resource);', 1, "Robot"),
        ('@id("a") permit(\nprincipal == Workload::"alice", action, resource);', 2, "SPIFFE ID"),
        ('@id("a") permit(\nprincipal in Role::"buyerz", action, resource);', 2, "no Role 'buyerz'"),
        ('@id("a") permit(principal, action,\nresource == Service::"paymets");', 2, "no service 'paymets'"),
        (
            '@id("a") permit(principal, action,\nresource in ServiceGroup::"mony");',
            2,
            "no ServiceGroup 'mony'",
        ),
        ('@id("a")\npermit(principal, action, resource);', 1, "permits everything"),
        (
            '@id("a")\npermit(principal is Workload, action, resource is Service)\nwhen { context.node.level == 4 };',
            1,
            "permits everything",
        ),
        ('@id("a")\n@lease("30s")\npermit(principal, action, resource);', 2, "cannot enforce"),
        (
            '@id("a")\n@permit("message")\npermit(principal, action, resource);',
            2,
            '@permit("method"), on a permit',
        ),
        (
            '@id("a")\n@permit("method")\nforbid(principal, action, resource);',
            2,
            '@permit("method"), on a permit',
        ),
        (
            '@id("a")\n@require_approval("2 of ops")\npermit(principal, action, resource);',
            2,
            "there is no approver group 'ops'",
        ),
    ],
)
def test_mistake_in_a_policy_is_an_error_at_its_line(policies: str, line: int, words: str) -> None:
    """What a sidecar would refuse, and names that would silently never match."""
    problems = found(policies)
    assert any(p.line == line and words in p.message and p.file == "policies/shop.cedar" for p in problems), (
        problems
    )
    assert all(p.hint or "; " in p.message for p in problems)


def test_misspelled_names_come_with_the_right_one() -> None:
    """A hint that a person can apply."""
    cases = {
        '@id("a") permit(principal in Role::"buyer", action, resource);': "'buyers'",
        '@id("a") permit(principal, action == Action::"shop.Orders/Plac", resource);': "'shop.Orders/Place'",
        '@id("a") permit(principal, action, resource == Service::"payment");': "'payments'",
        '@id("a") permit(principal, action == Action::"shop.Orders/Place", resource) '
        "when { context.request.amout > 1 };": "'amount'",
    }
    for policy, suggestion in cases.items():
        assert any(suggestion in p.hint for p in found(policy)), policy


def test_mistakes_in_several_policies_are_all_reported() -> None:
    """One bad policy does not hide the next."""
    policies = (
        'permit(principal, action resource);\n@id("b") permit(principal, action, resource) when { 1 };\n'
        '@id("c") permit(principal == Workload::"x", action, resource);\n'
    )
    assert {p.line for p in found(policies)} == {1, 2, 3}


@pytest.mark.parametrize(
    ("policies", "words"),
    [
        (
            '@id("a") permit(principal is Workload, action in Action::"any", resource is Service);',
            "permits every",
        ),
        (
            '@id("a") @leaze("1s") permit(principal in Role::"buyers", action, resource);',
            "did you mean @lease",
        ),
        (
            '@id("a") @permits("method") permit(principal in Role::"buyers", action, resource);',
            "did you mean @permit",
        ),
        (
            '@id("a") permit(principal == Workload::"spiffe://other.org/workload/x", action, resource);',
            "another trust",
        ),
        (OK, "no test names policy 'ok'"),
    ],
)
def test_suspicious_policy_is_a_warning(policies: str, words: str) -> None:
    """Valid, but a reviewer should look."""
    assert any(words in p.message for p in found(policies, Severity.WARNING))
    assert found(policies) == []


def test_role_without_members_is_a_warning() -> None:
    """Its policies can never match."""
    entities = '[{"uid": {"type": "Role", "id": "empty"}}]'
    policies = '@id("a") permit(principal in Role::"empty", action, resource);'
    problems = lint(folder(entities=entities, policies=policies, tests=""))
    assert any("nothing is in Role 'empty'" in p.message for p in problems)


@pytest.mark.parametrize(
    "resource",
    [
        "resource",
        "resource is Service",
        'resource == Service::"payments"',
        'resource in ServiceGroup::"money"',
        'resource is Service in ServiceGroup::"money"',
    ],
)
def test_namespace_policy_beyond_its_services_is_an_error(resource: str) -> None:
    """A namespace's approvers rule their own services and nothing else."""
    base = read_bundle(build(folder()), role="targets")
    policies = f'@id("a") permit(principal, action in Action::"shop.Stock", {resource});'
    for against in (None, base):
        problems = lint(namespace_folder(policies=policies, tests=""), base=against)
        assert any("its own services alone" in p.message for p in problems)


def test_namespace_folder_is_checked_against_the_base() -> None:
    """With the base at hand, a service that the base does not give is an error, too."""
    base = read_bundle(build(folder()), role="targets")
    assert errors_of(lint(namespace_folder(), base=base)) == []
    assert errors_of(lint(namespace_folder())) == []
    settings = "name: s\nnamespace: store\nservices:\n  stock: {}\n  payments: {}\n"
    problems = errors_of(lint(namespace_folder(settings=settings, tests=""), base=base))
    assert any(p.line == 5 and "does not give 'payments'" in p.message for p in problems)


def test_bundle_read_from_an_archive_is_linted_like_its_folder() -> None:
    """Approvers lint what they are asked to sign."""
    assert lint(read_bundle(build(folder()), role="targets")) == lint(folder())
    base = read_bundle(build(folder()), role="targets")
    store = read_bundle(build(namespace_folder()), role="store")
    assert errors_of(lint(store, base=base)) == errors_of(lint(store)) == []
    source, _ = load(
        folder(policies=POLICIES.replace("payments", "paymints").replace('"buyers"', '"nobody"'))
    )
    assert source is not None
    bad = read_bundle(archive_of(source), role="targets")
    assert any("no Role 'nobody'" in p.message for p in lint(bad))


def test_what_only_the_engine_finds_is_reported_too() -> None:
    """A namespace that changes a role of the base: lint must not pass what a sidecar refuses."""
    base = read_bundle(build(folder()), role="targets")
    settings = "name: s\nnamespace: store\nservices:\n  stock: {}\nroles:\n  buyers: [mallory]\n"
    problems = lint(namespace_folder(settings=settings, policies="", tests=""), base=base)
    assert any("buyers" in p.message and p.severity is Severity.ERROR for p in problems)


def test_case_about_a_call_that_does_not_exist_is_a_warning() -> None:
    """Expecting a deny, it would pass and prove nothing."""
    tests = (
        "- {name: a, caller: alice, service: paymints, method: shop.Orders/Place, expect: deny}\n"
        "- {name: b, caller: alice, service: payments, method: shop.Orders/Plaice, expect: deny}\n"
        "- {name: c, caller: alice, service: payments, method: unknown.Thing/Do, expect: deny}\n"
    )
    problems = [p for p in lint(folder(tests=tests)) if p.file == "tests/shop.yaml"]
    assert [(p.line, p.severity) for p in problems] == [(1, Severity.WARNING), (2, Severity.WARNING)]
    assert "'payments'" in problems[0].hint
    assert "'shop.Orders/Place'" in problems[1].hint


def test_bundle_without_policies_is_a_warning_and_a_byte_order_mark_is_explained() -> None:
    """Both are easy to make and hard to see."""
    problems = lint(folder(policies="// nothing yet", tests=""))
    assert [p.severity for p in problems] == [Severity.WARNING]
    assert "every call is refused" in problems[0].message
    (problem,) = errors_of(lint(folder(policies="\ufeff" + OK, tests="")))
    assert "byte order mark" in problem.hint


def test_a_policy_whose_streams_bind_the_method_alone_is_nothing_to_complain_about() -> None:
    """It is for methods whose server speaks first; the approvers see it in the text that they sign."""
    policies = '@id("a") @permit("method") permit(principal in Role::"buyers", action, resource);'
    assert found(policies) == []
    assert {p.message for p in found(policies, Severity.WARNING)} == {"no test names policy 'a'"}
