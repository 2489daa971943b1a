"""Keeps this node attested: asks the witnesses of the signed roster, and lets this node be a witness of others.

One round: a challenge from every witness at once; one statement that answers them all, its counter durable before it is
signed; their cosignatures; a credential as soon as a quorum has signed. Third parties cosign the checkpoint beside.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc.aio

from egm.v1 import attestation_pb2 as pb
from egm.v1 import attestation_pb2_grpc as rpc
from egm.v1 import operator_pb2
from sidecar.config import SidecarConfig
from sidecar.core.attester import (
    Bundles,
    Challenge,
    Schedule,
    check_clock,
    check_reached,
    check_vouched,
    round_timeout_ms,
    statement_of,
)
from sidecar.core.bundle_state import BundleState, InForce
from sidecar.core.endorsements import Endorsements
from sidecar.core.levels import CRYPTOGRAPHIC, level_in_force
from sidecar.core.readiness import Alarms
from sidecar.core.trust_state import Standing, TrustState
from sidecar.edge.attestation_files import (
    COUNTER_FILE,
    CREDENTIAL_FILE,
    WITNESS_DIRECTORY,
    Counter,
    WitnessStore,
)
from sidecar.edge.measurer import SoftwareMeasurer
from sidecar.edge.node_signer import NodeSigner
from sidecar.edge.tlog_witness import TlogWitness
from sidecar.edge.upstream import targets
from sidecar.edge.witness_desk import WitnessDesk, WitnessServicer
from trust.attestation.credential import Credential, check_lines, write_credential
from trust.attestation.measurement import Measurer, ReferenceValues
from trust.attestation.roster import Roster
from trust.attestation.statement import NONCE_BYTES, Evidence, sign_evidence
from trust.attestation.witness import ContradictionError, Seen, Submission, View
from trust.checkpoint import parse_checkpoint
from trust.edge.files import write_atomic
from trust.edge.grpc_errors import error_from_rpc
from trust.edge.ledger import Ledger, Reader
from trust.edge.tls import Channels
from trust.errors import EvidenceError, MeshError, Reason, StateError
from trust.gossip import Head
from trust.identity import IdentitySource
from trust.note import read_unverified
from trust.policy.engine import Engine
from trust.ports import Clock
from trust.spiffe import SpiffeId

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_ALARM: Final = "attestation"
_MAX_WHY_CHARS: Final = 300
_TICK_S: Final = (
    0.25  # how soon a lapse is noticed for streams and status; calls are decided by the clock itself
)
_OUTSIDE_PATIENCE_S: Final = 1.0  # for third parties that the policy does not require
_PATIENCE_S: Final = 0.2  # for the witnesses beyond the quorum


@dataclass(frozen=True, slots=True)
class Parts:
    """What attestation is made of."""

    config: SidecarConfig
    identity: IdentitySource
    channels: Channels
    state: BundleState
    trust: TrustState
    ledger: Ledger | None  # None: it cannot be used, and nobody vouches for such a node
    signer: NodeSigner
    boot_id: str  # hex
    clock: Clock
    alarms: Alarms
    turned: Callable[[], None]  # told when this node becomes, or is no longer, attested
    addresses: Callable[[], Mapping[str, str]]  # of other nodes' admin listeners: NAME -> HOST:PORT
    gained: Callable[[Credential], None] = lambda _credential: None
    accused: Callable[[ContradictionError], bool] = lambda _error: False
    witnessed: Callable[[Head], None] = lambda _head: (
        None
    )  # told of tree heads of others that are vouched for here
    quarantined: Callable[[], AbstractSet[str]] = frozenset
    measurer: Measurer | None = None


class Attestation:
    """Both halves for one node: attester and witness. Owned by the event loop."""

    def __init__(self, parts: Parts) -> None:
        """Read what must not be forgotten.

        Raises:
            InputError: CONFLICT, if the counter is damaged.
        """
        self._parts = parts
        config = parts.config
        self._node = config.spiffe_id("node", config.node)
        self._measurer = parts.measurer or SoftwareMeasurer(config)
        self._counter = Counter(config.data_dir / COUNTER_FILE)
        self._bundles, self._schedule = Bundles(), Schedule()
        self._third_parties: dict[str, TlogWitness] = {}
        self._standing = Standing.NO_POLICY
        self._why: dict[str, str] = {}  # witness -> why it did not vouch in the last round
        self._error: MeshError | None = None
        endorsements = Endorsements(parts.identity.anchors_pem, config.trust_domain)
        parts.identity.subscribe(endorsements.forget_all)
        self.desk = WitnessDesk(
            self._node,
            parts.signer.public_key.public_bytes_raw(),
            parts.signer.sign,
            WitnessStore(config.data_dir / WITNESS_DIRECTORY),
            view=self._view,
            now_ms=self._now_ms,
            clock=parts.clock,
            endorsements=endorsements,
            accused=parts.accused,
            witnessed=parts.witnessed,
        )

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve egm.v1.Witness."""
        servicer = WitnessServicer(self.desk, self._parts.config.trust_domain, self._parts.clock)
        rpc.add_WitnessServicer_to_server(servicer, server)

    def status(self) -> operator_pb2.Attestation:
        """Return how this node stands, in the protocol's form."""
        trust, monotonic_ms = self._parts.trust, self._parts.clock.monotonic_ms()
        roster, credential = trust.roster, trust.own()
        view = operator_pb2.Attestation(
            standing=trust.standing(self._now_ms(), monotonic_ms),
            remaining_ms=trust.remaining_ms(self._now_ms(), monotonic_ms),
        )
        if roster is not None:
            view.quorum = roster.needed
            view.witnesses.extend(roster.witnesses)
            view.is_witness = roster.name_of(self.desk.key) == self._node.name
            view.not_vouched.update({name: reason[:_MAX_WHY_CHARS] for name, reason in self._why.items()})
        if credential is not None:
            view.vouched.extend(sorted(credential.attested_s))
            view.credential_sha256 = credential.sha256.hex()
        return view

    async def run(self) -> None:
        """Keep this node attested until cancelled."""
        parts, clock = self._parts, self._parts.clock
        while True:
            held, roster = parts.state.in_force, parts.trust.roster
            if held is not None:
                self._bundles.seen(held.policy, monotonic_ms=clock.monotonic_ms())
            due_ms = self._schedule.wake_at_ms(roster, monotonic_ms=clock.monotonic_ms())
            if roster is not None and held is not None and clock.monotonic_ms() >= due_ms:
                await self._attempt(roster, held)
            self._notice()
            left_s = max(0.0, (due_ms - clock.monotonic_ms()) / 1000)
            await asyncio.sleep(min(_TICK_S, left_s) if left_s else 0.01)

    async def _attempt(self, roster: Roster, held: InForce) -> None:
        clock, jitter = self._parts.clock, random.random()  # noqa: S311  # spreads load, guards nothing
        why: dict[str, str] = {}
        try:
            await self._round(roster, held, why)
        except MeshError as error:
            if self._error is None or self._error.detail != error.detail:
                logger.warning("not attested in this round: %s", error)
            self._error = error
            self._schedule.failed(roster, monotonic_ms=clock.monotonic_ms(), jitter=jitter)
        else:
            if self._error is not None:
                logger.info("attested again")
            self._error = None
            self._schedule.succeeded(roster, monotonic_ms=clock.monotonic_ms(), jitter=jitter)
        self._why = why

    def _notice(self) -> None:
        """Raise or clear the alarm, and tell when the standing has turned."""
        parts, clock = self._parts, self._parts.clock
        standing = parts.trust.standing(self._now_ms(), clock.monotonic_ms())
        if standing is Standing.NOT_ATTESTED and self._error is not None:
            held = parts.state.in_force
            strict = held is not None and CRYPTOGRAPHIC in held.engine.mesh.levels() | {parts.config.level}
            effect = "level 5 refuses every call" if strict else "calls go on below level 5"
            if parts.alarms.set(_ALARM, f"this node is not attested, {effect}: {self._error.detail}"):
                logger.error("alarm: not attested: %s", self._error)
        elif self._error is not None and self._schedule.failures > 1:
            parts.alarms.set(_ALARM, f"the trust credential is not renewed: {self._error.detail}")
        else:
            parts.alarms.clear(_ALARM)
        if standing is not self._standing:
            logger.info("attestation %s -> %s", self._standing, standing)
            self._standing = standing
            parts.turned()

    # one round

    async def _round(self, roster: Roster, held: InForce, why: dict[str, str]) -> None:
        parts = self._parts
        if parts.ledger is None:
            raise StateError(
                Reason.NODE_NOT_ATTESTED, "this node has no usable ledger, which witnesses ask for"
            )
        timeout_s = round_timeout_ms(roster) / 1000
        measurement = await asyncio.to_thread(self._measurer.measure)
        challenges = await self._ask(
            {name: self._challenge(roster, name) for name in roster.witnesses}, roster.needed, timeout_s, why
        )
        check_reached(roster, tuple(challenges.values()), why)
        check_clock(tuple(challenges.values()), now_ms=parts.clock.now_ms(), needed=roster.needed)
        note = await parts.ledger.checkpoint()
        prover = _Prover(parts.ledger.directory, note)
        endorsement, key_id = parts.signer.endorsement(), parts.signer.key_id()
        counter, issued_s = await asyncio.to_thread(self._counter.next, self._now_ms() // 1000)
        evidence = sign_evidence(
            statement_of(
                self._node,
                parts.signer.public_key.public_bytes_raw(),
                tuple(challenges.values()),
                held.policy,
                measurement,
                boot=bytes.fromhex(parts.boot_id),
                counter=counter,
                issued_s=issued_s,
                level=level_in_force(held.engine.mesh, parts.config.level, ""),
                checkpoint=note,
            ),
            parts.signer.sign,
            key_id=key_id,
        )
        outsiders = [
            asyncio.create_task(self._log(one, note, prover, why)) for one in self._outsiders(roster)
        ]
        lines = await self._ask(
            {
                name: self._vouch(roster, challenge, evidence, endorsement, prover)
                for name, challenge in challenges.items()
            },
            roster.needed,
            timeout_s,
            why,
        )
        outside = await _finished(outsiders, timeout_s if roster.log_needed else _OUTSIDE_PATIENCE_S)
        check_vouched(roster, len(lines), why)
        attested = [attested for attested, _ in lines.values()]
        data = write_credential(evidence, attested, [*(logged for _, logged in lines.values()), *outside])
        credential = parts.trust.adopt(data, now_ms=self._now_ms(), monotonic_ms=parts.clock.monotonic_ms())
        await asyncio.to_thread(self._write, data)
        parts.gained(credential)

    async def _ask(
        self,
        questions: Mapping[str, Coroutine[Any, Any, _T]],
        needed: int,
        timeout_s: float,
        why: dict[str, str],
    ) -> dict[str, _T]:
        """Ask all at once; return the answers once a quorum is there and the others had a moment, or time is over."""
        tasks = {asyncio.create_task(question): name for name, question in questions.items()}
        answers: dict[str, _T] = {}
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        waiting = set(tasks)
        try:
            while waiting and (left := end - loop.time()) > 0:
                done, waiting = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    try:
                        answers[tasks[task]] = task.result()
                    except MeshError as error:
                        why[tasks[task]] = str(error)
                if len(answers) >= needed:
                    end = min(end, loop.time() + _PATIENCE_S)
        finally:
            for task in waiting:
                why[tasks[task]] = "no answer in time"
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        return answers

    async def _challenge(self, roster: Roster, name: str) -> Challenge:
        if name == self._node.name:
            return await self.desk.challenge(self._node)
        stub = self._stub(roster, name)
        answer = await _answered(stub.Challenge(pb.ChallengeRequest()))
        if (
            len(answer.nonce) != NONCE_BYTES
        ):  # in the statement it would spoil the round for every other witness
            raise EvidenceError(Reason.EVIDENCE_INVALID, f"a nonce of {len(answer.nonce)} bytes")
        return Challenge(name, answer.nonce, answer.cosigned_size, answer.now_ms)

    async def _vouch(
        self, roster: Roster, challenge: Challenge, evidence: Evidence, endorsement: bytes, prover: "_Prover"
    ) -> tuple[bytes, bytes]:
        proof = await asyncio.to_thread(prover.since, challenge.size)
        root = await asyncio.to_thread(prover.root, challenge.size) if proof else b""
        if challenge.witness == self._node.name:
            submission = Submission(self._node, evidence.envelope, endorsement, proof, root)
            return await self.desk.attest(submission)
        request = pb.AttestRequest(
            evidence=evidence.envelope, endorsement=endorsement, consistency=proof, cosigned_root=root
        )
        answer = await _answered(self._stub(roster, challenge.witness).Attest(request))
        check_lines(evidence, roster.witnesses[challenge.witness], answer.attested, answer.logged)
        return answer.attested, answer.logged

    async def _log(
        self, party: TlogWitness, note: bytes, prover: "_Prover", why: dict[str, str]
    ) -> bytes | None:
        try:
            return await asyncio.to_thread(party.add_checkpoint, note, prover.since)
        except MeshError as error:
            why[party.witness.name] = str(error)
            return None

    def _outsiders(self, roster: Roster) -> list[TlogWitness]:
        for name, one in roster.log_witnesses.items():
            known = self._third_parties.get(name)
            if known is None or known.witness != one:
                self._third_parties[name] = TlogWitness(one)
        return [self._third_parties[name] for name in roster.log_witnesses]

    def _stub(self, roster: Roster, name: str) -> "rpc.WitnessAsyncStub":
        address = self._parts.addresses().get(name) or roster.witnesses[name].address
        if not address:
            raise StateError(
                Reason.CONFIG_INVALID,
                f"no address of witness {name}: the policy names none; set peers: {name}: HOST:PORT",
            )
        server = SpiffeId.of(self._node.trust_domain, "node", name)
        (target,) = targets([address])
        channel = self._parts.channels.get(target, client=self._node, server_dns=server.dns_name)
        return rpc.WitnessStub(channel)

    def _write(self, data: bytes) -> None:
        try:
            write_atomic(self._parts.config.data_dir / CREDENTIAL_FILE, data)
        except OSError as error:
            logger.warning("the trust credential was not kept for evidence: %s", error)

    # the witness's view

    def _view(self) -> View | None:
        parts = self._parts
        held, roster = parts.state.in_force, parts.trust.roster
        if held is None or roster is None:
            return None
        engine = held.engine
        seen = self._bundles.seen(held.policy, monotonic_ms=parts.clock.monotonic_ms())
        return View(
            roster=roster,
            bundles={role: Seen(enforced, since_ms) for role, (enforced, since_ms) in seen.items()},
            level=engine.mesh.level,
            references=accepted_builds(held),
            anchors_pem=parts.identity.anchors_pem(),
            quarantined=parts.quarantined(),
        )

    def _now_ms(self) -> int:
        clock = self._parts.clock
        return self._parts.state.trusted_now_ms(clock.now_ms(), clock.monotonic_ms())


def accepted_builds(held: InForce | None) -> ReferenceValues | None:
    """Return the measurements that the policy in force accepts; None for any."""
    engine = None if held is None else held.engine
    return engine.reference_values if isinstance(engine, Engine) else None


class _Prover:
    """Consistency proofs up to one checkpoint, each made once. Reads files: call it in a thread."""

    def __init__(self, directory: Path, note: bytes) -> None:
        self._directory = directory
        self._size = parse_checkpoint(read_unverified(note).text).size
        self._made: dict[int, tuple[bytes, ...]] = {}

    def since(self, size: int) -> Sequence[bytes]:
        """Return the proof from `size`; none where there can be none (the witness then says what is wrong)."""
        if not 0 < size < self._size:
            return ()
        if size not in self._made:
            try:
                self._made[size] = Reader(self._directory).consistency_proof(size, self._size)
            except EvidenceError:  # the tree grew while it was read: a partial tile became a full one
                self._made[size] = Reader(self._directory).consistency_proof(size, self._size)
        return self._made[size]

    def root(self, size: int) -> bytes:
        """Return the root that the ledger has at `size`, 32 bytes."""
        try:
            return Reader(self._directory).root(size)
        except EvidenceError:  # as above
            return Reader(self._directory).root(size)


async def _finished(tasks: Sequence[asyncio.Task[bytes | None]], timeout_s: float) -> list[bytes]:
    """Return what third parties answered in time; the others' threads end by themselves."""
    if not tasks:
        return []
    done, late = await asyncio.wait(tasks, timeout=timeout_s)
    for task in late:
        task.cancel()
    return [line for task in done if (line := task.result()) is not None]


async def _answered(call: Awaitable[_T]) -> _T:
    """Return the answer of a peer; what it refuses with becomes our error."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error) from None
