"""What a node keeps for auditors of one execution, and what it does when it cannot."""

import hashlib
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sidecar.core.bundle_state import InForce
from sidecar.core.call import Attempt, Decision, Direction
from sidecar.edge import payload_sealer
from sidecar.edge.payload_sealer import PayloadSealer
from tests.support.auditing import Auditor
from tests.support.records import execution_id
from trust import limits
from trust.errors import Reason, StateError
from trust.mesh import MeshSettings
from trust.payload import Binding, Part, open_sealed, parse_sealed
from trust.permit_claims import NO_MESSAGE
from trust.policy.types import Authn
from trust.record import Side

ANN, BEN, CAT = Auditor("ann"), Auditor("ben"), Auditor("cat")
PAYLOAD = (("audit", "payload"),)
REQUEST = b"what alice asks"


@dataclass
class Held:
    """What the sealer sees of a call."""

    level: int = 5
    request: bytes | None = REQUEST
    attempt: Attempt = field(
        default_factory=lambda: Attempt(
            Direction.INBOUND, "payments", "shop.Pay/Do", "spiffe://x/workload/a", Authn.MTLS
        )
    )
    execution_id: bytes = field(default_factory=lambda: execution_id(1))
    request_sha256: bytes = b""
    audited: bool = False
    obligations: tuple[tuple[str, str], ...] = ()
    sealed_request: bytes = b""
    sealed_response: bytes = b""


class Node:
    """A sealer under a policy that a test changes, and the alarms that it raised."""

    def __init__(self, *auditors: Auditor) -> None:
        self.alarms: list[str] = []
        self.name(*auditors)
        self.sealer = PayloadSealer("n1", lambda: cast("InForce", self.held), self.alarms.append)

    def name(self, *auditors: Auditor) -> None:
        mesh = MeshSettings(trust_domain="mesh.local", auditors={a.key.name: a.key.text for a in auditors})
        self.held = SimpleNamespace(engine=SimpleNamespace(mesh=mesh))

    async def request(self, case: Held, *obligations: tuple[str, str]) -> None:
        decision = Decision("d", True, Reason.ALLOWED, case.level, 1, obligations=obligations or PAYLOAD)
        await self.sealer.meet(case, decision, now_ms=0)


def binding(part: Part = Part.REQUEST) -> Binding:
    return Binding(execution_id(1), Side.INBOUND, part, "n1")


async def test_request_and_response_are_sealed_to_every_auditor_for_this_record() -> None:
    """Each part says which it is."""
    node, case = Node(ANN, BEN), Held()
    await node.request(case)
    await node.sealer.response(case, b"what payments answers")
    assert case.audited and case.obligations == (("audit", "payload=sealed"),)
    for auditor in (ANN, BEN):
        assert open_sealed(case.sealed_request, binding(), auditor.private) == REQUEST
        response = open_sealed(case.sealed_response, binding(Part.RESPONSE), auditor.private)
        assert response == b"what payments answers"


@pytest.mark.parametrize("auditors", [(ANN, BEN, CAT), (ANN,)], ids=len)
async def test_large_payloads_and_many_auditors_are_sealed_off_the_loop_alike(
    auditors: tuple[Auditor, ...],
) -> None:
    """The way is another, the result is the same."""
    request = bytes(limits.MAX_AUDITED_PAYLOAD_BYTES)
    node, case = Node(*auditors), Held(request=request)
    await node.request(case)
    assert open_sealed(case.sealed_request, binding(), auditors[-1].private) == request


async def test_a_new_policy_seals_to_its_auditors_and_old_records_stay_readable() -> None:
    """Replacing an auditor's key is a signed bundle."""
    node, before, after = Node(ANN), Held(), Held()
    await node.request(before)
    node.name(BEN)
    await node.request(after)
    assert parse_sealed(before.sealed_request).key_ids == (ANN.key.id,)
    assert parse_sealed(after.sealed_request).key_ids == (BEN.key.id,)
    assert open_sealed(before.sealed_request, binding(), ANN.private) == REQUEST


