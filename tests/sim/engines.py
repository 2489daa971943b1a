"""What a verified policy says: JSON instead of Cedar; of what a namespace may speak, the real engine decides."""

import functools
import json
from dataclasses import replace
from typing import Any

from tests.sim.namespace_house import SPACE, Stock, stock_of
from tests.sim.realm import (
    APPROVERS,
    DOMAIN,
    EMERGENCY,
    GRACE_MS,
    LEASE_MS,
    MAX_LAG_MS,
    NODES,
    REFUND,
    RESTOCK,
    TRUST_TTL_MS,
    key_of,
)
from tests.support.engines import bundle
from tests.support.sidecar_core import ALICE, ALLOW, PAY, WATCH, Kind, RuleDecider
from trust.approval_rule import REQUIRE
from trust.attestation.roster import AttestationSettings, WitnessSettings, witness_key_name
from trust.mesh import LeaseSettings, MeshSettings, PermanentRevocation, ServiceSettings
from trust.note import KeyKind, Verifier
from trust.policy.engine import Engine
from trust.verified import VerifiedPolicy

_BASE = '@id("none") forbid (principal, action, resource);'
_SCOPES = {
    "": 'resource == Service::"stock"',
    "payments": 'resource == Service::"payments"',
    "anything": "resource",
}


class Engines:
    """What was activated in one run: each content once."""

    def __init__(self) -> None:
        self._made: dict[str, RuleDecider] = {}
        self._admitted: set[str] = set()

    def of(self, policy: VerifiedPolicy) -> RuleDecider:
        """Return what decides under a policy.

        Raises:
            EvidenceError: BUNDLE_OUT_OF_NAMESPACE, if a namespace speaks of what is not its own.
        """
        if policy.digest not in self._made:
            space = policy.namespaces.get(SPACE)
            stock = None if space is None else stock_of(space.data)
            if stock is not None and stock.wide not in self._admitted:
                theirs = f'@id("stock") permit (principal, action, {_SCOPES[stock.wide]});'
                Engine.build(bundle(_BASE), {SPACE: bundle(theirs, namespace=SPACE)})
                self._admitted.add(stock.wide)
            self._made[policy.digest] = engine_of(policy.base.data, stock)
        return self._made[policy.digest]


@functools.cache
def _witnesses() -> AttestationSettings:
    return AttestationSettings(
        witnesses={
            name: WitnessSettings(
                key=Verifier(
                    witness_key_name(DOMAIN, name),
                    key_of(name).public_key().public_bytes_raw(),
                    KeyKind.COSIGNATURE_V1,
                ).encode()
            )
            for name in NODES
        },
        ttl_s=TRUST_TTL_MS // 1000,
        max_lag_s=MAX_LAG_MS // 1000,
    )


_METHODS = {PAY: Kind(), REFUND: Kind(), RESTOCK: Kind(), WATCH: Kind(server_streaming=True)}
_APPROVED = replace(ALLOW, obligations=((REQUIRE, "2 of ops"),))


def engine_of(archive: bytes, stock: Stock | None = None) -> RuleDecider:
    """Return the rules and signed settings of the base's archive with its namespace's; level 5 everywhere."""
    said: dict[str, Any] = json.loads(archive)
    settings = MeshSettings(
        trust_domain=DOMAIN,
        level=5,
        services={"payments": ServiceSettings(), "stock": ServiceSettings(namespace="store")},
        lease=LeaseSettings(ttl_s=LEASE_MS // 1000, grace_s=GRACE_MS // 1000),
        attestation=_witnesses(),
        emergency_keys={EMERGENCY.name: EMERGENCY.public.hex()},
        revocations=tuple(
            PermanentRevocation(kind="workload", value=one, reason="for good") for one in said["permanent"]
        ),
        ended_revocations=tuple(said["ended"]),
        released_proofs=tuple(said["released"]),
        approver_groups={
            "ops": {
                name: key_of(f"approves {name}").public_key().public_bytes_raw().hex() for name in APPROVERS
            }
        },
    )
    rules = (
        {(ALICE, PAY): ALLOW, (ALICE, WATCH): ALLOW, (ALICE, REFUND): _APPROVED} if said["may_pay"] else {}
    )
    if stock is not None and stock.may:
        rules[ALICE, RESTOCK] = ALLOW
    if stock is not None and stock.wide:
        rules |= {(ALICE, PAY): ALLOW, (ALICE, WATCH): ALLOW}
    return RuleDecider(mesh=settings, rules=rules, methods=_METHODS)
