"""Which policies put a condition on a service is read from the signed policies themselves."""

from types import SimpleNamespace
from typing import cast

from control_plane.assess.edge.collect import _conditions, _duties, said
from trust.policy.engine import Engine

POLICIES = {
    "open": 'permit (principal, action, resource == Service::"shop");',
    "timed": 'permit (principal, action, resource == Service::"shop") when { context.time.hour > 6 };',
    "rated": '@rate("10/m") permit (principal, action, resource == Service::"pay");',
    "asked": '@require_approval("2 of ops") permit (principal, action, resource == Service::"pay");',
    "everywhere": "forbid (principal, action, resource) unless { context.time.hour < 22 };",
    "grouped": 'permit (principal, action, resource in Group::"x") when { true };',
    "audited": '@audit("payload") permit (principal, action, resource == Service::"quiet");',
}
ENGINE = cast(
    "Engine", SimpleNamespace(policy_ids=lambda: tuple(sorted(POLICIES)), text=lambda name: POLICIES[name])
)


def test_conditions_rates_and_approvals_of_a_service_are_found_and_only_its_own() -> None:
    """A condition on another service, or on a group that may not hold this one, is none of its controls."""
    policies = said(ENGINE)

    assert dict(_conditions(policies, "shop")) == {"timed": "a condition", "everywhere": "a condition"}
    assert dict(_conditions(policies, "pay")) == {
        "rated": "@rate 10/m",
        "asked": "@require_approval 2 of ops",
        "everywhere": "a condition",
    }
    assert dict(_conditions(policies, "quiet")) == {"everywhere": "a condition"}


def test_approval_duties_are_listed_by_policy() -> None:
    """They are evidence of the authorization workflow."""
    assert _duties(said(ENGINE)) == {"asked": "2 of ops"}
