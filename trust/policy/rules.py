"""Decides which policies a bundle holds: every policy parsed, named and reduced to what the engine needs.

Cedar keeps no source positions, so the text is split here first; the split is checked against what Cedar
parses, piece by piece, and a bundle where they disagree is refused.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import cedarpy
from cedarpy import pst

from trust import limits
from trust.approval_rule import ANNOTATIONS as APPROVALS
from trust.approval_rule import obligation_of
from trust.bundle import Bundle
from trust.errors import EvidenceError, Reason
from trust.nesting import line_too_deep
from trust.policy.controls import BUDGET, RATE, Control, controls_of
from trust.policy.reads import Path, inspect
from trust.policy.types import BINDING, METHOD_ALONE, METHOD_ALONE_ANNOTATION

# Annotations of permits that bind the node which allows a call.
OBLIGATIONS: Final = frozenset({*APPROVALS, "lease", RATE, BUDGET, "audit"})
AUDIT_PAYLOAD: Final = ("audit", "payload")  # keep what was sent, sealed to the auditors of mesh.json
BINDING_RULE: Final = f"@{BINDING} can only be {METHOD_ALONE_ANNOTATION}, on a permit"
PARSE_CHUNK_POLICIES: Final = 8  # building syntax trees holds the GIL: about 1 ms at a time
VALIDATE_CHUNK_POLICIES: Final = 1000

# Cedar's lexical grammar, as far as a policy's end needs it: strings, comments, and the semicolon.
# Possessive, and an unclosed string is a token (Cedar then refuses the piece): linear in time, constant in memory.
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"?|//[^\n\r]*+|;', re.DOTALL)
_BLANK = re.compile(r"(?:\s++|//[^\n\r]*+)*+")
_POSITION = re.compile(r"policy(\d+)\Z")


class Scope(NamedTuple):
    """One third of a policy's scope. Matches when every part that is not None matches."""

    type: str | None  # `is` this entity type
    equal: str | None  # this very entity
    within: tuple[str, ...] | None  # one of these entities, or below one of them


ANY: Final = Scope(None, None, None)


