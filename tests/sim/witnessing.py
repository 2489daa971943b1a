"""A simulated node as a witness of others: the product's desk, told what the node knows. A liar signs anything."""

from typing import TYPE_CHECKING

from sidecar.core.attester import Bundles, Challenge
from sidecar.edge.attestation_files import WitnessStore
from sidecar.edge.witness_desk import WitnessDesk
from tests.sim.kernel import SimPath
from trust.accusation import by_checkpoints, by_evidence
from trust.attestation.cosignature import attested_text, cosign_attestation
from trust.attestation.statement import open_evidence
from trust.attestation.witness import Answer, ContradictionError, Seen, Submission, View
from trust.errors import MeshError
from trust.note import cosign
from trust.spiffe import SpiffeId

if TYPE_CHECKING:
    from tests.sim.node import Node


class Witnessing:
    """One node's desk since it started."""

    def __init__(self, node: "Node") -> None:
        self.node = node
        self.bundles = Bundles()
        self.desk = WitnessDesk(
            node.me,
            node.public,
            node.private.sign,
            WitnessStore(SimPath(node.disk, "witness")),  # type: ignore[arg-type]
            view=self._view,
            now_ms=node.trusted_ms,
            clock=node,
            endorsements=node.endorsements,
            accused=self._contradicted,
            witnessed=node.talking.saw,
        )
        sign = self.desk._sign

        def watched(answer: Answer) -> tuple[bytes, bytes]:
            node.world.observer.vouched(node, answer)
            return sign(answer)

        self.desk._sign = watched  # type: ignore[method-assign]

    def tick(self) -> None:
        """Notice since when this node enforces what it enforces."""
        held = self.node.state.in_force
        if held is not None:
            self.bundles.seen(held.policy, monotonic_ms=self.node.monotonic_ms())

    async def asked(self, peer: SpiffeId) -> Challenge:
        """Challenge a node."""
        challenge = await self.desk.challenge(peer)
        self.node.world.observer.challenged(self.node, challenge.nonce)
        return challenge

    async def attested(self, submission: Submission) -> tuple[bytes, bytes]:
        """Vouch for a node; a liar does it for anything."""
        node = self.node
        if "cosigns anything" not in node.lies:
            return await self.desk.attest(submission)
        evidence = open_evidence(submission.evidence)
        time_s, key = node.now_ms() // 1000, self.desk.key
        text = evidence.statement.checkpoint.rpartition(b"\n\n")[0] + b"\n"
        node.world.observer.vouched_by_liar(node, evidence)
        return (
            cosign_attestation(
                attested_text(evidence.statement.node, evidence.sha256), key, node.private.sign, time_s=time_s
            ),
            cosign(text, key.name, node.private.sign, public_key=key.public_key, time_s=time_s),
        )

    def _view(self) -> View | None:
        node = self.node
        held, roster = node.state.in_force, node.trust.roster
        if held is None or roster is None:
            return None
        seen = self.bundles.seen(held.policy, monotonic_ms=node.monotonic_ms())
        return View(
            roster=roster,
            bundles={role: Seen(enforced, since) for role, (enforced, since) in seen.items()},
            level=held.engine.mesh.level,
            references=None,
            anchors_pem=b"",
            quarantined=node.keeper.denied_nodes(),
        )

    def _contradicted(self, error: ContradictionError) -> bool:
        """As `sidecar.edge.membership.Membership.contradicted`."""
        try:
            now, before = open_evidence(error.now_evidence), open_evidence(error.before_evidence)
            proof = by_evidence(before, now, error.now_endorsement)
            if proof is None:
                notes = (before.statement.checkpoint, now.statement.checkpoint)
                proof = by_checkpoints(
                    now.statement.node, *notes, error.now_endorsement, path=error.consistency
                )
            if proof is None:
                return False
            self.node.keeper.accuse(proof)
        except MeshError:
            return False
        return True
