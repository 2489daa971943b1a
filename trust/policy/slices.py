"""Decides which policies can matter to a call, by their scopes alone.

A policy whose scope does not match is neither satisfied nor in error, so leaving it out changes nothing:
Cedar evaluates scope before conditions. Scope membership is decided here from the same ancestors that Cedar
holds; a scope that is not understood matches everything.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import cedarpy

from trust import limits
from trust.policy.reads import Path, Tree, minimal, tree
from trust.policy.rules import Rule, Scope
from trust.policy.types import Verdict

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_EVERY: Final = ""  # the index key of a part that any entity matches
_PARSE_OFF_GIL_POLICIES: Final = 64
_MAX_ANSWERS: Final = 64  # distinct answers kept per slice; small slices have few


class Lru(Generic[K, V]):
    """A bounded map that forgets what was used least recently. Safe to share between threads."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._entries: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        """Return the value and mark it as used."""
        value = self._entries.get(key)
        if value is not None:
            try:
                self._entries.move_to_end(key)
            except KeyError:  # another thread has just evicted it; the value is still right
                return value
        return value

    def put(self, key: K, value: V) -> None:
        """Add a value; the oldest goes when there are too many."""
        self._entries[key] = value
        while len(self._entries) > self._max_entries:
            try:
                self._entries.popitem(last=False)
            except KeyError:  # emptied by another thread
                return

    def __len__(self) -> int:
        return len(self._entries)


@dataclass(frozen=True, slots=True)
class Entity:
    """A principal, action or resource of a request, with what it is in."""

    type: str
    id: str
    uid: str
    above: frozenset[str]  # ancestors and itself

    def matches(self, scope: Scope) -> bool:
        """Whether a policy's scope covers this entity."""
        if scope.type is not None and scope.type != self.type:
            return False
        if scope.equal is not None and scope.equal != self.uid:
            return False
        return scope.within is None or not self.above.isdisjoint(scope.within)

    def index_keys(self) -> Iterator[str]:
        """Every index key under which a matching policy can be."""
        yield _EVERY
        yield self.type
        yield from self.above


@dataclass(frozen=True, slots=True)
class PolicySlice:
    """The policies of one slice, parsed. Shared by every call with the same candidates."""

    rules: tuple[Rule, ...]  # rule i is Cedar's policy `policy<i>`
    handle: cedarpy.PolicySet
    reads: frozenset[Path]
    wanted: Tree | None  # `reads` as a tree
    answers: "Lru[str, Verdict]"  # what Cedar answered for these policies -> the verdict that it means

    def reads_part(self, part: str) -> bool:
        """Whether any policy can read `context.<part>`."""
        return self.wanted is None or part in self.wanted


class Index:
    """All policies by scope: resource, then action, then principal."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules: Sequence[Rule] = tuple(rules)
        self._by_resource: dict[str, dict[str, dict[str, list[int]]]] = {}
        for number, rule in enumerate(self.rules):
            for resource in _scope_keys(rule.resource):
                actions = self._by_resource.setdefault(resource, {})
                for action in _scope_keys(rule.action):
                    principals = actions.setdefault(action, {})
                    for principal in _scope_keys(rule.principal):
                        principals.setdefault(principal, []).append(number)

    def candidates(
        self, principal: Entity, action: Entity, resource: Entity, namespace: str | None
    ) -> tuple[int, ...]:
        """Return the numbers of the base's and the namespace's policies whose scope matches, ascending."""
        found: set[int] = set()
        for principals in self._principals(action, resource):
            for key in principal.index_keys():
                found.update(principals.get(key, ()))
        rules = self.rules
        return tuple(
            number
            for number in sorted(found)
            if rules[number].namespace in {None, namespace}
            and principal.matches(rules[number].principal)
            and action.matches(rules[number].action)
            and resource.matches(rules[number].resource)
        )

    def governs(self, action: Entity, resource: Entity, namespace: str | None) -> bool:
        """Whether any policy speaks of this action on this resource, for whatever principal."""
        return any(
            self.rules[number].namespace in {None, namespace}
            and action.matches(self.rules[number].action)
            and resource.matches(self.rules[number].resource)
            for principals in self._principals(action, resource)
            for numbers in principals.values()
            for number in numbers
        )

    def _principals(self, action: Entity, resource: Entity) -> Iterator[dict[str, list[int]]]:
        action_keys = tuple(action.index_keys())
        for resource_key in resource.index_keys():
            actions = self._by_resource.get(resource_key)
            if actions is not None:
                for action_key in action_keys:
                    principals = actions.get(action_key)
                    if principals is not None:
                        yield principals


class Slices:
    """Parsed slices, one per distinct set of candidates, bounded."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._parsed: Lru[tuple[int, ...], PolicySlice] = Lru(limits.MAX_SLICE_CACHE_ENTRIES)

    def get(self, candidates: tuple[int, ...]) -> PolicySlice:
        """Return the parsed policies with these numbers."""
        found = self._parsed.get(candidates)
        if found is None:
            found = parse_slice(tuple(self._index.rules[number] for number in candidates))
            self._parsed.put(candidates, found)
        return found


def parse_slice(rules: tuple[Rule, ...]) -> PolicySlice:
    """Parse policies that are known to be valid.

    Raises:
        ValueError: Cedar sees another number of policies than `rules`.
    """
    text = "\n".join(rule.piece.text for rule in rules)
    handle = cedarpy.PolicySet.from_str(text, release_gil=len(rules) > _PARSE_OFF_GIL_POLICIES)
    if len(handle) != len(rules):
        raise ValueError(f"{len(rules)} policies were parsed as {len(handle)}")
    read = minimal(path for paths in {rule.reads for rule in rules} for path in paths)
    return PolicySlice(rules, handle, read, tree(read), Lru(_MAX_ANSWERS))


def _scope_keys(scope: Scope) -> tuple[str, ...]:
    """The index keys of one part of a scope: the narrowest thing it demands."""
    if scope.equal is not None:
        return (scope.equal,)
    if scope.within is not None:
        return scope.within
    return (_EVERY if scope.type is None else scope.type,)
