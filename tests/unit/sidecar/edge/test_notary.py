"""What the notary adds to a call and forgets of one: hand-overs, and permits of calls that were denied."""

import dataclasses
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sidecar.core.call import Attempt, Decision, Direction
from sidecar.core.endorsements import Endorsements
from sidecar.core.permits import Minter, Verifier
from sidecar.core.replay import ReplayCache
from sidecar.edge.case import Case, Signing
from sidecar.edge.notary import Notary
from tests.support.permits import ALICE, CERTIFICATE, NODE, NOW_MS, PAY, PAYMENTS, NodeCa
from tests.support.permits import Signing as NodeSigning
from tests.support.permits import token as mint
from tests.support.sidecar_core import ManualClock
from trust.errors import EvidenceError, MeshError, Reason, StateError
from trust.handover import HANDOVER_KEY, authenticate_handover
from trust.permit import NO_MESSAGE, PERMIT_KEY, permit_sha256
from trust.policy.types import Authn
from trust.record import Intent, Outcome

OWN = Ed25519PrivateKey.generate()
CALLER = NodeSigning()
DENIED = Decision("d", allowed=False, reason=Reason.NO_POLICY_PERMITS, level=5, policy_version=7)
ALLOWED = Decision("d", allowed=True, reason=Reason.ALLOWED, level=5, policy_version=7)
METHOD_ALONE = dataclasses.replace(ALLOWED, method_alone=True)  # by policies that say so


class Records:
    def __init__(self) -> None:
        self.held: list[Intent | Outcome] = []

    def append(self, record: Intent | Outcome) -> object:
        self.held.append(record)
        return record

    async def durable(self, pending: object) -> None:
        assert pending in self.held


class Node:
    """A notary of the node that serves payments, at `level`."""

    def __init__(self, level: int = 5) -> None:
        self.level = level
        endorsements = Endorsements(lambda: NodeCa().pem, "mesh.local")
        endorsements.hold(CALLER.public)
        self.verifier = Verifier(
            endorsements, ReplayCache(boot_ms=NOW_MS - 60_000, remember=lambda _ms: None)
        )
        self.records = Records()
        minter = Minter(NODE, lambda: "", OWN.sign, lambda: b"\x07" * 16)
        self.notary = Notary(
            node="n1",
            boot_id="b",
            clock=ManualClock(NOW_MS),
            ids=lambda: bytes.fromhex("0198f2f3eaaa7bbb8ccc0123456789ad"),
            level=lambda _service: self.level,
            in_force=lambda: None,
            callee=lambda _service: PAYMENTS,
            journal=self.records,
            signing=Signing(minter, self.verifier, lambda: b"", lambda _caller: CERTIFICATE),
            alarm=lambda text: None,
        )

    def admitted(self, *permit: tuple[str, str]) -> Case:
        attempt = Attempt(Direction.INBOUND, "payments", PAY, ALICE, Authn.MTLS)
        case = self.notary.arrived(attempt, permit, CERTIFICATE)
        assert case is not None
        self.notary.admit(case, None, now_ms=NOW_MS)
        return case


def permit() -> str:
    return mint(CALLER, request_sha256=None)


def test_a_call_that_is_denied_after_its_permit_was_accepted_is_no_parent_any_more() -> None:
    """Nothing was executed under it, so nothing can be linked to it."""
    node, token = Node(), permit()
    case = node.admitted((PERMIT_KEY, token))
    assert node.verifier.parent_of(token, PAYMENTS) is case.permit is not None
    node.notary.refused(case, DENIED)
    assert node.verifier.parent_of(token, PAYMENTS) is None
    assert [one.allowed for one in node.records.held if isinstance(one, Intent)] == [False]


