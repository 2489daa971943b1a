"""One round of attestation: how this node asks its witnesses, and gets a credential when a quorum has signed.

A challenge from every witness at once; one statement that answers them all, its counter durable before it is signed;
their cosignatures; a credential as soon as a quorum has signed. Third parties cosign the checkpoint beside.
"""

import asyncio
import logging
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc.aio

from egm.v1 import attestation_pb2 as pb
from egm.v1 import attestation_pb2_grpc as rpc
from sidecar.core.attester import (
    Challenge,
    check_clock,
    check_reached,
    check_vouched,
    round_timeout_ms,
    statement_of,
    struck_out,
)
from sidecar.core.bundle_state import InForce
from sidecar.core.levels import level_in_force
from sidecar.edge.attestation_files import COUNTER_FILE, CREDENTIAL_FILE, Counter
from sidecar.edge.attestation_parts import Parts, accepted_builds
from sidecar.edge.measurer import SoftwareMeasurer
from sidecar.edge.tlog_witness import TlogWitness
from sidecar.edge.tpm import ToolsTpm
from sidecar.edge.upstream import targets
from sidecar.edge.witness_desk import WitnessDesk
from trust.attestation.credential import check_lines, write_credential
from trust.attestation.roster import Roster
from trust.attestation.statement import NONCE_BYTES, Evidence, Statement, quoted_digest, sign_evidence
from trust.attestation.witness import Submission
from trust.checkpoint import parse_checkpoint
from trust.edge.files import write_atomic
from trust.edge.grpc_errors import error_from_rpc, readable
from trust.edge.ledger import Reader
from trust.errors import EvidenceError, MeshError, Reason, StateError
from trust.note import read_unverified
from trust.spiffe import SpiffeId

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_OUTSIDE_PATIENCE_S: Final = 1.0  # for third parties that the policy does not require
_PATIENCE_S: Final = 0.2  # for the witnesses beyond the quorum


class Prover:
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


class Round:
    """What one node asks of its witnesses, each time anew. Owned by the event loop."""

    def __init__(self, parts: Parts, desk: WitnessDesk) -> None:
        """Read the counter. `desk` is this node's own witness, which it asks without a connection.

        Raises:
            InputError: CONFLICT, if the counter is damaged.
        """
        self._parts, self._desk, self._node = parts, desk, parts.node
        self._measurer = parts.measurer or SoftwareMeasurer(parts.config)
        tpm = parts.config.tpm
        self._quoter = parts.quoter or (None if tpm is None else ToolsTpm(tpm))
        self._counter = Counter(parts.config.data_dir / COUNTER_FILE)
        self._third_parties: dict[str, TlogWitness] = {}

    async def run(self, roster: Roster, held: InForce, why: dict[str, str]) -> None:
        """Get a new credential, and adopt it.

        Args:
            roster: who is asked.
            held: the policy that is told of.
            why: filled with who did not vouch, and why.

        Raises:
            MeshError: NODE_NOT_ATTESTED, naming who did not and why, CLOCK_WRONG, and what disk and TPM say.
        """
        parts = self._parts
        if parts.ledger is None:
            raise StateError(
                Reason.NODE_NOT_ATTESTED, "this node has no usable ledger, which witnesses ask for"
            )
        timeout_s = round_timeout_ms(roster) / 1000
        why.update(struck_out(roster))
        measurement = await asyncio.to_thread(self._measurer.measure)
        challenges = await _ask(
            {name: self._challenge(roster, name) for name in roster.counting}, roster.needed, timeout_s, why
        )
        check_reached(roster, tuple(challenges.values()), why)
        check_clock(tuple(challenges.values()), now_ms=parts.clock.now_ms(), needed=roster.needed)
        note = await parts.ledger.checkpoint()
        prover = Prover(parts.ledger.directory, note)
        endorsement, key_id = parts.signer.endorsement(), parts.signer.key_id()
        counter, issued_s = await asyncio.to_thread(self._counter.next, parts.now_ms() // 1000)
        statement = statement_of(
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
        )
        evidence = sign_evidence(await self._quoted(statement, held), parts.signer.sign, key_id=key_id)
        outsiders = [
            asyncio.create_task(self._log(one, note, prover, why)) for one in self._outsiders(roster)
        ]
        lines = await _ask(
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
        credential = parts.trust.adopt(data, now_ms=parts.now_ms(), monotonic_ms=parts.clock.monotonic_ms())
        await asyncio.to_thread(self._write, data)
        parts.gained(credential)

    async def _quoted(self, statement: Statement, held: InForce) -> Statement:
        """Return the statement with the quote that the policy in force wants of this node, if there is a TPM to ask.

        Where none is wanted none is sent: releases that know no quotes then read the statement as before.
        """
        references = accepted_builds(held)
        wanted = None if references is None else references.tpm.get(self._node.name)
        if wanted is None or self._quoter is None:
            return statement  # where one is wanted, witnesses refuse it and say what to configure
        quote = await asyncio.to_thread(self._quoter.quote, quoted_digest(statement), wanted.selected)
        return replace(statement, quote=quote)

    async def _challenge(self, roster: Roster, name: str) -> Challenge:
        if name == self._node.name:
            return await self._desk.challenge(self._node)
        stub = self._stub(roster, name)
        answer = await _answered(stub.Challenge(pb.ChallengeRequest()))
        if (
            len(answer.nonce) != NONCE_BYTES
        ):  # in the statement it would spoil the round for every other witness
            raise EvidenceError(Reason.EVIDENCE_INVALID, f"a nonce of {len(answer.nonce)} bytes")
        return Challenge(name, answer.nonce, answer.cosigned_size, answer.now_ms)

    async def _vouch(
        self, roster: Roster, challenge: Challenge, evidence: Evidence, endorsement: bytes, prover: Prover
    ) -> tuple[bytes, bytes]:
        proof = await asyncio.to_thread(prover.since, challenge.size)
        root = await asyncio.to_thread(prover.root, challenge.size) if proof else b""
        if challenge.witness == self._node.name:
            submission = Submission(self._node, evidence.envelope, endorsement, proof, root)
            return await self._desk.attest(submission)
        request = pb.AttestRequest(
            evidence=evidence.envelope, endorsement=endorsement, consistency=proof, cosigned_root=root
        )
        answer = await _answered(self._stub(roster, challenge.witness).Attest(request))
        check_lines(evidence, roster.witnesses[challenge.witness], answer.attested, answer.logged)
        return answer.attested, answer.logged

    async def _log(
        self, party: TlogWitness, note: bytes, prover: Prover, why: dict[str, str]
    ) -> bytes | None:
        try:
            return await asyncio.to_thread(party.add_checkpoint, note, prover.since)
        except MeshError as error:
            why[party.witness.name] = str(error)
            return None

    def _outsiders(self, roster: Roster) -> list[TlogWitness]:
        for name, one in roster.log_counting.items():
            known = self._third_parties.get(name)
            if known is None or known.witness != one:
                self._third_parties[name] = TlogWitness(one)
        return [self._third_parties[name] for name in roster.log_counting]

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


async def _ask(
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
        return readable(await call)
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error) from None
