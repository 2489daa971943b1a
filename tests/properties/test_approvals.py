"""Tickets and approvals have one text each, and no text means two things."""

from hypothesis import given
from hypothesis import strategies as st

from tests.support.approvers import ANN, BEN, GROUPS, TD, ticket
from trust import limits
from trust.approval import Approval, Verdict, judge, open_approval
from trust.approval_rule import members_of, requirements_in
from trust.ticket import Ticket

ANY = st.text(max_size=80)
CHANGES = st.fixed_dictionaries(
    {
        "service": ANY,
        "method": ANY,
        "policies": st.lists(ANY, max_size=4).map(tuple),
        "request_sha256": st.one_of(st.just(b""), st.just(bytes(32)), st.binary(min_size=32, max_size=32)),
        "window": st.booleans(),
        "serial": st.text("0123456789abcdef", min_size=32, max_size=32),
    }
)
WANTED = requirements_in("2 of ops")


@given(CHANGES)
def test_every_call_has_a_ticket_that_reads_back(changes: dict[str, object]) -> None:
    """Whatever others put into names: they cannot break a line or write another one's."""
    made = ticket(**changes)
    assert Ticket.parse(made.body()) == made
    assert made.body().count(b"\n") == 9


@given(CHANGES, CHANGES)
def test_tickets_with_one_id_are_one_ticket(first: dict[str, object], second: dict[str, object]) -> None:
    """An approval names a call by the id."""
    one, other = ticket(**first), ticket(**second)
    assert (one.id == other.id) is (one == other)


@given(
    CHANGES,
    st.sampled_from(Verdict),
    st.integers(0, 2**33),
    st.integers(1, limits.MAX_APPROVAL_LIFETIME_S),
    st.text(min_size=1, max_size=limits.MAX_APPROVAL_REASON_CHARS).filter(str.isprintable),
)
def test_an_approval_reads_back_as_it_was_signed(
    changes: dict[str, object], verdict: Verdict, issued_s: int, lasts_s: int, reason: str
) -> None:
    """One text, one meaning."""
    said = Approval(ticket(**changes), verdict, issued_s, issued_s + lasts_s, reason)
    assert Approval.parse(said.body()) == said
    assert open_approval(ANN.sign(said), members_of(GROUPS, WANTED), trust_domain=TD).approval == said


@given(
    st.lists(st.sampled_from([(ANN, True), (ANN, False), (BEN, True), (BEN, False)]), max_size=6),
    st.integers(0, 700),
)
def test_enough_is_exactly_two_names_in_time_and_no_denial(
    said: list[tuple[object, bool]], age_s: int
) -> None:
    """Against a plain statement of the rule."""
    of, start_ms = ticket(), 1_800_000_000_000
    keys = members_of(GROUPS, WANTED)
    signed = [
        open_approval(
            one.say(of, Verdict.APPROVE if yes else Verdict.DENY, now_ms=start_ms),  # type: ignore[attr-defined]
            keys,
            trust_domain=TD,
        )
        for one, yes in said
    ]
    found = judge(signed, of, WANTED, GROUPS, start_ms + age_s * 1000)
    in_time = age_s < 600
    yes = {one for one, verdict in said if verdict and in_time}
    assert found.met is (len(yes) >= 2 and not any(in_time and not verdict for _, verdict in said))
