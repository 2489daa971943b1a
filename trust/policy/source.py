"""The source form of a bundle: a folder of text that people write, and how it becomes an archive.

    bundle.yaml          name, services, roles, groups, level, lease (trust.policy.settings)
    policies/*.cedar     the policies, each with an @id
    entities.json        Cedar entities, when roles and service_groups are not enough (optional)
    descriptors.binpb    FileDescriptorSet of the governed services (optional)
    reference_values.json  which measurements of nodes are accepted (optional, base bundle)
    tests/*.yaml         table tests (trust.policy.casetests)

Everything here is pure: a folder is a mapping from relative path to bytes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from trust.attestation.measurement import parse_reference_values
from trust.bundle import DESCRIPTORS, ENTITIES, MESH, REFERENCE_VALUES, SCHEMA, check_path, write_bundle
from trust.errors import EvidenceError
from trust.mesh import MeshSettings, ServiceSettings
from trust.policy.descriptors import MethodTable
from trust.policy.entities_text import Entity, parse_entities
from trust.policy.problems import Problem, Severity, refuse
from trust.policy.schema import generate_schema
from trust.policy.settings import BundleSettings
from trust.policy.yaml_text import Document, parse_yaml
from trust.spiffe import SpiffeId

SETTINGS: Final = "bundle.yaml"
# Settings of the whole mesh, which a namespace's approvers may not change.
_BASE_ONLY: Final = (
    "level",
    "lease",
    "ledger",
    "attestation",
    "auditors",
    "detection",
    "alerts",
    "emergency_keys",
    "approver_groups",
    "revocation_max_ttl_s",
    "revocations",
    "ended_revocations",
    "released_proofs",
)
_SERVICE_BASE_ONLY: Final = ("level", "workload")


@dataclass(frozen=True, slots=True)
class Source:
    """One folder, parsed. `entities` holds those of entities.json and those that roles and groups imply."""

    settings: BundleSettings
    document: Document  # bundle.yaml, for its line numbers
    policies: Mapping[str, str]
    entities: tuple[Entity, ...]
    entity_lines: Mapping[tuple[str, str], int]  # (type, id) -> line of entities.json
    descriptors: bytes | None
    tests: Mapping[str, str]
    schema: str
    reference_values: bytes | None = None

    @property
    def entities_json(self) -> str:
        """The entities as Cedar JSON, in a fixed order."""
        return json.dumps([e.to_json() for e in self.entities], indent=1, ensure_ascii=False) + "\n"

    def mesh(self) -> MeshSettings:
        """Return what becomes mesh.json (base bundle only)."""
        settings = self.settings
        services = {
            name: ServiceSettings(
                level=s.level,
                namespace=s.namespace,
                workload=s.workload,
                grpc_services=tuple(s.grpc_services),
            )
            for name, s in sorted(settings.services.items())
        }
        return MeshSettings(
            trust_domain=settings.trust_domain,
            level=settings.level,
            lease=settings.lease,
            ledger=settings.ledger,
            attestation=settings.attestation,
            services=services,
            metadata_keys=tuple(sorted(set(settings.metadata_keys))),
            auditors=dict(sorted(settings.auditors.items())),
            detection=settings.detection,
            alerts=settings.alerts,
            emergency_keys=dict(sorted(settings.emergency_keys.items())),
            approver_groups={
                group: dict(sorted(members.items()))
                for group, members in sorted(settings.approver_groups.items())
            },
            revocation_max_ttl_s=settings.revocation_max_ttl_s,
            revocations=tuple(settings.revocations),
            ended_revocations=tuple(sorted(set(settings.ended_revocations))),
            released_proofs=tuple(sorted(set(settings.released_proofs))),
        )


def load(
    files: Mapping[str, bytes],
    *,
    level_override: int | None = None,
    trust_domain_override: str | None = None,
) -> tuple[Source | None, list[Problem]]:
    """Parse a folder and return it with every mistake found; None when it is beyond reading.

    Policies are not judged here: see `trust.policy.lint`.

    Args:
        files: relative path ("policies/a.cedar") -> content.
        level_override: the default level, instead of what bundle.yaml says.
        trust_domain_override: the trust domain, instead of what bundle.yaml says.
    """
    problems = _unknown_files(files)
    if SETTINGS not in files:
        hint = "write one, or start with: egm policy new DIR"
        return None, [*problems, Problem(SETTINGS, 0, "the folder has no bundle.yaml", hint)]
    document = parse_yaml(SETTINGS, files[SETTINGS])
    if isinstance(document, Problem):
        return None, [*problems, document]
    overrides = {"level": level_override, "trust_domain": trust_domain_override}
    settings, wrong = _settings(document, {k: v for k, v in overrides.items() if v is not None})
    problems += wrong
    if settings is None:
        return None, problems
    texts, wrong = _texts(files)
    problems += wrong
    entities, lines, wrong = parse_entities(files.get(ENTITIES, b"[]"))
    problems += wrong
    problems += _group_problems(settings, document, files.get(DESCRIPTORS))
    schema, wrong = _schema(settings, files.get(DESCRIPTORS))
    problems += wrong
    source = Source(
        settings=settings,
        document=document,
        policies={path: text for path, text in texts.items() if path.startswith("policies/")},
        entities=_merged(entities, _implied(settings)),
        entity_lines=lines,
        descriptors=files.get(DESCRIPTORS),
        tests={path: text for path, text in texts.items() if path.startswith("tests/")},
        schema=schema,
        reference_values=files.get(REFERENCE_VALUES),
    )
    return source, problems + _reference_problems(source)


def build(
    files: Mapping[str, bytes],
    *,
    level_override: int | None = None,
    trust_domain_override: str | None = None,
) -> bytes:
    """Return the archive of a folder that has no error; warnings do not matter here.

    Raises:
        InputError: INPUT_INVALID, one line "file:line: what; what to do" per mistake.
    """
    from trust.policy.lint import lint_source  # lint reads sources, too

    source, problems = load(files, level_override=level_override, trust_domain_override=trust_domain_override)
    if source is not None:
        problems += lint_source(source)
    refuse(problems)
    if source is None:  # always with a problem
        raise AssertionError("unreadable source without a problem")
    return archive_of(source)


def archive_of(source: Source) -> bytes:
    """Return the archive of a parsed folder, whatever lint thinks of it.

    Raises:
        EvidenceError: BUNDLE_TOO_LARGE and its kin, when it breaks a bound of `trust.limits`.
    """
    content: dict[str, bytes] = {SCHEMA: source.schema.encode(), ENTITIES: source.entities_json.encode()}
    content |= {path: text.encode() for path, text in (*source.policies.items(), *source.tests.items())}
    if source.descriptors is not None:
        content[DESCRIPTORS] = source.descriptors
    if source.settings.namespace is None:
        if source.reference_values is not None:
            content[REFERENCE_VALUES] = source.reference_values
        content[MESH] = source.mesh().model_dump_json(indent=1, exclude_none=True).encode() + b"\n"
    settings = source.settings
    return write_bundle(
        settings.name, content, namespace=settings.namespace, description=settings.description
    )


def principal(text: str, trust_domain: str) -> str:
    """Return the SPIFFE ID for a workload name or SPIFFE ID.

    Raises:
        EvidenceError: IDENTITY_INVALID.
    """
    if text.startswith("spiffe://"):
        return str(SpiffeId.parse(text))
    return str(SpiffeId.of(trust_domain, "workload", text))


def _unknown_files(files: Mapping[str, bytes]) -> list[Problem]:
    """Report what does not become part of the bundle: an error where it looks as if it should."""
    problems = []
    for path in files:
        if path in {SETTINGS, ENTITIES, DESCRIPTORS, REFERENCE_VALUES}:
            continue
        folder = path.partition("/")[0]
        if folder not in {"policies", "tests"}:
            what = "is not part of a bundle and is left out"
            problems.append(
                Problem(path, 0, what, "move it elsewhere if that surprises you", Severity.WARNING)
            )
            continue
        try:
            check_path(path)
        except EvidenceError:
            ending = ".cedar" if folder == "policies" else ".yaml"
            what = f"cannot be part of a bundle: {folder}/ holds {ending} files named with A-Z a-z 0-9 . _ -"
            problems.append(Problem(path, 0, what, "rename or remove it"))
    return problems


def _reference_problems(source: Source) -> list[Problem]:
    """Report reference values that nobody could read, or that a namespace may not set."""
    if source.reference_values is None:
        return []
    if source.settings.namespace is not None:
        return [Problem(REFERENCE_VALUES, 0, "belongs to the base bundle alone", "remove it here")]
    try:
        parse_reference_values(source.reference_values)
    except EvidenceError as error:
        what = error.detail.removeprefix(f"{REFERENCE_VALUES}: ")
        return [Problem(REFERENCE_VALUES, 0, what, "write it with: egm sidecar measure")]
    return []


def _settings(
    document: Document, overrides: Mapping[str, object]
) -> tuple[BundleSettings | None, list[Problem]]:
    value = document.value
    if not isinstance(value, dict):
        return None, [document.problem((), "must be a mapping", "begin with: name: my-policies")]
    try:
        settings = BundleSettings.model_validate({**value, **overrides})
    except ValidationError as error:
        return None, [_explain(document, dict(e)) for e in error.errors(include_url=False)]
    if settings.namespace is None:
        return settings, []
    hint = "remove it here; the base bundle sets it"
    problems = [
        document.problem((key,), f"{key} belongs to the base bundle alone", hint)
        for key in _BASE_ONLY
        if key in value
    ]
    for name, service in settings.services.items():
        where = ("services", name)
        problems += [
            document.problem((*where, key), f"{key} of a service belongs to the base bundle alone", hint)
            for key in _SERVICE_BASE_ONLY
            if getattr(service, key) is not None
        ]
        if service.namespace not in (None, settings.namespace):
            what = f"service {name!r} is of namespace {service.namespace!r}, this bundle of {settings.namespace!r}"
            problems.append(
                document.problem((*where, "namespace"), what, "a bundle may only speak of its own services")
            )
    return settings, problems


def _explain(document: Document, error: Mapping[str, Any]) -> Problem:
    """Turn pydantic's words into ours, at the line they are about."""
    path = tuple(part for part in error["loc"] if part != "[key]")
    name = ".".join(str(part) for part in path)
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        model = "a service" if path[:1] == ("services",) else "bundle.yaml"
        return document.problem(
            path, f"{name}: {model} has no setting of this name", "see docs/policy.md, or remove it"
        )
    if error["type"] == "missing":
        return document.problem(path, f"{name} is missing", f"add: {path[-1]}: ...")
    return document.problem(path, f"{name}: {message}" if name else message, "")


