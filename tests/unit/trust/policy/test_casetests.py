"""Table tests decide as a sidecar would, and a wrong table is a mistake with a line."""

import pytest

from tests.support.folders import TESTS, folder, namespace_folder
from trust import limits
from trust.bundle import Bundle, read_bundle
from trust.errors import InputError, Reason
from trust.policy.casetests import CaseResult, read_cases, run_tests
from trust.policy.source import build

CASE = """\
- name: x
  caller: alice
  service: payments
  method: shop.Orders/Place
"""


def base() -> Bundle:
    return read_bundle(build(folder()), role="targets")


def run(tests: str) -> list[CaseResult]:
    """Run `tests` against the example policies (lint is not asked)."""
    bundle = base()
    return run_tests(
        Bundle(
            bundle.manifest,
            bundle.policies,
            bundle.schema,
            bundle.entities,
            bundle.descriptors,
            bundle.mesh,
            {"tests/t.yaml": tests},
            bundle.digest,
        )
    )


def test_promises_that_hold_pass() -> None:
    """Requests, times and determining policies are honoured."""
    results = run_tests(base())
    assert [r.passed for r in results] == [True, True, True]
    assert results[0].to_dict() == {
        "file": "tests/shop.yaml",
        "line": 1,
        "name": "alice may place a small order",
        "passed": True,
        "expected": "allow",
        "allowed": True,
        "reason": "ALLOWED",
        "policies": ["buyers-place-small-orders"],
        "message": "",
    }


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ("  request: {amount: 101}\n  expect: allow\n", "expected allow, got NO_POLICY_PERMITS"),
        ("  request: {amount: 1}\n  expect: deny\n", "got ALLOWED by buyers-place-small-orders"),
        (
            "  request: {amount: 1}\n  expect: allow\n  policy: other\n",
            "expected policy other to determine it",
        ),
        ("  request: {amuont: 1}\n  expect: allow\n", 'no field named "amuont"'),
        ("  request: {amount: much}\n  expect: allow\n", "not a shop.Order"),
        ("  request: {leaf: 3}\n  expect: allow\n", "not a shop.Order"),
        ("  request: {amount: 101}\n  expect: deny\n  policy: x\n", "but it was no policy"),
        ("  metadata: {other: x}\n  expect: allow\n", "not among the metadata_keys"),
    ],
)
def test_promise_that_does_not_hold_fails_and_says_why(rest: str, words: str) -> None:
    """The message tells what happened instead."""
    (result,) = run(CASE + rest)
    assert not result.passed
    assert words in result.message


def test_wrong_request_is_named_at_its_line() -> None:
    """The case begins on line 1, its request on line 5."""
    (result,) = run(CASE + "  request: {nope: 1}\n  expect: allow\n")
    assert result.line == 5
    assert result.verdict is None


def test_request_of_a_method_that_has_none_is_a_failure() -> None:
    """Policies could not read it, so the promise would be empty."""
    for method, words in [("shop.Orders/Chat", "the client streams"), ("old.Thing/X", "no descriptor")]:
        tests = CASE.replace("shop.Orders/Place", method) + "  request: {amount: 1}\n  expect: deny\n"
        (result,) = run(tests)
        assert words in result.message


def test_metadata_authn_and_spiffe_caller_reach_the_policies() -> None:
    """Everything a policy may read can be set in a case."""
    policies = (
        '@id("tenant") permit(principal == Workload::"spiffe://mesh.local/workload/alice", action, resource) when '
        '{ context.metadata has tenant && context.metadata.tenant == "blue" && context.caller.authn == "jwt-svid" };'
    )
    tests = (
        "- {name: a, caller: 'spiffe://mesh.local/workload/alice', service: payments, method: any.X/Y, "
        "metadata: {tenant: blue}, authn: jwt-svid, expect: allow, policy: tenant}\n"
        "- {name: b, caller: alice, service: payments, method: any.X/Y, metadata: {tenant: blue}, expect: deny}\n"
    )
    results = run_tests(read_bundle(build(folder(policies=policies, tests=tests)), role="targets"))
    assert [r.passed for r in results] == [True, True], results


@pytest.mark.parametrize(
    ("tests", "line", "words"),
    [
        ("a: b", 1, "list of cases"),
        ("- 3", 1, ""),
        (CASE, 1, "expect is missing"),
        (CASE + "  expect: maybe", 5, "expect"),
        (CASE + "  expect: allow\n  time: noon", 6, "time"),
        (CASE + "  expect: allow\n  time: 2026-01-01T00:00:00", 6, "offset"),
        (CASE + "  expect: allow\n  authn: header", 6, "authn"),
        (CASE + "  expect: allow\n  colour: red", 6, "no such field"),
        (CASE.replace("alice", "Alice!") + "  expect: allow", 2, "caller"),
        (CASE + "  expect: allow\n  request: [1]", 6, "request"),
        (CASE + "  expect: allow\n  metadata: {tenant: 1}", 6, "metadata"),
    ],
)
def test_malformed_table_is_an_input_error_with_its_line(tests: str, line: int, words: str) -> None:
    """A table that cannot be read proves nothing."""
    with pytest.raises(InputError) as caught:
        run(tests)
    assert caught.value.reason is Reason.INPUT_INVALID
    assert caught.value.detail.startswith(f"tests/t.yaml:{line}: ")
    assert words in caught.value.detail


def test_namespace_bundle_is_decided_together_with_the_base() -> None:
    """Its own ids need no prefix in its tests; without the base nothing can be said."""
    store = read_bundle(build(namespace_folder()), role="store")
    results = run_tests(store, base())
    assert [r.passed for r in results] == [True, True], results
    assert results[0].verdict is not None
    assert results[0].verdict.policies == ("store:staff-count",)
    with pytest.raises(InputError) as caught:
        run_tests(store)
    assert "--base" in caught.value.detail


def test_yaml_words_that_look_like_booleans_stay_text() -> None:
    """`NO` is Norway: a request field must not silently become false."""
    tests = TESTS.replace("currency: EUR", "currency: NO")
    results = run_tests(read_bundle(build(folder(tests=tests)), role="targets"))
    assert all(r.passed for r in results)


def test_deny_that_is_only_a_failing_policy_fails_the_case() -> None:
    """An overflow refuses the call on a node, but it is not what the author promised."""
    policies = (
        '@id("over") permit(principal, action == Action::"shop.Orders/Place", resource) '
        "when { context.request.amount * 2 > 0 };"
    )
    tests = CASE + "  request: {amount: 9223372036854775807}\n  expect: deny\n"
    (result,) = run_tests(read_bundle(build(folder(policies=policies, tests=tests)), role="targets"))
    assert not result.passed
    assert "failed to evaluate: over" in result.message


def test_tests_too_long_to_be_read_in_time_are_refused_unread() -> None:
    """A proposal with hundreds of megabytes of YAML would keep the control plane busy for the best part of an hour."""
    cases, problems = read_cases({"tests/a.yaml": "- [" * limits.MAX_TESTS_CHARS})
    assert (cases, len(problems)) == ([], 1)
    assert str(limits.MAX_TESTS_CHARS) in problems[0].message
