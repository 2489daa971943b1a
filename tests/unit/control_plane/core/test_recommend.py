"""Recommended policy: least privilege for what was observed, nothing of the signed bundle lost, nothing invented."""

from typing import Any

import pytest
import yaml

from control_plane.core.recommend import Draft, recommend
from control_plane.core.recommend_permits import Observed
from tests.support.control_plane import TRUST_DOMAIN, source
from tests.support.records import workload
from trust import limits
from trust.bundle import Bundle, read_claimed_bundle
from trust.errors import InputError, Reason
from trust.policy.casetests import NODE, engine_of, run_tests
from trust.policy.diff import diff
from trust.policy.lint import lint
from trust.policy.problems import errors_of
from trust.policy.source import build
from trust.policy.types import Authn, Call

PAY, REFUND, TAKE = "shop.Payments/Pay", "shop.Payments/Refund", "shop.Stock/Take"


def edge(caller: str, service: str, method: str, executed: int = 100, would_deny: int = 0) -> Observed:
    """Return one observed edge."""
    return Observed(workload(caller) if caller else "", service, method, executed, would_deny)


def draft(*observed: Observed, base: dict[str, bytes] | None = None, **options: Any) -> Draft:
    """Return the recommendation beside a policy in force."""
    archive = None if base is None else build(base)
    return recommend(observed, archive, trust_domain=TRUST_DOMAIN, period="in May", **options)


def bundle(of: Draft) -> Bundle:
    """Return the draft as a bundle; it lints and its tests pass."""
    assert errors_of(lint(of.files)) == []
    built = read_claimed_bundle(build(of.files))
    assert [r for r in run_tests(built) if not r.passed] == []
    return built


def allowed(of: Bundle, caller: str, service: str, method: str) -> bool:
    """Whether the draft allows a call, at level 4."""
    call = Call(workload(caller), method, service, Authn.MTLS, NODE, 4)
    return engine_of(of, None).decide(call, now_ms=0).allowed


def with_policies(text: str, settings: str = "", level: int = 1) -> dict[str, bytes]:
    """Return a folder in force with other policies, and more lines in bundle.yaml."""
    files = source()
    head = files["bundle.yaml"].replace(b"level: 4", b"level: %d" % level)
    return {
        "bundle.yaml": head + settings.encode(),
        "policies/payments.cedar": text.encode(),
        "tests/t.yaml": b"[]\n",
    }


def test_observed_calls_are_allowed_and_nothing_else() -> None:
    """Least privilege, with tests that prove it."""
    made = draft(edge("alice", "payments", PAY), edge("bob", "stock", TAKE))
    built = bundle(made)
    assert allowed(built, "alice", "payments", PAY)
    assert allowed(built, "bob", "stock", TAKE)
    for caller, service, method in (
        ("bob", "payments", PAY),
        ("alice", "stock", TAKE),
        ("alice", "payments", REFUND),
        ("never-seen-caller", "payments", PAY),
    ):
        assert not allowed(built, caller, service, method)
    cases = run_tests(built)
    assert [c.expected for c in cases] == ["allow", "deny", "allow", "deny"]
    assert (made.added, made.edges, made.kept) == (2, 2, 0)


def test_callers_that_call_exactly_the_same_share_a_role_and_others_do_not() -> None:
    """A role is guessed only where it is exact."""
    made = draft(
        edge("alice", "payments", PAY),
        edge("bob", "payments", PAY),
        edge("carol", "payments", PAY),
        edge("carol", "payments", REFUND),
    )
    settings = yaml.safe_load(made.files["bundle.yaml"])
    assert settings["roles"] == {"payments-callers": ["alice", "bob"]}
    built = bundle(made)
    assert allowed(built, "carol", "payments", REFUND)
    assert not allowed(built, "alice", "payments", REFUND)


def test_a_role_in_force_with_exactly_these_members_is_used() -> None:
    """One with another member would allow somebody who never called."""
    base = with_policies("", "roles: {buyers: [alice, bob], all: [alice, bob, carol]}\n")
    made = draft(edge("alice", "payments", PAY), edge("bob", "payments", PAY), base=base)
    assert b'principal in Role::"buyers"' in made.files["policies/recommended-payments.cedar"]
    assert not allowed(bundle(made), "carol", "payments", PAY)


