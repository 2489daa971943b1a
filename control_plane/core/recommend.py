"""Which policy would allow exactly the calls that were observed: a draft to review, never in force by itself.

Kept from the bundle in force: its settings, every forbid, every permit with a condition or an annotation, and every
permit of services that were not observed. Replaced: plain permits of the services that were. Added: one permit for each
set of callers that call exactly the same methods of a service. What cannot be known from records is said in comments.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import yaml
from cedarpy import pst

from control_plane.core.recommend_permits import PREFIX, Observed, Permit, Work, permit_service
from trust import limits
from trust.bundle import (
    DESCRIPTORS,
    ENTITIES,
    REFERENCE_VALUES,
    Bundle,
    bundle_files,
    read_claimed_bundle,
)
from trust.errors import EvidenceError, InputError, Reason
from trust.policy.casetests import engine_of, read_cases, run_tests
from trust.policy.cedar_text import Statement, parse_files
from trust.policy.descriptors import MethodTable
from trust.policy.engine import Engine
from trust.policy.lint import lint
from trust.policy.problems import errors_of
from trust.policy.schema import ANY_ACTION
from trust.policy.source import SETTINGS, build
from trust.revocation import Kind
from trust.spiffe import SpiffeId, check_name

_METHOD: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*/[A-Za-z_]\w*\Z", re.ASCII)
_GROUP_LINE: Final = re.compile(r'^action "([A-Za-z][A-Za-z0-9_-]{0,63})";$', re.MULTILINE)
_MEMBER_LINE: Final = re.compile(r'^action "([^"]+)" in \[([^\]]*)\]', re.MULTILINE)
_EXPLAINED: Final = 3  # notes in an error
_STRANGER: Final = "never-seen-caller"


@dataclass(frozen=True, slots=True)
class Draft:
    """A policy folder, and what its reviewers must know."""

    files: Mapping[str, bytes]
    notes: tuple[str, ...]
    added: int  # permits
    kept: int  # policies of the bundle in force
    replaced: tuple[str, ...]  # ids of permits that are not in the draft
    edges: int  # observed edges that the draft allows by new permits


def recommend(
    observed: Iterable[Observed],
    archive: bytes | None,
    *,
    trust_domain: str,
    service: str = "",
    level: int | None = None,
    min_calls: int = limits.MIN_RECOMMEND_CALLS,
    period: str = "",
) -> Draft:
    """Return a draft that lints, whose tests pass, and that can be built.

    Args:
        observed: what was called.
        archive: the base bundle in force; None when there is none.
        trust_domain: of the mesh.
        service: only calls to it; empty: to all.
        level: of the services concerned, in the draft; None: as it is.
        min_calls: refuse fewer executed calls than this.
        period: which time was observed, for the comments.

    Raises:
        InputError: INPUT_INVALID, when there is too little data or nothing that a policy could name.
        EvidenceError: when the bundle in force cannot be read.
    """
    base = None if archive is None else read_claimed_bundle(archive)
    work = Work(base, _settings_of(base, trust_domain), trust_domain)
    if archive is not None:
        raw = bundle_files(archive)
        work.files |= {name: raw[name] for name in (DESCRIPTORS, REFERENCE_VALUES) if name in raw}
    usable = _usable(
        work, [o for o in observed if (o.executed or o.would_deny) and service in {"", o.service}]
    )
    usable, ruled = _of_base(work, usable)
    _check_enough(work, usable, min_calls)
    services = sorted({o.service for o in usable})
    _declare(work, usable, services, level)
    kept = _keep(work, set(services), everything=not service and not ruled)
    fresh = _not_covered(work, usable, kept)
    by_service: dict[str, list[Observed]] = defaultdict(list)
    for one in fresh:
        by_service[one.service].append(one)
    cases = {
        name: permit_service(work, name, sorted(edges), period) for name, edges in sorted(by_service.items())
    }
    work.files[SETTINGS] = _yaml(work.settings, _header(period))
    _add_tests(work, cases)
    _check(work)
    return Draft(
        files=work.files,
        notes=tuple(work.notes),
        added=work.added,
        kept=work.kept,
        replaced=tuple(sorted(work.replaced)),
        edges=work.edges,
    )


def _check_enough(work: Work, usable: Sequence[Observed], min_calls: int) -> None:
    calls = sum(o.executed for o in usable)
    if calls < min_calls or not usable:
        raise InputError(
            Reason.INPUT_INVALID,
            f"{calls} calls of identified workloads were observed, {min_calls} are needed for a draft "
            "(MIN_RECOMMEND_CALLS): observe longer, look further back with --since, or say --min-calls "
            f"{max(1, calls)}{''.join(f'; {note}' for note in work.notes[:_EXPLAINED])}",
        )


def _settings_of(base: Bundle | None, trust_domain: str) -> dict[str, Any]:
    """Return bundle.yaml of the bundle in force: its settings carry the same names as in mesh.json."""
    if base is None:
        return {"name": "recommended", "trust_domain": trust_domain, "services": {}}
    if base.mesh is None:
        raise InputError(Reason.INPUT_INVALID, "give the base bundle, not that of a namespace")
    mesh = base.mesh.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    mesh.pop("format", None)
    named: dict[str, Any] = {"name": base.manifest.name}
    if base.manifest.description:
        named["description"] = base.manifest.description
    named |= {"trust_domain": base.mesh.trust_domain, "level": base.mesh.level, **mesh}
    if groups := _action_groups(base.schema):
        named["action_groups"] = groups
    named.setdefault("services", {})
    return named


def _action_groups(schema: str) -> dict[str, list[str]]:
    names = set(_GROUP_LINE.findall(schema)) - {ANY_ACTION}
    found: dict[str, list[str]] = {name: [] for name in sorted(names)}
    for action, parents in _MEMBER_LINE.findall(schema):
        for parent in json.loads(f"[{parents}]"):
            if parent in found:
                found[parent].append(action)
    return found


def _usable(work: Work, observed: Sequence[Observed]) -> list[Observed]:
    """Return the edges that a policy can name, with a note about every other."""
    usable = []
    unknown = 0
    revoked = _revoked(work)
    for one in sorted(observed):
        why = "it is revoked by the policy in force" if one.caller in revoked else ""
        why = why or _unusable(one, work.trust_domain)
        if why:
            count = max(one.executed, one.would_deny)
            unknown += count
            name = one.caller or "nobody identified"
            work.notes.append(
                f"not in the draft: {count} calls of {name} to {one.service} {one.method}: {why}"
            )
        elif one.executed:
            usable.append(one)
    if unknown:
        work.notes.append(f"{unknown} calls in all will be refused under this draft for these reasons")
    return usable


def _revoked(work: Work) -> set[str]:
    """Return the workloads that the approvers have revoked for good: what they did before is nothing to allow."""
    mesh = None if work.base is None else work.base.mesh
    subjects = [] if mesh is None else [one.subject for one in mesh.revocations]
    return {one.spiffe_id(work.trust_domain) for one in subjects if one.kind is Kind.WORKLOAD}


def _of_base(work: Work, usable: Sequence[Observed]) -> tuple[list[Observed], bool]:
    """Return the edges that the base bundle is to speak of, and whether there are others: those of namespaces.

    Their bundles may permit under conditions that a plain permit of the base would undo.
    """
    namespaces = {name: s.get("namespace") for name, s in work.settings["services"].items()}
    ruled = sorted({o.service for o in usable if namespaces.get(o.service)})
    for name in ruled:
        work.notes.append(
            f"not in the draft: service {name}, which namespace {namespaces[name]} rules: its approvers say in "
            "their own bundle who may call it; permits of the base that reach it are kept"
        )
    return [o for o in usable if o.service not in ruled], bool(ruled)


def _unusable(one: Observed, trust_domain: str) -> str:
    if not one.caller:
        return "the caller was not identified, so no policy can name it"
    try:
        caller = SpiffeId.parse(one.caller)
        check_name(one.service)
        check_name(caller.name)
    except EvidenceError:
        return "the caller or the service has no name that a policy can have"
    if (caller.trust_domain, caller.kind) != (trust_domain, "workload"):
        return "the caller is no workload of this trust domain"
    if one.revoked:
        return f"{one.revoked} of them would have been refused for a revocation or a quarantine: look into that first"
    return "" if _METHOD.match(one.method) else "the method has no gRPC name"


def _declare(work: Work, usable: Sequence[Observed], services: Sequence[str], level: int | None) -> None:
    """Add what the draft speaks of to the settings: services, and methods that nothing describes yet."""
    described = set(MethodTable.parse(None if work.base is None else work.base.descriptors).methods())
    for name in services:
        settings = work.settings["services"].setdefault(name, {})
        listed = list(settings.get("grpc_services", []))
        for method in sorted({o.method for o in usable if o.service == name}):
            if method not in described and method not in listed and method.partition("/")[0] not in listed:
                listed.append(method)
        if listed:
            settings["grpc_services"] = listed
        if level is not None:
            settings["level"] = level


def _keep(work: Work, services: set[str], *, everything: bool) -> list[Statement]:
    """Take over what must not be lost from the bundle in force; return what was taken."""
    base = work.base
    if base is None:
        return []
    if base.entities.strip() not in {"", "[]"}:
        work.files[ENTITIES] = base.entities.encode()
    statements = parse_files(base.policies)[0]
    kept = [s for s in statements if not _is_replaced(s.policy, services, everything=everything)]
    for file, text in sorted(base.policies.items()):
        mine = [s for s in kept if s.file == file]
        if len(mine) == sum(s.file == file for s in statements):
            work.files[file] = text.encode()
        elif mine:
            work.files[file] = ("\n\n".join(s.text for s in mine) + "\n").encode()
    work.replaced = [s.id for s in statements if s not in kept]
    work.taken, work.kept = {s.id for s in kept}, len(kept)
    for one in work.replaced:
        work.notes.append(
            f"permit {one!r} is replaced by what was observed: what it also allowed will be refused"
        )
    broad = [s.id for s in kept if s.policy.effect == "permit" and _reaches_more(s.policy)]
    if broad:
        work.notes.append(f"kept as they are, narrow them yourself if they say too much: {', '.join(broad)}")
    return kept


def _is_replaced(policy: pst.Template, services: set[str], *, everything: bool) -> bool:
    if policy.effect != "permit" or policy.clauses or set(policy.annotations) - {"id"}:
        return False
    match policy.resource:
        case pst.ScopeEq(entity=pst.EntityUid() as uid):
            return str(uid.type) == "Service" and uid.id in services
        case _:
            return everything  # it reaches services beyond those asked for otherwise


def _reaches_more(policy: pst.Template) -> bool:
    return not isinstance(policy.resource, pst.ScopeEq) or bool(policy.clauses)


def _not_covered(work: Work, usable: Sequence[Observed], kept: Sequence[Statement]) -> list[Observed]:
    """Return the edges that need a permit: not those that what is kept allows, nor those that it always forbids."""
    if not kept:
        return list(usable)
    engine = _engine(work)
    bare = {s.id for s in kept if not s.policy.clauses}
    needed = []
    for one in usable:
        rules = engine.explain(one.caller, one.method, one.service)
        forbidden = [rule.id for rule in rules if not rule.permit and rule.annotation in bare]
        permitted = [rule.id for rule in rules if rule.permit]
        edge = f"{one.caller} to {one.service} {one.method} ({one.executed} calls)"
        if forbidden:
            work.notes.append(f"not in the draft: {edge}: {', '.join(forbidden)} forbids it")
        elif permitted and not one.would_deny:
            continue
        else:
            if permitted:
                work.notes.append(
                    f"{one.would_deny} of {edge} did not meet the conditions of {', '.join(permitted)}: the new permit "
                    "allows them without any; remove it if they were wrong"
                )
            needed.append(one)
    return needed


def _engine(work: Work) -> Engine:
    """Compile what is kept, under the draft's settings."""
    files = {**work.files, SETTINGS: _yaml(work.settings, "")}
    return engine_of(read_claimed_bundle(build(files)), None)


