"""A lineage tree as text, Graphviz DOT and Mermaid. Every text is escaped: names are chosen by callers."""

import re
from typing import Final

from trust.execution import id_text
from trust.lineage import Hop, Mark, Tree, facts, short_names, standing, title

_MERMAID_PLAIN = re.compile(r"[^A-Za-z0-9 ._/:,()→-]")
_REFUSED: Final = "#b3261e"
_DOUBTFUL: Final = "#b06000"
_MAX_STEM: Final = 40  # levels that are indented


def to_text(tree: Tree) -> str:
    """Return the tree for a terminal, two lines per hop."""
    names = short_names(tree)
    last = _last_children(tree)
    lines: list[str] = []
    open_levels: list[bool] = []  # per depth: whether more siblings follow
    for hop, is_last in zip(tree.hops, last, strict=True):
        del open_levels[hop.depth :]
        shown = open_levels[1:_MAX_STEM]
        stem = "".join("│  " if more else "   " for more in shown)
        if hop.depth > _MAX_STEM:  # a chain of thousands would otherwise be mostly spaces
            stem += f"… depth {hop.depth} "
        branch = "" if hop.depth == 0 else "└─ " if is_last else "├─ "
        open_levels.append(not is_last)
        lines.append(f"{stem}{branch}{title(hop, names)}  {facts(hop)}  [{standing(hop)}]")
        under = "" if hop.depth == 0 else "   " if is_last else "│  "
        lines.append(f"{stem}{under}   {id_text(hop.execution_id)}  {_where(hop)}")
    if tree.truncated:
        lines.append("… and more: the tree is larger than one answer may be")
    return "\n".join(lines)


def to_dot(tree: Tree) -> str:
    """Return the tree for Graphviz (`dot -Tsvg`)."""
    names = short_names(tree)
    lines = ["digraph lineage {", "  rankdir=LR;", '  node [shape=box, fontname="sans-serif"];']
    for hop in tree.hops:
        label = "\n".join((title(hop, names), facts(hop), standing(hop)))
        lines.append(f"  {_dot(id_text(hop.execution_id))} [label={_dot(label)}{_dot_style(hop)}];")
    for hop in tree.hops:
        if hop.parent_id is not None:
            style = "" if hop.mark is Mark.VERIFIED else f" [style=dashed, label={_dot(hop.mark.value)}]"
            lines.append(f"  {_dot(id_text(hop.parent_id))} -> {_dot(id_text(hop.execution_id))}{style};")
    return "\n".join([*lines, "}"])


def to_mermaid(tree: Tree) -> str:
    """Return the tree as a Mermaid flowchart."""
    names = short_names(tree)
    number = {hop.execution_id: f"n{index}" for index, hop in enumerate(tree.hops)}
    lines = ["flowchart LR"]
    for hop in tree.hops:
        label = "<br/>".join(_mermaid(part) for part in (title(hop, names), facts(hop), standing(hop)))
        lines.append(f'  {number[hop.execution_id]}["{label}"]')
        if colour := _colour(hop):
            lines.append(f"  style {number[hop.execution_id]} stroke:{colour}")
    for hop in tree.hops:
        if hop.parent_id is not None:
            arrow = "-->" if hop.mark is Mark.VERIFIED else f"-. {_mermaid(hop.mark.value)} .->"
            lines.append(f"  {number[hop.parent_id]} {arrow} {number[hop.execution_id]}")
    return "\n".join(lines)


def _last_children(tree: Tree) -> list[bool]:
    """Return, for each hop in order, whether no sibling follows it."""
    last = [True] * len(tree.hops)
    newest: dict[tuple[bytes | None, int], int] = {}
    for index, hop in enumerate(tree.hops):
        before = newest.get((hop.parent_id, hop.depth))
        if before is not None:
            last[before] = False
        newest[hop.parent_id, hop.depth] = index
    return last


def _where(hop: Hop) -> str:
    return " ▸ ".join(dict.fromkeys(seen.intent.node for seen in hop.sides))


def _colour(hop: Hop) -> str:
    if hop.problems or hop.mark in {Mark.ORPHAN, Mark.CYCLE}:
        return _DOUBTFUL
    return _REFUSED if hop.refused_by is not None else ""


def _dot_style(hop: Hop) -> str:
    colour = _colour(hop)
    return f', color="{colour}"' if colour else ""


def _dot(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _mermaid(text: str) -> str:
    # Mermaid writes a character as #<number>; everything that could end a label or start markup goes that way
    return _MERMAID_PLAIN.sub(lambda found: f"#{ord(found[0])};", text)
