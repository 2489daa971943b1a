"""What changes when one bundle replaces another: its policies and settings, and who may call what.

Reach is computed, not guessed from the text: every known workload, service and method is asked under both
bundles. "conditionally" means that some policy in scope looks at the context (the request, the time, how the
caller was identified), so that the answer differs from call to call.
"""

import enum
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from trust import limits
from trust.bundle import DESCRIPTORS, SCHEMA, Bundle
from trust.policy.casetests import DEFAULT_TIME, NODE, engine_of, parse_time, read_cases
from trust.policy.cedar_text import Statement, parse_files
from trust.policy.descriptors import MethodTable, fields_on_the_wire
from trust.policy.engine import Engine
from trust.policy.entities_text import parse_entities
from trust.policy.source import principal
from trust.policy.types import Authn, Call
from trust.policy.worlds import ACTION, parse_bundle

# Stand for everything that no bundle names, so that a rule for everybody shows up as such.
ANY_OTHER_WORKLOAD: Final = "any-other-workload"
ANY_OTHER_METHOD: Final = "any.Other/Method"
_DECLARATION: Final = re.compile(
    r'^(?:action "(?P<action>[^"]+)"(?P<groups>[^{;]*?)(?: appliesTo .*)?;|type (?P<type>M[0-9]\w*) = (?P<body>.*);)$',
    re.MULTILINE,
)
_ACTION: Final = re.compile(r'^action "([^"]+/[^"]+)"', re.MULTILINE)


@enum.unique
class Answer(enum.StrEnum):
    """What becomes of a call of this caller to this method."""

    ALLOWED = "allowed"
    CONDITIONAL = "conditionally"
    DENIED = "denied"


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """One policy that differs. `before` and `after` are Cedar text; empty when there is none."""

    id: str
    where: str  # file:line in the new bundle, or in the old one when it was removed
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class SettingChange:
    """One setting of the mesh that differs, as JSON text; empty when unset."""

    name: str  # "level", "services.payments.level", "Role buyers"
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Reach:
    """One kind of call whose answer differs. With both CONDITIONAL, the conditions differ."""

    caller: str
    service: str
    method: str
    before: Answer
    after: Answer


@dataclass(frozen=True, slots=True)
class BundleDiff:
    """Everything that differs between two bundles."""

    added: tuple[PolicyChange, ...]
    removed: tuple[PolicyChange, ...]
    changed: tuple[PolicyChange, ...]
    settings: tuple[SettingChange, ...]
    reach: tuple[Reach, ...]
    compared: int  # calls decided under each bundle
    truncated: bool  # there were more than limits.MAX_DIFF_CALLS; `reach` is incomplete

    @property
    def empty(self) -> bool:
        """Whether nothing differs."""
        return not (self.added or self.removed or self.changed or self.settings or self.reach)

    @property
    def newly_allowed(self) -> tuple[Reach, ...]:
        """Calls that may now be executed and could not be before, or only conditionally."""
        return tuple(r for r in self.reach if _RANK[r.after] > _RANK[r.before])

    @property
    def no_longer_allowed(self) -> tuple[Reach, ...]:
        """Calls that could be executed and no longer may, or only conditionally."""
        return tuple(r for r in self.reach if _RANK[r.after] < _RANK[r.before])

    @property
    def other_conditions(self) -> tuple[Reach, ...]:
        """Calls that stay conditional, under other conditions."""
        return tuple(r for r in self.reach if r.after is r.before)

    def to_dict(self) -> dict[str, object]:
        """Return the difference as JSON values."""
        return {
            "policies": {
                "added": [asdict(c) for c in self.added],
                "removed": [asdict(c) for c in self.removed],
                "changed": [asdict(c) for c in self.changed],
            },
            "settings": [asdict(c) for c in self.settings],
            "newly_allowed": [asdict(r) for r in self.newly_allowed],
            "no_longer_allowed": [asdict(r) for r in self.no_longer_allowed],
            "other_conditions": [asdict(r) for r in self.other_conditions],
            "compared": self.compared,
            "truncated": self.truncated,
        }


_RANK: Final = {Answer.DENIED: 0, Answer.CONDITIONAL: 1, Answer.ALLOWED: 2}