async def test_a_hand_over_binds_the_permit_caller_and_request() -> None:
    """Signed by the node's own key, for the workload that serves here."""
    node, token = Node(), permit()
    case = node.admitted((PERMIT_KEY, token))
    case.hand_over, case.request_sha256 = True, b"\x01" * 32
    extra = dict(await node.notary.opened(case, METHOD_ALONE, now_ms=NOW_MS))
    text = str(extra[HANDOVER_KEY])
    claims = authenticate_handover(text, OWN.public_key(), audience=PAYMENTS, now_ms=NOW_MS)
    assert (claims.method, claims.caller, claims.execution_id) == (PAY, ALICE, case.execution_id)
    assert (claims.permit_sha256, claims.request_sha256) == (permit_sha256(token), b"\x01" * 32)
    assert extra[PERMIT_KEY] == token


async def test_below_level_five_a_hand_over_needs_no_permit_and_a_stream_binds_no_request() -> None:
    """Nothing waits for the opening message there."""
    node = Node(level=4)
    case = node.admitted()
    case.hand_over = True
    extra = dict(await node.notary.opened(case, ALLOWED, now_ms=NOW_MS))
    assert extra.keys() == {HANDOVER_KEY}
    claims = authenticate_handover(
        str(extra[HANDOVER_KEY]), OWN.public_key(), audience=PAYMENTS, now_ms=NOW_MS
    )
    assert claims.permit_sha256 is claims.request_sha256 is None


async def test_where_no_hand_over_is_configured_none_is_made() -> None:
    """It costs a signature."""
    node, token = Node(), permit()
    case = node.admitted((PERMIT_KEY, token))
    assert await node.notary.opened(case, METHOD_ALONE, now_ms=NOW_MS) == ((PERMIT_KEY, token),)


async def test_an_accepted_permit_is_recorded_whole_and_one_that_is_refused_is_not() -> None:
    """The token itself is the proof; what was not accepted is chosen by whoever calls, and fills no ledger."""
    node, token = Node(), permit()
    await node.notary.opened(node.admitted((PERMIT_KEY, token)), METHOD_ALONE, now_ms=NOW_MS)
    attempt = Attempt(Direction.INBOUND, "payments", PAY, ALICE, Authn.MTLS)
    replayed = node.notary.arrived(attempt, ((PERMIT_KEY, token),), CERTIFICATE)
    assert replayed is not None
    with pytest.raises(StateError, match="PERMIT_REPLAYED"):
        node.notary.admit(replayed, None, now_ms=NOW_MS)
    node.notary.refused(replayed, DENIED)
    kept = [one.permit for one in node.records.held if isinstance(one, Intent)]
    assert kept == [token.encode(), b""]


MESSAGE = b"the opening message"


def stream(node: Node, token: str) -> Case:
    attempt = Attempt(Direction.INBOUND, "payments", PAY, ALICE, Authn.MTLS)
    case = node.notary.arrived(attempt, ((PERMIT_KEY, token),), CERTIFICATE)
    assert case is not None
    return case


async def test_a_permit_of_the_method_alone_needs_this_nodes_own_policies_to_say_that_it_is_enough() -> None:
    """What the caller's sidecar thought of it does not count; nothing is recorded as opened, nothing linked."""
    node, token = Node(), permit()
    case = stream(node, token)
    assert not node.notary.present(case, now_ms=NOW_MS)
    node.notary.admit(case, None, now_ms=NOW_MS)
    with pytest.raises(EvidenceError, match="PERMIT_MISMATCH"):
        await node.notary.opened(case, ALLOWED, now_ms=NOW_MS)
    node.notary.refused(case, DENIED)
    assert not case.opened and node.verifier.parent_of(token, PAYMENTS) is None
    assert [one.allowed for one in node.records.held if isinstance(one, Intent)] == [False]


