"""Which policies can matter, and what is kept."""

import cedarpy

from tests.support.engines import bundle, default_schema
from trust.policy.rules import compile_rules
from trust.policy.slices import Entity, Index, Lru, Slices

SCHEMA = cedarpy.Schema.from_str(default_schema())
POLICIES = """
@id("0") permit(principal, action, resource);
@id("1") permit(principal == Workload::"w", action, resource);
@id("2") permit(principal in Role::"r", action == Action::"shop.Stock/Count", resource == Service::"s");
@id("3") permit(principal is Workload in Role::"r", action in [Action::"risky", Action::"shop.Stock"], resource);
@id("4") permit(principal is Workload in Role::"q", action, resource is Service);
@id("5") permit(principal, action, resource in ServiceGroup::"g");
"""


def entity(kind: str, name: str, *above: str) -> Entity:
    """Return an entity that is in `above`."""
    key = f'{kind}::"{name}"'
    return Entity(kind, name, key, frozenset({key, *above}))


INDEX = Index(compile_rules(bundle(POLICIES), SCHEMA)[0])
PLAIN = entity("Workload", "x")
MEMBER = entity("Workload", "w", 'Role::"r"')
COUNT = entity("Action", "shop.Stock/Count", 'Action::"shop.Stock"', 'Action::"any"')
OTHER = entity("Action", "shop.Orders/Place")
SERVICE = entity("Service", "s", 'ServiceGroup::"g"')


def test_candidates_are_exactly_the_policies_whose_scope_matches() -> None:
    """No policy too few, none too many."""
    assert INDEX.candidates(MEMBER, COUNT, SERVICE, None) == (0, 1, 2, 3, 5)
    assert INDEX.candidates(PLAIN, OTHER, entity("Service", "t"), None) == (0,)
    assert INDEX.candidates(PLAIN, COUNT, SERVICE, None) == (0, 5)
    assert INDEX.candidates(entity("Workload", "x", 'Role::"q"'), OTHER, entity("Service", "t"), None) == (
        0,
        4,
    )
    assert INDEX.candidates(entity("Role", "x", 'Role::"q"'), OTHER, entity("Service", "t"), None) == (0,)


def test_policies_of_another_namespace_are_never_candidates() -> None:
    """A namespace speaks of its own services alone."""
    rules = compile_rules(bundle(POLICIES), SCHEMA, "shop")[0]
    index = Index(rules)
    assert index.candidates(MEMBER, COUNT, SERVICE, None) == ()
    assert index.candidates(MEMBER, COUNT, SERVICE, "store") == ()
    assert not index.governs(COUNT, SERVICE, "store")
    assert index.candidates(MEMBER, COUNT, SERVICE, "shop") == (0, 1, 2, 3, 5)


def test_governs_looks_at_action_and_resource_alone() -> None:
    """A policy for somebody else still makes the method a governed one."""
    rules = compile_rules(
        bundle(
            '@id("a") permit(principal == Workload::"w", action in Action::"risky", resource == Service::"s");'
        ),
        SCHEMA,
    )[0]
    index = Index(rules)
    risky = entity("Action", "shop.Orders/Place", 'Action::"risky"')
    assert index.governs(risky, SERVICE, None)
    assert not index.governs(OTHER, SERVICE, None)
    assert not index.governs(risky, entity("Service", "t"), None)


def test_equal_candidates_share_one_parsed_slice() -> None:
    """Memory grows with the distinct sets of policies, not with the callers."""
    slices = Slices(INDEX)
    assert slices.get((0, 1)) is slices.get((0, 1))
    assert [rule.id for rule in slices.get((0, 5)).rules] == ["0", "5"]
    assert slices.get(()).rules == ()


def test_the_least_recently_used_entry_goes_first() -> None:
    """Bounded, and what is in use stays."""
    lru: Lru[str, int] = Lru(2)
    lru.put("a", 1)
    lru.put("b", 2)
    assert lru.get("a") == 1
    lru.put("c", 3)
    assert (lru.get("a"), lru.get("b"), lru.get("c")) == (1, None, 3)
    assert len(lru) == 2
