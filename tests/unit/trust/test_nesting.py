"""Text that was made to keep a reader busy is read in one pass; with the square of its length these tests never end."""

import pytest

from tests.support.bundles import BASE_FILES, archive_of
from trust import limits
from trust.bundle import read_bundle
from trust.errors import EvidenceError
from trust.nesting import line_too_deep
from trust.policy import cedar_text, rules

OPERATORS = "+" * (limits.MAX_CEDAR_NESTING + 1)
QUOTES = '"' + '\\"' * 1_000_000  # an unclosed string that could begin anew at each of its quotes


@pytest.mark.parametrize("end", ["", "\\", "\\\n", "\\\n;"])
def test_a_million_escaped_quotes_in_an_unclosed_string_are_read_once(end: str) -> None:
    """The depth counter, the splitter and the linter each see them in every bundle that anybody proposes."""
    text = OPERATORS + QUOTES + end
    assert line_too_deep(text) is None
    assert line_too_deep(text, schema=True) is None
    assert rules.split(text, "policies/x.cedar")
    assert cedar_text._split(text)


def test_a_bundle_with_such_a_text_is_refused_or_read_and_never_hangs() -> None:
    """This is what a proposal by one operator could do to the control plane, and so to every lease."""
    bundle = read_bundle(
        archive_of({**BASE_FILES, "policies/x.cedar": (OPERATORS + QUOTES).encode()}), role="targets"
    )
    statements, problems = cedar_text.parse_files({"policies/x.cedar": '"' + '\\"' * 20_000})
    assert bundle.policies and problems and not statements


def test_brackets_behind_an_unclosed_quote_still_count() -> None:
    """A quote that Cedar does not take for the start of a string must not hide depth from the counter."""
    deep = "(" * 10_000
    for text in ('"' + deep, '"a\\' + "\n" + deep, '// "\n' + deep, '"a" ' + deep):
        assert line_too_deep(text) is not None
    assert line_too_deep('"' + deep + '"') is None
    assert line_too_deep("// " + deep) is None


def test_the_native_parser_survives_unclosed_strings_around_deep_brackets() -> None:
    """Whatever the counter lets through, Cedar answers with an error."""
    for text in ('permit(principal,action,resource) when { "' + "(" * 400 + "\\\n };", '"' + "[" * 400):
        if line_too_deep(text) is None:
            with pytest.raises(EvidenceError):
                rules._templates(rules.split(text, "x"))
