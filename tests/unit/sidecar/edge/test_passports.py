"""Which credential goes with a call, what a callee says of the one that came, and what happens when it lacks it."""

import hashlib
from collections.abc import Awaitable, Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sidecar.core.call import Attempt, Decision, Direction
from sidecar.core.carriage import HELD_KEY
from sidecar.core.endorsements import Endorsements
from sidecar.core.permits import Minter, Verifier
from sidecar.core.replay import ReplayCache
from sidecar.edge.case import Case, Signing
from sidecar.edge.metadata import Pair
from sidecar.edge.notary import Notary
from sidecar.edge.passports import ADDRESS_KEY, told_address
from tests.support.attestation import AttestedNode, credential_of, holders, roster_of
from tests.support.permits import ALICE, CERTIFICATE, NODE, NOW_MS, PAY, PAYMENTS, NodeCa
from tests.support.permits import Signing as NodeSigning
from tests.support.permits import token as mint
from tests.support.sidecar_core import ManualClock
from trust.attestation.credential import CREDENTIAL_KEY, Credential, open_credential
from trust.errors import EvidenceError, MeshError, Reason, StateError
from trust.permit import PERMIT_KEY
from trust.policy.types import Authn
from trust.record import Intent, Outcome
from trust.spiffe import SpiffeId

CALLER = NodeSigning()
GOOD, BAD = b"a credential", b"another one"
SHA256 = hashlib.sha256(GOOD).digest()
DENIED = Decision("d", allowed=False, reason=Reason.ATTESTATION_UNKNOWN, level=5, policy_version=7)


class Trusting:
    """A trust state that knows one good credential."""

    def __init__(self, own: Credential | None = None) -> None:
        self.held: set[bytes] = set()
        self.told: list[tuple[str, str]] = []
        self._own = own

    def own(self) -> Credential | None:
        return self._own

    def check_peer(
        self, sha256: bytes | None, carried: bytes | None, *, node: SpiffeId, public_key: bytes, now_ms: int
    ) -> None:
        if sha256 in self.held:
            return
        if carried is None:
            raise StateError(Reason.ATTESTATION_UNKNOWN, "not here")
        if carried != GOOD:
            raise EvidenceError(Reason.ATTESTATION_INVALID, "not good")
        self.held.add(SHA256)

    def holds(self, sha256: bytes) -> bool:
        return sha256 in self.held

    def met(self, node: SpiffeId, address: str) -> None:
        self.told.append((node.name, address))


class Records:
    def append(self, record: Intent | Outcome) -> object:
        return record

    async def durable(self, pending: object) -> None:
        return None


class Node:
    """A notary at level 5."""

    def __init__(self, trust: Trusting | None = None) -> None:
        self.trust = trust or Trusting()
        endorsements = Endorsements(lambda: NodeCa().pem, "mesh.local")
        endorsements.hold(CALLER.public)
        replay = ReplayCache(boot_ms=NOW_MS - 60_000, remember=lambda _ms: None)
        self.verifier = Verifier(endorsements, replay)
        minter = Minter(NODE, lambda: "", Ed25519PrivateKey.generate().sign, lambda: b"\x07" * 16)
        self.notary = Notary(
            node="n1",
            boot_id="b",
            clock=ManualClock(NOW_MS),
            ids=lambda: bytes.fromhex("0198f2f3eaaa7bbb8ccc0123456789ad"),
            level=lambda _service: 5,
            in_force=lambda: None,
            callee=lambda _service: PAYMENTS,
            journal=Records(),
            signing=Signing(minter, self.verifier, lambda: b"", lambda _caller: CERTIFICATE),
            alarm=lambda _text: None,
            trust=self.trust,
        )

    def case(self, *more: Pair, token: str | None = None) -> Case:
        attempt = Attempt(Direction.INBOUND, "payments", PAY, ALICE, Authn.MTLS)
        pairs = [(PERMIT_KEY, token or permit()), *more]
        case = self.notary.arrived(attempt, pairs, CERTIFICATE)
        assert case is not None
        return case

    def admit(self, case: Case) -> None:
        self.notary.admit(case, None, now_ms=NOW_MS)

    def fetching(self, answer: Callable[[SpiffeId, bytes], Awaitable[bytes]]) -> None:
        self.notary.fetch_from(answer, lambda: "")


def permit() -> str:
    return mint(CALLER, request_sha256=None, credential_sha256=SHA256)


def refusal(node: Node, case: Case) -> Reason:
    with pytest.raises(MeshError) as error:
        node.admit(case)
    return error.value.reason


def test_a_callee_says_that_it_holds_what_came_and_was_good() -> None:
    """To the sidecar of the caller, with the first metadata of its answer; and nothing of what it held before."""
    node = Node()
    case = node.case((CREDENTIAL_KEY, GOOD), (ADDRESS_KEY, "10.0.0.1:7443"))
    node.admit(case)
    assert node.notary.answered(case, ()) == ((HELD_KEY, SHA256),)
    assert node.trust.told == [(NODE.name, "10.0.0.1:7443")]
    later = node.case(token=mint(CALLER, request_sha256=None, credential_sha256=SHA256, permit_id=b"2" * 16))
    node.trust.held.add(SHA256)
    assert node.notary.answered(later, ()) == ()


