"""The witness of this node: asks, judges, remembers durably, and only then signs. Its gRPC door is thin."""

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import Any, Final

import grpc.aio

from egm.v1 import attestation_pb2 as pb
from egm.v1 import attestation_pb2_grpc as rpc
from sidecar.core.attester import Challenge
from sidecar.core.endorsements import Endorsements
from sidecar.edge.attestation_files import WitnessStore
from trust.attestation.cosignature import cosign_attestation
from trust.attestation.roster import witness_key_name
from trust.attestation.statement import NONCE_BYTES
from trust.attestation.witness import (
    Answer,
    Challenges,
    ContradictionError,
    Submission,
    View,
    authenticate,
    judge,
)
from trust.edge.grpc_errors import abort
from trust.edge.threads import to_thread_until_done
from trust.edge.tls import peer_of
from trust.errors import EvidenceError, MeshError, Reason, StateError
from trust.gossip import Head
from trust.node_key import endorsement_digest
from trust.note import KeyKind, Verifier, cosign
from trust.ports import Clock
from trust.spiffe import SpiffeId

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
_NODE: Final = "node"
_ACCUSE_AGAIN_MS: Final = 30_000


class WitnessDesk:
    """Vouches for nodes, when the policy in force lists this node's key. Owned by the event loop."""

    def __init__(
        self,
        node: SpiffeId,
        public_key: bytes,
        sign: Callable[[bytes], bytes],
        store: WitnessStore,
        *,
        view: Callable[[], View | None],
        now_ms: Callable[[], int],
        clock: Clock,
        endorsements: Endorsements,
        accused: Callable[[ContradictionError], bool],
        witnessed: Callable[[Head], None] = lambda _head: None,
    ) -> None:
        """Take the parts.

        Args:
            node: this node.
            public_key: the node key, Ed25519, 32 bytes.
            sign: makes its signatures, 64 bytes.
            store: what was seen of every node.
            view: what this node enforces; None when its policy names no witnesses.
            now_ms: Unix time that signed statements never fall behind, ms.
            clock: monotonic time.
            endorsements: node keys that were verified before.
            accused: told of two statements that cannot both be honest; returns whether they prove it.
            witnessed: told of every tree head that a node shows as evidence: one that shows each witness another
                history contradicts itself only where these meet.
        """
        self._signer, self._store, self._view = sign, store, view
        self._now_ms, self._clock, self._accused = now_ms, clock, accused
        self._witnessed = witnessed
        self._name, self._endorsements = node.name, endorsements
        self.key = Verifier(
            witness_key_name(node.trust_domain, node.name),
            public_key,
            KeyKind.COSIGNATURE_V1,
        )
        self._challenges = Challenges()
        self._proven_ms: dict[str, int] = {}  # by node: when a contradiction was last proven
        self._logged: dict[str, Reason] = {}
        self._locks: dict[str, asyncio.Lock] = {}  # by node: one statement of a node at a time

    async def challenge(self, peer: SpiffeId) -> Challenge:
        """Ask `peer` for evidence.

        Raises:
            StateError: WITNESS_NOT_LISTED, WITNESS_UNAVAILABLE.
        """
        self._listed()
        memory = await asyncio.to_thread(self._store.read, peer.name)
        nonce = secrets.token_bytes(NONCE_BYTES)
        self._challenges.open(peer, nonce, monotonic_ms=self._clock.monotonic_ms())
        return Challenge(self._name, nonce, memory.size, self._now_ms())

    async def attest(self, submission: Submission) -> tuple[bytes, bytes]:
        """Return the lines over evidence and checkpoint of a node, once what was seen is durable.

        Raises:
            MeshError: every reason of `trust.attestation.witness`; WITNESS_NOT_LISTED, WITNESS_UNAVAILABLE.
        """
        view = self._listed()
        now_ms = self._now_ms()
        evidence, _ = authenticate(
            submission,
            view,
            now_ms=now_ms,
            known=lambda data: self._endorsements.key_of(endorsement_digest(data), data, now_ms=now_ms),
        )
        monotonic_ms = self._clock.monotonic_ms()
        self._challenges.answer(evidence.statement, monotonic_ms=monotonic_ms)
        self._witnessed(Head(evidence.statement.checkpoint, submission.endorsement))
        node = evidence.statement.node.name
        async with self._locks.setdefault(node, asyncio.Lock()):
            memory = await asyncio.to_thread(self._store.read, node)
            view = self._listed()  # who is locked out by now
            try:
                answer = judge(
                    memory, submission, evidence, view, now_ms=self._now_ms(), monotonic_ms=monotonic_ms
                )
            except ContradictionError as error:
                self._accuse(node, error, monotonic_ms)
                raise
            await to_thread_until_done(self._store.swap, node, memory, answer.memory)
        return self._sign(answer)

    def _accuse(self, node: str, error: ContradictionError, monotonic_ms: int) -> None:
        """Tell of a contradiction until it is proven; a node that goes on trying is not news each time."""
        proven_ms = self._proven_ms.get(node)
        if proven_ms is not None and monotonic_ms - proven_ms < _ACCUSE_AGAIN_MS:
            return
        if self._logged.get(node) is not error.reason:
            self._logged[node] = error.reason
            logger.error("%s contradicts itself: %s", node, error)
        if self._accused(error):
            self._proven_ms[node] = monotonic_ms

    def _sign(self, answer: Answer) -> tuple[bytes, bytes]:
        sign, key, time_s = self._signer, self.key, answer.time_s
        return (
            cosign_attestation(answer.text, key, sign, time_s=time_s),
            cosign(answer.checkpoint, key.name, sign, public_key=key.public_key, time_s=time_s),
        )

    def _listed(self) -> View:
        view = self._view()
        if view is None or (one := view.roster.witnesses.get(self._name)) is None or one.key != self.key:
            raise StateError(
                Reason.WITNESS_NOT_LISTED,
                f"node {self._name} is no witness by the policy in force here, or not with this key",
            )
        return view


class WitnessServicer(rpc.WitnessServicer):
    """egm.v1.Witness: who asks, then ask the desk."""

    def __init__(self, desk: WitnessDesk, trust_domain: str, clock: Clock) -> None:
        """Serve `desk`."""
        self._desk, self._trust_domain, self._clock = desk, trust_domain, clock

    async def Challenge(self, request: pb.ChallengeRequest, context: Context) -> pb.ChallengeResponse:
        """Return a nonce for the calling node."""
        try:
            asked = await self._desk.challenge(self._peer(context))
        except MeshError as error:
            await abort(context, error)
        return pb.ChallengeResponse(nonce=asked.nonce, cosigned_size=asked.size, now_ms=asked.now_ms)

    async def Attest(self, request: pb.AttestRequest, context: Context) -> pb.AttestResponse:
        """Vouch for the calling node."""
        try:
            submission = Submission(
                self._peer(context),
                request.evidence,
                request.endorsement,
                tuple(request.consistency),
                request.cosigned_root,
            )
            attested, logged = await self._desk.attest(submission)
        except MeshError as error:
            await abort(context, error)
        return pb.AttestResponse(attested=attested, logged=logged)

    def _peer(self, context: Context) -> SpiffeId:
        peer = peer_of(context, trust_domain=self._trust_domain, now_ms=self._clock.now_ms())
        if peer.kind != _NODE:
            raise EvidenceError(Reason.NOT_AUTHORIZED, f"{peer} is not a node; only nodes are attested")
        return peer
