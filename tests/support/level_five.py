"""Two sidecars at level 5 in front of the interoperability service: real policies, pipelines, notaries, proxies, mTLS.

Without a control plane and ledgers on disk: policy is adopted at once, records are kept in memory, and each sidecar
holds the other's node key already.
"""

import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf import descriptor_pb2

from sidecar.core.bundle_state import BundleState, Record
from sidecar.core.call import Direction
from sidecar.core.endorsements import Endorsements
from sidecar.core.permits import Minter, Verifier
from sidecar.core.pipeline import Pipeline
from sidecar.core.replay import ReplayCache
from sidecar.edge import upstream
from sidecar.edge.case import Signing
from sidecar.edge.notary import Notary
from tests.support.interop_service import DUPLEX, EMPTY, INPUT, OUTPUT, SERVICE, UNARY, InteropService
from tests.support.pki import Authority, StaticIdentity
from tests.support.proxies import ALICE, DOMAIN, SHOP, UNLIMITED, hop, pool, served
from tests.support.sidecar_core import verified
from trust.bundle import DESCRIPTORS, read_bundle
from trust.edge.clock import SystemClock
from trust.edge.ids import ExecutionIds
from trust.node_key import NodeKey, endorsement_digest
from trust.permit import certificate_sha256
from trust.policy.engine import Engine
from trust.policy.source import build
from trust.record import Intent, Outcome
from trust.spiffe import SpiffeId
from trust.verified import BASE_ROLE

MAY: str = f'permit(principal == Workload::"{ALICE}", action, resource == Service::"shop");\n'
BOUND = f'@id("may") {MAY}'  # the default: a stream's permit binds its opening message
METHOD_ALONE = f'@id("may") @permit("method") {MAY}'
_KINDS = {
    EMPTY: (False, False),
    UNARY: (False, False),
    INPUT: (True, False),
    OUTPUT: (False, True),
    DUPLEX: (True, True),
}


def _descriptors() -> bytes:
    """Return what a bundle knows of the interoperability service; of its messages nothing, no policy reads them."""
    file = descriptor_pb2.FileDescriptorProto(
        name="interop.proto", package=SERVICE.rpartition(".")[0], syntax="proto3"
    )
    file.message_type.add(name="Nothing")
    service = file.service.add(name=SERVICE.rpartition(".")[2])
    for path, (client, server) in _KINDS.items():
        service.method.add(
            name=path.rpartition("/")[2],
            input_type=f".{file.package}.Nothing",
            output_type=f".{file.package}.Nothing",
            client_streaming=client,
            server_streaming=server,
        )
    return descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString(deterministic=True)


def engine(policies: str = BOUND, *, level: int = 5, known: bool = False, more: str = "") -> Engine:
    """Compile a bundle for the service `shop`; `known` with descriptors, so that single requests are known as such.

    Args:
        policies: Cedar text.
        level: of the service.
        known: whether the bundle has descriptors.
        more: lines of bundle.yaml.
    """
    files = {
        "bundle.yaml": (
            f"name: test\ndescription: t\ntrust_domain: {DOMAIN}\nlevel: {level}\n"
            f"services: {{shop: {{grpc_services: [{SERVICE}]}}}}\n{more}"
        ).encode(),
        "policies/p.cedar": policies.encode(),
        "tests/t.yaml": b"[]\n",
    }
    if known:
        files[DESCRIPTORS] = _descriptors()
    return Engine.build(read_bundle(build(files), role=BASE_ROLE), {})


class Journal:
    """A ledger in memory."""

    def __init__(self) -> None:
        """Start empty."""
        self.held: list[Intent | Outcome] = []

    def append(self, record: Intent | Outcome) -> object:
        """Keep one record."""
        self.held.append(record)
        return record

    async def durable(self, pending: object) -> None:
        """It is."""


