"""Permits between two sidecars: minted by one, accepted once by the other, and the links to what is open."""

import dataclasses
import hashlib
import itertools
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sidecar.core.call import Attempt, Decision, Direction
from sidecar.core.endorsements import Endorsements
from sidecar.core.permits import Minter, Verifier, check_enough, presented
from sidecar.core.replay import ReplayCache
from tests.support.permits import (
    ALICE,
    CERTIFICATE,
    EXECUTION,
    NODE,
    NOW_MS,
    OTHER_NODE,
    PAY,
    PAYMENTS,
    REQUEST,
    ROOT,
    NodeCa,
)
from trust import limits
from trust.errors import EvidenceError, MeshError, Reason, StateError
from trust.node_key import endorsement_digest, make_endorsement
from trust.permit import NO_MESSAGE, PERMIT_KEY, Permit, mint, read_claims
from trust.policy.types import Authn

CA = NodeCa()
POLICY = b"\x55" * 32
LEDGER = "spiffe://mesh.local/workload/ledger"
ALLOWED = Decision("d", allowed=True, reason=Reason.ALLOWED, level=5, policy_version=7)
METHOD_ALONE = dataclasses.replace(ALLOWED, method_alone=True)  # by policies that say so


class Node:
    """A node that mints: key, endorsement, minter."""

    def __init__(self, spiffe_id: Any = NODE, ca: NodeCa = CA) -> None:
        self.private = Ed25519PrivateKey.generate()
        self.endorsement = make_endorsement(ca.svid(spiffe_id), self.private.public_key(), NOW_MS)
        self.drawn = 0
        kid = endorsement_digest(self.endorsement)
        self.minter = Minter(spiffe_id, lambda: kid, self.private.sign, self._draw)

    def _draw(self) -> bytes:
        self.drawn += 1
        return self.drawn.to_bytes(16)

    def mint(self, *, caller: str = ALICE, method: str = PAY, **changes: Any) -> str:
        attempt = Attempt(Direction.OUTBOUND, "payments", method, caller, Authn.UNIX_SOCKET)
        options: dict[str, Any] = {
            "attempt": attempt,
            "decision": ALLOWED,
            "request_sha256": REQUEST,
            "parent": None,
            "root_id": EXECUTION,
            "client_cert_sha256": CERTIFICATE,
            "now_ms": NOW_MS,
            "execution_id": EXECUTION,
            "callee": PAYMENTS,
            "policy_sha256": POLICY,
        }
        return self.minter.mint_for(**{**options, **changes})


SENDER = Node()


def verifier(*, boot_ms: int = NOW_MS - 60_000, anchors: bytes = CA.pem, **options: Any) -> Verifier:
    return Verifier(
        Endorsements(lambda: anchors, "mesh.local"),
        ReplayCache(boot_ms=boot_ms, remember=lambda _ms: None),
        **options,
    )


def incoming(principal: str | None = ALICE, method: str = PAY, unidentified: Reason | None = None) -> Attempt:
    authn = None if principal is None else Authn.MTLS
    return Attempt(Direction.INBOUND, "payments", method, principal, authn, unidentified)


def accept(
    at: Verifier,
    token: str | None,
    endorsement: bytes | None = SENDER.endorsement,
    attempt: Attempt | None = None,
    **changes: Any,
) -> Permit:
    options: dict[str, Any] = {
        "audience": PAYMENTS,
        "request_sha256": REQUEST,
        "client_cert_sha256": CERTIFICATE,
        "now_ms": NOW_MS,
    }
    return at.accept(token, endorsement, attempt or incoming(), **{**options, **changes})


def refused(*args: Any, **options: Any) -> Reason:
    with pytest.raises(MeshError) as error:
        accept(*args, **options)
    return error.value.reason


