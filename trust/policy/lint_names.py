"""Whether what policies and tests name is there: services, methods, roles, groups, workloads.

A permit on a name that nothing has never permits, a forbid never forbids, and a test of it proves nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from cedarpy import pst

from trust.approval_rule import Groups
from trust.bundle import Bundle
from trust.errors import EvidenceError
from trust.policy import entities_text
from trust.policy.casetests import ReadCase
from trust.policy.cedar_text import Statement
from trust.policy.lint_controls import Methods
from trust.policy.problems import Problem, Severity
from trust.policy.validation import ACTION, at, near
from trust.spiffe import SpiffeId


@dataclass(frozen=True, slots=True)
class Known:
    """What policies may name. None: not known here, so nothing is said about it."""

    schema: str
    trust_domain: str | None
    services: frozenset[str] | None  # that policies of this bundle may speak of
    all_services: frozenset[str] | None
    entities: Mapping[entities_text.Uid, frozenset[entities_text.Uid]] | None  # uid -> parents
    namespace: str | None
    auditors: Mapping[str, str] | None
    methods: Methods | None  # with a descriptor
    approvers: Groups | None


def case_problems(cases: list[ReadCase], known: Known) -> list[Problem]:
    """Find cases about calls that do not exist: expecting a deny, they pass and prove nothing."""
    problems: list[Problem] = []
    methods = {name for name in ACTION.findall(known.schema) if "/" in name}
    described = {name.partition("/")[0] for name in methods}
    for read in cases:
        case = read.case
        if known.all_services is not None and case.service not in known.all_services:
            hint = near(case.service, known.all_services, "add it under services: in bundle.yaml")
            what = f"the case is about service {case.service!r}, which there is not"
            problems.append(Problem(read.file, read.line, what, hint, Severity.WARNING))
        if case.method not in methods and case.method.partition("/")[0] in described:
            hint = near(
                case.method, methods, "add it to grpc_services of its service, or refresh descriptors.binpb"
            )
            what = f"the case is about method {case.method!r}, which its service does not have"
            problems.append(Problem(read.file, read.line, what, hint, Severity.WARNING))
    return problems


def scope_problems(statement: Statement, known: Known) -> list[Problem]:
    """Find a policy of a namespace whose resource is not one of the namespace's own services."""
    if known.namespace is None or known.services is None:
        return []
    match statement.policy.resource:
        case pst.ScopeEq(entity=pst.EntityUid() as uid) | pst.ScopeIn(entity=pst.EntityUid() as uid):
            named: pst.EntityUid | None = uid
        case pst.ScopeIsIn(entity=pst.EntityUid() as uid):
            named = uid
        case _:
            named = None
    if named is not None and str(named.type) == "Service" and named.id in known.services:
        return []
    own = ", ".join(sorted(known.services)) or "none: list them under services:"
    what = f"a policy of namespace {known.namespace!r} may speak of its own services alone"
    return [
        at(statement, what, f'write resource == Service::"NAME" with one of its services ({own})', "resource")
    ]


def name_problems(statement: Statement, known: Known) -> list[Problem]:
    """Find names that nothing has: a permit on them never permits, a forbid never forbids."""
    problems: list[Problem] = []
    for uid in sorted(pst.entity_uids(statement.policy), key=str):
        kind = str(uid.type)
        if kind == "Workload":
            problems += _workload_problems(statement, uid, known)
        elif kind == "Service" and known.all_services is not None and uid.id not in known.all_services:
            hint = near(uid.id, known.all_services, "add it under services: in bundle.yaml")
            problems.append(at(statement, f"there is no service {uid.id!r}", hint, f'"{uid.id}"'))
        elif kind in {"Role", "ServiceGroup"} and known.entities is not None:
            problems += _group_problems(statement, uid, known.entities)
    return problems


def _workload_problems(statement: Statement, uid: pst.EntityUid, known: Known) -> list[Problem]:
    domain = known.trust_domain or "TRUST-DOMAIN"
    try:
        parsed = SpiffeId.parse(uid.id)
    except EvidenceError:
        what = f'Workload::"{uid.id}" can never match: a workload is named by its SPIFFE ID'
        hint = f'write Workload::"spiffe://{domain}/workload/{uid.id}"'
        return [at(statement, what, hint, f'"{uid.id}"')]
    if known.trust_domain not in (None, parsed.trust_domain):
        what = (
            f"{uid.id} is of another trust domain than {known.trust_domain}; such callers are not identified"
        )
        return [at(statement, what, "correct the trust domain", f'"{uid.id}"', Severity.WARNING)]
    return []


def _group_problems(
    statement: Statement,
    uid: pst.EntityUid,
    entities: Mapping[entities_text.Uid, frozenset[entities_text.Uid]],
) -> list[Problem]:
    kind, needle = str(uid.type), f'"{uid.id}"'
    named = {parent for parents in entities.values() for parent in parents}
    if (kind, uid.id) not in entities and (kind, uid.id) not in named:
        known = {name for other, name in (*entities, *named) if other == kind}
        where = "roles" if kind == "Role" else "service_groups"
        hint = near(uid.id, known, f"add it under {where}: in bundle.yaml, or to entities.json")
        return [at(statement, f"there is no {kind} {uid.id!r}", hint, needle)]
    if (kind, uid.id) not in named:
        what = f"nothing is in {kind} {uid.id!r}, so the policy can never match"
        return [at(statement, what, "add a member, or remove the policy", needle, Severity.WARNING)]
    return []


def services_of(base: Bundle | None) -> frozenset[str]:
    """Return the services that a base bundle names; none when it is not at hand."""
    return frozenset() if base is None or base.mesh is None else frozenset(base.mesh.services)


def entities_in_force(
    own: Mapping[entities_text.Uid, frozenset[entities_text.Uid]], namespace: str | None, base: Bundle | None
) -> Mapping[entities_text.Uid, frozenset[entities_text.Uid]] | None:
    """Return the entities in force with a bundle; None for a namespace whose base is not at hand."""
    if namespace is None:
        return own
    if base is None:
        return None
    theirs, _, _ = entities_text.parse_entities(base.entities.encode("utf-8", "surrogatepass"))
    return {**{e.uid: e.parents for e in theirs}, **own}
