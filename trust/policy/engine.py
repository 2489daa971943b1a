"""Decides whether the policies in force allow one call.

Deterministic and total: the same bundles, call and time give the same verdict, and every call gets one.
Work is done once where the answer cannot differ: policies are sliced by scope, slices are parsed once, and
a verdict is reused for calls that agree on everything the slice can read.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from trust import limits
from trust.approval_rule import REQUIRE
from trust.attestation.measurement import ReferenceValues
from trust.bundle import Bundle
from trust.errors import EvidenceError, Reason
from trust.mesh import MeshSettings
from trust.policy import worlds
from trust.policy.context import build_context
from trust.policy.controls import amount_of
from trust.policy.descriptors import MethodTable
from trust.policy.evaluation import UNEVALUATED, Question, evaluate
from trust.policy.panics import is_panic
from trust.policy.reads import Tree
from trust.policy.request_context import Project, projection
from trust.policy.rules import AUDIT_PAYLOAD, Rule, compile_rules
from trust.policy.slices import Entity, Index, Lru, PolicySlice, Slices, parse_slice
from trust.policy.types import Call, Verdict
from trust.policy.worlds import World

_log = logging.getLogger("egm.policy")

_NOTHING: Final[Tree] = {}
_encode: Final = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Everything about a (principal, method, service) that does not depend on the single call."""

    question: Question
    action: str  # the action id
    policies: PolicySlice
    project: Project | None  # None: policies cannot read the request, or there is none to read
    constant: bool  # reads nothing but caller and node facts
    timeless: bool  # does not read the exact time
    audits: bool  # a permit among them asks for the payload
    approvals: bool  # one asks for approvers, who must see the opening message of a stream


