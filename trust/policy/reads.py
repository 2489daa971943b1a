"""Decides which parts of the context a policy can read at all.

The answer is a superset, never less: what a policy cannot read need not be built, and calls that agree on
everything a policy can read get the same decision. A read is a path of attribute names below `context`:

    ("request", "amount")      the value of context.request.amount, whole
    ("request", "card", "")    only whether context.request.card is there (`has`); EXISTS ends the path
    ()                         context as a whole: everything
"""

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any, Final

from cedarpy import pst

Path = tuple[str, ...]
# What is read below one attribute: None is everything, otherwise attribute name -> what is read below it.
Tree = dict[str, "Tree | None"]

EXISTS: Final = ""  # no protobuf field and no context attribute has an empty name
TOP: Final[Path] = ()


def reads(template: pst.Template) -> frozenset[Path]:
    """Return every path below `context` that the conditions of `template` can read.

    The scope of a policy (principal, action, resource) never reads the context.
    """
    return inspect(template)[0]


def inspect(template: pst.Template) -> tuple[frozenset[Path], set[pst.EntityUid]]:
    """Return what `reads` does, and every entity that the scope or the conditions of `template` name."""
    found: set[Path] = set()
    named: set[pst.EntityUid] = set()
    _collect((template.clauses, template.principal, template.action, template.resource), found, named)
    return minimal(found), named


def minimal(paths: Iterable[Path]) -> frozenset[Path]:
    """Drop every path that another one covers."""
    given = set(paths)
    return frozenset(p for p in given if not any(p[:length] in given for length in range(len(p))))


def tree(paths: Iterable[Path]) -> Tree | None:
    """Return the paths as a tree; None when everything is read."""
    root: Tree = {}
    for path in sorted(minimal(paths)):
        if not path:
            return None
        node = root
        for name in path[:-1]:
            below = node.setdefault(name, {})
            if below is None:  # an attribute read whole covers the rest of this path
                break
            node = below
        else:
            if path[-1] != EXISTS:
                node[path[-1]] = None
    return root


def _collect(node: object, found: set[Path], named: set[pst.EntityUid]) -> None:
    """Walk any value of the syntax tree; an explicit stack, so depth is bounded by memory alone."""
    stack: list[Any] = [node]
    while stack:
        value = stack.pop()
        if isinstance(value, _PATH_NODES) and (path := _context_path(value)) is not None:
            found.add(path)
        elif isinstance(value, pst.HasAttr) and (base := _context_path(value.base)) is not None:
            found.add((*base, *value.attrs, EXISTS))
        elif isinstance(value, pst.EntityUid):
            named.add(value)
        elif isinstance(value, tuple):
            stack.extend(value)
        elif isinstance(value, dict):  # pst.FrozenMap is one
            stack.extend(value.values())
        else:
            for name in _children(type(value)):
                stack.append(getattr(value, name))


def _children(kind: type) -> tuple[str, ...]:
    """Return the attributes of a kind of node; looked up once per kind, this runs for every node of every policy."""
    names = _CHILDREN.get(kind)
    if names is None:
        names = _CHILDREN[kind] = tuple(f.name for f in fields(kind)) if is_dataclass(kind) else ()
    return names


_CHILDREN: Final[dict[type, tuple[str, ...]]] = {}
_PATH_NODES: Final = (pst.GetAttr, pst.Var)  # what `_context_path` can say anything about


def _context_path(node: object) -> Path | None:
    """Return the path when `node` is `context` or a chain of attributes of it, else None."""
    names: list[str] = []
    while isinstance(node, pst.GetAttr):
        if node.attr == EXISTS:  # the marker must not be forged: treat what holds it as read whole
            names.clear()
        else:
            names.append(node.attr)
        node = node.base
    if isinstance(node, pst.Var) and node.name == "context":
        return tuple(reversed(names))
    return None
