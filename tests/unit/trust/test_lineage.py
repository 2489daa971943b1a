"""Trees of executions: honest records, contradictions, and records that try to break the drawing."""

import json

import pytest

from tests.support import record_tree as world
from tests.support.records import callee_side, child, digest, execution_id, intent, outcome, refusal, workload
from trust.lineage import Hop, Mark, Seen, Tree, build_tree, standing, to_json
from trust.lineage_export import to_dot, to_mermaid, to_text
from trust.record import Intent, Link, Outcome


def seen_of(*records: Intent | Outcome) -> list[Seen]:
    """Join intents with their outcomes, as the index does."""
    ended = {(r.node, r.execution_id, r.side): r for r in records if isinstance(r, Outcome)}
    return [Seen(r, ended.get((r.node, r.execution_id, r.side))) for r in records if isinstance(r, Intent)]


def tree_of(*records: Intent | Outcome, root: int = 1) -> Tree:
    """Return the tree of some records."""
    return build_tree(seen_of(*records), execution_id(root))


WORLD = tree_of(*(record for ledger in world.LEDGERS.values() for record in ledger))


def hop(tree: Tree, number: int) -> Hop:
    """Return one execution of a tree."""
    return next(h for h in tree.hops if h.execution_id == execution_id(number))


def test_three_nodes_give_one_tree_with_what_supports_each_hop() -> None:
    """Both sides are one hop; children stand below the permit that they name."""
    assert [(h.execution_id, h.depth, h.mark) for h in WORLD.hops] == [
        (execution_id(1), 0, Mark.ROOT),
        (execution_id(2), 1, Mark.VERIFIED),
        (execution_id(3), 2, Mark.VERIFIED),
        (execution_id(4), 1, Mark.VERIFIED),
        (execution_id(5), 0, Mark.UNVERIFIED),
    ]
    assert [h.witnesses for h in WORLD.hops] == [
        *("both sides", "both sides", "caller side only", "caller side only", "caller side only")
    ]
    assert [h.status for h in WORLD.hops] == ["OK", "UNAVAILABLE", "OPEN", "REFUSED", "OK"]
    assert [h.duration_ms for h in WORLD.hops] == [9.0, 5.25, None, None, 1.5]
    assert [h.reason for h in WORLD.hops] == ["ALLOWED", "ALLOWED", "ALLOWED", "POLICY_DENIED", "ALLOWED"]
    assert WORLD.nodes == ("a", "b", "c")


def test_the_text_shows_who_called_whom_and_what_came_of_it() -> None:
    """One line for people, one with the id to paste."""
    text = to_text(WORLD).splitlines()
    assert text[0] == "alice → shop  shop.Shop/Order  ALLOWED  OK  9.0 ms  [root, both sides]"
    assert text[2].startswith(
        "├─ shop → payments  shop.Payments/Pay  ALLOWED  UNAVAILABLE  5.2 ms  [verified"
    )
    assert text[4].startswith("│  └─ payments → ledger  shop.Ledger/Book  ALLOWED  OPEN  [verified")
    assert text[6].startswith("└─ shop → stock  shop.Stock/Take  POLICY_DENIED by b  REFUSED")
    assert text[8].startswith("batch → ledger")
    assert "[unverified, caller side only]" in text[8]
    assert text[1].endswith("a ▸ b")
    assert len(text) == 10


def test_json_names_each_parent() -> None:
    """What a program needs to build the tree again."""
    data = json.loads(json.dumps(to_json(WORLD)))
    assert [h["depth"] for h in data["hops"]] == [0, 1, 2, 1, 0]
    assert data["hops"][2]["parent"] == data["hops"][1]["id"]
    assert data["hops"][0]["parent"] is None
    assert data["root"] == data["hops"][0]["id"]


def test_the_order_of_records_changes_nothing() -> None:
    """Nodes ship when they can."""
    records = [record for ledger in world.LEDGERS.values() for record in ledger]
    assert tree_of(*reversed(records)) == WORLD


def test_a_parent_that_nobody_recorded_leaves_an_orphan_not_a_root() -> None:
    """A node that hides its records cannot make its callees look like the start of a chain."""
    tree = tree_of(world.PAY, world.BOOK)
    assert [(h.mark, h.depth) for h in tree.hops] == [(Mark.ORPHAN, 0), (Mark.VERIFIED, 1)]


