"""Signed approvals: what they bind, who may give them, and when they add up to enough."""

from dataclasses import replace

import pytest

from tests.support.approvers import ANN, BEN, CLEO, GROUPS, NOW_MS, OPS, STRANGER, TD, Approver, ticket
from trust import limits
from trust.approval import (
    Approval,
    Standing,
    Verdict,
    enough,
    judge,
    open_approval,
    pack,
    sign_approval,
    unpack,
    verifier_name,
)
from trust.approval_rule import Requirement, members_of, requirements_in
from trust.errors import EvidenceError, MeshError, Reason
from trust.note import cosign
from trust.permit_claims import NO_MESSAGE
from trust.ticket import Ticket

TICKET = ticket()
TWO_OF_OPS = requirements_in("2 of ops")
KEYS = members_of(GROUPS, TWO_OF_OPS)


def standing(
    *notes: bytes, of: Ticket = TICKET, wanted: tuple[Requirement, ...] = TWO_OF_OPS, at_ms: int = NOW_MS
) -> Standing:
    """Return what notes add up to."""
    keys = members_of(GROUPS, wanted)
    return judge([open_approval(note, keys, trust_domain=TD) for note in notes], of, wanted, GROUPS, at_ms)


def test_two_distinct_approvers_are_enough_and_one_twice_is_not() -> None:
    """Names count, and a name stands for one key; who is missing is said."""
    one = standing(ANN.say(TICKET), ANN.say(TICKET, reason="again"))
    assert not one.met and one.missing == ("1 more of ops (ben, cleo)",)
    both = standing(ANN.say(TICKET), BEN.say(TICKET))
    assert both.met and [said.name for said in both.approved] == ["ann", "ben"]


@pytest.mark.parametrize(
    "field", ["trust_domain", "caller", "service", "method", "request", "policies", "needs", "serial"]
)
def test_an_approval_of_any_other_call_does_not_count(field: str) -> None:
    """Every line of a ticket is bound."""
    other = {
        "caller": f"spiffe://{TD}/workload/bob",
        "request": "0" * 64,
        "serial": "f" * 32,
        "needs": "1 of ops",
    }
    if field == "trust_domain":
        note = ANN.say(replace(TICKET, trust_domain="mesh.other"))
        with pytest.raises(EvidenceError):
            open_approval(note, KEYS, trust_domain=TD)
        return
    changed = replace(TICKET, **{field: other.get(field, "another")})
    assert changed.id != TICKET.id
    found = standing(ANN.say(TICKET), BEN.say(changed))
    assert [said.name for said in found.approved] == ["ann"]


def test_one_denial_refuses_whoever_approved() -> None:
    """A person who sees something wrong need not be outvoted."""
    found = standing(ANN.say(TICKET), BEN.say(TICKET), CLEO.say(TICKET, Verdict.DENY, reason="not today"))
    assert not found.met and found.denied is not None and found.denied.approval.reason == "not today"


def test_approvals_end_and_do_not_begin_early() -> None:
    """By the clock of who judges, with the skew that is allowed everywhere."""
    notes = ANN.say(TICKET, ttl_s=60), BEN.say(TICKET, ttl_s=600)
    assert standing(*notes, at_ms=NOW_MS + 59_000).met
    late = standing(*notes, at_ms=NOW_MS + 60_000)
    assert not late.met and late.expired
    early = standing(*notes, at_ms=NOW_MS - limits.MAX_CLOCK_SKEW_MS - 1_000)
    assert not early.met and early.approved == ()


def test_a_window_bounds_what_an_approver_grants() -> None:
    """The signed policy says how long, whatever the approver writes."""
    wanted = requirements_in("2 of ops, window 600s")
    of = ticket(needs="2 of ops, window 600s", window=True)
    notes = [one.say(of, ttl_s=3600) for one in (ANN, BEN)]
    assert standing(*notes, of=of, wanted=wanted, at_ms=NOW_MS + 599_000).met
    assert not standing(*notes, of=of, wanted=wanted, at_ms=NOW_MS + 600_000).met