async def test_what_no_policy_asks_for_is_not_kept() -> None:
    """No payload unless @audit("payload") asks; other obligations are for other duties."""
    node, case = Node(ANN), Held(level=1)
    await node.request(case, ("rate", "1/s"))
    assert (case.sealed_request, case.audited) == (b"", False)
    assert case.obligations == ()


UNMET = [
    ((ANN,), bytes(limits.MAX_AUDITED_PAYLOAD_BYTES + 1), b"", "too-large"),
    ((), REQUEST, b"", "no-auditor"),
    ((ANN,), None, b"", "unseen"),
]


@pytest.mark.parametrize(
    ("auditors", "request_bytes", "digest", "kept"), UNMET, ids=[case[-1] for case in UNMET]
)
@pytest.mark.parametrize("level", [4, 5])
async def test_from_level_four_on_a_request_that_cannot_be_kept_is_refused_and_noted(
    level: int, auditors: tuple[Auditor, ...], request_bytes: bytes | None, digest: bytes, kept: str
) -> None:
    """Nothing is truncated, nothing goes on unkept."""
    node, case = Node(*auditors), Held(level=level, request=request_bytes, request_sha256=digest)
    with pytest.raises(StateError) as caught:
        await node.request(case)
    assert caught.value.reason is Reason.OBLIGATION_UNMET
    assert case.obligations == (("audit", f"payload={kept}"),) and case.sealed_request == b""
    assert node.alarms == []


@pytest.mark.parametrize(
    ("auditors", "request_bytes", "digest", "kept"), UNMET, ids=[case[-1] for case in UNMET]
)
@pytest.mark.parametrize("level", [1, 3])
async def test_below_level_four_the_call_goes_on_and_a_person_is_told(
    level: int, auditors: tuple[Auditor, ...], request_bytes: bytes | None, digest: bytes, kept: str
) -> None:
    """Availability wins there, visibly."""
    node, case = Node(*auditors), Held(level=level, request=request_bytes, request_sha256=digest)
    await node.request(case)
    assert case.obligations == (("audit", f"payload={kept}"),)
    assert len(node.alarms) == 1 and kept in node.alarms[0]


async def test_a_stream_that_ended_without_a_message_has_no_payload_to_keep() -> None:
    """It met the obligation: there is nothing that an auditor misses."""
    node, case = Node(ANN), Held(request=None, request_sha256=NO_MESSAGE)
    await node.request(case)
    assert case.obligations == (("audit", "payload=nothing-sent"),)


@pytest.mark.parametrize(("level", "refused"), [(3, False), (4, True), (5, True)])
async def test_a_response_that_cannot_be_kept_is_withheld_from_level_four_on(
    level: int, refused: bool
) -> None:
    """Else a callee could avoid the audit by answering at length."""
    node, case = Node(ANN), Held(level=level)
    await node.request(case)
    large = bytes(limits.MAX_AUDITED_PAYLOAD_BYTES + 1)
    if refused:
        with pytest.raises(StateError, match=r"OBLIGATION_UNMET.*the response of 65537 bytes"):
            await node.sealer.response(case, large)
    else:
        await node.sealer.response(case, large)
        assert "response too-large" in node.alarms[0]
    assert case.sealed_response == b""


async def test_a_failing_library_refuses_the_call_and_leaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it raises; its words stay in the log."""

    def broken(*_: Any) -> bytes:
        raise RuntimeError("secret internals")

    monkeypatch.setattr(payload_sealer, "seal", broken)
    node, case = Node(ANN), Held()
    with pytest.raises(StateError) as caught:
        await node.request(case)
    assert caught.value.reason is Reason.OBLIGATION_UNMET and "secret" not in str(caught.value)
    assert case.obligations == (("audit", "payload=failed"),)


async def test_equal_requests_do_not_look_equal() -> None:
    """The digest in the record is what compares; the ciphertext is fresh."""
    node, one, two = Node(ANN), Held(), Held()
    await node.request(one)
    await node.request(two)
    assert hashlib.sha256(one.sealed_request).digest() != hashlib.sha256(two.sealed_request).digest()