def diff(old: Bundle | None, new: Bundle, *, base: Bundle | None = None) -> BundleDiff:
    """Compare two bundles of one role.

    Args:
        old: what is in force; None when nothing is.
        new: what is proposed.
        base: the base bundle in force; needed for namespace bundles.

    Raises:
        InputError: INPUT_INVALID, when a namespace bundle comes without `base`.
        EvidenceError: when the engine refuses one of the bundles.
    """
    before, after = _statements(old), _statements(new)
    reach, compared, truncated = _reach(old, new, base)
    both = sorted(before.keys() & after.keys())
    return BundleDiff(
        added=tuple(_change(after[i], None, after[i]) for i in sorted(after.keys() - before.keys())),
        removed=tuple(_change(before[i], before[i], None) for i in sorted(before.keys() - after.keys())),
        changed=tuple(
            _change(after[i], before[i], after[i]) for i in both if before[i].text != after[i].text
        ),
        settings=tuple(_setting_changes(old, new)),
        reach=reach,
        compared=compared,
        truncated=truncated,
    )


def _statements(bundle: Bundle | None) -> dict[str, Statement]:
    return {} if bundle is None else {s.id: s for s in parse_files(bundle.policies)[0]}


def _change(shown: Statement, before: Statement | None, after: Statement | None) -> PolicyChange:
    return PolicyChange(
        id=shown.id,
        where=f"{shown.file}:{shown.line}",
        before="" if before is None else before.text,
        after="" if after is None else after.text,
    )


def _setting_changes(old: Bundle | None, new: Bundle) -> Iterator[SettingChange]:
    """Yield what differs in mesh.json, in the reference values, and in the members of roles and groups."""
    before = {} if old is None else {**_flat(_mesh_json(old)), **_members(old), **_methods_shown(old)}
    after = {**_flat(_mesh_json(new)), **_members(new), **_methods_shown(new)}
    before |= {} if old is None else _flat(_accepted(old))
    after |= _flat(_accepted(new))
    before |= {} if old is None else _unread(old)
    after |= _unread(new)
    if old is not None and old.descriptors is not None:  # of a first bundle they would be hundreds of lines
        before |= fields_on_the_wire(old.descriptors)
        after |= fields_on_the_wire(new.descriptors)
    for name in sorted(before.keys() | after.keys()):
        if before.get(name, "") != after.get(name, ""):
            yield SettingChange(name, before.get(name, ""), after.get(name, ""))


def _mesh_json(bundle: Bundle) -> dict[str, Any]:
    return {} if bundle.mesh is None else bundle.mesh.model_dump(mode="json", exclude_none=True)


def _accepted(bundle: Bundle) -> dict[str, Any]:
    values = bundle.reference_values
    return {} if values is None else {"reference_values": values.model_dump(mode="json", exclude={"format"})}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    result: dict[str, str] = {}
    for key, item in value.items():
        if isinstance(item, dict) and item:
            result |= _flat(item, f"{prefix}{key}.")
        else:
            result[prefix + key] = json.dumps(item)
    return result


def _members(bundle: Bundle) -> dict[str, str]:
    members: dict[str, list[str]] = {}
    for entity in parse_entities(bundle.entities.encode("utf-8", "surrogatepass"))[0]:
        for kind, name in entity.parents:
            members.setdefault(f"{kind} {name}", []).append(entity.id)
    return {group: json.dumps(sorted(names)) for group, names in members.items()}


def _methods_shown(bundle: Bundle) -> dict[str, str]:
    """Return what the schema declares: each method or group with its groups, each type of a request."""
    shown: dict[str, str] = {}
    for match in _DECLARATION.finditer(bundle.schema):
        if match["action"]:
            shown[f"action {match['action']}"] = (match["groups"] or "").strip() or "declared"
        else:
            shown[f"type {match['type']}"] = match["body"]
    return shown


def _unread(bundle: Bundle) -> dict[str, str]:
    """Return the digest of each file of which not everything is shown otherwise, so that no change goes unseen."""
    files = [name for name in (DESCRIPTORS,) if name in bundle.manifest.files]
    records = parse_bundle(bundle, "").records.values()
    declared = {record["uid"]["id"] for record in records if record["uid"]["type"] == ACTION}
    if declared != {match["action"] for match in _DECLARATION.finditer(bundle.schema) if match["action"]}:
        files.append(SCHEMA)  # not written by `egm policy schema`: Cedar reads more of it than is shown here
    return {f"file {name}": f"sha256 {bundle.manifest.files[name]}" for name in files}


