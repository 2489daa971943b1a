"""One service climbs all six levels by signed policy changes, and everybody who calls it sees the difference."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from egm.v1 import gossip_pb2, gossip_pb2_grpc
from tests.support import sidecars
from tests.support.control_plane import TRUST_DOMAIN
from tests.support.emergency import FIRST
from tests.support.eventually import eventually
from tests.support.interop_service import EMPTY, SERVICE, UNARY, ask
from tests.support.sidecar_mesh import Mesh
from tests.support.sidecars import LOOPBACK, RunningSidecar
from trust.edge.clock import SystemClock
from trust.edge.grpc_errors import error_from_rpc
from trust.errors import Reason
from trust.policy.source import build
from trust.revocation import Kind
from trust.spiffe import SpiffeId
from trust.x509 import control_plane_dns

WORKLOADS = ("alice", "bob", "carol", "dave", "erin", "frank", "guest")
HIGHER = ("vault", "safe")  # services at levels 4 and 5, which nobody serves
TTL_S, GRACE_S = 3600, 60
OK = "passed"
DENIED, NO_PERMIT, NOBODY = Reason.POLICY_DENIED, Reason.NO_POLICY_PERMITS, Reason.CALLER_UNIDENTIFIED
RATE, GONE, STALE, NO_TOKEN = Reason.RATE_EXCEEDED, Reason.REVOKED, Reason.POLICY_STALE, Reason.PERMIT_MISSING

# What becomes of one and the same call at levels 0, 1, 2, 3, 4 and 5.
LADDER = {
    "permitted: alice": (OK, OK, OK, OK, OK, OK),
    "forbidden: bob": (OK, OK, OK, DENIED, DENIED, DENIED),
    "not permitted: dave": (OK, OK, OK, NO_PERMIT, NO_PERMIT, NO_PERMIT),
    "not identified: guest": (OK, OK, OK, NO_PERMIT, NOBODY, NOBODY),
    "no policy speaks of it: alice": (OK, OK, OK, OK, NO_PERMIT, NO_PERMIT),
    "revoked: carol": (OK, OK, GONE, GONE, GONE, GONE),
    "throttled by incident response: frank": (OK, OK, RATE, RATE, RATE, RATE),
    "rate used up: erin": (OK, OK, OK, RATE, RATE, RATE),
    "past her own sidecar: alice": (OK, OK, OK, OK, OK, NO_TOKEN),
}


class Ahead(SystemClock):
    """A clock whose monotonic time can be moved on, which ends a lease before its time."""

    ahead_ms = 0

    def monotonic_ms(self) -> int:
        """Return the monotonic time, moved on."""
        return super().monotonic_ms() + self.ahead_ms


def policy(level: int) -> bytes:
    """Return the bundle of one level of `echo`; nothing else differs between them."""

    def may(name: str, annotation: str = "", effect: str = "permit") -> str:
        who = f'principal == Workload::"spiffe://{TRUST_DOMAIN}/workload/{name}"'
        scope = f'{who}, action == Action::"{SERVICE}/UnaryCall", resource == Service::"echo"'
        return f'@id("{name}")\n{annotation}\n{effect} ({scope});\n'

    policies = [
        may("alice"),
        may("bob", effect="forbid"),
        may("carol"),
        may("erin", '@rate("1/d")'),
        may("frank"),
    ]
    settings = (
        f"name: ladder\ntrust_domain: {TRUST_DOMAIN}\nlevel: {level}\nlease: {{ttl_s: {TTL_S}, grace_s: {GRACE_S}}}\n"
        f"services: {{echo: {{grpc_services: [{SERVICE}/UnaryCall]}}, vault: {{level: 4}}, safe: {{level: 5}}}}\n"
        f"emergency_keys: {{{FIRST.name}: {FIRST.public.hex()}}}\n"
    )
    return build(
        {
            "bundle.yaml": settings.encode(),
            "policies/p.cedar": "".join(policies).encode(),
            "tests/t.yaml": b"[]\n",
        }
    )


class Callers:
    """Everybody who calls the service, as each of them does it."""

    def __init__(self, mesh: Mesh, a: RunningSidecar, b: RunningSidecar) -> None:
        """Take the sidecars of the callers and of the service."""
        self.mesh, self.a, self.b = mesh, a, b
        self.listeners = {
            str(one["workload"]): str(one["addr"])
            for one in a.events[0]["outbound"]
            if one["service"] == "echo"
        }
        self.listeners |= {
            str(one["service"]): str(one["addr"])
            for one in a.events[0]["outbound"]
            if one["service"] in HIGHER
        }

    async def through(self, workload: str, path: str = UNARY) -> str | Reason:
        """Call through the caller's own sidecar."""
        request = ask(size=1) if path == UNARY else b""
        answer = await sidecars.unary(self.listeners[workload], path, request)
        return answer if isinstance(answer, Reason) else OK

    async def past(self) -> str | Reason:
        """Call the service's sidecar directly, with alice's own certificate."""
        shown = self.mesh.domain.credentials("workload", "alice")
        dns = SpiffeId.of(TRUST_DOMAIN, "workload", "echo").dns_name
        async with shown.channel(self.b.inbound["echo"], dns) as channel:
            try:
                await channel.unary_unary(UNARY, None, None)(ask(size=1), timeout=10)
            except grpc.aio.AioRpcError as error:
                return error_from_rpc(error).reason
        return OK

    async def observe(self) -> dict[str, str | Reason]:
        """Make every call of the ladder."""
        return {
            "permitted: alice": await self.through("alice"),
            "forbidden: bob": await self.through("bob"),
            "not permitted: dave": await self.through("dave"),
            "not identified: guest": await self.through("guest"),
            "no policy speaks of it: alice": await self.through("alice", EMPTY),
            "revoked: carol": await self.through("carol"),
            "throttled by incident response: frank": await self.through("frank"),
            "rate used up: erin": await self.through("erin"),
            "past her own sidecar: alice": await self.past(),
        }