@dataclass(frozen=True, slots=True)
class Piece:
    """The text of one policy and where it begins."""

    text: str
    file: str
    line: int  # 1-based

    @property
    def where(self) -> str:
        """ "policies/x.cedar:12"."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Rule:
    """One policy, ready to be indexed. `id` is the reported one: "<namespace>:<@id>", or @id in the base."""

    id: str
    annotation: str  # @id as written
    namespace: str | None  # whose bundle says it; None: the base
    permit: bool
    principal: Scope
    action: Scope
    resource: Scope
    reads: frozenset[Path]
    obligations: tuple[tuple[str, str], ...]
    piece: Piece
    controls: tuple[Control, ...] = ()  # the limits among them
    method_alone: bool = False  # streams that it allows need not bind their opening message


class Shared:
    """Keeps one copy of what many policies say alike: memory counts at 100,000 of them."""

    def __init__(self) -> None:
        self._scopes: dict[Scope, Scope] = {}
        self._paths: dict[frozenset[Path], frozenset[Path]] = {}

    def scope(self, value: Scope) -> Scope:
        """Return the copy kept of `value`."""
        return self._scopes.setdefault(value, value)

    def paths(self, value: frozenset[Path]) -> frozenset[Path]:
        """Return the copy kept of `value`."""
        return self._paths.setdefault(value, value)


def split(text: str, file: str) -> list[Piece]:
    """Return the policies of one Cedar source; what follows the last `;` is a piece of its own if not blank."""
    pieces: list[Piece] = []
    begin, line, counted = 0, 1, 0
    for token in _TOKEN.finditer(text):
        if token.group() == ";":
            start = _skip_blank(text, begin)
            line += text.count("\n", counted, start)
            counted = start
            pieces.append(Piece(text[start : token.end()], file, line))
            begin = token.end()
    start = _skip_blank(text, begin)
    if start < len(text):
        pieces.append(Piece(text[start:], file, line + text.count("\n", counted, start)))
    return pieces


def compile_rules(
    bundle: Bundle, schema: cedarpy.Schema, namespace: str | None = None
) -> tuple[list[Rule], set[str]]:
    """Parse and validate every policy of `bundle`; also return every entity that any of them names.

    Args:
        bundle: the bundle; only its policies are read.
        schema: what the policies must be valid against.
        namespace: the namespace of the bundle; None for the base.

    Raises:
        EvidenceError: BUNDLE_POLICY_INVALID, naming file, line and what to do.
    """
    pieces = [p for file, text in sorted(bundle.policies.items()) for p in split(text, file)]
    if len(pieces) > limits.MAX_POLICIES:
        raise _invalid("policies", f"{len(pieces)} policies; at most {limits.MAX_POLICIES} are allowed")
    for piece in pieces:
        deep = line_too_deep(piece.text)
        if deep is not None:  # the native parser would end the process
            raise _invalid(
                f"{piece.file}:{piece.line + deep - 1}", "nested too deeply; split it into several policies"
            )
    rules: list[Rule] = []
    named: set[str] = set()
    shared = Shared()
    seen: dict[str, str] = {}
    for chunk in _chunks(pieces, PARSE_CHUNK_POLICIES):
        for piece, template in zip(chunk, _templates(chunk), strict=True):
            paths, uids = inspect(template)
            rule = _rule(piece, template, paths, namespace, shared)
            if rule.annotation in seen:
                message = (
                    f'@id("{rule.annotation}") is already used at {seen[rule.annotation]}; ids must be unique'
                )
                raise _invalid(piece.where, message)
            seen[rule.annotation] = piece.where
            named.update(map(str, uids))
            rules.append(rule)
    for chunk in _chunks(pieces, VALIDATE_CHUNK_POLICIES):
        _validate(chunk, schema)
    return rules, named


def _templates(chunk: list[Piece]) -> list[pst.Template]:
    """Return the syntax tree of every piece, in order; each piece must be exactly one static policy."""
    try:
        parsed = cedarpy.PolicySet.from_str("\n".join(p.text for p in chunk), release_gil=True).to_pst()
    except ValueError as error:
        raise _blame(chunk, error) from None
    by_position = {_position(key): template for key, template in parsed.static_policies.items()}
    if parsed.templates or parsed.template_links:
        for piece in chunk:
            if cedarpy.PolicySet.from_str(piece.text).templates():
                raise _invalid(
                    piece.where, "a template (?principal, ?resource); write the policy out instead"
                )
    if sorted(by_position) != list(range(len(chunk))):
        raise _invalid(chunk[0].where, "policies could not be told apart; end every policy with one `;`")
    return [by_position[index] for index in range(len(chunk))]


def _blame(chunk: list[Piece], error: ValueError) -> EvidenceError:
    """Find the piece that does not parse, so that the message names its line."""
    for piece in chunk:
        try:
            if len(cedarpy.PolicySet.from_str(piece.text).to_pst().static_policies) == 1:
                continue
        except ValueError as own:
            return _invalid(piece.where, f"does not parse: {own}")
    return _invalid(chunk[0].where, f"does not parse: {error}")


def _validate(chunk: list[Piece], schema: cedarpy.Schema) -> None:
    result = cedarpy.validate_policies("\n".join(p.text for p in chunk), schema, release_gil=True)
    if result.validation_passed and not result.errors:
        return
    for error in result.errors:
        match = _POSITION.match(error.policy_id)
        where = chunk[int(match.group(1))].where if match else chunk[0].where
        message = error.error.removeprefix(f"for policy `{error.policy_id}`, ")
        raise _invalid(where, f"does not fit the schema: {message}")
    raise _invalid(chunk[0].where, "does not fit the schema")


def _rule(
    piece: Piece, template: pst.Template, paths: frozenset[Path], namespace: str | None, shared: Shared
) -> Rule:
    annotation = template.annotations.get("id", "")
    if not annotation.strip():
        raise _invalid(piece.where, 'the policy has no name; write @id("...") before it')
    if len(annotation.encode()) > limits.MAX_POLICY_ID_BYTES or not annotation.isprintable():
        raise _invalid(piece.where, f"@id must be at most {limits.MAX_POLICY_ID_BYTES} printable bytes")
    permit = template.effect == "permit"
    obligations = {k: v for k, v in template.annotations.items() if k in OBLIGATIONS - APPROVALS}
    obligations |= dict([approval] if (approval := obligation_of(template.annotations)) else ())
    binding = template.annotations.get(BINDING)
    if binding is not None and (binding != METHOD_ALONE or not permit):
        raise _invalid(piece.where, BINDING_RULE)
    name = annotation if namespace is None else f"{namespace}:{annotation}"
    asked = tuple(sorted(obligations.items()))
    return Rule(
        id=name,
        annotation=annotation,
        namespace=namespace,
        permit=permit,
        principal=shared.scope(_scope(template.principal)),
        action=shared.scope(_action_scope(template.action)),
        resource=shared.scope(_scope(template.resource)),
        reads=shared.paths(paths),
        obligations=asked,
        piece=piece,
        controls=controls_of(asked, name) if permit else (),
        method_alone=binding is not None,
    )


def _scope(constraint: pst.PrincipalOrResourceConstraint) -> Scope:
    match constraint:
        case pst.ScopeEq(entity=pst.EntityUid() as uid):
            return Scope(None, str(uid), None)
        case pst.ScopeIn(entity=pst.EntityUid() as uid):
            return Scope(None, None, (str(uid),))
        case pst.ScopeIs(entity_type=kind):
            return Scope(str(kind), None, None)
        case pst.ScopeIsIn(entity_type=kind, entity=pst.EntityUid() as uid):
            return Scope(str(kind), None, (str(uid),))
        case _:  # everything, also what a later Cedar may add: never sliced away
            return ANY


def _action_scope(constraint: pst.ActionConstraint) -> Scope:
    match constraint:
        case pst.ActionEq(entity=uid):
            return Scope(None, str(uid), None)
        case pst.ActionIn(entities=uids):
            return Scope(None, None, tuple(sorted({str(uid) for uid in uids})))
        case _:
            return ANY


def _position(key: str) -> int:
    match = _POSITION.match(key)
    return int(match.group(1)) if match else -1


def _skip_blank(text: str, begin: int) -> int:
    match = _BLANK.match(text, begin)
    return begin if match is None else match.end()


def _chunks(pieces: list[Piece], size: int) -> Iterator[list[Piece]]:
    return (pieces[begin : begin + size] for begin in range(0, len(pieces), size))


def _invalid(where: str, what: str) -> EvidenceError:
    return EvidenceError(Reason.BUNDLE_POLICY_INVALID, f"{where}: {what}")
