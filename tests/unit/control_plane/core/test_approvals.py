"""What the control plane takes of tickets and approvals, and what approvers are shown."""

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from control_plane.core.approval_content import Shown, content_of
from control_plane.core.approvals import Room, State, Stored, check_prefix, check_room, decide, take, view
from control_plane.lab import sample
from egm.sample.v1 import shop_pb2
from tests.support.approvers import ANN, BEN, GROUPS, NOW_MS, STRANGER, TD, Approver, ticket
from trust import limits
from trust.approval import Verdict
from trust.bundle import Bundle, read_bundle
from trust.errors import MeshError, Reason
from trust.mesh import MeshSettings
from trust.policy.source import archive_of, load
from trust.verified import BASE_ROLE

MESH = MeshSettings(trust_domain=TD, approver_groups=GROUPS)
CONTENT = b"pay 5"  # the request that the ticket of tests.support.approvers binds


def stored(*notes: bytes, **changes: Any) -> Stored:
    """Return the ticket of that call, with notes."""
    made = Stored(ticket(), "a", False, 4, NOW_MS, NOW_MS + 3_600_000, 0, CONTENT, len(CONTENT), True, notes)
    return replace(made, **changes)


def test_a_ticket_stands_as_its_notes_say_under_the_policy_in_force() -> None:
    """Also when an approver was taken out since."""
    assert view(stored(), MESH, now_ms=NOW_MS).state is State.OPEN
    both = stored(ANN.say(ticket()), BEN.say(ticket()))
    assert view(both, MESH, now_ms=NOW_MS).state is State.APPROVED
    without = MESH.model_copy(update={"approver_groups": {"ops": {"ann": ANN.public.hex()}}})
    assert view(both, without, now_ms=NOW_MS).state is State.OPEN
    assert view(replace(both, spent_ms=1), MESH, now_ms=NOW_MS).state is State.USED
    assert view(stored(), MESH, now_ms=NOW_MS + 3_600_000).state is State.EXPIRED
    denied = stored(ANN.say(ticket(), Verdict.DENY))
    assert view(denied, MESH, now_ms=NOW_MS).state is State.DENIED
    assert view(both, None, now_ms=NOW_MS).state is State.OPEN


@pytest.mark.parametrize(
    ("note", "held", "reason"),
    [
        (STRANGER.say(ticket()), stored(), Reason.APPROVAL_INVALID),
        (Approver("ann", seed="x").say(ticket()), stored(), Reason.APPROVAL_INVALID),
        (ANN.say(ticket(serial="f" * 32)), stored(), Reason.APPROVAL_INVALID),
        (ANN.say(ticket(), now_ms=NOW_MS - 700_000), stored(), Reason.APPROVAL_INVALID),
        (ANN.say(ticket()), stored(spent_ms=1), Reason.CONFLICT),
        (ANN.say(ticket()), stored(BEN.say(ticket(), Verdict.DENY)), Reason.CONFLICT),
        (ANN.say(ticket()), stored(until_ms=NOW_MS), Reason.CONFLICT),
    ],
    ids=["stranger", "false name", "another ticket", "ended", "used", "denied", "over"],
)
def test_what_an_approver_may_not_say(note: bytes, held: Stored, reason: Reason) -> None:
    """Refused with the reason, at once and not at the call."""
    with pytest.raises(MeshError) as caught:
        decide(held, note, MESH, now_ms=NOW_MS)
    assert caught.value.reason is reason


def test_a_denial_may_follow_an_approval_and_not_the_other_way() -> None:
    """Until the call is made."""
    approved = stored(ANN.say(ticket()), BEN.say(ticket()))
    assert decide(approved, BEN.say(ticket(), Verdict.DENY), MESH, now_ms=NOW_MS).name == "ben"
    with pytest.raises(MeshError):
        decide(approved, BEN.say(ticket()), MESH, now_ms=NOW_MS)