def test_every_requirement_must_be_met() -> None:
    """Who is in both groups counts in each."""
    wanted = requirements_in("1 of finance; 2 of ops")
    of = ticket(needs="1 of finance; 2 of ops")
    assert standing(ANN.say(of), BEN.say(of), of=of, wanted=wanted).missing == ("1 more of finance (cleo)",)
    assert standing(ANN.say(of), CLEO.say(of), of=of, wanted=wanted).met


@pytest.mark.parametrize(
    "signer", [STRANGER, Approver("ann", seed="not ann")], ids=["stranger", "false name"]
)
def test_a_key_that_policy_does_not_name_is_refused(signer: Approver) -> None:
    """A name proves nothing."""
    with pytest.raises(EvidenceError) as caught:
        open_approval(signer.say(TICKET), KEYS, trust_domain=TD)
    assert caught.value.reason is Reason.APPROVAL_INVALID


def test_nothing_of_a_note_can_be_changed_added_or_reused() -> None:
    """Every byte is signed; a second signature, another kind of signature or another text is refused."""
    good = ANN.say(TICKET)
    for position in range(0, len(good), 7):
        bent = good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :]
        with pytest.raises(MeshError):
            open_approval(bent, KEYS, trust_domain=TD)
    line = cosign(
        Approval(TICKET, Verdict.APPROVE, 1, 2).body(),
        verifier_name(TD, "ann"),
        ANN.private.sign,
        public_key=ANN.public,
        time_s=1,
    )
    for extra in (line, good.rpartition(b"\n\n")[2]):
        with pytest.raises(MeshError):
            open_approval(good + extra, KEYS, trust_domain=TD)


def test_what_an_approval_cannot_say() -> None:
    """Bounds of time and reason."""
    for wrong in (
        {"until_s": 100},
        {"until_s": 101 + limits.MAX_APPROVAL_LIFETIME_S},
        {"reason": ""},
        {"reason": "x" * (limits.MAX_APPROVAL_REASON_CHARS + 1)},
        {"reason": "line\nfeed"},
        {"reason": "\u202egnippilf"},
    ):
        fields = {"issued_s": 100, "until_s": 101, "reason": "-", **wrong}
        with pytest.raises(EvidenceError):
            Approval(TICKET, Verdict.APPROVE, **fields)  # type: ignore[arg-type]


def test_a_ticket_says_what_the_approval_binds() -> None:
    """The request, nothing, the method alone, or any request in a window."""
    assert len(TICKET.request) == 64
    assert ticket(request_sha256=NO_MESSAGE).request == "none"
    assert ticket(request_sha256=b"").request == "method"
    assert ticket(window=True).request == "any"
    assert Ticket.parse(TICKET.body()) == TICKET
    assert ticket(method="x\ny", policies=()).policies == "-", "what others chose cannot break a line"


def test_approvals_travel_within_bounds() -> None:
    """Metadata has little room."""
    notes = tuple(one.say(TICKET) for one in OPS)
    assert unpack(pack(notes)) == notes
    with pytest.raises(EvidenceError):
        pack([b"x" * 1024] * 40)
    for wrong in (b"", b"\xff", b"x" * (limits.MAX_CARRIED_APPROVALS_BYTES + 1), b"\x0a\x00" * 40):
        with pytest.raises(EvidenceError) as caught:
            unpack(wrong)
        assert caught.value.reason is Reason.APPROVAL_INVALID


def test_a_signer_that_signs_something_else_is_noticed_before_it_leaves() -> None:
    """A hardware signer with another key."""
    approval = Approval(TICKET, Verdict.APPROVE, 1, 2)
    with pytest.raises(EvidenceError):
        sign_approval(approval, "ann", BEN.private.sign, public_key=ANN.public)


def test_no_more_approvals_travel_than_are_needed() -> None:
    """One person may serve two requirements."""
    wanted = requirements_in("1 of finance; 2 of ops")
    of = ticket(needs="1 of finance; 2 of ops")
    found = standing(*(one.say(of) for one in OPS), of=of, wanted=wanted)
    chosen = enough(found, wanted, GROUPS)
    assert [said.name for said in chosen] == ["ann", "ben", "cleo"]
    only_ops = standing(*(one.say(TICKET) for one in OPS))
    assert [said.name for said in enough(only_ops, TWO_OF_OPS, GROUPS)] == ["ann", "ben"]