def test_a_plain_permit_is_replaced_and_the_reviewer_is_told() -> None:
    """What level 1 bundles say (everybody may everything) must not survive."""
    base = with_policies('@id("all") permit(principal, action in Action::"any", resource);')
    made = draft(edge("alice", "payments", PAY), base=base)
    assert made.replaced == ("all",)
    assert any("'all' is replaced" in note for note in made.notes)
    assert not allowed(bundle(made), "bob", "payments", PAY)


def test_forbids_and_conditional_permits_are_kept() -> None:
    """A forbid of the quorum cannot be lost, nor a condition widened to none."""
    text = (
        '@id("never-refund") forbid(principal, action == Action::"shop.Payments/Refund", resource);\n'
        '@id("by-day") permit(principal == Workload::"spiffe://mesh.test/workload/alice", '
        'action == Action::"shop.Payments/Pay", resource == Service::"payments") when { context.time.hour > 6 };\n'
    )
    base = with_policies(text)
    base["bundle.yaml"] = base["bundle.yaml"].replace(
        b"[shop.Payments/Pay]", b"[shop.Payments/Pay, shop.Payments/Refund]"
    )
    made = draft(
        edge("alice", "payments", PAY),
        edge("bob", "payments", PAY),
        edge("bob", "payments", REFUND, executed=3, would_deny=3),
        base=base,
    )
    policy = made.files["policies/recommended-payments.cedar"].decode()
    assert "workload/alice" not in policy
    assert "workload/bob" in policy
    assert "Refund" not in policy
    assert made.files["policies/payments.cedar"].decode() == text
    assert any("never-refund forbids it" in note for note in made.notes)
    assert not allowed(bundle(made), "bob", "payments", REFUND)


def test_calls_that_missed_the_conditions_of_a_kept_permit_are_pointed_out() -> None:
    """The draft allows them, as observed; whether that is right only people know."""
    text = (
        '@id("by-day") permit(principal == Workload::"spiffe://mesh.test/workload/alice", '
        'action, resource == Service::"payments") when { context.time.hour > 6 };\n'
    )
    made = draft(edge("alice", "payments", PAY, would_deny=7), base=with_policies(text))
    assert any("7 of" in note and "conditions of by-day" in note for note in made.notes)
    assert made.added == 1


def test_every_signed_setting_stays() -> None:
    """The draft changes policies, not the mesh."""
    base = with_policies(
        '@id("all") permit(principal, action in Action::"any", resource);',
        "metadata_keys: [x-tenant]\nledger: durable\naction_groups: {money: [shop.Payments/Pay]}\n"
        "alerts: {busy: {when: calls, above: 5, to: [mqtt]}}\nrevocation_max_ttl_s: 600\n",
    )
    made = draft(edge("alice", "payments", PAY), edge("bob", "stock", TAKE), base=base)
    changed = diff(read_claimed_bundle(build(base)), bundle(made)).settings
    assert {change.name.split(".")[0] for change in changed} <= {"services", "action shop", "file schema"}
    assert not [change for change in changed if change.before]


def test_the_level_of_the_services_concerned_can_be_set_in_the_draft() -> None:
    """And of no other."""
    base = with_policies('@id("all") permit(principal, action in Action::"any", resource);', level=1)
    made = draft(
        edge("alice", "payments", PAY), edge("bob", "stock", TAKE), base=base, service="stock", level=4
    )
    mesh = bundle(made).mesh
    assert mesh is not None
    assert (mesh.level_of("stock"), mesh.level_of("payments"), mesh.level) == (4, 1, 1)


def test_one_service_alone_leaves_broad_permits_to_their_reviewers() -> None:
    """Removing them would cut services that were not asked about."""
    base = with_policies('@id("all") permit(principal, action in Action::"any", resource);')
    made = draft(edge("alice", "payments", PAY, would_deny=0), base=base, service="payments")
    assert made.replaced == ()
    assert any("narrow them yourself" in note and "all" in note for note in made.notes)


def test_too_little_data_is_refused_unless_told_otherwise() -> None:
    """A policy from three calls refuses the fourth."""
    with pytest.raises(InputError) as caught:
        draft(edge("alice", "payments", PAY, executed=limits.MIN_RECOMMEND_CALLS - 1))
    assert caught.value.reason is Reason.INPUT_INVALID
    assert "--min-calls" in caught.value.detail
    assert bundle(draft(edge("alice", "payments", PAY, executed=1), min_calls=1))


def test_rare_edges_are_marked_with_their_count() -> None:
    """The one call that should not have happened is the one to look at."""
    made = draft(edge("alice", "payments", PAY), edge("alice", "payments", REFUND, executed=2))
    policy = made.files["policies/recommended-payments.cedar"].decode()
    assert "// alice shop.Payments/Refund: 2 calls, RARE" in policy
    assert "// alice shop.Payments/Pay: 100 calls\n" in policy