def test_a_node_can_show_no_other_request_than_the_one_that_is_bound() -> None:
    """And tickets of other meshes, or with a rule that nobody can read, are not taken."""

    def ask(
        data: bytes = ticket().body(), content: bytes | None = CONTENT, size: int = len(CONTENT)
    ) -> Stored:
        return take(
            data, trust_domain=TD, node="a", inbound=False, level=4, content=content, size=size, now_ms=NOW_MS
        )

    assert ask().shown and not ask(content=None, size=10**9).shown
    for wrong in (
        {"content": b"pay 6"},
        {"size": 4},
        {
            "content": b"x" * (limits.MAX_TICKET_CONTENT_BYTES + 1),
            "size": limits.MAX_TICKET_CONTENT_BYTES + 1,
        },
        {"data": ticket(trust_domain="mesh.other").body()},
        {"data": ticket(needs="many of ops").body()},
        {"data": b"junk"},
    ):
        with pytest.raises(MeshError):
            ask(**wrong)


def test_room_is_bounded_everywhere() -> None:
    """One caller cannot use up that of its node, nor one node that of the mesh."""
    check_room(Room(0, 0, 0))
    for full in (
        Room(limits.MAX_OPEN_TICKETS, 0, 0),
        Room(0, limits.MAX_NODE_TICKETS, 0),
        Room(0, 0, limits.MAX_CALLER_TICKETS),
    ):
        with pytest.raises(MeshError) as caught:
            check_room(full)
        assert caught.value.reason is Reason.LIMIT_EXCEEDED


def test_a_ticket_is_named_by_enough_digits() -> None:
    """Nothing but digits reaches the store."""
    assert check_prefix(" ABCDEF01 ") == "abcdef01"
    for wrong in ("abc", "z" * 10, "0" * 65, "abcdef0%", ""):
        with pytest.raises(MeshError):
            check_prefix(wrong)


def described() -> Bundle:
    """Return a bundle with the descriptors of the sample service."""
    parsed, _ = load(
        {
            "bundle.yaml": b"name: t\ntrust_domain: mesh.test\nservices: {echo: {}}\n",
            "descriptors.binpb": sample.descriptors(),
        }
    )
    assert parsed is not None
    return read_bundle(archive_of(parsed), role=BASE_ROLE)


PAYMENT = shop_pb2.TransferRequest(to_account="B", amount=5).SerializeToString()


@pytest.mark.parametrize(
    ("content", "changes", "shown", "words"),
    [
        (PAYMENT, {}, Shown.WHOLE, '"to_account": "B"'),
        (PAYMENT + b"\xfa\x3f\x01x", {}, Shown.PARTLY, '"amount": "5"'),
        (PAYMENT, {"method": "a.B/C"}, Shown.BYTES, "12 01 42"),
        (b"\xff\x00\x01", {"method": "a.B/C"}, Shown.BYTES, "ff 00 01"),
        (b'{"a": 1}', {"method": "a.B/C"}, Shown.TEXT, '{"a": 1}'),
        (b"\x1b[2J", {"method": "a.B/C"}, Shown.BYTES, "1b"),
        (None, {}, Shown.MISSING, ""),
        (PAYMENT, {"window": True}, Shown.UNBOUND, '"amount"'),
        (None, {"window": True}, Shown.UNBOUND, ""),
        (None, {"request_sha256": bytes(32)}, Shown.NOTHING, ""),
        (PAYMENT, {"request_sha256": b"\x01" * 32}, Shown.CONTRADICTED, ""),
    ],
    ids=["whole", "unknown fields", "no descriptor", "bytes", "json", "an escape sequence", "not kept",
         "window", "window, not kept", "empty stream", "another digest"],
)  # fmt: skip
def test_approvers_are_told_how_much_they_see(
    content: bytes | None, changes: dict[str, object], shown: Shown, words: str
) -> None:
    """The bytes that are bound, by the signed descriptors; what is missing is said."""
    fields: dict[str, object] = {"method": "egm.sample.v1.Payments/Transfer"}
    if content is not None:
        fields["request_sha256"] = hashlib.sha256(content).digest()
    found = content_of(ticket(**{**fields, **changes}), content, [described()])
    assert found.shown is shown and words in found.text
