"""A payload that must be kept is on disk before its call goes on, or the call does not."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sidecar.core.bundle_state import InForce
from sidecar.core.call import Attempt, Decision, Direction
from sidecar.core.endorsements import Endorsements
from sidecar.core.permits import Minter, Verifier
from sidecar.core.replay import ReplayCache
from sidecar.edge.case import Signing
from sidecar.edge.notary import Notary
from tests.support.auditing import Auditor
from tests.support.permits import ALICE, NODE, NOW_MS, PAY, PAYMENTS, NodeCa
from tests.support.sidecar_core import ManualClock
from trust.errors import Reason, StateError
from trust.mesh import MeshSettings
from trust.payload import open_sealed, payloads_of
from trust.policy.types import Authn
from trust.record import Intent, Outcome

ANN = Auditor("ann")
ASKS = (("audit", "payload"),)


class Disk:
    """A ledger that may fail, and says what was waited for."""

    def __init__(self, *, broken: bool = False) -> None:
        self.held: list[Intent | Outcome] = []
        self.waited: list[object] = []
        self.broken = broken

    def append(self, record: Intent | Outcome) -> object:
        if self.broken:
            raise StateError(Reason.LEDGER_UNAVAILABLE, "the disk is full")
        self.held.append(record)
        return record

    async def durable(self, pending: object) -> None:
        self.waited.append(pending)


async def opened(disk: Disk, level: int, obligations: Any = ASKS) -> list[str]:
    """Open one outgoing call with a request; return the alarms."""
    alarms: list[str] = []
    mesh = MeshSettings(trust_domain="mesh.local", auditors={"ann": ANN.key.text})
    held = SimpleNamespace(
        engine=SimpleNamespace(mesh=mesh), policy=SimpleNamespace(base=SimpleNamespace(sha256="00" * 32))
    )
    verifier = Verifier(
        Endorsements(lambda: NodeCa().pem, "mesh.local"), ReplayCache(boot_ms=0, remember=lambda _ms: None)
    )
    key = Ed25519PrivateKey.generate()
    notary = Notary(
        node="n1",
        boot_id="b",
        clock=ManualClock(NOW_MS),
        ids=lambda: bytes.fromhex("0198f2f3eaaa7bbb8ccc0123456789ad"),
        level=lambda _service: level,
        in_force=lambda: cast("InForce", held),
        callee=lambda _service: PAYMENTS,
        journal=disk,
        signing=Signing(
            Minter(NODE, lambda: "k", key.sign, lambda: b"\x07" * 16),
            verifier,
            lambda: b"",
            lambda _caller: b"",
        ),
        alarm=alarms.append,
    )
    case = notary.arrived(Attempt(Direction.OUTBOUND, "payments", PAY, ALICE, Authn.MTLS), (), b"")
    assert case is not None
    notary.admit(case, b"what alice asks", now_ms=NOW_MS)
    decision = Decision("d", True, Reason.ALLOWED, level, 1, obligations=obligations)
    await notary.opened(case, decision, now_ms=NOW_MS)
    assert case.request is None  # a stream that stays open must not hold its first message
    return alarms


@pytest.mark.parametrize(
    ("level", "obligations", "waits"), [(4, ASKS, True), (4, (), False), (3, ASKS, False)]
)
async def test_from_level_four_on_a_kept_request_is_durable_before_it_is_forwarded(
    level: int, obligations: Any, waits: bool
) -> None:
    """Also where the policy leaves the ledger of level 4 asynchronous."""
    disk = Disk()
    assert await opened(disk, level, obligations) == []
    assert (disk.waited == disk.held) is waits
    (intent,) = disk.held
    assert isinstance(intent, Intent) and bool(intent.sealed_request) is bool(obligations)
    if obligations:
        recorded = payloads_of(intent)
        assert open_sealed(recorded.sealed, recorded.binding, ANN.private) == b"what alice asks"
        assert intent.obligations == (("audit", "payload=sealed"),)


async def test_at_level_four_a_ledger_that_cannot_be_written_stops_calls_whose_payload_must_be_kept() -> None:
    """Others go on, with an alarm."""
    with pytest.raises(StateError) as caught:
        await opened(Disk(broken=True), 4)
    assert caught.value.reason is Reason.LEDGER_UNAVAILABLE
    assert len(await opened(Disk(broken=True), 4, ())) == 1
    assert len(await opened(Disk(broken=True), 3)) == 1
