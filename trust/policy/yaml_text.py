"""Strict YAML with line numbers: the YAML 1.2 core schema, so that `NO` is text and not false.

Refused: anchors and aliases (a small file could expand without bound), explicit tags,
repeated keys, several documents, keys that are not text. Times are text, too.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import yaml
from yaml.events import AliasEvent, NodeEvent

from trust.policy.problems import Problem

Path = tuple[str | int, ...]
MAX_YAML_DEPTH: Final = 32

_NULL = re.compile(r"(null|Null|NULL|~|)\Z")
_BOOL = re.compile(r"(true|True|TRUE|false|False|FALSE)\Z")
_INT = re.compile(r"[-+]?[0-9]{1,40}\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,4})?\Z")


@dataclass(frozen=True, slots=True)
class Document:
    """The value of one YAML file, and the line (1-based) of every key and item by its path."""

    file: str
    value: object
    lines: dict[Path, int] = field(default_factory=dict)

    def line(self, path: Iterable[object]) -> int:
        """Return the line of `path`, or of the nearest thing around it that the file has."""
        parts = tuple(part for part in path if isinstance(part, str | int))
        while parts and parts not in self.lines:
            parts = parts[:-1]
        return self.lines.get(parts, 1)

    def problem(self, path: Iterable[object], message: str, hint: str) -> Problem:
        """Return a problem at `path`."""
        return Problem(self.file, self.line(path), message, hint)


def parse_yaml(file: str, data: bytes) -> Document | Problem:
    """Parse one document; total over arbitrary bytes."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return Problem(file, data.count(b"\n", 0, error.start) + 1, "is not UTF-8 text", "save it as UTF-8")
    lines: dict[Path, int] = {}
    try:
        if refused := _refused_event(file, text):
            return refused
        node = yaml.compose(text, Loader=yaml.BaseLoader)
        if node is None:
            return Document(file, None)
        return Document(file, _convert(node, (), lines), lines)
    except _NotPlainError as error:
        return Problem(file, error.line, error.message, error.hint)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = error.problem or "is not YAML"
        return Problem(
            file, mark.line + 1 if mark else 1, f"YAML: {what}", "check indentation, quotes and brackets"
        )
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        what = str(error).splitlines()[0] if str(error) else "nested too deeply"
        return Problem(file, 1, f"YAML: {what[:200]}", "write plain text, lists and mappings")


class _NotPlainError(Exception):
    def __init__(self, line: int, message: str, hint: str) -> None:
        super().__init__(message)
        self.line, self.message, self.hint = line, message, hint


def _refused_event(file: str, text: str) -> Problem | None:
    """Find what plain data has no use for, before anything is expanded."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.BaseLoader):
        line = _line(event)
        if isinstance(event, AliasEvent) or (isinstance(event, NodeEvent) and event.anchor):
            return Problem(file, line, "YAML anchors and aliases are not accepted", "write the value out")
        tag = getattr(event, "tag", None)
        if tag not in {None, "!"}:
            return Problem(file, line, f"the YAML tag {tag!r:.60} is not accepted", "remove it")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_YAML_DEPTH:
            return Problem(file, line, f"nested deeper than {MAX_YAML_DEPTH} levels", "flatten it")
    return None


def _line(thing: yaml.Node | yaml.Event) -> int:
    """Return the 1-based line of a node or event."""
    mark = thing.start_mark
    return mark.line + 1 if mark else 1


def _convert(node: yaml.Node, path: Path, lines: dict[Path, int]) -> object:
    lines.setdefault(path, _line(node))
    if isinstance(node, yaml.MappingNode):
        result: dict[str, object] = {}
        for key_node, value_node in node.value:
            line = _line(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                raise _NotPlainError(line, "a key must be text", "write a plain name before the colon")
            key = str(key_node.value)
            if key in result:
                raise _NotPlainError(line, f"{key!r:.60} appears twice", "keep one of the two")
            lines[(*path, key)] = line
            result[key] = _convert(value_node, (*path, key), lines)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_convert(item, (*path, index), lines) for index, item in enumerate(node.value)]
    return _scalar(str(node.value), plain=getattr(node, "style", None) is None)


def _scalar(text: str, *, plain: bool) -> object:
    if not plain:
        return text
    if _NULL.match(text):
        return None
    if _BOOL.match(text):
        return text.lower() == "true"
    if _INT.match(text):
        return int(text)
    return float(text) if _FLOAT.match(text) else text
