"""Sliced evaluation against cedar-policy's public integration tests (provenance: SOURCES.md).

Every request is answered by Cedar with the whole policy set, which checks that our texts of the policies mean
what the corpus expects, and by our slices: alone, among every other policy of the sandbox, and with a context cut
down to what the slice can read.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cedarpy
import pytest

from trust.bundle import Bundle, Manifest
from trust.errors import Reason
from trust.policy import worlds
from trust.policy.evaluation import Question, evaluate
from trust.policy.reads import Tree
from trust.policy.rules import Rule, compile_rules
from trust.policy.slices import Entity, Index, PolicySlice, Slices, parse_slice
from trust.policy.types import Verdict

HERE = Path(__file__).parent / "cedar"
ENTITIES: dict[str, dict[str, Any]] = json.loads((HERE / "entities.json").read_text())
SUITES: dict[str, list[dict[str, Any]]] = {
    name: json.loads((HERE / f"{name}.json").read_text()) for name in ("corpus", "semantics")
}
# Cedar 4 has no unspecified entities; an entity that is not stored has no attributes and no groups either.
UNSPECIFIED = {"principal": "User::unspecified", "resource": "Photo::unspecified"}
CASES = [
    pytest.param(case, request, id=f"{case['test']}: {request['description']}")
    for suite in SUITES.values()
    for case in suite
    for request in case["requests"]
]
_FAILED = re.compile(r"`(policy\d+)`")


def uid(text: str) -> dict[str, str]:
    """Read "Namespace::Type::id": what follows the last `::` is the id."""
    kind, _, name = text.rpartition("::")
    return {"type": kind, "id": name}


def expanded(value: Any) -> Any:
    """Return an attribute in Cedar's JSON: "@Type::id" is an entity."""
    if isinstance(value, str) and value.startswith("@"):
        return {"__entity": uid(value[1:])}
    return [expanded(item) for item in value] if isinstance(value, list) else value


def entities_json(sandbox: str) -> str:
    return json.dumps(
        [
            {
                "uid": uid(name),
                "attrs": {key: expanded(value) for key, value in record.get("attrs", {}).items()},
                "parents": [uid(parent) for parent in record.get("parents", [])],
            }
            for name, record in ENTITIES[sandbox].items()
        ]
    )


@dataclass(frozen=True)
class Loaded:
    """A policy set as the product holds it."""

    world: worlds.World
    rules: Sequence[Rule]
    index: Index
    slices: Slices

    def entity(self, text: str) -> Entity:
        parts = uid(text)
        key = worlds.uid(parts["type"], parts["id"])
        return Entity(parts["type"], parts["id"], key, self.world.ancestors.get(key, frozenset()) | {key})

    def slice_of(self, request: Mapping[str, Any]) -> PolicySlice:
        who, what, on = (self.entity(request[part]) for part in ("principal", "action", "resource"))
        return self.slices.get(self.index.candidates(who, what, on, None))

    def answer(
        self, policies: PolicySlice, request: Mapping[str, Any], context: Mapping[str, object]
    ) -> Verdict:
        uids = {part: uid(request[part]) for part in ("principal", "action", "resource")}
        question = Question(self.world.entities._inner, uids, None)
        return evaluate(question, policies, context, json.dumps(context))


def load(sandbox: str, policies: Sequence[str]) -> Loaded:
    """Take policies through the product's own path: parse, validate, index."""
    bundle = Bundle(
        manifest=Manifest(1, "vectors", None, "", {}),
        policies={"policies/main.cedar": "\n".join(policies)},
        schema=(HERE / f"{sandbox}.cedarschema").read_text(),
        entities=entities_json(sandbox),
        descriptors=None,
        mesh=None,
        tests={},
        digest="",
    )
    parsed = worlds.parse_bundle(bundle, "")
    rules, _ = compile_rules(bundle, parsed.schema)
    index = Index(rules)
    return Loaded(worlds.base_world(parsed), rules, index, Slices(index))