@contextlib.asynccontextmanager
async def climbing(
    mesh: Mesh, home: Path, clock: Ahead
) -> AsyncIterator[tuple[RunningSidecar, RunningSidecar]]:
    """Run both sidecars under a policy of level 0, with carol revoked and frank throttled."""
    await sidecars.token(mesh.cp, home / "a", "a", *WORKLOADS)
    await mesh.publish(policy(0))
    keys = home / "jwks.json"
    keys.write_text('{"keys": []}')
    async with sidecars.running(mesh.callee(), clock) as b:
        config = mesh.caller(b.inbound["echo"])
        config["identity"]["workloads"] = list(WORKLOADS)
        config["jwt"] = {"jwks": str(keys), "audience": "egm"}
        config["outbound"] = [
            {
                "workload": name,
                "service": "echo",
                "listen": LOOPBACK,
                "identify": "jwt-svid" if name == "guest" else "loopback",
            }
            for name in WORKLOADS
        ]
        config["outbound"] += [
            {"workload": "alice", "service": name, "listen": LOOPBACK, "identify": "loopback"}
            for name in HIGHER
        ]
        config["services"] |= {name: {"addresses": ["127.0.0.1:1"]} for name in HIGHER}
        async with sidecars.running(config, clock) as a:
            for node in (a, b):
                await node.enforces(1)
            await respond(mesh, Kind.WORKLOAD, "carol", 1)
            await respond(mesh, Kind.THROTTLE, "frank 1/d", 2)
            for node in (a, b):
                held = node.sidecar.membership.denials.denials
                await eventually(lambda held=held: len(held.active) == 2, "both directives")  # type: ignore[misc]
            yield a, b


async def respond(mesh: Mesh, kind: Kind, value: str, sequence: int) -> None:
    """Hand a directive in at the control plane, as incident response does."""
    data = FIRST.revoke(
        kind,
        value,
        now_ms=SystemClock().now_ms(),
        ttl_s=2 * (TTL_S + GRACE_S),  # or it ends with the lease
        sequence=sequence,
        trust_domain=TRUST_DOMAIN,
    )
    shown = mesh.domain.credentials("operator", "olga")
    async with shown.channel(mesh.cp.listen, control_plane_dns(TRUST_DOMAIN)) as channel:
        stub: Any = gossip_pb2_grpc.EmergencyStub(channel)
        await stub.Revoke(gossip_pb2.RevokeRequest(directive=data), timeout=10)


def would_deny(node: RunningSidecar) -> set[str]:
    """Return the reasons for which level 4 would have refused what passed here."""
    counts = node.sidecar.pipeline.counters.decisions()
    return {name.rpartition(".")[2] for name in counts if ".would_deny." in name}


def written(node: RunningSidecar) -> int:
    """Return how many records the node's ledger has."""
    provenance = node.sidecar.provenance
    assert provenance is not None and provenance.ledger is not None
    return provenance.ledger.size


async def test_one_service_behaves_at_each_level_as_the_ladder_says(mesh: Mesh, tmp_path: Path) -> None:
    """Levels 0 to 5, each a signed policy; the same nine calls, and what their callers get."""
    clock = Ahead()
    async with climbing(mesh, tmp_path, clock) as (a, b):
        callers = Callers(mesh, a, b)
        seen: dict[int, dict[str, str | Reason]] = {}
        for level in range(6):
            if level:
                await mesh.publish(policy(level))
            for node in (a, b):
                await node.enforces(level + 1)
            if level == 1:
                assert await callers.through("erin") == OK  # what her rate allows, on both nodes
                records = written(a)
            if level == 2:
                assert await callers.through("frank") == OK  # what is left to him
            seen[level] = await callers.observe()
            if level == 0:
                assert (written(a), written(b), would_deny(a)) == (0, 0, set())
            if level == 1:
                assert written(a) > records and written(b)
                assert would_deny(a) == {DENIED, NO_PERMIT, NOBODY, GONE, RATE}
        assert {call: tuple(seen[level][call] for level in range(6)) for call in LADDER} == LADDER
        await mesh.publish(policy(3))
        for node in (a, b):
            await node.enforces(7)
        await lease_over(callers, clock)


async def lease_over(callers: Callers, clock: Ahead) -> None:
    """Let the lease and its grace pass: level 3 goes on, on record, and a person is told; levels 4 and 5 refuse."""
    clock.ahead_ms += (TTL_S + GRACE_S + 1) * 1000
    node = callers.a
    texts = node.sidecar.view.alarms.texts
    await eventually(lambda: any("grace are over" in text for text in texts()), "the node to seal itself")
    before = written(node)
    assert [await callers.through(name) for name in ("alice", *HIGHER)] == [OK, STALE, STALE]
    assert written(node) > before
    assert any("GOVERNANCE_UNAVAILABLE" in text for text in texts())
    assert await callers.through("bob") == OK  # no policy is in force that could forbid it
    assert await callers.through("erin") == OK  # nor a limit of one
    assert await callers.through("carol") is GONE  # what incident response took stays taken
    assert await callers.through("frank") is RATE