def _reach(old: Bundle | None, new: Bundle, base: Bundle | None) -> tuple[tuple[Reach, ...], int, bool]:
    bundles = [b for b in (old, new, base) if b is not None]
    engine = engine_of(new, base)
    previous = None if old is None else _Judge(engine_of(old, base))
    current = _Judge(engine)
    domain = engine.mesh.trust_domain
    other = principal(ANY_OTHER_WORKLOAD, domain)  # first: it must not fall to the limit
    callers = [other, *sorted({c for b in bundles for c in _callers(b, domain)} - {other})]
    calls = itertools.product(callers, _targets(bundles, new.manifest.namespace))
    reach: list[Reach] = []
    compared = 0
    for caller, (service, method) in calls:
        if compared == limits.MAX_DIFF_CALLS:
            return tuple(reach), compared, True
        compared += 1
        before, why_before = (
            (Answer.DENIED, frozenset[str]()) if previous is None else previous.ask(caller, service, method)
        )
        after, why_after = current.ask(caller, service, method)
        if before is not after or (after is Answer.CONDITIONAL and why_before != why_after):
            reach.append(Reach(caller, service, method, before, after))
    return tuple(reach), compared, False


def _callers(bundle: Bundle, trust_domain: str) -> Iterator[str]:
    """Yield every workload that the bundle names: in roles, in policies, in tests."""
    for entity in parse_entities(bundle.entities.encode("utf-8", "surrogatepass"))[0]:
        if entity.type == "Workload":
            yield entity.id
    for text in bundle.policies.values():
        yield from re.findall(r'Workload::"(spiffe://[^"\\]+)"', text)
    for read in read_cases(bundle.tests)[0]:
        yield principal(read.case.caller, trust_domain)


def _targets(bundles: Iterable[Bundle], namespace: str | None) -> list[tuple[str, str]]:
    """Return every (service, method) worth asking: a service's own methods where they are declared."""
    declared: set[str] = {ANY_OTHER_METHOD}
    offers: dict[str, set[str]] = {}
    extra: set[tuple[str, str]] = set()
    for bundle in bundles:
        declared |= set(MethodTable.parse(bundle.descriptors).methods()) | set(_ACTION.findall(bundle.schema))
        settings = {} if bundle.mesh is None else bundle.mesh.services
        for name, service in settings.items():
            if namespace is None or service.namespace == namespace:
                offers.setdefault(name, set()).update(service.grpc_services)
        extra |= {(read.case.service, read.case.method) for read in read_cases(bundle.tests)[0]}
    targets = {
        (service, method)
        for service, names in offers.items()
        for method in declared
        if not names or method == ANY_OTHER_METHOD or method in names or method.partition("/")[0] in names
    }
    return sorted(targets | {(s, m) for s, m in extra if s in offers})


class _Judge:
    """Says what one engine makes of a kind of call, whatever its context."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._now_ms = parse_time(DEFAULT_TIME)

    def ask(self, caller: str, service: str, method: str) -> tuple[Answer, frozenset[str]]:
        """Return the answer, and the texts of the policies that it hangs on when conditional."""
        rules = self._engine.explain(caller, method, service)
        if any(rule.reads for rule in rules):
            bare = [rule for rule in rules if not _has_condition(rule.piece.text)]
            if not any(rule.permit for rule in rules) or any(not rule.permit for rule in bare):
                return Answer.DENIED, frozenset()
            if bare and all(rule.permit for rule in rules):
                return Answer.ALLOWED, frozenset()
            return Answer.CONDITIONAL, frozenset(rule.piece.text for rule in rules)
        level = self._engine.mesh.level_of(service)
        call = Call(caller, method, service, Authn.MTLS, NODE, level)
        allowed = self._engine.decide(call, now_ms=self._now_ms).allowed
        return (Answer.ALLOWED if allowed else Answer.DENIED), frozenset()


def _has_condition(text: str) -> bool:
    """Whether a policy's text has a `when` or `unless`; a stray mention counts, which only makes it conditional."""
    return re.search(r"\b(when|unless)\b", text) is not None
