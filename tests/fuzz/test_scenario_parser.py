"""Scenario files are written by hand: whatever they hold is read, or refused with a line."""

from pathlib import Path
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from control_plane.lab.network import between
from control_plane.lab.scenario import Scenario, Step, parse_scenario
from trust.errors import InputError

WORDS = st.sampled_from(["a", "b", "broker", "", "call", "+90s", "x" * 300, *Step.model_fields])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=12,
)
STEPS = st.lists(
    st.one_of(st.sampled_from(list(Step.model_fields)), st.dictionaries(WORDS, VALUES, max_size=2)),
    max_size=4,
)


def outcome(data: bytes) -> Scenario | None:
    try:
        return parse_scenario("s.yaml", data, base=Path("nowhere"))
    except InputError as error:
        assert error.detail.startswith("s.yaml"), error.detail
        return None


@given(st.binary(max_size=200))
def test_any_bytes_are_a_scenario_or_a_mistake_with_a_place(data: bytes) -> None:
    """Never another exception."""
    outcome(data)


@given(st.dictionaries(st.sampled_from(["name", "mesh", "steps", "description"]), VALUES), STEPS, VALUES)
def test_any_structure_is_a_scenario_or_a_mistake_with_a_place(
    rest: dict[str, Any], steps: list[Any], nodes: Any
) -> None:
    """Steps and nodes of every shape."""
    outcome(yaml.safe_dump({**rest, "steps": steps}).encode())
    outcome(yaml.safe_dump({"name": "x", "mesh": {"nodes": nodes}, "steps": ["heal"]}).encode())
    found = outcome(yaml.safe_dump({"name": "x", "mesh": {"nodes": ["a", "b"]}, "steps": steps}).encode())
    for number, step in enumerate([] if found is None else found.steps):
        assert getattr(step, step.kind) is not None
        assert found is not None
        assert found.place(number).startswith("s.yaml:")


@given(st.lists(st.frozensets(st.sampled_from("abcdef"), min_size=1), min_size=2, max_size=4), st.booleans())
def test_a_partition_never_cuts_within_a_group_and_always_between_two(
    groups: list[frozenset[str]], one_way: bool
) -> None:
    """Unless a member is on two sides, which is refused."""
    try:
        cut = between(groups, one_way=one_way)
    except InputError:
        assert sum(map(len, groups)) > len(frozenset().union(*groups))
        return
    side = {name: number for number, group in enumerate(groups) for name in group}
    for source, here in side.items():
        for target, there in side.items():
            wanted = here < there if one_way else here != there
            assert ((source, target) in cut) is wanted
