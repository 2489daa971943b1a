"""Records: what is built is read back; nothing else is read; trees hold every record once."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.support.records import execution_id, intent, outcome, refusal
from trust.errors import EvidenceError
from trust.lineage import Seen, build_tree, to_json
from trust.lineage_export import to_dot, to_mermaid, to_text
from trust.record import Intent, Link, Outcome, Side, build_record, parse_record

_NUMBERS = st.integers(0, 2**63 - 3)
_DIGESTS = st.one_of(st.just(b""), st.binary(min_size=32, max_size=32))
_TEXTS = st.text(max_size=40)


@st.composite
def intents(draw: st.DrawFn) -> Intent:
    """Any intent that a node may write; text that callers choose is anything at all."""
    allowed = draw(st.booleans())
    make = intent if allowed else refusal
    number = draw(st.integers(1, 6))
    changes: dict[str, Any] = {
        "side": draw(st.sampled_from(Side)),
        "node": draw(st.sampled_from(["a", "b", "c"])),
        "service": draw(_TEXTS),
        "method": draw(_TEXTS),
        "traceparent": draw(_TEXTS),
        "policies": tuple(draw(st.lists(_TEXTS, max_size=4))),
        "request_sha256": draw(_DIGESTS),
        "permit_sha256": draw(_DIGESTS),
        "wall_ms": draw(_NUMBERS),
        "monotonic_ms": draw(_NUMBERS),
        "level": draw(st.integers(0, 5)),
    }
    link = draw(st.sampled_from(Link))
    parent = draw(st.integers(1, 6).filter(lambda n: n != number))
    if link is Link.UNVERIFIED:
        changes |= {"link": link, "parent_id": draw(st.sampled_from([b"", execution_id(parent)]))}
    elif link is Link.VERIFIED:
        changes |= {"link": link, "root_id": execution_id(parent), "parent_id": execution_id(parent)}
    return make(number, **changes)


@st.composite
def outcomes(draw: st.DrawFn) -> Outcome:
    """Any outcome of an execution that completed."""
    of = draw(intents())
    names = ("request_messages", "request_bytes", "response_messages", "response_bytes", "duration_us")
    numbers = {name: draw(_NUMBERS) for name in names}
    return outcome(of, **numbers, response_sha256=draw(_DIGESTS), wall_ms=draw(_NUMBERS))


@given(st.one_of(intents(), outcomes()))
def test_what_is_built_is_read_back_and_has_one_encoding(record: Intent | Outcome) -> None:
    """Building what was read gives the same bytes, for any text that callers choose."""
    data = build_record(record)
    read = parse_record(data)
    assert build_record(read) == data
    assert parse_record(build_record(read)) == read


@given(st.one_of(intents(), outcomes()), st.data())
def test_one_changed_byte_is_another_record_or_none(record: Intent | Outcome, data: st.DataObject) -> None:
    """No two byte strings are the same record, so a digest names exactly one."""
    built = bytearray(build_record(record))
    read = parse_record(bytes(built))
    at = data.draw(st.integers(0, len(built) - 1))
    built[at] ^= data.draw(st.integers(1, 255))
    try:
        assert parse_record(bytes(built)) != read
    except EvidenceError as error:
        assert error.detail.startswith("execution record: ")


@given(st.lists(intents(), max_size=12), st.integers(1, 6))
def test_any_records_make_a_tree_that_holds_each_execution_once(found: list[Intent], root: int) -> None:
    """Whatever nodes claim: no loop, nothing lost, parents before children, and every drawing works."""
    tree = build_tree([Seen(parse(record)) for record in found], execution_id(root))
    assert sorted(h.execution_id for h in tree.hops) == sorted({r.execution_id for r in found})
    assert sum(len(h.sides) for h in tree.hops) == len(found)
    depth = {h.execution_id: h.depth for h in tree.hops}
    before: set[bytes] = set()
    for hop in tree.hops:
        if hop.parent_id is None:
            assert hop.depth == 0
        else:
            assert hop.parent_id in before
            assert hop.depth == depth[hop.parent_id] + 1
        before.add(hop.execution_id)
    for text in (to_text(tree), to_dot(tree), to_mermaid(tree)):
        assert "\x1b" not in text
    assert to_json(tree)["truncated"] is False


def parse(record: Intent) -> Intent:
    """Return the record as the index gives it."""
    read = parse_record(build_record(record))
    assert isinstance(read, Intent)
    return read
