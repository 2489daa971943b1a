"""Groups in groups: few are read, too many are refused before Cedar spends seconds on them."""

import pytest

from tests.support import engines
from tests.support.engines import bundle
from trust import limits
from trust.errors import EvidenceError, Reason
from trust.policy.engine import Engine
from trust.policy.memberships import action_groups, exceeds, too_many_in_schema
from trust.policy.validation import schema_problems

PLAIN = '@id("plain") permit(principal, action, resource);'
CHAIN = "".join(f'action "g{n}" in ["g{n + 1}"];\n' for n in range(4000)) + 'action "g4000";\n'


def test_a_chain_of_thousands_ofaction_groups_is_refused() -> None:
    """The closure of 4,000 kept the parser busy for 16 s, on every node that got the bundle."""
    with pytest.raises(EvidenceError, match="nest them less deeply") as refused:
        Engine.build(bundle(PLAIN, schema=engines.default_schema() + CHAIN), {})
    assert refused.value.reason is Reason.BUNDLE_TOO_LARGE


def test_generated_schemas_are_far_below_the_limit() -> None:
    """Ten thousand methods, each in its service, in `any` and in a group, are an ordinary large mesh."""
    methods = "".join(f'action "a.S/M{n}" in ["any", "a.S", "risky"];\n' for n in range(10_000))
    assert not too_many_in_schema(f'action "any";\naction "risky";\naction "a.S" in ["any"];\n{methods}')
    assert not too_many_in_schema(engines.default_schema())


def test_every_way_to_write_an_action_is_counted() -> None:
    """What this does not see, Cedar would have to work through."""
    schema = """
    // action "no" in ["comment"];
    entity E { action: String, "in": Long };
    namespace N { @doc("x") action a, "b c" in [Action::"up", down] appliesTo { principal: [E], resource: [E] };
      action d in N::Action::"up"; action e; }
    """
    found = action_groups(schema)
    assert {"up", "down"} <= found["a"] & found["b c"]
    assert "up" in found["d"]
    assert found["e"] == set()
    assert "no" not in found


def test_a_cycle_ends() -> None:
    """Cedar says that it is one; counting it must end."""
    assert not exceeds({"a": {"b"}, "b": {"a"}}, limits.MAX_ACTION_MEMBERSHIPS)


def test_lint_says_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Approvers hear of it before they sign."""
    monkeypatch.setattr(limits, "MAX_ACTION_MEMBERSHIPS", 3)
    (problem,) = schema_problems([object()], engines.default_schema())  # type: ignore[list-item]
    assert "memberships" in problem.message
