"""No text makes a parser of policy folders crash, hang or raise anything but its own error."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.bundles import BASE_FILES, archive_of
from tests.support.engines import descriptors
from tests.support.folders import POLICIES, SETTINGS, TESTS, folder
from trust.bundle import read_bundle
from trust.errors import EvidenceError, InputError, Reason
from trust.nesting import line_too_deep
from trust.policy.casetests import read_cases
from trust.policy.cedar_text import parse_file
from trust.policy.descriptors import MethodTable
from trust.policy.entities_text import parse_entities
from trust.policy.lint import lint
from trust.policy.problems import errors_of
from trust.policy.source import build
from trust.policy.yaml_text import parse_yaml

ENTITIES = '[{"uid": {"type": "Role", "id": "a"}, "attrs": {}, "parents": [{"type": "Role", "id": "b"}]}]'
EDITS = st.lists(
    st.tuples(
        st.integers(0, 5000),
        st.one_of(st.binary(max_size=6), st.sampled_from([b"[", b"{", b"*a", b"&a", b'"'])),
        st.integers(0, 40),
    ),
    min_size=1,
    max_size=5,
)


def mutated(data: bytes, edits: list[tuple[int, bytes, int]]) -> bytes:
    for position, insert, drop in edits:
        at = position % (len(data) + 1)
        data = data[:at] + insert + data[at + drop :]
    return data


@given(st.one_of(st.binary(max_size=300), EDITS.map(lambda e: mutated(SETTINGS.encode(), e))))
def test_bundle_yaml(data: bytes) -> None:
    """A problem with a line, or a value."""
    result = parse_yaml("bundle.yaml", data)
    assert result.file == "bundle.yaml"


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(EDITS, st.sampled_from(["bundle.yaml", "policies/shop.cedar", "tests/shop.yaml", "descriptors.binpb"]))
def test_whole_folder_is_linted_or_built_never_crashed_on(
    edits: list[tuple[int, bytes, int]], path: str
) -> None:
    """Whatever lint passes is built, and what is built is read back."""
    files = folder()
    files[path] = mutated(files[path], edits)
    try:
        archive = build(files)
    except InputError as error:
        assert errors_of(lint(files)), error
        return
    assert not errors_of(lint(files))
    read_bundle(archive, role="targets")


@given(
    st.one_of(
        st.text(max_size=200), EDITS.map(lambda e: mutated(TESTS.encode(), e).decode("utf-8", "replace"))
    )
)
def test_case_tables(text: str) -> None:
    """Cases, or problems with lines inside the file."""
    _, problems = read_cases({"tests/x.yaml": text})
    assert all(1 <= p.line <= text.count("\n") + 2 for p in problems), problems


@given(st.one_of(st.binary(max_size=200), EDITS.map(lambda e: mutated(ENTITIES.encode(), e))))
def test_entities(data: bytes) -> None:
    """Entities whose every name is text that can be encoded, or problems."""
    entities, lines, problems = parse_entities(data)
    assert problems or len(entities) == len(lines)


@given(
    st.one_of(
        st.text(max_size=200), EDITS.map(lambda e: mutated(POLICIES.encode(), e).decode("utf-8", "replace"))
    )
)
def test_policies(text: str) -> None:
    """Every line reported is a line of the file."""
    statements, problems = parse_file("policies/x.cedar", text)
    last = text.count("\n") + 1
    assert all(1 <= line <= last for line in [*(s.line for s in statements), *(p.line for p in problems)])


@given(st.one_of(st.binary(max_size=200), EDITS.map(lambda e: mutated(descriptors(), e))))
def test_descriptors(data: bytes) -> None:
    """A table of methods, or the reason of a malformed bundle."""
    try:
        table = MethodTable.parse(data)
    except EvidenceError:
        return
    assert list(table.methods()) == sorted(table.methods())


def nested(opening: str, closing: str = "", depth: int = 5000) -> str:
    return f"permit(principal, action, resource) when {{ {opening * depth}1{closing * depth} }};"


@pytest.mark.parametrize(
    "text",
    [
        nested("(", ")"),
        nested("[", "]"),
        nested("{a:", "}"),
        nested("context.contains(", ")"),
        nested("if true then ", " else 1"),
        nested("if true then 1 else "),
        nested("("),
        nested("", ")"),
        nested("!"),
        nested("-"),
        nested("1 + "),
        nested("true && "),
        nested("", '["a"]'),
        nested("", ".a"),
    ],
    ids=range(14),
)
def test_deep_nesting_is_a_problem_not_a_crash(text: str) -> None:
    """The native parser overflows its stack at some hundred levels and takes the process with it."""
    _, problems = parse_file("policies/x.cedar", f"\n{text}")
    assert problems
    assert problems[0].line == 2
    with pytest.raises(InputError):
        build(folder(policies=text))


@pytest.mark.parametrize(("opening", "closing"), [("{a:", "}"), ("Set<", ">")])
def test_archive_with_a_deeply_nested_schema_or_policy_is_refused(opening: str, closing: str) -> None:
    """Nobody needs to have signed it to crash a reviewer's terminal or the control plane."""
    schema = f"type T = {opening * 2000}Long{closing * 2000};".encode()
    for files in ({"schema.cedarschema": schema}, {"policies/x.cedar": nested("(", ")").encode()}):
        with pytest.raises(EvidenceError) as caught:
            read_bundle(archive_of({**BASE_FILES, **files}), role="targets")
        assert caught.value.reason is Reason.BUNDLE_MALFORMED
        assert "too deeply" in caught.value.detail


def test_brackets_in_strings_comments_and_many_policies_do_not_count() -> None:
    """A large flat file is not a deep one."""
    one = '// (((((\npermit(principal, action, resource) when { context.x like "*(((*" };\n'
    assert line_too_deep(one * 500) is None
    values = ", ".join(f"if true then {n} else {n}" for n in range(500))
    assert line_too_deep(f"permit(principal, action, resource) when {{ [{values}].contains(1) }};") is None
    assert line_too_deep("permit(principal, action, resource) when { 1 < 2 };" * 200) is None
