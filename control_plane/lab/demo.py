"""`egm demo`: every promise of this version shown on real processes, and checked."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import grpc.aio

from control_plane.edge import operator_client
from control_plane.edge.evidence_export import export_evidence, ledgers_of
from control_plane.edge.lineage_view import seen_of
from control_plane.edge.operator_client import OperatorClient
from control_plane.edge.release import Release
from control_plane.edge.source_folder import read_folder
from control_plane.lab import sample
from control_plane.lab.bootstrap import Say, bring_up, completed, prepare, publish
from control_plane.lab.mesh import DevelopmentMesh, Plan
from egm.sample.v1 import shop_pb2, shop_pb2_grpc
from egm.v1 import operator_pb2
from trust.edge.grpc_errors import error_from_rpc
from trust.edge.keyfiles import load_signer, passphrase_source
from trust.errors import EvidenceError, MeshError, Reason
from trust.evidence_verify import Report, Section, Verdict, verify_evidence
from trust.lineage import build_tree
from trust.lineage_export import to_text
from trust.permit import read_claims
from trust.policy.source import build
from trust.verified import BASE_ROLE

POLICY_FOLDER: Final = Path(__file__).parent / "demo_policy"
WAIT_S: Final = 20.0
_POLL_S: Final = 0.1
_CHECKPOINT_S: Final = 1.5
_WATCH_POLICY: Final = '@id("tellers-watch")'
TRANSFER: Final = "egm.sample.v1.Payments/Transfer"


@dataclass(frozen=True, slots=True)
class Step:
    """One promise: what was to be shown, whether it held, and what was seen."""

    step: str
    ok: bool
    detail: str
    seconds: float


class Tour:
    """The demonstration. Each step is a method that returns what it saw, or raises `AssertionError`."""

    def __init__(self, directory: Path, report: Callable[[Step], None], say: Say) -> None:
        self._directory, self._report, self._say = directory, report, say
        self._mesh: DevelopmentMesh | None = None
        self._client: OperatorClient | None = None
        self._proposal: operator_pb2.Proposal | None = None
        self._payments = sample.Payments()

    async def run(self) -> bool:
        """Take every step in order; stop at the first that does not hold. Return whether all held."""
        steps: tuple[tuple[str, Callable[[], object]], ...] = (
            ("a trust domain: 3 approvers, 2 must sign", self._domain),
            ("a mesh: control plane, broker, three sidecars", self._start),
            ("without policy, a call is refused", self._default_deny),
            ("one signature does not publish", self._one_signature),
            ("two of three do, and every node takes it up", self._publish),
            ("the same call goes through", self._allowed),
            ("the request itself is judged", self._payload),
            ("somebody else is refused", self._stranger),
            ("raised to level 5 by policy, a call carries a permit", self._permit),
            ("a quorum of its peers vouches for every node", self._attested),
            ("three nodes tell of one chain, linked by verified permits", self._lineage),
            ("the evidence verifies offline, a copy with one changed byte does not", self._evidence),
            ("a policy change cuts a stream in flight", self._withdraw),
            ("control plane killed: FRESH, then STALE, still serving", self._stale),
            ("then SEALED: every call is refused", self._sealed),
            ("it returns: FRESH again, calls go through", self._heal),
        )
        server, address = await sample.serve(payments=self._payments)
        self._address = address
        try:
            for name, action in steps:
                if not await self._take(name, action):
                    return False
            return True
        finally:
            if self._mesh is not None:
                await self._mesh.stop()
            await server.stop(None)

    async def _take(self, name: str, action: Callable[[], object]) -> bool:
        started = time.monotonic()
        try:
            result = action()
            detail = str(await result if asyncio.iscoroutine(result) else result)
            ok = True
        except (CheckError, MeshError, grpc.aio.AioRpcError, TimeoutError) as error:
            detail = (
                f"{error.code()}: {error.details()}"
                if isinstance(error, grpc.aio.AioRpcError)
                else str(error)
            )
            ok = False
        self._report(Step(name, ok, detail, time.monotonic() - started))
        return ok

    @property
    def mesh(self) -> DevelopmentMesh:
        """The running mesh."""
        if self._mesh is None:
            raise CheckError("the mesh is not running")
        return self._mesh

    def _domain(self) -> str:
        domain = prepare(self._directory, "mesh.local")
        keys = sorted(path.stem for path in (self._directory / "domain" / "keys").glob("approver-*.pem"))
        _expect(len(keys) == 3, f"three approver keys, found {keys}")
        return f"trust domain {domain}; keys encrypted, mode 0600: {', '.join(keys)}"

    async def _start(self) -> str:
        plan = Plan(
            "mesh.local", {"payments": self._address, "accounts": self._address}, ("alice", "mallory")
        )
        self._mesh = await bring_up(self._directory, plan, level=4, say=self._say)
        nodes = ", ".join(f"{name} (pid {entry.pid})" for name, entry in self.mesh.mesh.nodes.items())
        return f"nodes {nodes}; broker {self.mesh.mesh.broker}"

    async def _default_deny(self) -> str:
        error = await self._refused("alice", 100)
        _expect(error.reason is Reason.NO_POLICY_PERMITS, f"NO_POLICY_PERMITS, got {error.reason}")
        return f"alice -> {TRANSFER}: {error}"

    async def _one_signature(self) -> str:
        async with self._release() as (release, client):
            archive = build({**_policy(), "descriptors.binpb": sample.descriptors()})
            self._proposal = await release.propose(archive, role=BASE_ROLE, title="Tellers may transfer")
            await self._sign(release, "approver-1")
            try:
                await client.publish(self._proposal.id)
            except MeshError as error:
                _expect(error.reason is Reason.QUORUM_NOT_MET, f"QUORUM_NOT_MET, got {error.reason}")
                return f"proposal {self._proposal.id}: {error}"
        raise CheckError("a policy with one signature was published")

    async def _publish(self) -> str:
        async with self._release() as (release, client):
            await self._sign(release, "approver-3")
            answer = await client.publish(self._proposal_id())
        await self.mesh.settled(version=answer.proposal.version)
        signed = ", ".join(signature.name for signature in answer.proposal.signatures)
        return f"version {answer.proposal.version}, signed by {signed}, in force on {len(self.mesh.mesh.nodes)} nodes"

    async def _allowed(self) -> str:
        reply = await self._transfer("alice", 100)
        return f"alice -> {TRANSFER} amount 100: {reply.id}"

    async def _payload(self) -> str:
        error = await self._refused("alice", 5000)
        _expect(error.reason is Reason.POLICY_DENIED, f"POLICY_DENIED, got {error.reason}")
        return f"amount 5000: {error}"

    async def _stranger(self) -> str:
        error = await self._refused("mallory", 100)
        return f"mallory: {error}"

    async def _permit(self) -> str:
        archive = build({**_policy(), "descriptors.binpb": sample.descriptors()}, level_override=5)
        version = await publish(self.mesh, archive, title="Everything at level 5")
        await self.mesh.settled(version=version)
        self._payments.accounts = self.mesh.mesh.workloads["payments"].outbound["accounts"]
        await self._transfer("alice", 250)
        claims = read_claims(self._payments.permit)
        _expect(claims.subject.endswith("/workload/alice"), f"a permit for alice, got {claims.subject}")
        return (
            f"permit of {claims.issuer} for {claims.subject} to call {claims.method} of {claims.audience} once, "
            f"within {claims.expires_s - claims.issued_s} s, under policy version {claims.policy_version}, "
            f"for exactly the request {(claims.request_sha256 or b'').hex()[:16]}…"
        )

    async def _attested(self) -> str:
        seen = []
        for name in self.mesh.mesh.nodes:
            async with operator_client.node(self.mesh.mesh, self._directory, name) as node:
                view = (await node.status()).attestation
            _expect(view.standing == "ATTESTED", f"node {name} attested, got {view.standing}")
            _expect(len(view.vouched) >= view.quorum == 2, f"two of three, got {list(view.vouched)}")
            seen.append(
                f"{name} by {', '.join(view.vouched)} for {view.remaining_ms / 1000:.0f} s, "
                f"credential {view.credential_sha256[:16]}…"
            )
        claims = read_claims(self._payments.permit)
        named = (claims.credential_sha256 or b"").hex()
        return "; ".join(seen) + f"; alice's permit names {named[:16]}…"

    async def _lineage(self) -> str:
        root = read_claims(self._payments.permit).root_id
        deadline = time.monotonic() + WAIT_S
        async with operator_client.operator(self.mesh.mesh, self._directory) as client:
            while True:
                try:
                    answer = await client.tree(root)
                except MeshError as error:  # shipped a moment later
                    if error.reason is not Reason.NOT_FOUND or time.monotonic() > deadline:
                        raise
                    await asyncio.sleep(_POLL_S)
                    continue
                tree = build_tree(map(seen_of, answer.entries), answer.root_id)
                if len(tree.nodes) == 3 and all(hop.status for hop in tree.hops) and len(tree.hops) == 2:
                    return "\n" + to_text(tree)
                if time.monotonic() > deadline:
                    raise CheckError(f"two executions on three nodes, got {to_text(tree)}")
                await asyncio.sleep(_POLL_S)

    async def _evidence(self) -> str:
        await asyncio.sleep(_CHECKPOINT_S)  # a ledger signs a checkpoint every second
        root = read_claims(self._payments.permit).root_id
        domain = self._directory / "domain"

        def judge() -> tuple[Report, int, str]:
            trusted, anchors = (domain / "root.json").read_bytes(), (domain / "ca" / "ca.pem").read_bytes()
            data, _ = export_evidence([root], ledgers_of(self._directory), ca_pem=anchors)
            place = data.index(b'"record":"') + 40
            other = b"B" if data[place : place + 1] == b"A" else b"A"
            try:
                found = verify_evidence(data[:place] + other + data[place + 1 :], trusted, anchors)
                wrong = next(str(f.what) for f in found.findings if f.reason is not None)
            except EvidenceError as error:
                wrong = str(error)
            return verify_evidence(data, trusted, anchors), len(data), wrong

        report, size, wrong = await asyncio.to_thread(judge)
        _expect(report.verdict() is not Verdict.CONTRADICTED, f"a file that verifies, got {report.findings}")
        _expect(report.verdict(Section.INTEGRITY) is Verdict.ESTABLISHED, f"integrity, got {report.findings}")
        _expect(report.verdict(Section.AUTHORITY) is Verdict.ESTABLISHED, f"authority, got {report.findings}")
        signed = ", ".join(report.approved[0].approvers)
        held = f"integrity; policy signed by {signed}"
        return f"{size} bytes, checked with root.json and ca.pem, no mesh: {held}; the copy: {wrong}"

    async def _withdraw(self) -> str:
        files = _policy()
        text = files["policies/payments.cedar"].decode()
        files["policies/payments.cedar"] = text[: text.index(_WATCH_POLICY)].encode()
        tests = files["tests/shop.yaml"].decode()
        files["tests/shop.yaml"] = tests[: tests.index("- name: a teller watches")].encode()
        archive = build({**files, "descriptors.binpb": sample.descriptors()}, level_override=5)
        async with self._channel("alice") as channel:
            stream = shop_pb2_grpc.PaymentsStub(channel).Watch(shop_pb2.WatchTransfersRequest())
            await asyncio.wait_for(stream.read(), WAIT_S)
            async with self._release() as (release, client):
                archive = completed(self.mesh, archive)
                self._proposal = await release.propose(archive, role=BASE_ROLE, title="Nobody watches")
                await self._sign(release, "approver-2")
                await self._sign(release, "approver-3")
                await client.publish(self._proposal.id)
            end: object = grpc.aio.EOF  # type: ignore[attr-defined]  # the stubs lack it
            try:
                while await asyncio.wait_for(stream.read(), WAIT_S) is not end:
                    pass
                raise CheckError("the stream ended as if nothing had happened")
            except grpc.aio.AioRpcError as error:
                cut = error_from_rpc(error)
        _expect(cut.reason is Reason.AUTHORIZATION_WITHDRAWN, f"AUTHORIZATION_WITHDRAWN, got {cut.reason}")
        await self.mesh.settled(version=self._proposal.version)
        return f"alice's open stream: {cut}"

    async def _stale(self) -> str:
        await self.mesh.control_plane.kill()
        await self._lease("STALE")
        reply = await self._transfer("alice", 7)
        return f"lease STALE on every node, {reply.id} went through, alarm raised"

    async def _sealed(self) -> str:
        await self._lease("SEALED")
        error = await self._refused("alice", 7)
        _expect(error.reason is Reason.POLICY_STALE, f"POLICY_STALE, got {error.reason}")
        return str(error)

    async def _heal(self) -> str:
        await self.mesh.control_plane.start()
        await self._lease("FRESH")
        reply = await self._transfer("alice", 7)
        return f"lease FRESH on every node, {reply.id} went through"

    def _proposal_id(self) -> str:
        if self._proposal is None:
            raise CheckError("nothing was proposed")
        return self._proposal.id

    @asynccontextmanager
    async def _release(self) -> AsyncIterator[tuple[Release, OperatorClient]]:
        async with operator_client.operator(self.mesh.mesh, self._directory) as client:
            yield Release(self.mesh.mesh, self._directory, client), client

    async def _sign(self, release: Release, approver: str) -> None:
        key = Path(self.mesh.mesh.approvers[approver])
        signer = await asyncio.to_thread(load_signer, str(key), passphrase_source(key))
        await release.sign(await release.review(self._proposal_id()), signer)

    @asynccontextmanager
    async def _channel(self, caller: str) -> AsyncIterator[grpc.aio.Channel]:
        address = self.mesh.mesh.workloads[caller].outbound["payments"]
        async with grpc.aio.insecure_channel(address) as channel:
            yield channel

    async def _transfer(self, caller: str, amount: int) -> shop_pb2.TransferReply:
        async with self._channel(caller) as channel:
            request = shop_pb2.TransferRequest(to_account="42", amount=amount)
            return await shop_pb2_grpc.PaymentsStub(channel).Transfer(request, timeout=WAIT_S)

    async def _refused(self, caller: str, amount: int) -> MeshError:
        try:
            reply = await self._transfer(caller, amount)
        except grpc.aio.AioRpcError as error:
            return error_from_rpc(error)
        raise CheckError(f"the call was executed: {reply.id}")

    async def _lease(self, wanted: str) -> None:
        deadline = time.monotonic() + WAIT_S
        seen = dict.fromkeys(self.mesh.mesh.nodes, "")
        while set(seen.values()) != {wanted}:
            if time.monotonic() > deadline:
                raise CheckError(f"lease {wanted} on every node, got {seen}")
            for name in seen:
                async with operator_client.node(self.mesh.mesh, self._directory, name) as node:
                    seen[name] = (await node.status()).lease
            await asyncio.sleep(_POLL_S)


class CheckError(Exception):
    """What was seen is not what was promised."""


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise CheckError(f"expected {what}")


def _policy() -> dict[str, bytes]:
    return dict(read_folder(POLICY_FOLDER))