def test_records_that_lead_back_to_themselves_are_cut() -> None:
    """Hostile records name each other as parents."""
    one = intent(1, root_id=execution_id(9), parent_id=execution_id(2), link=Link.VERIFIED)
    two = intent(2, root_id=execution_id(9), parent_id=execution_id(3), link=Link.VERIFIED)
    three = intent(3, root_id=execution_id(9), parent_id=execution_id(1), link=Link.VERIFIED)
    tree = tree_of(one, two, three, root=9)
    assert [(h.mark, h.depth) for h in tree.hops] == [
        (Mark.CYCLE, 0),
        (Mark.VERIFIED, 1),
        (Mark.VERIFIED, 2),
    ]
    assert to_text(tree)


CONTRADICTIONS = [
    ({"caller": workload("mallory")}, "different values of caller"),
    ({"method": "shop.Shop/Refund"}, "different values of method"),
    ({"service": "other"}, "different values of service"),
    ({"request_sha256": digest("other")}, "different values of request_sha256"),
    ({"permit_sha256": digest("other")}, "different values of permit_sha256"),
]


@pytest.mark.parametrize(("change", "words"), CONTRADICTIONS, ids=lambda v: str(v)[:30])
def test_two_sides_that_disagree_are_marked(change: dict[str, object], words: str) -> None:
    """A compromised sidecar cannot tell the index another story than its neighbour unnoticed."""
    tree = tree_of(world.ROOT, callee_side(world.ROOT, "b", **change))
    assert tree.hops[0].witnesses == "CONTRADICTED"
    assert words in standing(tree.hops[0])


def test_a_refusal_at_the_callee_without_permit_is_no_contradiction() -> None:
    """What is absent is no claim; the refusing side's reason counts."""
    refused = callee_side(world.ROOT, "b", allowed=False, reason="PERMIT_EXPIRED", permit_sha256=b"")
    tree = tree_of(world.ROOT, outcome(world.ROOT, status="PERMISSION_DENIED"), refused)
    (only,) = tree.hops
    assert (only.problems, only.reason, only.status) == ((), "PERMIT_EXPIRED", "PERMISSION_DENIED")
    assert "PERMIT_EXPIRED by b" in to_text(tree)


def test_a_third_node_that_claims_a_side_is_marked() -> None:
    """Any node of the mesh can learn an id and write records under it."""
    tree = tree_of(world.ROOT, intent(1, node="evil", service="shop", callee="", method="shop.Shop/Order"))
    assert "a and evil both claim to be the outbound side" in standing(tree.hops[0])


def test_another_permit_than_the_parents_is_marked() -> None:
    """The parent's id is a hint, its permit the link."""
    tree = tree_of(world.ROOT, child(2, world.ROOT, parent_permit_sha256=digest("other")))
    assert "another permit" in standing(hop(tree, 2))


def test_an_unverified_record_links_by_span_and_never_as_verified() -> None:
    """A traceparent that names a span of ours puts a hop below it, marked."""
    parent = intent(1, traceparent=world.TRACE, span_id=bytes.fromhex("00f067aa0ba902b7"))
    below = world.TRACE.replace("b7ad6b7169203331", "00f067aa0ba902b7")
    tree = tree_of(parent, intent(2, traceparent=below, link=Link.UNVERIFIED))
    assert (hop(tree, 2).mark, hop(tree, 2).parent_id) == (Mark.UNVERIFIED, execution_id(1))
    assert "-. unverified .->" in to_mermaid(tree)
    assert "style=dashed" in to_dot(tree)


def test_a_chain_of_thousands_is_drawn_in_linear_size() -> None:
    """Depth must not overflow a stack, nor make the text quadratic."""
    records = [intent(1)]
    for number in range(2, 5_001):
        records.append(child(number, records[-1]))
    tree = tree_of(*records)
    assert [h.depth for h in tree.hops] == list(range(5_000))
    assert len(to_text(tree)) < 5_000 * 600
    assert len(to_dot(tree)) < 5_000 * 600


def test_names_that_callers_choose_cannot_break_out_of_a_drawing() -> None:
    """Quotes, brackets, backslashes, markup: text, and nothing else."""
    evil = '"];x[label="<script>alert(1)</script>\\ #quot; --> end; `click` {}|'
    tree = tree_of(refusal(1, method=evil, service=evil))
    dot = to_dot(tree)
    assert dot.count("\n") == 4
    unescaped = dot.replace("\\\\", "").replace('\\"', "")
    assert unescaped.splitlines()[3].count('"') == 6  # id, label, colour
    mermaid = to_mermaid(tree)
    label = mermaid.splitlines()[1].partition('["')[2].removesuffix('"]')
    assert not set(label.replace("<br/>", "")) & set('"<>[]{}|`\\')


def test_an_empty_tree_is_a_tree() -> None:
    """Nothing to show is no error here."""
    assert to_text(tree_of()) == ""
    assert to_json(tree_of())["hops"] == []
    cut = build_tree([], execution_id(1), truncated=True)
    assert "more" in to_text(cut)