@functools.cache
def alone(sandbox: str, policies: tuple[str, ...]) -> Loaded:
    """The policies of one test, named as the corpus names them."""
    return load(sandbox, [f'@id("policy{number}")\n{text}' for number, text in enumerate(policies)])


@functools.cache
def pool(sandbox: str) -> Loaded:
    """The policies of every test of a sandbox in one set: most of them do not concern a request."""
    return load(
        sandbox,
        [
            f'@id("{case["test"]}#{number}")\n{text}'
            for suite in SUITES.values()
            for case in suite
            if case["sandbox"] == sandbox
            for number, text in enumerate(case["policies"])
        ],
    )


def specified(request: Mapping[str, Any]) -> dict[str, Any]:
    return {**request, **{part: request[part] or stand_in for part, stand_in in UNSPECIFIED.items()}}


def cut(value: Any, wanted: Tree | None) -> Any:
    """Return what of a context a slice can read."""
    if wanted is None or not isinstance(value, dict):
        return value
    return {name: cut(value[name], below) for name, below in wanted.items() if name in value}


def expect(verdict: Verdict, request: Mapping[str, Any]) -> None:
    """Compare with the corpus; where a policy failed, we deny whatever Cedar says, and name it."""
    assert list(verdict.policies) == sorted(request["reasons"])
    assert list(verdict.errors) == sorted(request["errors"])
    assert verdict.allowed is (request["decision"] == "Allow" and not request["errors"])
    if request["errors"]:
        assert verdict.reason is Reason.POLICY_ERROR
    elif request["decision"] == "Allow":
        assert verdict.reason is Reason.ALLOWED
    else:
        assert verdict.reason is (Reason.POLICY_DENIED if request["reasons"] else Reason.NO_POLICY_PERMITS)


@pytest.mark.parametrize(("case", "request_"), CASES)
def test_cedar_answers_as_the_corpus_says(case: dict[str, Any], request_: dict[str, Any]) -> None:
    """The whole policy set through cedarpy's public function: decision, determining policies and errors."""
    request = specified(request_)
    result = cedarpy.is_authorized(
        {part: uid(request[part]) for part in ("principal", "action", "resource")}
        | {"context": request["context"]},
        "\n".join(case["policies"]),
        entities_json(case["sandbox"]),
    )
    failed = {match.group(1) for error in result.diagnostics.errors if (match := _FAILED.search(error))}
    assert result.decision.value == request["decision"]
    assert sorted(result.diagnostics.reasons) == sorted(request["reasons"])
    assert sorted(failed) == sorted(request["errors"])


@pytest.mark.parametrize(("case", "request_"), CASES)
def test_slices_answer_as_the_corpus_says(case: dict[str, Any], request_: dict[str, Any]) -> None:
    """Leaving out the policies whose scope does not match changes no decision, reason or error."""
    request = specified(request_)
    loaded = alone(case["sandbox"], tuple(case["policies"]))
    policies = loaded.slice_of(request)
    expect(loaded.answer(policies, request, request["context"]), request)
    expect(loaded.answer(policies, request, cut(request["context"], policies.wanted)), request)


@pytest.mark.parametrize(("case", "request_"), CASES)
def test_slices_of_a_large_set_answer_as_the_whole_set(
    case: dict[str, Any], request_: dict[str, Any]
) -> None:
    """The same among every policy of the sandbox, and the slice is smaller than the set."""
    request = specified(request_)
    loaded = pool(case["sandbox"])
    policies = loaded.slice_of(request)
    assert len(policies.rules) < len(loaded.rules)
    whole = loaded.answer(parse_slice(tuple(loaded.rules)), request, request["context"])
    assert loaded.answer(policies, request, request["context"]) == whole
    assert loaded.answer(policies, request, cut(request["context"], policies.wanted)) == whole


def test_corpus_is_complete() -> None:
    """As many tests and requests as SOURCES.md says were taken over."""
    counts = {
        name: (len(suite), sum(len(case["requests"]) for case in suite)) for name, suite in SUITES.items()
    }
    assert counts == {"corpus": (22, 78), "semantics": (14, 51)}