class Engine:
    """The compiled policies of a base bundle and its namespaces."""

    mesh: MeshSettings
    reference_values: ReferenceValues | None  # None: measurements of nodes are not compared
    methods: MethodTable  # of all bundles; the base decides where two describe the same service

    def __init__(self, mesh: MeshSettings, base: World, namespaces: Mapping[str, World], rules: list[Rule]):
        """Take what `build` checked; use `build`."""
        self.mesh = mesh
        self.reference_values = None
        self._base = base
        self._worlds = dict(namespaces)
        self.methods = base.methods
        for name in sorted(namespaces):
            self.methods = self.methods.with_fallback(namespaces[name].methods)
        self._index = Index(rules)
        self._rules = {rule.id: rule for rule in rules}
        self._metadata_keys = frozenset(mesh.metadata_keys)
        self._slices = Slices(self._index)
        self._prepared: Lru[tuple[str, str, str], _Prepared] = Lru(limits.MAX_SLICE_CACHE_ENTRIES)
        self._verdicts: Lru[tuple[object, ...], Verdict] = Lru(limits.MAX_DECISION_CACHE_ENTRIES)
        self._governs: Lru[tuple[str, str], tuple[bool]] = Lru(limits.MAX_SLICE_CACHE_ENTRIES)
        self._unsliced: dict[str | None, PolicySlice] = {}

    @classmethod
    def build(cls, base: Bundle, namespaces: Mapping[str, Bundle]) -> "Engine":
        """Compile bundles; every load-time rule is checked here, and any breach refuses the whole.

        Takes about 0.3 ms of CPU per policy, some half of it with the GIL, 1 ms at a time: call it in a thread.

        Args:
            base: the base bundle.
            namespaces: namespace -> its bundle.

        Raises:
            EvidenceError: BUNDLE_MALFORMED, BUNDLE_POLICY_INVALID or BUNDLE_OUT_OF_NAMESPACE, naming file
                and line.
        """
        try:
            return cls._build(base, namespaces)
        except BaseException as error:
            if not is_panic(error):
                raise
            _log.exception("Cedar panicked while it compiled policies")
            detail = f"Cedar panicked while it compiled the policies: {str(error)[:200]}; simplify what changed last"
            raise EvidenceError(Reason.BUNDLE_POLICY_INVALID, detail) from None

    @classmethod
    def _build(cls, base: Bundle, namespaces: Mapping[str, Bundle]) -> "Engine":
        if base.mesh is None or base.manifest.namespace is not None:
            raise EvidenceError(
                Reason.BUNDLE_MALFORMED, "the base bundle must hold mesh.json and no namespace"
            )
        parsed = worlds.parse_bundle(base, "")
        rules, named = compile_rules(base, parsed.schema)
        found: dict[str, World] = {}
        for name in sorted(namespaces):
            own = namespaces[name]
            if own.mesh is not None or own.manifest.namespace != name:
                detail = f"the bundle of namespace {name} must be made for it and must not hold mesh.json"
                raise EvidenceError(Reason.BUNDLE_OUT_OF_NAMESPACE, detail)
            own_parsed = worlds.parse_bundle(own, f"namespace {name}: ")
            own_rules, _ = compile_rules(own, own_parsed.schema, name)
            _check_scopes(own_rules, base.mesh, name)
            found[name] = worlds.namespace_world(parsed, own_parsed, named, name)
            rules.extend(own_rules)
        _check_unique(rules)
        engine = cls(base.mesh, worlds.base_world(parsed), found, rules)
        engine.reference_values = base.reference_values
        return engine

    def decide(self, call: Call, *, now_ms: int) -> Verdict:
        """Answer one call.

        Total: a request that cannot be read or a policy that fails is a deny with its reason.

        Args:
            call: the call.
            now_ms: Unix time, which policies may read.
        """
        key = (call.principal, call.method, call.service, call.authn, call.node, call.level)
        verdict = self._verdicts.get(key)
        if verdict is not None:
            return verdict
        try:
            prepared = self._prepare(call.principal, call.method, call.service)
            if not prepared.constant:
                return self._decide_reading(prepared, call, now_ms)
            context = self._context(prepared, call, now_ms)
            verdict = evaluate(prepared.question, prepared.policies, context, _encode(context))
            if len(call.principal) + len(call.method) <= limits.MAX_CACHED_KEY_CHARS:
                self._verdicts.put(key, verdict)
            return verdict
        except BaseException as error:  # noqa: BLE001
            # total by contract: whatever goes wrong in here must refuse the call, not leave it without an answer
            return _unevaluated(error)

    def decide_unsliced(self, call: Call, *, now_ms: int) -> Verdict:
        """Answer one call with every policy and nothing reused: what `decide` must agree with.

        The whole context is built, too, unless the request has parts that Cedar cannot hold.
        """
        try:
            prepared = self._prepare(call.principal, call.method, call.service)
            namespace = self._namespace(call.service)
            if namespace not in self._unsliced:
                rules = tuple(r for r in self._index.rules if r.namespace in {None, namespace})
                self._unsliced[namespace] = parse_slice(rules)
            try:
                info = prepared.question.info
                whole = projection(info.input_type, None) if info is not None and info.has_request else None
                context = self._context(prepared, call, now_ms, whole=(whole,))
            except EvidenceError:
                context = self._context(prepared, call, now_ms)
            return evaluate(prepared.question, self._unsliced[namespace], context, _encode(context))
        except EvidenceError as error:
            return Verdict(False, error.reason, (), detail=error.detail)
        except BaseException as error:  # noqa: BLE001
            return _unevaluated(error)

    def reads_request(self, principal: str, method: str, service: str) -> bool:
        """Whether a decision on such a call can depend on the request message.

        False means that `Call.request` may be left out.
        """
        return self._prepare(principal, method, service).project is not None

    def audits_payload(self, principal: str, method: str, service: str) -> bool:
        """Whether a permit that could determine such a call asks to keep its payload."""
        return self._prepare(principal, method, service).audits

    def awaits_approval(self, principal: str, method: str, service: str) -> bool:
        """Return whether a permit that could determine such a call asks for approvers of its (opening) message."""
        return self._prepare(principal, method, service).approvals

    def amount(self, method: str, service: str, request: bytes, field: tuple[str, ...]) -> int:
        """Return what a field of a request holds, in units of 0.0001, for a budget.

        Raises:
            EvidenceError: OBLIGATION_UNMET: it is no amount, or nothing describes the request;
                REQUEST_UNREPRESENTABLE: the bytes are not the request that is described.
        """
        info = self.methods_of(service).get(method)
        if info is None:
            detail = (
                f"policy sums {'.'.join(field)} of the request, and no descriptor tells how to read {method}"
            )
            raise EvidenceError(Reason.OBLIGATION_UNMET, detail)
        return amount_of(info.decode(request), field)

    def payload_policies(self) -> tuple[str, ...]:
        """The policies that ask to keep payloads, sorted."""
        asking = (r.id for r in self._rules.values() if r.permit and AUDIT_PAYLOAD in r.obligations)
        return tuple(sorted(asking))

    def governs(self, method: str, service: str) -> bool:
        """Whether any policy speaks of this method on this service, for whatever caller."""
        world = self._world(service)
        action = world.action_of(method)
        known = self._governs.get((action, service))
        if known is None:
            namespace = self._namespace(service)
            entities = (_entity(world, worlds.ACTION, action), _entity(world, worlds.SERVICE, service))
            known = (self._index.governs(*entities, namespace),)
            self._governs.put((action, service), known)
        return known[0]

    def is_unary(self, method: str) -> bool | None:
        """Whether the method takes and returns one message; None when no bundle describes it."""
        info = self.methods.get(method)
        return None if info is None else info.unary

    def methods_of(self, service: str) -> MethodTable:
        """The descriptors by which requests to `service` are read."""
        return self._world(service).methods

    def explain(self, principal: str, method: str, service: str) -> tuple[Rule, ...]:
        """Return the policies whose scope covers such a call, whatever their conditions say."""
        return self._prepare(principal, method, service).policies.rules

    def policy_ids(self) -> tuple[str, ...]:
        """Every policy in force, sorted."""
        return tuple(sorted(self._rules))

    def source(self, policy_id: str) -> str | None:
        """Where a policy is written, "policies/x.cedar:12"; None when there is no such policy."""
        rule = self._rules.get(policy_id)
        return None if rule is None else rule.piece.where

    def text(self, policy_id: str) -> str | None:
        """A policy's Cedar text; None when there is no such policy."""
        rule = self._rules.get(policy_id)
        return None if rule is None else rule.piece.text

    def _namespace(self, service: str) -> str | None:
        settings = self.mesh.services.get(service)
        return None if settings is None else settings.namespace

    def _world(self, service: str) -> World:
        namespace = self._namespace(service)
        return self._base if namespace is None else self._worlds.get(namespace, self._base)

    def _prepare(self, principal: str, method: str, service: str) -> _Prepared:
        world = self._world(service)
        name = world.action_of(method)
        # methods that no policy can tell apart share an entry, so that made-up names cannot fill the cache
        key = (principal, name, service)
        prepared = self._prepared.get(key)
        if prepared is None:
            caller = _entity(world, worlds.WORKLOAD, principal)
            action = _entity(world, worlds.ACTION, name)
            target = _entity(world, worlds.SERVICE, service)
            candidates = self._index.candidates(caller, action, target, self._namespace(service))
            prepared = _prepare(self._slices.get(candidates), world, caller, action, target)
            self._prepared.put(key, prepared)
        return prepared

    def _decide_reading(self, prepared: _Prepared, call: Call, now_ms: int) -> Verdict:
        """Decide with a context that depends on the single call, reusing a verdict on equal contexts."""
        try:
            context = self._context(prepared, call, now_ms)
        except EvidenceError as error:
            return Verdict(False, error.reason, (), detail=error.detail)
        text = _encode(context)
        if len(text) > limits.MAX_REQUEST_JSON_BYTES:
            limit = limits.MAX_REQUEST_JSON_BYTES
            detail = f"what policies read of the request is larger than {limit} bytes"
            return Verdict(False, Reason.REQUEST_UNREPRESENTABLE, (), detail=detail)
        # callers choose what is in the key: kept large ones would add up to gigabytes
        if not prepared.timeless or len(text) > limits.MAX_CACHED_KEY_CHARS:
            return evaluate(prepared.question, prepared.policies, context, text)
        key = (call.principal, prepared.action, call.service, text)
        verdict = self._verdicts.get(key)
        if verdict is None:
            verdict = evaluate(prepared.question, prepared.policies, context, text)
            self._verdicts.put(key, verdict)
        return verdict

    def _context(
        self, prepared: _Prepared, call: Call, now_ms: int, *, whole: tuple[Project | None] | None = None
    ) -> dict[str, object]:
        """Build what the slice can read; with `whole`, everything, the request by that projection."""
        info, (project,) = prepared.question.info, whole or (prepared.project,)
        return build_context(
            prepared.policies.wanted if whole is None else None,
            call,
            now_ms,
            metadata_keys=self._metadata_keys,
            request=None if info is None or project is None else (info, project),
        )


