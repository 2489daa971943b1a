"""Tickets, approvals and files of anybody: a value or a reasoned error, never anything else."""

from hypothesis import given
from hypothesis import strategies as st

from sidecar.edge.spent_file import parse_spent
from tests.support.approvers import ANN, BEN, GROUPS, TD, ticket
from trust.approval import Approval, open_approval, pack, read_approval, unpack
from trust.approval_rule import REQUIRE, is_requirement, members_of, parse_requirement, requirements_in
from trust.errors import EvidenceError, Reason
from trust.ticket import Ticket

GOOD = ANN.say(ticket())
KEYS = members_of(GROUPS, requirements_in("2 of ops"))
CARRIED = pack([GOOD, BEN.say(ticket())])
SPENT = b"egm-spent/1\nfloor 5 0\ninbound:" + b"0" * 64 + b" 77\n"


def bent(data: bytes) -> st.SearchStrategy[bytes]:
    """Return `data` with a piece replaced, removed or put in."""

    @st.composite
    def make(draw: st.DrawFn) -> bytes:
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 20)))
        return data[:start] + draw(st.binary(max_size=20)) + data[end:]

    return make()


@given(st.one_of(st.binary(max_size=500), bent(GOOD), bent(ticket().body())))
def test_approval_parsers_are_total_and_accept_only_what_was_signed(data: bytes) -> None:
    """Bytes of a control plane, or of a caller."""
    for read in (read_approval, Approval.parse, Ticket.parse):
        try:
            read(data)
        except EvidenceError as error:
            assert error.reason is Reason.APPROVAL_INVALID
    try:
        opened = open_approval(data, KEYS, trust_domain=TD)
    except EvidenceError as error:
        assert error.reason is Reason.APPROVAL_INVALID
    else:
        assert opened.approval.body() == read_approval(GOOD).body()


@given(st.one_of(st.binary(max_size=200), bent(CARRIED)))
def test_what_comes_with_a_call_is_read_or_refused(data: bytes) -> None:
    """Metadata of anybody."""
    try:
        assert unpack(data)
    except EvidenceError as error:
        assert error.reason is Reason.APPROVAL_INVALID


@given(
    st.one_of(
        st.text(max_size=60),
        st.from_regex(r"[0-9]{1,3} of [a-z]{1,5}(, (wait|window) [0-9]{1,4}[smhd]){0,3}"),
    )
)
def test_requirements_are_read_or_refused(value: str) -> None:
    """Annotations of a policy."""
    try:
        found = parse_requirement(value)
    except EvidenceError as error:
        assert error.reason is Reason.APPROVAL_INVALID
        assert not is_requirement((REQUIRE, value))
    else:
        assert requirements_in(found.asked)[0].needed == found.needed


@given(st.one_of(st.binary(max_size=200), bent(SPENT)))
def test_the_file_of_used_approvals_is_read_or_doubted(data: bytes) -> None:
    """A disk that lost something."""
    found = parse_spent(data)
    assert found is None or all(len(key.partition(":")[2]) == 64 for key in found[2])