def test_a_minted_permit_is_accepted_by_its_callee_with_every_claim() -> None:
    """The two ends agree on what was bound."""
    token = SENDER.mint()
    claims = accept(verifier(), token).claims
    assert (claims.issuer, claims.subject, claims.audience) == (str(NODE), ALICE, PAYMENTS)
    assert (claims.method, claims.request_sha256, claims.certificate_sha256) == (PAY, REQUEST, CERTIFICATE)
    assert (claims.policy_version, claims.policy_digest) == (7, POLICY)
    assert claims.root_id == claims.execution_id == EXECUTION
    assert claims.expires_s - claims.issued_s == limits.MAX_PERMIT_LIFETIME_S
    assert claims.request_sha256 == REQUEST


def test_a_permit_of_the_method_alone_is_not_minted_unless_the_policies_say_so() -> None:
    """Whatever forgets to read the opening message gets an error, never a permit that is good for any message."""
    with pytest.raises(ValueError, match="method alone"):
        SENDER.mint(request_sha256=None)
    assert read_claims(SENDER.mint(request_sha256=None, decision=METHOD_ALONE)).request_sha256 is None


def test_a_permit_of_the_method_alone_is_enough_only_where_the_callees_own_policies_say_so() -> None:
    """A compromised caller's sidecar mints what it likes; it cannot talk the callee out of binding the message."""
    alone = accept(verifier(), SENDER.mint(request_sha256=None, decision=METHOD_ALONE), request_sha256=None)
    check_enough(alone, METHOD_ALONE)
    with pytest.raises(EvidenceError, match=r'PERMIT_MISMATCH: .*@permit\("method"\)'):
        check_enough(alone, ALLOWED)
    bound = accept(verifier(), SENDER.mint())
    for decision in (ALLOWED, METHOD_ALONE):  # binding more than is asked for is never wrong
        check_enough(bound, decision)


def test_a_stream_is_bound_to_its_opening_message_or_to_having_none() -> None:
    """A half-closed stream is not one with an empty message, nor one whose message was not waited for."""
    empty = hashlib.sha256(b"").digest()
    for bound, shown in itertools.product((REQUEST, NO_MESSAGE, empty, None), repeat=2):
        token = SENDER.mint(request_sha256=bound, decision=METHOD_ALONE)
        if bound == shown:
            accept(verifier(), token, request_sha256=shown)
        else:
            assert refused(verifier(), token, request_sha256=shown) is Reason.PERMIT_MISMATCH


def test_a_stream_spends_its_permit_before_its_opening_message_and_links_nothing_without_it() -> None:
    """Who does not send the message has used the permit up, and nothing can be called in its name."""
    at, token = verifier(), SENDER.mint()
    here: dict[str, Any] = {"audience": PAYMENTS, "client_cert_sha256": CERTIFICATE, "now_ms": NOW_MS}
    permit = at.present(token, SENDER.endorsement, incoming(), **here)
    assert at.parent_of(token, PAYMENTS) is None
    with pytest.raises(StateError, match="PERMIT_REPLAYED"):
        at.present(token, SENDER.endorsement, incoming(), **here)
    with pytest.raises(EvidenceError, match="another request"):
        at.bind(permit, NO_MESSAGE)
    assert at.parent_of(token, PAYMENTS) is None
    at.bind(permit, REQUEST)
    assert at.parent_of(token, PAYMENTS) is permit


def test_a_permit_is_accepted_once() -> None:
    """The second call with it is refused, whoever makes it."""
    at, token = verifier(), SENDER.mint()
    accept(at, token)
    assert refused(at, token) is Reason.PERMIT_REPLAYED
    assert refused(at, token, attempt=incoming("spiffe://mesh.local/workload/eve")) is Reason.PERMIT_REPLAYED


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempt": incoming("spiffe://mesh.local/workload/eve")},
        {"attempt": incoming(method="shop.Payments/Refund")},
        {"request_sha256": b"\x12" * 32},
        {"request_sha256": None},
        {"client_cert_sha256": b"\x13" * 32},
    ],
)
def test_a_genuine_permit_shown_for_another_call_is_spent_by_that(wrong: dict[str, Any]) -> None:
    """Nobody tries one permit on many calls until one fits."""
    at, token = verifier(), SENDER.mint()
    assert refused(at, token, **wrong) is Reason.PERMIT_MISMATCH
    assert refused(at, token) is Reason.PERMIT_REPLAYED