@pytest.mark.parametrize(
    ("bound", "message"), [(hashlib.sha256(MESSAGE).digest(), MESSAGE), (NO_MESSAGE, None)]
)
async def test_a_stream_is_admitted_with_the_opening_message_of_its_permit_and_no_other(
    bound: bytes, message: bytes | None
) -> None:
    """The permit says that a message is to be waited for; another one, or none, is another call."""
    others: list[tuple[bytes | None, bool]] = [(b"another", False), (b"", False), (None, False)]
    others.append((None, True) if message is not None else (MESSAGE, False))
    for other, ended in others:
        node = Node()
        case = stream(node, mint(CALLER, request_sha256=bound))
        assert node.notary.present(case, now_ms=NOW_MS)
        with pytest.raises(EvidenceError, match="PERMIT_MISMATCH"):
            node.notary.admit(case, other, ended=ended, now_ms=NOW_MS)
        assert case.permit is None and case.permit_token == b""
    node = Node()
    case = stream(node, mint(CALLER, request_sha256=bound))
    case.hand_over = True
    assert node.notary.present(case, now_ms=NOW_MS)
    node.notary.admit(case, message, ended=message is None, now_ms=NOW_MS)
    extra = dict(await node.notary.opened(case, ALLOWED, now_ms=NOW_MS))
    handed = authenticate_handover(
        str(extra[HANDOVER_KEY]), OWN.public_key(), audience=PAYMENTS, now_ms=NOW_MS
    )
    intent = node.records.held[-1]
    assert isinstance(intent, Intent)
    assert case.permit is not None and case.permit.claims.request_sha256 == bound
    assert handed.request_sha256 == intent.request_sha256 == bound


def test_a_bad_permit_ends_a_stream_before_anything_waits_for_it() -> None:
    """Only who holds a good one can make this node wait, once."""
    node, good = Node(), mint(CALLER, request_sha256=NO_MESSAGE)
    assert node.notary.present(stream(node, good), now_ms=NOW_MS)
    for token, reason in ((good, "PERMIT_REPLAYED"), (good[:-4] + "AAAA", "PERMIT_INVALID")):
        with pytest.raises(MeshError, match=reason):
            node.notary.present(stream(node, token), now_ms=NOW_MS)


def test_a_level_that_was_raised_while_a_message_was_waited_for_demands_its_permit() -> None:
    """A call that was opened at level 4 must not slip past the policy that came meanwhile."""
    node = Node(level=4)
    attempt = Attempt(Direction.INBOUND, "payments", PAY, ALICE, Authn.MTLS)
    case = node.notary.arrived(attempt, (), CERTIFICATE)
    assert case is not None and not node.notary.present(case, now_ms=NOW_MS)
    node.level = 5
    with pytest.raises(EvidenceError, match="PERMIT_MISSING"):
        node.notary.admit(case, MESSAGE, now_ms=NOW_MS)


def test_a_stream_whose_opening_message_never_came_is_recorded_without_the_permit_that_binds_it() -> None:
    """The record would contradict its own permit, and an honest evidence file would look tampered with."""
    node = Node()
    case = stream(node, mint(CALLER, request_sha256=NO_MESSAGE))
    assert node.notary.present(case, now_ms=NOW_MS)
    node.notary.refused(case, DENIED)
    (intent,) = node.records.held
    assert isinstance(intent, Intent)
    assert (intent.permit, intent.permit_sha256, intent.request_sha256) == (b"", b"", b"")


async def test_a_message_that_was_read_for_another_reason_does_not_make_a_permit_of_the_method_worse() -> (
    None
):
    """Whether the method alone is enough is for policy to say; the record holds what was sent all the same."""
    node = Node()
    case = stream(node, permit())
    assert not node.notary.present(case, now_ms=NOW_MS)
    node.notary.admit(case, MESSAGE, now_ms=NOW_MS)
    with pytest.raises(EvidenceError, match="PERMIT_MISMATCH"):
        await node.notary.opened(case, ALLOWED, now_ms=NOW_MS)
    await node.notary.opened(case, METHOD_ALONE, now_ms=NOW_MS)
    intent = node.records.held[-1]
    assert isinstance(intent, Intent)
    assert intent.request_sha256 == hashlib.sha256(MESSAGE).digest() and intent.permit
