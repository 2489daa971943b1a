"""Whether a Cedar text is so deep that parsing it would end the process.

Measured with cedarpy 4.12.2 on an 8 MiB stack: between 300 and 1,000 nested brackets overflow the stack of the
native parser, and between 1,000 and 3,000 chained operators (`a && b && ...`, `a.b.c...`) or `if`s that of its
syntax tree. That kills the process instead of raising. So depth is counted first, with the lexical rules of
Cedar's grammar for strings and comments. Counting too much is harmless: Cedar's own tree allows 100 levels.
"""

import re
from collections.abc import Iterator
from typing import Final

from trust import limits

_BARE: Final = re.compile(r"[()\[\]{}<>,;.+*-]|&&|\|\||\bif\b")
# Possessive (`*+`), and an unclosed string is a token too: a text of quotes and backslashes, tried anew from each
# quote, would take the square of its length, and backtracking over a long string gigabytes.
_TOKEN: Final = re.compile(rf'"(?:\\.|[^"\\]++)*+(?P<closed>")?|//[^\n\r]*+|{_BARE.pattern}')
_FIRST: Final = ("(", "[", "{", "<", "if", ".", "+", "*", "-", "&&", "||")
_CHAINING: Final = frozenset({"if", ".", "+", "*", "-", "&&", "||"})
_SEPARATING: Final = frozenset({",", ";"})


def _tokens(text: str) -> Iterator[re.Match[str]]:
    """Yield what counts, and strings and comments; behind a quote that is never closed, everything counts."""
    for match in _TOKEN.finditer(text):
        if text[match.start()] == '"' and match["closed"] is None:
            yield from _BARE.finditer(text, match.start())
            return
        yield match


def line_too_deep(text: str, *, schema: bool = False) -> int | None:
    """Return the line (1-based) where `text` is too deep; None when nowhere.

    The bounds are limits.MAX_CEDAR_NESTING for brackets and limits.MAX_CEDAR_CHAIN for operators.

    Args:
        text: Cedar policies, or a Cedar schema; valid or not.
        schema: in a schema `<` is a bracket, in a policy it compares.
    """
    if sum(map(text.count, _FIRST)) <= limits.MAX_CEDAR_NESTING:
        return None
    opening = frozenset("([{<" if schema else "([{")
    closing = frozenset(")]}>" if schema else ")]}")
    chains = [0]  # per open bracket: operators since the last separator; a closed bracket counts as one
    chained = 0
    for match in _tokens(text):
        found = match.group()
        if found in opening:
            chains.append(0)
        elif found in _CHAINING:
            chains[-1] += 1
            chained += 1
        elif found in _SEPARATING:
            chained -= chains[-1]
            chains[-1] = 0
        elif found in closing and len(chains) > 1:
            chained -= chains.pop()
            chains[-1] += 1
            chained += 1
        if len(chains) > limits.MAX_CEDAR_NESTING + 1 or chained > limits.MAX_CEDAR_CHAIN:
            return text.count("\n", 0, match.start()) + 1
    return None