def test_what_is_not_genuine_spends_nothing() -> None:
    """A forger must not be able to use up somebody else's permit, or the room for them."""
    at, token = verifier(), SENDER.mint()
    assert refused(at, token[:-8] + "AAAAAAAA") is Reason.PERMIT_INVALID
    assert refused(at, token, audience=LEDGER) is Reason.PERMIT_MISMATCH
    assert accept(at, token)


def test_a_permit_used_before_a_restart_is_refused_after_it() -> None:
    """The cache is gone; the boot time stands in for it."""
    token = SENDER.mint()
    accept(verifier(), token)
    assert (
        refused(verifier(boot_ms=NOW_MS + 1_000), token, now_ms=NOW_MS + 2_000) is Reason.PERMIT_UNVERIFIABLE
    )


def begun(number: int, *, ms: int = NOW_MS) -> dict[str, Any]:
    """Return what makes a permit that of another root execution, begun at `ms`."""
    own = ms.to_bytes(6) + EXECUTION[6:-1] + bytes([number])
    return {"execution_id": own, "root_id": own}


def test_two_nodes_may_draw_the_same_permit_id() -> None:
    """A node cannot spend another's permits by guessing or copying their ids."""
    at, other = verifier(), Node(OTHER_NODE)
    SENDER.drawn = other.drawn = 0
    mine, theirs = SENDER.mint(), other.mint(**begun(2))
    assert read_claims(mine).permit_id == read_claims(theirs).permit_id
    accept(at, theirs, other.endorsement)
    accept(at, mine)


@pytest.mark.parametrize("node", [SENDER, Node(OTHER_NODE)], ids=["its own node", "another"])
def test_no_permit_begins_an_execution_again(node: Node) -> None:
    """A compromised sidecar that uses an id twice would hide the second execution behind the first.

    Not with another permit, not when the first is forgotten, not after a restart of the callee's sidecar.
    """
    at = verifier()
    accept(at, SENDER.mint())
    assert refused(at, node.mint(), node.endorsement) is Reason.PERMIT_REPLAYED
    last_ms = NOW_MS + limits.MAX_PERMIT_DELAY_S * 1000
    for ms in (last_ms - 29_000, last_ms):  # the last that can be minted for it, used as late as can be
        late = node.mint(now_ms=ms)
        used_ms = ms + 30_000 + limits.MAX_CLOCK_SKEW_MS - 1_000
        assert refused(at, late, node.endorsement, now_ms=used_ms) is Reason.PERMIT_REPLAYED
    later = node.mint(now_ms=last_ms + 1_000)
    assert refused(at, later, node.endorsement, now_ms=last_ms + 1_000) is Reason.PERMIT_INVALID
    restarted = verifier(boot_ms=NOW_MS + 1)
    again = node.mint(now_ms=NOW_MS + 5_000)
    assert refused(restarted, again, node.endorsement, now_ms=NOW_MS + 5_000) is Reason.PERMIT_UNVERIFIABLE


def test_an_execution_that_begins_after_its_permit_is_refused() -> None:
    """It would have to be remembered for longer than a permit lives."""
    ahead = begun(1, ms=NOW_MS + 3_600_000)
    assert (
        read_claims(SENDER.mint(**ahead)).issued_s == (NOW_MS + 3_600_000) // 1000
    )  # honest: refused as of later
    forged = mint(
        dataclasses.replace(read_claims(SENDER.mint()), **ahead),
        SENDER.private.sign,
        endorsement_digest(SENDER.endorsement),
    )
    assert refused(verifier(), forged) is Reason.PERMIT_INVALID


