"""`@rate`, `@budget`, time windows and risk groups: what lint refuses, and what the engine makes of them."""

import pytest

from tests.support.engines import call, engine, order
from tests.support.folders import SETTINGS, folder
from trust.bundle import Bundle, read_bundle
from trust.errors import EvidenceError, Reason
from trust.policy.diff import diff
from trust.policy.lint import lint
from trust.policy.problems import Problem, Severity, errors_of
from trust.policy.source import archive_of, load
from trust.verified import BASE_ROLE

PLACE = 'permit(principal in Role::"buyers", action == Action::"shop.Orders/Place", resource == Service::"payments");'
NOON_MS = 1_767_614_400_000  # 2026-01-05 12:00 UTC, a Monday


def errors(annotations: str, policy: str = PLACE, settings: str = SETTINGS) -> list[Problem]:
    text = f'@id("a")\n{annotations}\n{policy}\n'
    return errors_of(lint(folder(settings=settings, policies=text, tests="")))


def on(action: str) -> str:
    return PLACE.replace('== Action::"shop.Orders/Place"', action)


@pytest.mark.parametrize(
    ("annotations", "policy"),
    [
        ('@rate("100/m")', PLACE),
        ('@rate("100/m") @budget("1000 per day of amount")', PLACE),
        ('@budget("99.5 per hour of leaf.weight")', PLACE),
        ('@budget("20 per minute")', on('in Action::"shop.Orders"')),
        ('@budget("20 per minute")', on('== Action::"old.Other/Do"').replace("payments", "legacy")),
        (
            '@budget("5 per day of amount")',
            on('in [Action::"shop.Orders/Place", Action::"shop.Orders/Watch"]'),
        ),
    ],
)
def test_limits_that_can_be_measured_are_accepted(annotations: str, policy: str) -> None:
    """The field is a number of the request of every method that the policy permits."""
    assert errors(annotations, policy) == []


@pytest.mark.parametrize(
    ("annotations", "policy", "words", "hint"),
    [
        ('@rate("100")', PLACE, "limits nothing that can be measured", '@rate("100/m")'),
        ('@rate("0/s")', PLACE, "limits nothing", "1 to 999999999 calls"),
        ('@rate', PLACE, "limits nothing", '@rate("100/m")'),
        ('@budget("1000 of amount")', PLACE, "limits nothing", '@budget("1000 per day of amount")'),
        ('@budget("1.5 per day")', PLACE, "limits nothing", "to count calls"),
        ('@rate("1/s")', PLACE.replace("permit(", "forbid("), "does nothing on a forbid", "on the permits"),
        ('@budget("9 per day of amout")', PLACE, "shop.Order has no field 'amout'", "correct the field"),
        ('@budget("9 per day of currency")', PLACE, "is not a number", "correct the field"),
        ('@budget("9 per day of prices")', PLACE, "is repeated", "correct the field"),
        ('@budget("9 per day of leaf")', PLACE, "is a message", "correct the field"),
        ('@budget("9 per day of amount")', on('== Action::"shop.Orders/Upload"'), "no single request", "count calls"),
        ('@budget("9 per day of amount")', on('in Action::"shop.Orders"'), "Chat has no single request", "count calls"),
        (
            '@budget("9 per day of amount")',
            on('== Action::"old.Other/Do"').replace("payments", "legacy"),
            "no descriptor says what old.Other/Do is asked",
            "descriptors.binpb",
        ),
        ('@budget("9 per day of amount")', on(""), "(shop.Stock/Count)", "correct the field"),
    ],
)  # fmt: skip
def test_limits_that_could_not_be_measured_are_errors_at_their_line(
    annotations: str, policy: str, words: str, hint: str
) -> None:
    """Calls would be refused; approvers learn it before they sign."""
    found = errors(annotations, policy)
    assert any(words in p.message and hint in p.hint and p.line == 2 for p in found), found


def test_a_budget_on_methods_that_nobody_describes_is_suspicious() -> None:
    """A whole service without descriptors: nothing says which methods it has."""
    policy = on('in Action::"old.Thing"').replace("payments", "legacy")
    found = lint(folder(policies=f'@id("a")\n@budget("9 per day of amount")\n{policy}\n', tests=""))
    assert any(
        p.severity is Severity.WARNING and "no method that this policy permits" in p.message for p in found
    )