def _texts(files: Mapping[str, bytes]) -> tuple[dict[str, str], list[Problem]]:
    texts: dict[str, str] = {}
    problems: list[Problem] = []
    for path in sorted(files):
        if not path.startswith(("policies/", "tests/")):
            continue
        try:
            texts[path] = files[path].decode("utf-8")
        except UnicodeDecodeError as error:
            line = files[path].count(b"\n", 0, error.start) + 1
            problems.append(Problem(path, line, "is not UTF-8 text", "save it as UTF-8"))
    return texts, problems


def _schema(settings: BundleSettings, descriptors: bytes | None) -> tuple[str, list[Problem]]:
    def generated(data: bytes | None) -> str:
        return generate_schema(
            data,
            grpc_services=settings.grpc_names(),
            action_groups=settings.action_groups,
            metadata_keys=settings.metadata_keys,
        )

    try:
        return generated(descriptors), []
    except EvidenceError as error:
        hint = "make it with: protoc --include_imports -o descriptors.binpb FILES, or: egm policy schema --reflect"
        what = error.detail.removeprefix(f"{DESCRIPTORS}: ")
        return generated(None), [Problem(DESCRIPTORS, 0, what, hint)]


def _group_problems(settings: BundleSettings, document: Document, descriptors: bytes | None) -> list[Problem]:
    """Find group members that do not exist: a rule on them would silently never match."""
    try:
        known = set(MethodTable.parse(descriptors).methods())
    except EvidenceError:
        return []  # reported with the schema
    known |= set(settings.grpc_names())
    known |= {name.partition("/")[0] for name in known}
    problems = []
    for group, members in settings.action_groups.items():
        if group in known:
            what = f"action group {group!r} has the name of a gRPC service"
            problems.append(document.problem(("action_groups", group), what, "choose another name"))
        for index, member in enumerate(members):
            if member not in known:
                hint = "add it to grpc_services of its service, or refresh descriptors.binpb"
                where = ("action_groups", group, index)
                problems.append(document.problem(where, f"no descriptor knows {member}", hint))
    for group, services in settings.service_groups.items():
        for index, service in enumerate(services):
            if service not in settings.services:
                where = ("service_groups", group, index)
                problems.append(
                    document.problem(where, f"there is no service {service!r}", "add it under services:")
                )
    return problems


def _implied(settings: BundleSettings) -> list[Entity]:
    """Return the entities that roles and service_groups stand for."""
    entities: list[Entity] = []
    for role, members in settings.roles.items():
        entities.append(Entity("Role", role, frozenset()))
        parents = frozenset({("Role", role)})
        entities += [Entity("Workload", principal(m, settings.trust_domain), parents) for m in members]
    for group, services in settings.service_groups.items():
        entities.append(Entity("ServiceGroup", group, frozenset()))
        entities += [Entity("Service", name, frozenset({("ServiceGroup", group)})) for name in services]
    return entities


def _merged(*groups: list[Entity]) -> tuple[Entity, ...]:
    """Return every entity once, with the parents that any mention gives it."""
    parents: dict[tuple[str, str], frozenset[tuple[str, str]]] = {}
    for entity in (entity for group in groups for entity in group):
        parents[entity.uid] = parents.get(entity.uid, frozenset()) | entity.parents
    return tuple(Entity(*uid, parents[uid]) for uid in sorted(parents))
