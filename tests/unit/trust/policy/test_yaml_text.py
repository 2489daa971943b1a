"""YAML is read as plain data with line numbers, and nothing else."""

import pytest

from trust.policy.problems import Problem
from trust.policy.yaml_text import MAX_YAML_DEPTH, Document, parse_yaml


def value(text: str) -> object:
    document = parse_yaml("x.yaml", text.encode())
    assert isinstance(document, Document), document
    return document.value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("~", None),
        ("", None),
        ("12", 12),
        ("-1.5e3", -1500.0),
        ("012", 12),
        ("0x1f", "0x1f"),
        ("1_000", "1_000"),
        ("2026-01-05", "2026-01-05"),
        ("12:30", "12:30"),
        ("'12'", "12"),
        ("[a, {b: c}]", ["a", {"b": "c"}]),
    ],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(text: str, expected: object) -> None:
    """No Norway problem, no sexagesimals, no dates."""
    assert value(text) == expected


def test_every_key_and_item_has_its_line() -> None:
    """Paths that are not there fall back to what is around them."""
    document = parse_yaml("x.yaml", b"a:\n  - b: 1\n    c: 2\nd: {e: 3}\n")
    assert isinstance(document, Document)
    assert [document.line(p) for p in ((), ("a",), ("a", 0, "c"), ("a", 0, "zz"), ("d", "e"), ("q",))] == [
        1,
        1,
        3,
        2,
        4,
        1,
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: &x 2", 2),
        ("a: 1\nb: *x", 2),
        ("a: !!python/name:os.system x", 1),
        ("a: !!binary aaa", 1),
        ("a: 1\na: 2", 2),
        ("a: 1\n---\nb: 2", 2),
        ("? [a]\n: b", 1),
        ("a: [", 1),
        ("a: 'x", 1),
        ("<<: {a: 1}\n\tb: 2", 2),
        ("[" * (MAX_YAML_DEPTH + 1) + "]" * (MAX_YAML_DEPTH + 1), 1),
        ("[" * 100_000, 1),
        ("a: \x00", 1),
    ],
)
def test_what_plain_data_has_no_use_for_is_refused(text: str, line: int) -> None:
    """Aliases could expand without bound, tags could name types, repeated keys hide one another."""
    problem = parse_yaml("x.yaml", text.encode())
    assert isinstance(problem, Problem)
    assert problem.line == line
    assert problem.hint