def test_a_clock_that_went_back_a_little_does_not_stop_a_node() -> None:
    """Its ids go on from where they were, for at most a second."""
    token = SENDER.mint(**begun(1, ms=NOW_MS + 900))
    accept(verifier(), token)


def test_a_call_without_permit_or_without_identity_is_refused() -> None:
    """Each with its own reason."""
    assert refused(verifier(), None) is Reason.PERMIT_MISSING
    nobody = incoming(None, unidentified=Reason.CALLER_CERTIFICATE_EXPIRED)
    assert refused(verifier(), SENDER.mint(), attempt=nobody) is Reason.CALLER_CERTIFICATE_EXPIRED
    assert refused(verifier(), SENDER.mint(), attempt=incoming(None)) is Reason.CALLER_UNIDENTIFIED


def test_an_endorsement_is_verified_once_and_then_known() -> None:
    """The second permit of a node comes without, and is accepted."""
    at = verifier()
    assert refused(at, SENDER.mint(), None) is Reason.PERMIT_UNVERIFIABLE
    accept(at, SENDER.mint())
    accept(at, SENDER.mint(**begun(2)), None)


def test_the_endorsement_of_another_node_does_not_help() -> None:
    """The key id in the signed header names exactly one."""
    assert refused(verifier(), SENDER.mint(), Node(OTHER_NODE).endorsement) is Reason.PERMIT_INVALID


def test_a_node_cannot_sign_under_the_key_id_of_another_with_its_own_endorsement() -> None:
    """The key that verifies must be the one that the permit names, or an auditor would look at the wrong one."""
    liar = Node(OTHER_NODE)
    liar.minter = Minter(
        OTHER_NODE, lambda: endorsement_digest(SENDER.endorsement), liar.private.sign, lambda: b"\x01" * 16
    )
    assert refused(verifier(), liar.mint(), liar.endorsement) is Reason.PERMIT_INVALID


def test_an_endorsement_under_another_ca_is_refused() -> None:
    """The anchors of the mesh decide whose nodes count."""
    assert refused(verifier(anchors=NodeCa().pem), SENDER.mint()) is Reason.PERMIT_INVALID


def test_a_known_key_is_forgotten_with_its_anchors_and_ends_with_its_endorsement() -> None:
    """A CA that was withdrawn vouches for nobody, cached or not."""
    anchors = [CA.pem]
    known = Endorsements(lambda: anchors[0], "mesh.local")
    kid = endorsement_digest(SENDER.endorsement)
    held = known.key_of(kid, SENDER.endorsement, now_ms=NOW_MS)
    assert known.key_of(kid, None, now_ms=held.not_after_ms - 1) is held
    for endorsement in (None, SENDER.endorsement):
        with pytest.raises(StateError) as error:
            known.key_of(kid, endorsement, now_ms=held.not_after_ms)
        assert error.value.reason is Reason.PERMIT_UNVERIFIABLE
    anchors[0] = NodeCa().pem
    known.forget_all()
    with pytest.raises(EvidenceError):
        known.key_of(kid, SENDER.endorsement, now_ms=NOW_MS)


def test_known_keys_are_bounded_and_the_oldest_leaves() -> None:
    """A node that endorses a thousand keys costs no memory."""
    known = Endorsements(lambda: CA.pem, "mesh.local", capacity=2)
    nodes = [Node() for _ in range(4)]
    for node in nodes:
        known.key_of(endorsement_digest(node.endorsement), node.endorsement, now_ms=NOW_MS)
        assert len(known) <= 2
    assert known.key_of(endorsement_digest(nodes[3].endorsement), None, now_ms=NOW_MS)
    with pytest.raises(StateError):
        known.key_of(endorsement_digest(nodes[0].endorsement), None, now_ms=NOW_MS)