def _prepare(
    policies: PolicySlice, world: World, caller: Entity, action: Entity, target: Entity
) -> _Prepared:
    wanted = policies.wanted
    info = world.methods.get(action.id)
    project: Project | None = None
    if info is not None and info.has_request and policies.reads_part("request"):
        project = projection(info.input_type, None if wanted is None else wanted["request"])
    time = None if wanted is None else wanted.get("time", _NOTHING)
    named = {"principal": caller, "action": action, "resource": target}
    uids = {role: {"type": entity.type, "id": entity.id} for role, entity in named.items()}
    return _Prepared(
        question=Question(world.entities._inner, uids, info),
        action=action.id,
        policies=policies,
        project=project,
        constant=project is None and not policies.reads_part("time") and not policies.reads_part("metadata"),
        timeless=time is not None and "now" not in time,
        audits=any(rule.permit and AUDIT_PAYLOAD in rule.obligations for rule in policies.rules),
        approvals=any(
            rule.permit and not rule.method_alone and REQUIRE in dict(rule.obligations)
            for rule in policies.rules
        ),
    )


def _unevaluated(error: BaseException) -> Verdict:
    """Return the deny that a failure in here becomes; what ends a task or the process goes on."""
    if not isinstance(error, Exception) and not is_panic(error):
        raise error
    _log.error("deciding a call failed; the call is denied", exc_info=error)
    return UNEVALUATED