@pytest.mark.parametrize(
    ("caller", "service", "method", "says"),
    [
        ("", "payments", PAY, "not identified"),
        ("spiffe://mesh.test/node/a", "payments", PAY, "no workload"),
        ("spiffe://other.test/workload/x", "payments", PAY, "no workload"),
        ("(other)", "payments", PAY, "no name"),
        (workload("x"), "Not A Service", PAY, "no name"),
        (workload("x"), "payments", "Pay", "no gRPC name"),
        (workload("x"), "payments", 'a.B/C"); permit(principal, action, resource);//', "no gRPC name"),
    ],
)
def test_what_no_policy_can_name_is_left_out_and_said(
    caller: str, service: str, method: str, says: str
) -> None:
    """A caller chooses its method's name: it must not end up as policy text."""
    made = draft(edge("alice", "payments", PAY), Observed(caller, service, method, 9, 0))
    assert any(says in note for note in made.notes)
    assert all(b"permit(principal, action, resource)" not in data for data in made.files.values())
    bundle(made)


def test_refused_calls_are_no_reason_to_allow() -> None:
    """An attacker who knocks often is not let in by the next recommendation."""
    made = draft(edge("alice", "payments", PAY), edge("mallory", "payments", REFUND, executed=0))
    assert not allowed(bundle(made), "mallory", "payments", REFUND)


def test_calls_under_a_revocation_are_not_let_in_by_a_draft() -> None:
    """Level 1 lets a revoked workload pass; a policy for it would look like forgiveness."""
    made = draft(edge("alice", "payments", PAY), Observed(workload("eve"), "payments", PAY, 50, 50, 50))
    assert any("revocation" in note for note in made.notes)
    assert not allowed(bundle(made), "eve", "payments", PAY)


def test_a_service_that_a_namespace_rules_is_left_to_it() -> None:
    """A plain permit of the base would undo the conditions of the namespace's own bundle."""
    base = with_policies('@id("all") permit(principal, action in Action::"any", resource);')
    base["bundle.yaml"] = base["bundle.yaml"].replace(
        b"services: {", b"services: {stock: {namespace: warehouse, grpc_services: [shop.Stock/Take]}, "
    )
    made = draft(edge("alice", "payments", PAY), edge("bob", "stock", TAKE), base=base)
    assert "policies/recommended-stock.cedar" not in made.files
    assert any("namespace warehouse" in note for note in made.notes)
    assert made.replaced == ()
    with pytest.raises(InputError):
        draft(edge("bob", "stock", TAKE), base=base)


def test_tests_in_force_that_still_hold_are_kept_and_others_are_named() -> None:
    """Nobody's promise disappears without a word."""
    files = source()
    made = draft(edge("carol", "payments", PAY), base=files)
    assert any("alice pays" in note for note in made.notes)
    names = {r.name for r in run_tests(bundle(made))}
    assert "bob does not" in names
    assert "alice pays" not in names


def test_what_a_revoked_workload_called_before_is_not_proposed() -> None:
    """Its calls of last week would look like a right; the approvers took all of them away."""
    base = with_policies(
        '@id("none") forbid(principal, action, resource) when { context.node.level > 9 };',
        "\nrevocations: [{kind: workload, value: eve, reason: compromised}]\n",
    )
    made = draft(edge("alice", "payments", PAY), edge("eve", "payments", PAY), base=base)
    assert any("eve" in note and "revoked" in note for note in made.notes)
    assert all(b"workload/eve" not in data for name, data in made.files.items() if name.endswith(".cedar"))


def test_text_that_ends_a_comment_a_string_or_a_document_cannot_get_into_a_draft() -> None:
    """Names come from records: nothing in them may become policy, settings or a test."""
    for evil in ("a.B/C\n", 'a.B/C"', "a.B/C\u2028", "a.B/\u0441", "a.B/C\\"):
        made = draft(edge("alice", "payments", PAY), Observed(workload("bob"), "payments", evil, 50, 0))
        assert any("no gRPC name" in note for note in made.notes)
        assert all(b"workload/bob" not in data for data in made.files.values())
    for caller in (workload("b") + "\n", workload('b"'), workload("b/c"), workload("B")):
        made = draft(edge("alice", "payments", PAY), Observed(caller, "payments", PAY, 50, 0))
        assert all(caller.encode() not in data for data in made.files.values())
