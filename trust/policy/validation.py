"""Whether policies fit the schema, each misfit with its line and what to do about it."""

import difflib
import re
from collections.abc import Iterable
from typing import Final

import cedarpy

from trust import limits
from trust.policy.cedar_text import Statement
from trust.policy.memberships import too_many_in_schema
from trust.policy.problems import Problem, Severity

ACTION: Final = re.compile(r'action "([^"]+)"')  # in a generated schema
ATTRIBUTE: Final = re.compile(r'"([A-Za-z_][A-Za-z0-9_.-]*)"\??:')

_POSITION: Final = re.compile(r"policy(\d+)\Z")
_TICKED: Final = re.compile(r"`([^`]+)`")
_NO_ACTION: Final = "unable to find an applicable action given the policy scope constraints"


def schema_problems(statements: list[Statement], schema: str) -> list[Problem]:
    """Validate against the schema; one bad policy does not hide another."""
    if not statements:
        return []
    if too_many_in_schema(schema):
        what = f"its action groups in groups make over {limits.MAX_ACTION_MEMBERSHIPS} memberships"
        return [Problem("schema.cedarschema", 0, what, "nest them less deeply")]
    try:
        parsed = cedarpy.Schema.from_str(schema)
    except ValueError as error:
        return [Problem("schema.cedarschema", 0, f"is not a Cedar schema: {error}", "rebuild the bundle")]
    result = cedarpy.validate_policies("\n".join(s.text for s in statements), parsed, release_gil=True)
    found: dict[int, list[str]] = {}
    for invalid in result.errors:
        match = _POSITION.match(invalid.policy_id)
        message = invalid.error.removeprefix(f"for policy `{invalid.policy_id}`, ")
        found.setdefault(int(match.group(1)) if match else 0, []).append(message)
    problems: list[Problem] = []
    for index, messages in sorted(found.items()):
        specific = [message for message in messages if message != _NO_ACTION] or messages
        problems += [_explain(statements[index], message, schema) for message in specific]
    if not problems and not result.validation_passed:
        problems.append(Problem(statements[0].file, 0, "the policies do not fit the schema", "simplify them"))
    return problems


def _explain(statement: Statement, message: str, schema: str) -> Problem:
    """Say where a validation error lies and what to do about it."""
    ticked = _TICKED.search(message)
    name = ticked.group(1) if ticked else ""
    last = re.split(r'[.\["\]]+', name.rstrip('"]'))[-1] if name else ""
    if message.startswith("unrecognized action"):
        action = name.removeprefix('Action::"').removesuffix('"')
        hint = near(
            action,
            ACTION.findall(schema),
            f"add {action} to grpc_services of its service in bundle.yaml, or refresh descriptors.binpb",
        )
        return at(statement, f"no method or group is called {action!r}", hint, f'"{action}"')
    if message == _NO_ACTION:
        hint = "the scope must leave at least one method; principals are Workload, resources Service"
        return at(statement, "the policy can never apply to any call", hint, "action")
    if message.startswith("attribute `request`"):
        hint = "not every method in scope has a readable request: name the methods, or test `context has request &&`"
        return at(statement, message, hint, "request")
    if "optional attribute" in message:
        return at(statement, message, f"test it first: ... has {last} && ...", last)
    if name.startswith("metadata."):
        hint = f"add {last} to metadata_keys in bundle.yaml"
        return at(statement, message, hint, last)
    if message.startswith("attribute"):
        return at(
            statement, message, near(last, ATTRIBUTE.findall(schema), "see egm policy schema FOLDER"), last
        )
    return at(statement, message, "see egm policy schema FOLDER", last)


def near(name: str, known: Iterable[str], otherwise: str) -> str:
    """Return a hint: the known name closest to `name`, else what to do instead."""
    close = difflib.get_close_matches(name, sorted(set(known)), n=1)
    return f"did you mean {close[0]!r}? otherwise {otherwise}" if close else otherwise


def at(
    statement: Statement, what: str, hint: str, needle: str = "", severity: Severity = Severity.ERROR
) -> Problem:
    """Return a problem of `statement`, at the line where `needle` stands in it."""
    needles = (f".{needle}", f'["{needle}"]', needle)  # an attribute, where there is one of that name
    lines = [statement.line_of(n) for n in needles if needle and n in statement.text]
    line = lines[0] if lines else statement.line
    return Problem(statement.file, line, what, hint, severity)