def test_the_engine_knows_the_limits_of_the_permits_that_determined_a_call() -> None:
    """With the policy that sets each; a permit that did not match limits nobody."""
    text = (
        '@id("a") @rate("5/s") @budget("9 per day of amount") permit(principal, action, resource);'
        '@id("b") @rate("7/s") permit(principal == Workload::"nobody", action, resource);'
        '@id("c") @rate("5/s") permit(principal, action, resource);'
    )
    verdict = engine(text).decide(call(request=order(amount=3)), now_ms=NOON_MS)
    assert [(c.source, c.name, c.text) for c in verdict.controls] == [
        ("a", "budget", "9 per day of amount"),
        ("a", "rate", "5/s"),
        ("c", "rate", "5/s"),
    ]
    forbidden = engine(text + '@id("d") @rate("1/s") forbid(principal, action, resource);')
    assert forbidden.decide(call(), now_ms=NOON_MS).controls == ()


def test_the_engine_reads_the_amount_of_the_request_as_it_came() -> None:
    """What cannot be read is an error, never nothing."""
    made = engine('@id("a") permit(principal, action, resource);')
    assert made.amount("shop.Orders/Place", "payments", order(amount=3), ("amount",)) == 30_000
    assert made.amount("shop.Orders/Place", "payments", b"", ("amount",)) == 0
    for method, request, reason in (
        ("shop.Orders/Place", b"\xff", Reason.REQUEST_UNREPRESENTABLE),
        ("shop.Orders/Place", order(amount=-1), Reason.OBLIGATION_UNMET),
        ("bare.Service/Do", b"", Reason.OBLIGATION_UNMET),
    ):
        with pytest.raises(EvidenceError) as caught:
            made.amount(method, "payments", request, ("amount",))
        assert caught.value.reason is reason


def test_a_reviewer_sees_a_limit_change() -> None:
    """A greater budget is a change of the policy like any other."""

    def bundle(budget: str) -> Bundle:
        text = f'@id("a") @budget("{budget} per day of amount") {PLACE}'
        parsed, problems = load(folder(policies=text, tests=""))
        assert parsed is not None, problems
        return read_bundle(archive_of(parsed), role=BASE_ROLE)

    (changed,) = diff(bundle("10"), bundle("10000")).changed
    assert ('"10 per day' in changed.before, '"10000 per day' in changed.after) == (True, True)


OFFICE_HOURS = """
@id("buyers-in-office-hours")
permit(principal in Role::"buyers", action in Action::"risky", resource == Service::"payments")
when { context.time.weekday <= 5 && context.time.hour >= 8 && context.time.hour < 18 };
"""


@pytest.mark.parametrize(
    ("hours", "allowed"),
    [
        (0, True),
        (5, True),
        (6, False),
        (-4, True),
        (-5, False),
        (24 * 4, True),
        (24 * 5, False),
        (24 * 6, False),
    ],
)
def test_a_time_window_is_a_condition_on_the_time(hours: int, allowed: bool) -> None:
    """Monday to Friday, 8 to 18 UTC, and only for the methods of a risk group."""
    made = engine(OFFICE_HOURS)
    assert made.decide(call(), now_ms=NOON_MS + hours * 3_600_000).allowed is allowed
    assert not made.decide(call(method="shop.Orders/Watch"), now_ms=NOON_MS).allowed


@pytest.mark.parametrize(
    ("settings", "policies", "words"),
    [
        (SETTINGS, OFFICE_HOURS.replace("risky", "rizky"), "no method or group is called 'rizky'"),
        (
            SETTINGS.replace("shop.Orders/Place, old", "shop.Orders/Plaice, old"),
            OFFICE_HOURS,
            "shop.Orders/Plaice",
        ),
    ],
    ids=["group", "member"],
)
def test_a_risk_group_that_does_not_exist_or_holds_what_does_not_is_an_error(
    settings: str, policies: str, words: str
) -> None:
    """A misspelled group would permit, or forbid, nothing."""
    found = errors_of(lint(folder(settings=settings, policies=policies, tests="")))
    assert any(words in p.message for p in found), found