def _entity(world: World, kind: str, name: str) -> Entity:
    key = worlds.uid(kind, name)
    return Entity(kind, name, key, world.ancestors.get(key, frozenset()) | {key})


def _check_scopes(rules: list[Rule], mesh: MeshSettings, namespace: str) -> None:
    """Every policy of a namespace must name one of its own services as resource."""
    own = {worlds.uid(worlds.SERVICE, n) for n, s in mesh.services.items() if s.namespace == namespace}
    for rule in rules:
        scope = rule.resource
        named = (scope.equal,) if scope.equal is not None else scope.within
        if not named or not own.issuperset(named):
            detail = (
                f"namespace {namespace}: {rule.piece.where}: policy {rule.annotation} must say "
                f'`resource == Service::"..."` with one of {", ".join(sorted(own)) or "its services (none)"}'
            )
            raise EvidenceError(Reason.BUNDLE_OUT_OF_NAMESPACE, detail)


def _check_unique(rules: list[Rule]) -> None:
    seen: dict[str, Rule] = {}
    for rule in rules:
        other = seen.setdefault(rule.id, rule)
        if other is not rule:
            detail = f"{rule.piece.where}: the id {rule.id} is also that of {other.piece.where}; rename one"
            raise EvidenceError(Reason.BUNDLE_POLICY_INVALID, detail)