def _header(period: str) -> str:
    about = f" from calls observed {period}" if period else ""
    return (
        f"# A draft{about}, made by `egm policy recommend`. Review it, then:\n"
        "#   egm policy lint FOLDER && egm policy test FOLDER && egm policy propose FOLDER\n"
    )


def _yaml(settings: Mapping[str, Any], header: str) -> bytes:
    return (header + yaml.safe_dump(dict(settings), sort_keys=False, width=110, allow_unicode=True)).encode()


def _add_tests(work: Work, permits: Mapping[str, Sequence[Permit]]) -> None:
    """Write a case for every observed edge, one that must be refused for each service, and the old ones that hold."""
    wanted: dict[str, list[dict[str, Any]]] = {}
    for service, some in permits.items():
        rows = [_row(one, permit.id) for permit in some for one in permit.edges]
        wanted[f"tests/{PREFIX}{service}.yaml"] = [*rows, _stranger(some[0].edges[0], work.trust_domain)]
    if work.base is not None:
        for read in read_cases(work.base.tests)[0]:
            case = read.case.model_dump(mode="json", exclude_defaults=True)
            wanted.setdefault(read.file, []).append(case)
    for path, rows in wanted.items():
        work.files[path] = _yaml_rows(rows)
    failed: dict[str, set[str]] = defaultdict(set)
    for result in run_tests(read_claimed_bundle(build(work.files))):
        if not result.passed:
            failed[result.file].add(result.name)
            work.notes.append(f"test left out: {result.file}: {result.name}: {result.message}")
    for path, names in failed.items():
        left = [row for row in wanted[path] if row["name"] not in names]
        if left:
            work.files[path] = _yaml_rows(left)
        else:
            del work.files[path]


def _row(one: Observed, policy: str) -> dict[str, Any]:
    caller = SpiffeId.parse(one.caller).name
    return {
        "name": f"{caller} calls {one.method} of {one.service} ({one.executed} observed)",
        "caller": one.caller,
        "service": one.service,
        "method": one.method,
        "expect": "allow",
        "policy": policy,
    }


def _stranger(one: Observed, trust_domain: str) -> dict[str, Any]:
    return {
        "name": f"a workload that was never seen may not call {one.service}",
        "caller": str(SpiffeId.of(trust_domain, "workload", _STRANGER)),
        "service": one.service,
        "method": one.method,
        "expect": "deny",
    }


def _yaml_rows(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return yaml.safe_dump(
        [dict(row) for row in rows], sort_keys=False, width=10_000, allow_unicode=True
    ).encode()


def _check(work: Work) -> None:
    """Refuse to hand out a draft that `egm policy lint` or `test` would not take.

    Raises:
        InputError: INPUT_INVALID, with the first problem.
    """
    wrong = errors_of(lint(work.files))
    if wrong:
        raise InputError(
            Reason.INPUT_INVALID,
            f"the draft would not pass lint: {wrong[0]}; mend the bundle in force first, or recommend one --service",
        )
