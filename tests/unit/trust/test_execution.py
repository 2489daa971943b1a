"""Executions by name, and which of them a crash left open."""

from dataclasses import replace

import pytest

from tests.support.records import callee_side, intent, outcome, refusal, text
from trust.errors import InputError, Reason
from trust.execution import OpenExecutions, id_text, parse_id
from trust.record import Intent, Outcome


def test_what_is_open_is_what_has_an_intent_and_no_outcome() -> None:
    """Refusals open nothing; each side closes for itself; outcomes of others close nothing."""
    open_ones = OpenExecutions()
    out = intent(1)
    records: list[Intent | Outcome] = [
        refusal(7),
        out,
        callee_side(out, "a"),
        intent(2),
        outcome(out),
        outcome(intent(3)),
    ]
    for index, record in enumerate(records):
        open_ones.note(index, record)
    assert list(open_ones) == [callee_side(out, "a"), intent(2)]
    assert (len(open_ones), open_ones.oldest_index(6)) == (2, 2)
    open_ones.note(6, outcome(callee_side(out, "a")))
    assert open_ones.oldest_index(7) == 3
    open_ones.note(7, outcome(intent(2)))
    assert (len(open_ones), open_ones.oldest_index(8)) == (0, 8)


def test_what_is_open_does_not_keep_sealed_payloads_in_memory() -> None:
    """A hundred thousand streams may be open; what is kept of them is in the ledger."""
    open_ones = OpenExecutions()
    open_ones.note(0, replace(intent(1), sealed_request=b"s" * 90_000))
    assert list(open_ones) == [intent(1)]


@pytest.mark.parametrize(
    "wrong", ["", "x", "01890a5dac96774bbcceb302099a8057", "{01890a5d-ac96-774b-bcce-b302099a8057}", "\0"]
)
def test_an_id_in_another_form_is_refused_with_an_example(wrong: str) -> None:
    """One form, so that a search for it finds it."""
    with pytest.raises(InputError) as caught:
        parse_id(wrong)
    assert caught.value.reason is Reason.INPUT_INVALID
    assert "egm lineage list" in caught.value.detail


def test_ids_read_back() -> None:
    """In either case of the hexadecimal digits."""
    identifier = intent(1).execution_id
    assert id_text(identifier) == text(identifier)
    assert parse_id(id_text(identifier).upper()) == identifier
