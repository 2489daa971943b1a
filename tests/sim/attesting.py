"""How a simulated node asks its witnesses, in the order of `sidecar.edge.attestation`, and what it shows."""

import functools
import hashlib
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sidecar.core.attester import (
    Challenge,
    Schedule,
    check_clock,
    check_reached,
    check_vouched,
    round_timeout_ms,
    statement_of,
)
from sidecar.core.bundle_state import InForce
from sidecar.edge.attestation_files import Counter
from tests.sim.kernel import Future, SimPath
from tests.sim.realm import NODES, endorsed
from tests.support.attestation import MEASUREMENT, Tree
from trust.attestation.credential import check_lines, log_origin, open_credential, write_credential
from trust.attestation.roster import Roster
from trust.attestation.statement import Evidence, sign_evidence
from trust.attestation.witness import Submission
from trust.checkpoint import sign_checkpoint
from trust.errors import MeshError

if TYPE_CHECKING:
    from tests.sim.node import Node

Lines = tuple[bytes, bytes]


@dataclass(frozen=True)
class Shown:
    """One statement of a node with the ledger that it speaks of. Who has two histories makes two."""

    evidence: Evidence
    tree: Tree


class Attesting:
    """One node's rounds since it started."""

    def __init__(self, node: "Node") -> None:
        self.node = node
        self.schedule = Schedule()
        self.counter = Counter(SimPath(node.disk, "counter.json"))  # type: ignore[arg-type]
        self._busy = False

    def tick(self) -> None:
        """Begin a round when one is due."""
        node = self.node
        roster, now_ms = node.trust.roster, node.monotonic_ms()
        due_ms = self.schedule.wake_at_ms(roster, monotonic_ms=now_ms)
        if roster is not None and node.state.in_force is not None and now_ms >= due_ms and not self._busy:
            self._busy = True
            node.world.spawn(node, self._attempt(roster, node.state.in_force))

    async def _attempt(self, roster: Roster, held: InForce) -> None:
        node, jitter = self.node, self.node.world.random.random()
        try:
            await self._round(roster, held)
        except MeshError:
            self.schedule.failed(roster, monotonic_ms=node.monotonic_ms(), jitter=jitter)
        else:
            self.schedule.succeeded(roster, monotonic_ms=node.monotonic_ms(), jitter=jitter)
            if "equivocates" in node.lies:  # it hurries, before the histories meet
                self.schedule.failed(roster, monotonic_ms=node.monotonic_ms(), jitter=jitter)
        self._busy = False

    async def _round(self, roster: Roster, held: InForce) -> None:
        node, world = self.node, self.node.world
        why: dict[str, str] = {}
        timeout_ms = min(round_timeout_ms(roster), 1_000)
        challenges: Mapping[str, Challenge] = await world.gather(
            {
                name: world.rpc(node.name, name, functools.partial(self._asked_by, name))
                for name in roster.counting
            },
            roster.needed,
            timeout_ms,
        )
        asked = tuple(challenges.values())
        check_reached(roster, asked, why)
        check_clock(asked, now_ms=node.now_ms(), needed=roster.needed)
        counter, issued_s = self.counter.next(node.trusted_ms() // 1000)
        faces = [node.fork_at, None] if "equivocates" in node.lies else [None]
        shown = [self._say(asked, held, counter, issued_s, face) for face in faces]
        to = self._audience(challenges, len(shown))
        lines: Mapping[str, Lines] = await world.gather(
            {name: self._vouch(roster, challenges[name], shown[to[name]]) for name in challenges},
            roster.needed, timeout_ms,
        )  # fmt: skip
        if len(shown) == 2:  # an accomplice signs both
            for name in challenges:
                if "cosigns anything" in world.nodes[name].lies:
                    self._vouch(roster, challenges[name], shown[1 - to[name]])
        best = max(range(len(shown)), key=lambda face: sum(to[name] == face for name in lines))
        good = [line for name, line in lines.items() if to[name] == best]
        if "boasts" not in node.lies:
            check_vouched(roster, len(good), why)
        data = write_credential(shown[best].evidence, [one for one, _ in good], [two for _, two in good])
        world.observer.credential_made(data, shown[best].evidence)
        if "boasts" in node.lies:
            credential = open_credential(data, roster)
            if len(good) or node.trust.own() is None:
                node.trust.own = lambda: credential  # type: ignore[method-assign]
            return
        node.trust.adopt(data, now_ms=node.trusted_ms(), monotonic_ms=node.monotonic_ms())
        node.talking.lookout.gained(data)

    def _asked_by(self, witness: str) -> Coroutine[Any, Any, Challenge]:
        return self.node.world.nodes[witness].witness.asked(self.node.me)

    def _say(
        self, asked: tuple[Challenge, ...], held: InForce, counter: int, issued_s: int, face: int | None
    ) -> Shown:
        """Sign a statement; with `face`, about the history in which that record is another."""
        node = self.node
        tree = node.ledger.tree(other_face_from=face)
        checkpoint = tree.checkpoint(log_origin(node.me))
        node.world.observer.head_made(node, checkpoint, tuple(tree.leaves))
        note = sign_checkpoint(checkpoint, node.private.sign, public_key=node.public)
        statement = statement_of(
            node.me, node.public, asked, held.policy, MEASUREMENT,
            boot=hashlib.sha256(f"{node.name} {node.boots}".encode()).digest()[:8],
            counter=counter, issued_s=issued_s, level=5, checkpoint=note,
        )  # fmt: skip
        key_id = endorsed(node.endorsement).digest
        return Shown(sign_evidence(statement, node.private.sign, key_id=key_id), tree)

    def _audience(self, challenges: Mapping[str, Challenge], faces: int) -> dict[str, int]:
        """Which history each witness is shown."""
        node = self.node
        if faces == 2 and node.hides:  # always the same history to the same witness
            odd = NODES[(NODES.index(node.name) + 1) % len(NODES)]
            return {name: int(name != odd) for name in challenges}
        return {name: node.world.random.randrange(faces) for name in challenges}

    def _vouch(self, roster: Roster, challenge: Challenge, shown: Shown) -> Future:
        node, world = self.node, self.node.world
        evidence, size = shown.evidence, len(shown.tree.leaves)
        grows = 0 < challenge.size < size and not ("rewrites" in node.lies and node.hides)
        proof = shown.tree.proof(challenge.size) if grows else ()
        submission = Submission(node.me, evidence.envelope, node.endorsement, proof)
        witness = world.nodes[challenge.witness]  # whichever of its runs it reaches
        asked = world.rpc(
            node.name, challenge.witness, lambda: witness.witness.attested(submission), withheld=True
        )
        stranger = world.nodes[world.random.choice(NODES)]
        if not world.quiet and world.chance(
            world.misdirects
        ):  # and to a witness that may not have asked, or not lately
            delay_ms = world.random.choice((0, 0, world.random.randint(500, 6_000)))
            world.after(
                delay_ms,
                world.handle,
                node.name,
                stranger.name,
                lambda: stranger.witness.attested(submission),
                Future(),
            )
        checked = Future()

        def check() -> None:
            try:
                if asked.error is None:
                    check_lines(evidence, roster.witnesses[challenge.witness], *asked.value)
                checked.finish(asked.value, asked.error)
            except MeshError as error:
                checked.finish(error=error)

        asked.then(check)
        return checked