def test_the_permit_of_an_open_execution_is_the_parent_of_the_calls_it_makes() -> None:
    """The chain: digest of the parent, the same root, until the execution ends."""
    at, token = verifier(), SENDER.mint()
    parent = accept(at, token)
    assert at.parent_of(token, PAYMENTS) is parent
    child_id = begun(3)["execution_id"]
    own = Node(OTHER_NODE)
    child = own.mint(caller=PAYMENTS, parent=parent, root_id=EXECUTION, execution_id=child_id, callee=LEDGER)
    claims = accept(verifier(), child, own.endorsement, incoming(PAYMENTS), audience=LEDGER).claims
    assert (claims.parent_sha256, claims.root_id, claims.execution_id) == (parent.sha256, EXECUTION, child_id)
    at.closed(parent)
    assert at.parent_of(token, PAYMENTS) is None
    at.closed(parent)  # an end may be told twice


def test_a_permit_that_was_not_accepted_here_or_for_this_workload_is_no_parent() -> None:
    """A stolen or merely seen permit links nothing to its chain."""
    at, token = verifier(), SENDER.mint()
    assert at.parent_of(token, PAYMENTS) is None
    accept(at, token)
    assert at.parent_of(token, ALICE) is None
    assert at.parent_of(token + "A", PAYMENTS) is None
    assert at.parent_of("é" * 10, PAYMENTS) is None


def test_a_refused_call_leaves_no_parent() -> None:
    """Only what was accepted is open."""
    at, token = verifier(), SENDER.mint()
    refused(at, token, client_cert_sha256=b"\x13" * 32)
    assert at.parent_of(token, PAYMENTS) is None


def test_open_executions_are_bounded() -> None:
    """The oldest loses its link, never its right."""
    at = verifier(max_open=3)
    tokens = [SENDER.mint(**begun(number)) for number in range(5)]
    for token in tokens:
        accept(at, token)
    assert [at.parent_of(token, PAYMENTS) is not None for token in tokens] == [False, False, True, True, True]


def test_only_an_allowed_outgoing_call_of_a_known_caller_gets_a_permit() -> None:
    """Holding a decision that refused is not enough."""
    denied = Decision("d", allowed=False, reason=Reason.POLICY_DENIED, level=5, policy_version=7)
    with pytest.raises(ValueError, match="allowed"):
        SENDER.mint(decision=denied)
    with pytest.raises(ValueError, match="outgoing"):
        SENDER.mint(attempt=incoming())
    with pytest.raises(EvidenceError):
        SENDER.mint(attempt=dataclasses.replace(incoming(None), direction=Direction.OUTBOUND))


def test_a_parent_of_another_workload_or_chain_is_refused_by_the_minter() -> None:
    """Also a mistake of the door must not sign a false lineage."""
    parent = accept(verifier(), SENDER.mint())
    for caller, root_id in ((ALICE, EXECUTION), (PAYMENTS, ROOT)):
        with pytest.raises(ValueError, match="parent"):
            SENDER.mint(parent=parent, execution_id=ROOT, caller=caller, root_id=root_id)


def test_a_node_whose_key_is_not_endorsed_mints_nothing() -> None:
    """Nobody could verify it."""

    def none() -> str:
        raise StateError(Reason.PERMIT_UNVERIFIABLE, "no endorsement")

    node = Node()
    node.minter = Minter(NODE, none, node.private.sign, lambda: b"\x01" * 16)
    with pytest.raises(StateError):
        node.mint()


def test_a_call_shows_its_permit_once() -> None:
    """Of two permits a sidecar would verify one and the service read the other."""
    good = ((PERMIT_KEY, "t"), ("x", "y"), ("egm-node-key-bin", b"e"))
    assert presented(good) == ("t", b"e")
    assert presented(()) == (None, None)
    for bad in (
        (*good, (PERMIT_KEY, "t")),
        (*good, ("egm-node-key-bin", b"e")),
        ((PERMIT_KEY, b"t"),),
        (("egm-node-key-bin", "e"),),
    ):
        with pytest.raises(EvidenceError) as error:
            presented(bad)
        assert error.value.reason is Reason.PERMIT_INVALID
