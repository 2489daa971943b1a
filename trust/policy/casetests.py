"""Table tests: what the authors of a bundle promise about it, call by call.

- name: alice may pay up to 100
  caller: alice                     # workload name or SPIFFE ID
  service: payments
  method: shop.v1.Payments/Pay
  request: {amount: 100}            # proto3 JSON of the request message
  metadata: {x-tenant: blue}        # signed metadata_keys only
  authn: mtls                       # mtls (default), jwt-svid, unix-socket, loopback
  time: "2026-01-05T12:00:00Z"      # default: DEFAULT_TIME
  expect: allow                     # or deny
  policy: buyers-may-pay            # optional: id, or list of ids, among those that determined it
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final, Literal, cast

from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from trust import limits
from trust.bundle import Bundle
from trust.errors import EvidenceError, InputError, Reason
from trust.policy.descriptors import MethodTable
from trust.policy.engine import Engine
from trust.policy.problems import Problem, refuse
from trust.policy.source import principal
from trust.policy.types import Authn, Call, Verdict
from trust.policy.yaml_text import Document, parse_yaml

DEFAULT_TIME: Final = "2026-01-05T12:00:00Z"  # a Monday; tests must not depend on when they run
NODE: Final = "test"


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


class Case(BaseModel):
    """One row of a test table, as written."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(min_length=1)
    caller: str
    service: str
    method: str
    request: dict[str, object] | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    authn: Literal["mtls", "jwt-svid", "unix-socket", "loopback"] = "mtls"
    time: str = DEFAULT_TIME
    expect: Literal["allow", "deny"]
    policy: Annotated[list[str], BeforeValidator(_as_list)] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ReadCase:
    """A case and where it stands."""

    file: str
    line: int
    case: Case
    request_line: int


@dataclass(frozen=True, slots=True)
class CaseResult:
    """What became of one case. `message` says why it failed; empty when it passed."""

    file: str
    line: int
    name: str
    passed: bool
    expected: str  # "allow" or "deny"
    verdict: Verdict | None  # None: it could not be asked
    message: str

    def to_dict(self) -> dict[str, object]:
        """Return the result as JSON values."""
        verdict = self.verdict
        return {
            "file": self.file,
            "line": self.line,
            "name": self.name,
            "passed": self.passed,
            "expected": self.expected,
            "allowed": None if verdict is None else verdict.allowed,
            "reason": None if verdict is None else verdict.reason.value,
            "policies": [] if verdict is None else list(verdict.policies),
            "message": self.message,
        }


def read_cases(tests: Mapping[str, str]) -> tuple[list[ReadCase], list[Problem]]:
    """Return the cases of every file, and every mistake in them; total over arbitrary text."""
    cases: list[ReadCase] = []
    problems: list[Problem] = []
    if (
        sum(map(len, tests.values())) > limits.MAX_TESTS_CHARS
    ):  # YAML is slow to read: some 10 s for a million
        what = f"the tests have more than {limits.MAX_TESTS_CHARS} characters in all"
        return [], [Problem(min(tests), 1, what, "split the bundle by namespace, or test fewer cases")]
    for file in sorted(tests):
        document = parse_yaml(file, tests[file].encode("utf-8", "surrogatepass"))
        if isinstance(document, Problem):
            problems.append(document)
            continue
        some, wrong = _read_document(document)
        cases += some
        problems += wrong
    return cases, problems


def run_tests(bundle: Bundle, base: Bundle | None = None) -> list[CaseResult]:
    """Decide every case of `bundle` and compare.

    Args:
        bundle: base or namespace bundle.
        base: the base bundle in force; needed for a namespace bundle, which is always decided together with it.

    Raises:
        InputError: INPUT_INVALID, when a tests file is malformed (one line per mistake) or `base` is missing.
        EvidenceError: when the engine refuses the bundle.
    """
    cases, problems = read_cases(bundle.tests)
    refuse(problems)
    engine = engine_of(bundle, base)
    table = tables(bundle, base)
    return [_run(read, engine, table, bundle.manifest.namespace) for read in cases]


def engine_of(bundle: Bundle, base: Bundle | None) -> Engine:
    """Compile a bundle as a sidecar would: the base alone, or a namespace together with the base.

    Raises:
        InputError: INPUT_INVALID, when a namespace bundle comes without the base.
        EvidenceError: when the engine refuses it.
    """
    namespace = bundle.manifest.namespace
    if namespace is None:
        return Engine.build(bundle, {})
    if base is None or base.manifest.namespace is not None:
        raise InputError(
            Reason.INPUT_INVALID,
            f"namespace {namespace!r} is decided together with the base bundle; name it with --base",
        )
    return Engine.build(base, {namespace: bundle})


def tables(*bundles: Bundle | None) -> MethodTable:
    """Return the methods that any of `bundles` describes; the first one decides."""
    table = MethodTable.parse(None)
    for bundle in reversed(bundles):
        if bundle is not None:
            table = MethodTable.parse(bundle.descriptors).with_fallback(table)
    return table


