"""Which line of a Cedar file each policy begins on, and on which a parse error lies.

cedarpy parses text but names no positions, and numbers policies by their order
(`policy0`, `policy1`, ...). Cutting the text into statements first gives both back.
"""

import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

import cedarpy
from cedarpy import pst

from trust.nesting import line_too_deep
from trust.policy.problems import Problem

_TOKEN = re.compile(
    # possessive, and an unclosed string is one token: linear in time, constant in memory
    r"""(?P<skip>\s++|//[^\n\r]*+)|"(?:\\.|[^"\\]++)*+"?|[A-Za-z_][A-Za-z0-9_]*|[0-9]+|::|&&|\|\||[=!<>]=|.""",
    re.DOTALL,
)
_END_OF_INPUT = "unexpected end of input"
_QUOTED = re.compile(r"`([^`]+)`|: (\S+)$")
_NAME_HINT = 'give it a name on the line above it, for example @id("buyers-may-pay")'


@dataclass(frozen=True, slots=True)
class Statement:
    """One policy or template, parsed, with where it stands. `line` is that of its first token."""

    file: str
    line: int
    text: str  # from its first token to its semicolon
    policy: pst.Template
    is_template: bool

    @property
    def id(self) -> str:
        """The value of `@id`; empty when there is none."""
        return self.policy.annotations.get("id", "")

    def line_of(self, needle: str) -> int:
        """Return the line on which `needle` first occurs in the statement, else its first line."""
        at = self.text.find(needle)
        return self.line if at < 0 else self.line + self.text.count("\n", 0, at)


def parse_file(file: str, text: str) -> tuple[list[Statement], list[Problem]]:
    """Return the statements of `text` that parse, and a problem for each that does not."""
    statements: list[Statement] = []
    problems: list[Problem] = []
    for start, tokens in _split(text):
        line = text.count("\n", 0, start) + 1
        end = tokens[-1][1]
        body = text[start:end]
        if (deep := line_too_deep(body)) is not None:
            what = "nested or chained too deeply to be parsed safely"
            problems.append(Problem(file, line + deep - 1, what, "split the policy into several"))
            continue
        try:
            parsed = cedarpy.policies_to_pst(body)
        except (ValueError, RecursionError) as error:
            problems.append(_parse_problem(file, text, tokens, str(error)))
            continue
        found = [(policy, False) for policy in parsed.static_policies.values()]
        found += [(policy, True) for policy in parsed.templates.values()]
        statements += [Statement(file, line, body, policy, template) for policy, template in found]
    return statements, problems


def parse_files(policies: Mapping[str, str]) -> tuple[list[Statement], list[Problem]]:
    """Return the statements and problems of several files, in order of file name and line."""
    statements: list[Statement] = []
    problems: list[Problem] = []
    for file in sorted(policies):
        some, wrong = parse_file(file, policies[file])
        statements += some
        problems += wrong
    return statements, problems


def _split(text: str) -> list[tuple[int, list[tuple[int, int]]]]:
    """Return, for each statement, its start and the (start, end) of its tokens."""
    result: list[tuple[int, list[tuple[int, int]]]] = []
    tokens: list[tuple[int, int]] = []
    for match in _TOKEN.finditer(text):
        if match.lastgroup == "skip":
            continue
        tokens.append(match.span())
        if match.group() == ";":
            result.append((tokens[0][0], tokens))
            tokens = []
    if tokens:
        result.append((tokens[0][0], tokens))
    return result


def _parse_problem(file: str, text: str, tokens: list[tuple[int, int]], message: str) -> Problem:
    """Return where the statement stops being Cedar: at its first token that no policy could continue with."""
    start = tokens[0][0]
    at = start
    if message == _END_OF_INPUT:
        at = tokens[-1][0]
        message = "the policy is not finished"
        hint = "end it with ';' and close every bracket and quote"
    elif message.startswith(("unexpected", "invalid token")):
        good = bisect_right(range(1, len(tokens)), 0, key=lambda k: _broken(text[start : tokens[k - 1][1]]))
        named = _QUOTED.search(message)
        while good and named and text[slice(*tokens[good])] != named.group(1):
            good -= 1  # the parser complains late: go back to the token that it names
        at = tokens[good][0]
        found = text[at : tokens[good][1]]
        message = f"Cedar syntax error: {message}"
        hint = f"look at {found[:40]!r} and what is before it"
        if found == "\ufeff":
            hint = "save the file as UTF-8 without a byte order mark"
    else:
        quoted = _QUOTED.search(message)
        name = (quoted.group(1) or quoted.group(2)) if quoted else ""
        offset = text.find(name, start, tokens[-1][1]) if name else -1
        at = max(offset, start)
        hint = "see https://docs.cedarpolicy.com/policies/syntax-grammar.html"
    return Problem(file, text.count("\n", 0, at) + 1, message, hint)


def _broken(prefix: str) -> int:
    """1 when no continuation of `prefix` is a policy, 0 when it merely is not finished."""
    try:
        cedarpy.PolicySet.from_str(prefix)
    except ValueError as error:
        return int(str(error) != _END_OF_INPUT and str(error).startswith(("unexpected", "invalid token")))
    return 0


def missing_id(statement: Statement) -> Problem:
    """Return the problem of a policy without `@id`: decisions could not name it."""
    return Problem(statement.file, statement.line, "the policy has no @id", _NAME_HINT)