def test_of_a_credential_that_is_not_good_nothing_is_kept() -> None:
    """Neither it, nor where its node says that it answers."""
    node = Node()
    case = node.case((CREDENTIAL_KEY, BAD), (ADDRESS_KEY, "10.0.0.1:7443"))
    assert refusal(node, case) is Reason.ATTESTATION_INVALID
    assert (node.notary.answered(case, ()), node.trust.told) == ((), [])


async def test_a_credential_that_is_missing_is_fetched_from_the_node_of_the_permit() -> None:
    """And the same permit, spent once, is admitted then."""
    node, asked = Node(), []

    async def fetch(who: SpiffeId, sha256: bytes) -> bytes:
        asked.append((who, sha256))
        return GOOD

    node.fetching(fetch)
    token = permit()
    case = node.case(token=token)
    assert refusal(node, case) is Reason.ATTESTATION_UNKNOWN
    assert await node.notary.attest(case)
    node.admit(case)
    assert asked == [(NODE, SHA256)]
    assert case.permit is node.verifier.parent_of(token, PAYMENTS) is not None
    assert refusal(node, node.case(token=token)) is Reason.PERMIT_REPLAYED


@pytest.mark.parametrize("answers", [False, True], ids=["no answer", "a bad one"])
async def test_one_that_cannot_be_fetched_is_refused_and_its_permit_is_no_parent(answers: bool) -> None:
    """Nothing runs under it; it was spent all the same."""
    node = Node()

    async def fetch(_who: SpiffeId, _sha256: bytes) -> bytes:
        if not answers:
            raise StateError(Reason.ATTESTATION_UNKNOWN, "no address")
        return BAD

    node.fetching(fetch)
    token = permit()
    case = node.case(token=token)
    assert refusal(node, case) is Reason.ATTESTATION_UNKNOWN
    assert await node.notary.attest(case) is answers
    if answers:
        assert refusal(node, case) is Reason.ATTESTATION_INVALID
    node.notary.refused(case, DENIED)
    assert case.unattested is None
    assert node.verifier.parent_of(token, PAYMENTS) is None
    assert refusal(node, node.case(token=token)) is Reason.PERMIT_REPLAYED


async def test_nothing_is_fetched_for_a_permit_that_is_not_good() -> None:
    """Whoever has no permit of a node cannot make this one ask anybody."""
    node, token = Node(), permit()

    async def fetch(_who: SpiffeId, _sha256: bytes) -> bytes:
        raise AssertionError("asked")

    node.fetching(fetch)
    forged = node.case(token=token[:-4] + "AAAA")
    assert refusal(node, forged) is Reason.PERMIT_INVALID
    assert not await node.notary.attest(forged)


def test_a_call_that_goes_away_while_its_credential_is_fetched_leaves_nothing_open() -> None:
    """Its permit is no parent."""
    node, token = Node(), permit()
    case = node.case(token=token)
    assert refusal(node, case) is Reason.ATTESTATION_UNKNOWN
    node.notary.closed(case, "CANCELLED", 0.0)
    assert case.unattested is None
    assert node.verifier.parent_of(token, PAYMENTS) is None


def own() -> Credential:
    witnesses = holders("a", "b")
    return open_credential(credential_of(AttestedNode("n1").evidence(), witnesses), roster_of(witnesses))


def test_a_credential_goes_with_every_call_until_the_callee_says_that_it_holds_it() -> None:
    """With where this node answers peers, if that is known by then."""
    credential = own()
    passports = Node(Trusting(credential)).notary.passports
    assert passports is not None

    def sent() -> tuple[Case, tuple[Pair, ...]]:
        attempt = Attempt(Direction.OUTBOUND, "payments", PAY, ALICE, Authn.MTLS)
        case = Case(attempt, 5)
        return case, passports.carry(case, credential)

    assert sent()[1] == ((CREDENTIAL_KEY, credential.data),)
    passports.address = lambda: "10.0.0.9:7443"
    case, pairs = sent()
    assert pairs == ((CREDENTIAL_KEY, credential.data), (ADDRESS_KEY, "10.0.0.9:7443"))
    assert passports.answered(case, [("x", "y")]) == ()
    passports.ended(case, "OK")
    assert sent()[1], "a success alone says nothing"
    passports.answered(case, [(HELD_KEY, credential.sha256)])
    assert sent()[1] == ()


@pytest.mark.parametrize(
    ("pairs", "address"),
    [
        ([(ADDRESS_KEY, "host:7443")], "host:7443"),
        ([(ADDRESS_KEY, "[::1]:7443")], "[::1]:7443"),
        ([], ""),
        ([(ADDRESS_KEY, "host:0")], ""),
        ([(ADDRESS_KEY, "host")], ""),
        ([(ADDRESS_KEY, "unix:///run/x")], ""),
        ([(ADDRESS_KEY, b"host:1")], ""),
        ([(ADDRESS_KEY, "h:1"), (ADDRESS_KEY, "h:2")], ""),
        ([(ADDRESS_KEY, "h" * 255 + ":1")], ""),
    ],
)
def test_an_address_is_a_hint_that_is_passed_over_when_it_cannot_be_used(
    pairs: list[Pair], address: str
) -> None:
    """It refuses no call."""
    assert told_address(pairs) == address