def to_message(table: MethodTable, method: str, request: Mapping[str, object] | None) -> Message | None:
    """Return the request message of a case; None when the call opens without one.

    Raises:
        InputError: INPUT_INVALID, when `request` does not fit the method.
    """
    info = table.get(method)
    if info is None or not info.has_request:
        if request is None:
            return None
        why = (
            "no descriptor knows the method"
            if info is None
            else "the client streams, so no message is there yet"
        )
        raise InputError(Reason.INPUT_INVALID, f"{method} has no request that policies could read: {why}")
    message = info.input_class()
    try:
        pool = cast(DescriptorPool, message.DESCRIPTOR.file.pool)  # so that Any resolves within the bundle
        json_format.ParseDict(dict(request or {}), message, descriptor_pool=pool)
    except (json_format.ParseError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(Reason.INPUT_INVALID, f"not a {message.DESCRIPTOR.full_name}: {error}") from None
    return message


def parse_time(text: str) -> int:
    """Return Unix milliseconds of an RFC 3339 time with an offset; ValueError otherwise."""
    when = datetime.fromisoformat(text)
    if when.tzinfo is None:
        raise ValueError("needs an offset, for example 2026-01-05T12:00:00Z")
    return int(when.timestamp() * 1000)


_CASES: Final = TypeAdapter(list[Case])


def _read_document(document: Document) -> tuple[list[ReadCase], list[Problem]]:
    value = [] if document.value is None else document.value
    if not isinstance(value, list):
        return [], [document.problem((), "must be a list of cases", "begin each case with: - name: ...")]
    try:
        parsed = _CASES.validate_python(value)
    except ValidationError as error:
        return [], [
            _explain(document, e["loc"], e["type"], e["msg"]) for e in error.errors(include_url=False)
        ]
    cases: list[ReadCase] = []
    problems: list[Problem] = []
    for index, case in enumerate(parsed):
        try:
            parse_time(case.time)
        except (ValueError, OverflowError, OSError) as error:
            problems.append(document.problem((index, "time"), f"time: {error}", "write an RFC 3339 time"))
        try:
            principal(case.caller, "mesh.local")
        except (EvidenceError, UnicodeError) as error:
            what = error.detail if isinstance(error, EvidenceError) else "not a name"
            problems.append(document.problem((index, "caller"), f"caller: {what}", "or write its SPIFFE ID"))
        line = document.line((index,))
        cases.append(ReadCase(document.file, line, case, document.line((index, "request"))))
    return cases, problems


def _explain(document: Document, path: Iterable[object], kind: str, message: str) -> Problem:
    parts = list(path)
    name = ".".join(str(part) for part in parts[1:]) or "the case"
    if kind == "extra_forbidden":
        fields = ", ".join(Case.model_fields)
        return document.problem(parts, f"{name}: a case has no such field", f"use {fields}")
    if kind == "missing":
        return document.problem(parts, f"{name} is missing", f"add: {parts[-1]}: ...")
    return document.problem(parts, f"{name}: {message}", "")


def _run(read: ReadCase, engine: Engine, table: MethodTable, namespace: str | None) -> CaseResult:
    case = read.case

    def failed(message: str, verdict: Verdict | None = None, line: int = read.line) -> CaseResult:
        return CaseResult(read.file, line, case.name, False, case.expect, verdict, message)

    try:
        message = to_message(table, case.method, case.request)
    except InputError as error:
        return failed(f"request: {error.detail}", line=read.request_line)
    unsigned = sorted(set(case.metadata) - set(engine.mesh.metadata_keys))
    if unsigned:
        return failed(f"metadata: {unsigned[0]!r} is not among the metadata_keys of the base bundle")
    verdict = engine.decide(
        Call(
            principal=principal(case.caller, engine.mesh.trust_domain),
            method=case.method,
            service=case.service,
            authn=Authn(case.authn),
            node=NODE,
            level=engine.mesh.level_of(case.service),
            request=None if message is None else message.SerializeToString(deterministic=True),
            metadata=dict(case.metadata),
        ),
        now_ms=parse_time(case.time),
    )
    if verdict.allowed != (case.expect == "allow"):
        by = f" by {', '.join(verdict.policies)}" if verdict.policies else ""
        detail = f" ({verdict.detail})" if verdict.detail else ""
        return failed(f"expected {case.expect}, got {verdict.reason}{by}{detail}", verdict)
    if verdict.errors:
        return failed(
            f"denied only because a policy failed to evaluate: {', '.join(verdict.errors)}", verdict
        )
    wanted = {_reported(policy, namespace, verdict) for policy in case.policy}
    if missing := sorted(wanted - set(verdict.policies)):
        by = ", ".join(verdict.policies) or "no policy"
        return failed(f"expected policy {', '.join(missing)} to determine it, but it was {by}", verdict)
    return CaseResult(read.file, read.line, case.name, True, case.expect, verdict, "")


def _reported(policy: str, namespace: str | None, verdict: Verdict) -> str:
    """Return the id as the engine reports it: a namespace's own ids carry its name."""
    own = f"{namespace}:{policy}"
    return own if namespace is not None and own in verdict.policies else policy
