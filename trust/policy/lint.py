"""What is wrong with the policies of a bundle, by file and line, before anybody signs it.

Everything the engine refuses at load is an error here; what is merely suspicious is a warning.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from cedarpy import pst

from trust import limits
from trust.approval_rule import ANNOTATIONS as APPROVALS
from trust.attestation.advice import doubts
from trust.bundle import MESH, Bundle, read_bundle
from trust.errors import EvidenceError
from trust.mesh import MeshSettings
from trust.policy import entities_text, source
from trust.policy.casetests import read_cases
from trust.policy.cedar_text import Statement, missing_id, parse_files
from trust.policy.controls import CONTROLS
from trust.policy.engine import Engine
from trust.policy.lint_alerts import alert_problems
from trust.policy.lint_approval import approval_problems, groups_of
from trust.policy.lint_audit import AUDIT, audit_problems, auditors_of
from trust.policy.lint_controls import control_problems, methods_of
from trust.policy.lint_detection import detection_problems
from trust.policy.lint_emergency import emergency_problems
from trust.policy.lint_names import (
    Known,
    case_problems,
    entities_in_force,
    name_problems,
    scope_problems,
    services_of,
)
from trust.policy.lint_witnesses import witness_problems
from trust.policy.problems import Problem, Severity, errors_of
from trust.policy.reads import reads
from trust.policy.rules import BINDING_RULE, OBLIGATIONS
from trust.policy.self_test import HINT, permits_everything
from trust.policy.types import BINDING, METHOD_ALONE
from trust.policy.validation import ATTRIBUTE, at, near, schema_problems
from trust.verified import BASE_ROLE

_CONTEXT: Final = frozenset({"request", "caller", "node", "time", "metadata"})
_PLACE: Final = re.compile(
    r"(?:namespace [a-z0-9-]+: )?(?P<file>[A-Za-z0-9._/-]+):(?P<line>[0-9]+): (?P<what>.*)", re.S
)


def lint(bundle: Mapping[str, bytes] | Bundle, *, base: Bundle | None = None) -> list[Problem]:
    """Return every problem of a source folder or of a bundle, sorted by file and line.

    Args:
        bundle: a folder (path -> bytes), or a bundle that was read from its archive.
        base: the base bundle in force; with it a namespace bundle is checked against what the base says.
    """
    if isinstance(bundle, Bundle):
        return sorted(set(_lint_bundle(bundle, base)))
    parsed, problems = source.load(bundle)
    if parsed is not None:
        problems += lint_source(parsed, base=base)
    return sorted(set(problems))


def lint_source(parsed: source.Source, *, base: Bundle | None = None) -> list[Problem]:
    """Return the problems of the policies and tests of a parsed folder (not those of `load`)."""
    settings = parsed.settings
    known = Known(
        schema=parsed.schema,
        trust_domain=settings.trust_domain,
        services=frozenset(settings.services),
        all_services=frozenset(settings.services) | services_of(base),
        entities=entities_in_force({e.uid: e.parents for e in parsed.entities}, settings.namespace, base),
        namespace=settings.namespace,
        auditors=settings.auditors if settings.namespace is None else auditors_of(base),
        methods=methods_of(parsed.descriptors, base),
        approvers=settings.approver_groups if settings.namespace is None else groups_of(base),
    )
    problems = _lint(parsed.policies, parsed.tests, known)
    problems += _own_services(parsed, base)
    if settings.namespace is None:
        found = doubts(settings.attestation, parsed.mesh().levels(), references=parsed.reference_values)
        where = parsed.document
        problems += [
            replace(where.problem(("attestation",), what, hint), severity=Severity.WARNING)
            for what, hint in found
        ]
        problems += [
            replace(where.problem(place, what, hint), severity=Severity.WARNING)
            for place, what, hint in _settings_doubts(parsed.mesh())
        ]
        problems += detection_problems(parsed.mesh(), where)
    if not errors_of(problems):
        try:
            archive = source.archive_of(parsed)
            role = BASE_ROLE if settings.namespace is None else settings.namespace
            problems += _engine_problems(read_bundle(archive, role=role), base)
        except EvidenceError as error:
            problems.append(_from_engine(error))
    return problems


def _lint_bundle(bundle: Bundle, base: Bundle | None) -> list[Problem]:
    namespace = bundle.manifest.namespace
    entities, _, problems = entities_text.parse_entities(bundle.entities.encode("utf-8", "surrogatepass"))
    settings = bundle.mesh if namespace is None else None if base is None else base.mesh
    own = all_services = None
    if settings is not None:
        all_services = frozenset(settings.services)
        own = frozenset(n for n, s in settings.services.items() if namespace in (None, s.namespace))
    known = Known(
        schema=bundle.schema,
        trust_domain=None if settings is None else settings.trust_domain,
        services=own,
        all_services=all_services,
        entities=entities_in_force({e.uid: e.parents for e in entities}, namespace, base),
        namespace=namespace,
        auditors=None if settings is None else settings.auditors,
        methods=methods_of(bundle.descriptors, base),
        approvers=None if settings is None else settings.approver_groups,
    )
    problems += _lint(bundle.policies, bundle.tests, known)
    if bundle.mesh is not None:
        found = doubts(bundle.mesh.attestation, bundle.mesh.levels(), references=bundle.reference_values)
        found += [(what, hint) for _, what, hint in _settings_doubts(bundle.mesh)]
        problems += [Problem(MESH, 0, what, hint, Severity.WARNING) for what, hint in found]
        problems += detection_problems(bundle.mesh)
    return problems if errors_of(problems) else problems + _engine_problems(bundle, base)


def _settings_doubts(mesh: MeshSettings) -> list[tuple[tuple[str, ...], str, str]]:
    return [*alert_problems(mesh), *emergency_problems(mesh), *witness_problems(mesh)]


def _lint(policies: Mapping[str, str], tests: Mapping[str, str], known: Known) -> list[Problem]:
    statements, problems = parse_files(policies)
    cases, wrong = read_cases(tests)
    problems += wrong
    if len(statements) > limits.MAX_POLICIES:
        what = f"{len(statements)} policies; at most {limits.MAX_POLICIES} are allowed"
        problems.append(
            Problem(statements[-1].file, statements[-1].line, what, "split the bundle by namespace")
        )
        return problems
    if not statements and not problems:
        what = "the bundle has no policy, so at level 4 every call is refused"
        problems.append(Problem("policies", 0, what, "add policies/NAME.cedar", Severity.WARNING))
    problems += _id_problems(statements)
    problems += case_problems(cases, known)
    problems += schema_problems([s for s in statements if not s.is_template], known.schema)
    declared = frozenset(ATTRIBUTE.findall(known.schema)) | _CONTEXT
    named = {policy.rpartition(":")[2] for read in cases for policy in read.case.policy}
    for statement in statements:
        problems += _annotation_problems(statement, known)
        problems += name_problems(statement, known)
        problems += scope_problems(statement, known)
        problems += _read_problems(statement, declared)
        if statement.is_template:
            what = "a template (?principal, ?resource) cannot be decided"
            problems.append(at(statement, what, "write the policy out for each principal or role", "?"))
        if _is_unconditional(statement.policy):
            what = "permits every caller every method of every service"
            problems.append(
                at(statement, what, "name a role, a service or methods", severity=Severity.WARNING)
            )
        if statement.id and statement.id not in named:
            what = f"no test names policy {statement.id!r}"
            hint = f"add a case with: policy: {statement.id}"
            problems.append(at(statement, what, hint, severity=Severity.WARNING))
    return problems


def _id_problems(statements: list[Statement]) -> list[Problem]:
    problems: list[Problem] = []
    seen: dict[str, Statement] = {}
    for statement in statements:
        name = statement.id
        if not name.strip():
            problems.append(missing_id(statement))
        elif len(name.encode()) > limits.MAX_POLICY_ID_BYTES or not name.isprintable():
            what = f"the @id must be at most {limits.MAX_POLICY_ID_BYTES} bytes of printable text"
            problems.append(at(statement, what, "shorten it", "@id"))
        elif name in seen:
            other = seen[name]
            what = f"@id {name!r} is taken by {other.file}:{other.line}"
            problems.append(at(statement, what, "give each policy its own @id", "@id"))
        else:
            seen[name] = statement
    return problems


def _annotation_problems(statement: Statement, known: Known) -> list[Problem]:
    problems: list[Problem] = []
    for name in statement.policy.annotations:
        if name == AUDIT:
            described = None if known.methods is None else frozenset(known.methods)
            problems += audit_problems(statement, known.auditors, described)
        elif name in CONTROLS:
            problems += control_problems(statement, name, known.methods, known.schema)
        elif name in APPROVALS:
            problems += approval_problems(statement, name, known.approvers)
        elif name in OBLIGATIONS:
            what = f"@{name} is an obligation that this version cannot enforce; calls would be refused"
            problems.append(
                at(statement, what, "remove the annotation; it is reserved for a later version", f"@{name}")
            )
        elif name == BINDING:
            value, effect = statement.policy.annotations[name], statement.policy.effect
            if value != METHOD_ALONE or effect != "permit":
                hint = "correct it, or remove it: then the permit of a stream binds its opening message"
                problems.append(at(statement, BINDING_RULE, hint, f"@{name}"))
        elif close := difflib.get_close_matches(name, (*OBLIGATIONS, BINDING), n=1, cutoff=0.8):
            what = f"@{name} means nothing; did you mean @{close[0]}?"
            problems.append(at(statement, what, "rename or remove it", f"@{name}", Severity.WARNING))
    return problems


def _read_problems(statement: Statement, declared: frozenset[str]) -> list[Problem]:
    """Find tests for attributes that nothing has. Cedar finds them valid: a misspelled `has` is just false."""
    problems: list[Problem] = []
    for name in sorted({part for path in reads(statement.policy) for part in path if part} - declared):
        what = f"no method, metadata key or fact of the call has an attribute {name!r}, so this is never true"
        hint = near(name, declared, "correct the name, refresh descriptors.binpb, or add it to metadata_keys")
        problems.append(at(statement, what, hint, name))
    return problems


def _is_unconditional(policy: pst.Template) -> bool:
    scopes = (policy.principal, policy.action, policy.resource)
    anyone = all(isinstance(s, pst.ScopeAny | pst.ScopeIs) or _is_any_action(s) for s in scopes)
    return policy.effect == "permit" and anyone and not policy.clauses


def _is_any_action(scope: object) -> bool:
    return isinstance(scope, pst.ActionIn) and any(uid.id == "any" for uid in scope.entities)


def _own_services(parsed: source.Source, base: Bundle | None) -> list[Problem]:
    """A namespace's services must be given to it by the base bundle."""
    namespace = parsed.settings.namespace
    if namespace is None or base is None or base.mesh is None:
        return []
    given = {name for name, s in base.mesh.services.items() if s.namespace == namespace}
    hint = f"the base bundle must say: services: NAME: namespace: {namespace}"
    return [
        parsed.document.problem(
            ("services", name), f"the base bundle does not give {name!r} to this namespace", hint
        )
        for name in sorted(set(parsed.settings.services) - given)
    ]


def _engine_problems(bundle: Bundle, base: Bundle | None) -> list[Problem]:
    """Ask the engine itself, so that nothing passes here that a sidecar refuses."""
    namespace = bundle.manifest.namespace
    try:
        if namespace is None:
            engine = Engine.build(bundle, {})
        elif base is not None:
            engine = Engine.build(base, {namespace: bundle})
        else:
            return []
    except EvidenceError as error:
        return [_from_engine(error)]
    return [_allows_anything(engine, policy) for policy in permits_everything(engine)]


def _allows_anything(engine: Engine, policy: str) -> Problem:
    file, _, line = (engine.source(policy) or source.SETTINGS).rpartition(":")
    what = f"policy {policy!r} permits everything, even to call what does not exist; no node would enforce it"
    return Problem(file or source.SETTINGS, int(line) if line.isdecimal() else 0, what, HINT)


def _from_engine(error: EvidenceError) -> Problem:
    match = _PLACE.match(error.detail)
    if match is None:
        return Problem(source.SETTINGS, 0, f"a sidecar would refuse this bundle: {error.detail}", "")
    return Problem(match["file"], int(match["line"]), match["what"], "")