class Node:
    """The parts of one sidecar between its door and its ledger."""

    def __init__(self, name: str, identity: StaticIdentity, policy: Engine) -> None:
        """Adopt `policy` at once."""
        clock, self.version = SystemClock(), 0
        self.state = BundleState(Record(), monotonic_ms=clock.monotonic_ms())
        self.pipeline = Pipeline(node=name, trust_domain=DOMAIN, boot_id=name, state=self.state, clock=clock)
        self.journal = Journal()
        self.private = Ed25519PrivateKey.generate()
        self.spiffe_id = SpiffeId.of(DOMAIN, "node", name)
        self.kid = endorsement_digest(self.private.public_key().public_bytes_raw())
        self.endorsements = Endorsements(lambda: b"", DOMAIN)
        self.verifier = Verifier(
            self.endorsements, ReplayCache(boot_ms=clock.now_ms() - 60_000, remember=lambda _ms: None)
        )

        def client_certificate(principal: str) -> bytes:
            return certificate_sha256(identity.svid(SpiffeId.parse(principal)).chain_pem)

        minter = Minter(self.spiffe_id, lambda: self.kid, self.private.sign, lambda: secrets.token_bytes(16))
        self.notary = Notary(
            node=name,
            boot_id=name,
            clock=clock,
            ids=ExecutionIds().new,
            level=self.pipeline.level,
            in_force=lambda: self.state.in_force,
            callee=lambda service: str(SpiffeId.of(DOMAIN, "workload", service)),
            journal=self.journal,
            signing=Signing(minter, self.verifier, lambda: b"held", client_certificate),
            alarm=lambda text: None,
        )
        self.clock = clock
        self.adopt(policy)

    def adopt(self, policy: Engine) -> None:
        """Enforce a policy from now on, and decide open streams again."""
        self.version += 1
        now_ms = self.clock.now_ms()
        told = verified(self.version, lease_expires_ms=now_ms + 3_600_000, digest=f"{self.version:064x}")
        self.state.offer(told, policy, now_ms=now_ms, monotonic_ms=self.clock.monotonic_ms())
        self.pipeline.governance_changed()
        self.pipeline.review(now_ms=now_ms)

    def knows(self, other: "Node") -> None:
        """Hold the node key of another."""
        ends_ms = self.clock.now_ms() + 3_600_000
        self.endorsements.hold(NodeKey(other.spiffe_id, other.private.public_key(), ends_ms, other.kid))

    def intents(self) -> list[Intent]:
        """Return what was decided and written down, in order."""
        return [record for record in self.journal.held if isinstance(record, Intent)]


@dataclass
class Pair:
    """What a test holds: the client's channel, both sidecars, the service, and the callee's sidecar's address."""

    channel: grpc.aio.Channel
    caller: Node
    callee: Node
    service: InteropService
    inbound: str
    identity: StaticIdentity


@contextlib.asynccontextmanager
async def pair(
    caller: Engine, callee: Engine | None = None, *, service_at: str | None = None, **options: Any
) -> AsyncIterator[Pair]:
    """Yield both sidecars, each with its policy (the callee's is the caller's unless given).

    Args:
        caller: policy in force at the caller's sidecar.
        callee: policy in force at the callee's.
        service_at: address of another service than the interoperability service.
        options: for both `Proxy`s.
    """
    identity, service = StaticIdentity(Authority(DOMAIN)), InteropService()
    a, b = Node("a", identity, caller), Node("b", identity, callee or caller)
    b.knows(a)
    async with contextlib.AsyncExitStack() as stack:
        address = service_at
        if address is None:
            address = await stack.enter_async_context(served(service))
        channels = await stack.enter_async_context(pool(identity))
        inbound = await stack.enter_async_context(
            hop(
                upstream.local(channels, address),
                b.pipeline,
                direction=Direction.INBOUND,
                identity=identity,
                notary=b.notary,
                **options,
            )
        )
        far = upstream.remote(channels, [inbound], client=ALICE, server_dns=SHOP.dns_name)
        outbound = await stack.enter_async_context(hop(far, a.pipeline, notary=a.notary, **options))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(outbound, UNLIMITED))
        yield Pair(channel, a, b, service, inbound, identity)
