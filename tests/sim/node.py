"""One simulated sidecar: production cores, desk, notary, keeper and stores; only their world is simulated.

What is written here stands in for the edges that own sockets and tasks (driver, door, attestation loop, gossip loop),
and does in the same order what they do.
"""

import contextlib
import functools
import hashlib
from collections.abc import Coroutine, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from egm.v1 import gossip_pb2 as pb
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
from sidecar.core.bundle_state import BundleState, Effect, Persist, Record, Swap
from sidecar.core.call import Attempt, Direction, RefusedError
from sidecar.core.endorsements import Endorsements
from sidecar.core.feed_state import FeedState, Refresh, poll_interval_ms
from sidecar.core.gossip import Rounds, Talk
from sidecar.core.permits import Minter, Verifier
from sidecar.core.pipeline import Pipeline
from sidecar.core.replay import ReplayCache
from sidecar.core.trust_state import TrustState
from sidecar.edge.attestation_files import Counter, WitnessStore
from sidecar.edge.case import Case, Signing
from sidecar.edge.notary import Notary
from sidecar.edge.permit_floor import PermitFloor
from sidecar.edge.witness_desk import WitnessDesk
from tests.sim.kernel import Disk, Future, SimPath, UnreachableError
from tests.sim.realm import (
    CALLEES,
    DOMAIN,
    LEASE_MS,
    NODES,
    PAYMENTS,
    endorsed,
    endorsement_of,
    engine_of,
    key_of,
)
from tests.support.attestation import MEASUREMENT, Tree
from tests.support.sidecar_core import ALICE, PAY
from trust import gossip
from trust.accusation import by_checkpoints, by_evidence
from trust.announce import parse_announcement
from trust.attestation.cosignature import attested_text, cosign_attestation
from trust.attestation.credential import (
    check_lines,
    log_origin,
    open_credential,
    write_credential,
)
from trust.attestation.roster import Roster
from trust.attestation.statement import Evidence, open_evidence, sign_evidence
from trust.attestation.witness import Answer, ContradictionError, Seen, Submission, View
from trust.checkpoint import sign_checkpoint
from trust.denials import Spread
from trust.edge.denial_keeper import DenialKeeper
from trust.edge.gossip import Member
from trust.errors import MeshError, StateError
from trust.gossip import Head
from trust.heads import Heads
from trust.merkle import leaf_hash
from trust.misbehaviour import Anchors, proof_id
from trust.note import cosign
from trust.policy.types import Authn
from trust.record import Intent, Outcome, build_record, record_digest
from trust.revocation import read_directive
from trust.spiffe import SpiffeId

if TYPE_CHECKING:
    from tests.sim.mesh import Files, Mesh

CERTIFICATE = b"\x22" * 32
PATIENCE_MS = 200


class SimLedger:
    """The journal port over a simulated disk: appended, durable later, cut anywhere in between by a crash."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self.leaves: list[bytes] = []
        self.durable_size = 0
        self._waiting: list[tuple[int, Future]] = []

    def append(self, record: Intent | Outcome) -> object:
        """Take a record; it will be durable."""
        self.leaves.append(leaf_hash(record_digest(build_record(record))))
        if isinstance(record, Intent):
            self._node.world.observer.intents[record.execution_id, record.side] = len(self.leaves)
        self._node.world.after(
            self._node.world.random.randint(1, 40), self._flushed, self._node.boots, len(self.leaves)
        )
        return len(self.leaves)

    async def durable(self, pending: object) -> None:
        """Wait for the disk."""
        assert isinstance(pending, int)
        if self.durable_size < pending:
            future = Future()
            self._waiting.append((pending, future))
            await future

    def _flushed(self, boot: int, size: int) -> None:
        if not self._node.up or self._node.boots != boot:
            return
        self.durable_size = max(self.durable_size, size)
        ready = [future for wanted, future in self._waiting if wanted <= self.durable_size]
        self._waiting = [one for one in self._waiting if one[0] > self.durable_size]
        for future in ready:
            future.finish()

    def crash(self) -> None:
        """Keep what is durable, and perhaps some of what is not."""
        keep = self._node.world.random.randint(self.durable_size, len(self.leaves))
        self.cut(keep)

    def cut(self, size: int) -> None:
        """Continue at `size`."""
        del self.leaves[size:]
        self.durable_size, self._waiting = len(self.leaves), []

    def tree(self, *, other_face_from: int | None = None) -> Tree:
        """Return the durable tree; with `other_face_from` the one in which that record is another."""
        tree = Tree()
        tree.leaves = self.leaves[: self.durable_size]
        if other_face_from is not None and other_face_from < len(tree.leaves):
            tree.leaves[other_face_from] = leaf_hash(b"another history")
        return tree


class Node:
    """One member. `lies` holds in which ways it does not follow the protocol."""

    def __init__(self, name: str, world: "Mesh") -> None:
        self.name, self.world = name, world
        self.me = SpiffeId.of(DOMAIN, "node", name)
        self.private = key_of(name)
        self.public = self.private.public_key().public_bytes_raw()
        self.endorsement = endorsement_of(name)
        self.disk = Disk(name, lambda: world.chance(world.torn))
        self.ledger = SimLedger(self)
        self.skew_ms = world.random.randint(-1_000, 1_000)
        self.lies: set[str] = set()
        self.fork_at: int | None = None
        self.hides = False  # in gossip shows one history alone
        self.up, self.boots, self._booted_ms = False, 0, 0

    # clock and life

    def now_ms(self) -> int:
        """Return the wall clock."""
        return self.world.now_ms + self.skew_ms

    def monotonic_ms(self) -> int:
        """Return the monotonic clock."""
        return self.world.now_ms - self._booted_ms + 5_000

    def trusted_ms(self) -> int:
        """Return the wall clock, never behind signed time."""
        return self.state.trusted_now_ms(self.now_ms(), self.monotonic_ms())

    def boot(self) -> None:
        """Start from what the disk holds."""
        self.up, self.boots, self._booted_ms = True, self.boots + 1, self.world.now_ms
        world, disk = self.world, self.disk
        record = disk.files.get("record", Record())
        self.state = BundleState(record, monotonic_ms=self.monotonic_ms())
        self.feed = FeedState(poll_ms=poll_interval_ms(LEASE_MS / 1000))
        self.newest: tuple[int, bytes] = (0, b"")
        self.base: tuple[int, bytes] = (0, b"")
        self.keeper = DenialKeeper(
            SimPath(disk, "denials.json"),  # type: ignore[arg-type]
            DOMAIN,
            now_ms=self.trusted_ms,
            monotonic_ms=self.monotonic_ms,
            anchors=self._anchors,
            changed=lambda _changed: self.pipeline.governance_changed(),
        )
        self.trust = TrustState(
            self.me,
            lambda: None if self.state.in_force is None else self.state.in_force.engine.mesh,
            trusted=lambda now_ms: self.state.trusted_now_ms(now_ms, self.monotonic_ms()),
        )
        self.pipeline = Pipeline(
            node=self.name,
            trust_domain=DOMAIN,
            boot_id=f"{self.name}{self.boots}",
            state=self.state,
            clock=self,
            denials=self.keeper.denials,
            attested=self._attested,
        )
        self._permits()
        self.bundles, self.schedule = Bundles(), Schedule()
        self.counter = Counter(SimPath(disk, "counter.json"))  # type: ignore[arg-type]
        self.desk = WitnessDesk(
            self.me,
            self.public,
            self.private.sign,
            WitnessStore(SimPath(disk, "witness")),  # type: ignore[arg-type]
            view=self._view,
            now_ms=self.trusted_ms,
            clock=self,
            endorsements=self.endorsements,
            accused=self._contradicted,
            witnessed=self._saw,
        )
        sign = self.desk._sign

        def watched(answer: Answer) -> tuple[bytes, bytes]:
            world.observer.vouched(self, answer)
            return sign(answer)

        self.desk._sign = watched  # type: ignore[method-assign]
        self.heads = Heads(endorsed)
        self._heads_signed: dict[tuple[int, bool], Head] = {}
        self.member = Member(
            self.me,
            f"boot{self.boots}",
            self.keeper,
            timestamp=lambda: self.newest,
            announced=lambda raw: self._look(
                self.feed.announced(parse_announcement(raw), now_ms=self.monotonic_ms())
            ),
            heads=self._shown,
            saw=self._saw,
            policy=lambda: self.base,
        )
        self.rounds = Rounds(now_ms=self.monotonic_ms())
        self.rounds.met(world.random.sample([one for one in NODES if one != self.name], len(NODES) - 1))
        self.news: list[str] = []
        self.keeper.subscribe(self._learned)
        self.busy = False
        files = disk.files.get("policy")
        if files is not None:
            self.offer(files, resumed=True)
        world.after(0, self._tick, self.boots)

    def _permits(self) -> None:
        self.endorsements = Endorsements(lambda: b"", DOMAIN)
        for name in NODES:
            self.endorsements.hold(endorsed(endorsement_of(name)))
        floor = PermitFloor(SimPath(self.disk, "floor"), self)  # type: ignore[arg-type]
        self.verifier = Verifier(
            self.endorsements, ReplayCache(boot_ms=floor.boot_ms, remember=floor.remember)
        )
        key_id = endorsed(self.endorsement).digest
        minter = Minter(self.me, lambda: key_id, self.private.sign, lambda: self.world.random.randbytes(16))
        self.notary = Notary(
            node=self.name,
            boot_id=f"{self.name}{self.boots}",
            clock=self,
            ids=self._execution_id,
            level=self.pipeline.level,
            in_force=lambda: self.state.in_force,
            callee=lambda _service: PAYMENTS,
            journal=self.ledger,
            signing=Signing(minter, self.verifier, lambda: self.endorsement, lambda _who: CERTIFICATE),
            alarm=lambda _text: None,
            trust=self.trust,
        )

    def _execution_id(self) -> bytes:
        rand = self.world.random.getrandbits(74)
        head = self.now_ms() << 80 | 7 << 76 | (rand >> 62) << 64 | 2 << 62 | rand & (2**62 - 1)
        return head.to_bytes(16)

    def crash(self) -> None:
        """Die; the disk keeps what was durable."""
        self.up = False
        self.ledger.crash()

    def _attested(self, now_ms: int, monotonic_ms: int) -> bool:
        return "boasts" in self.lies or self.trust.attested(now_ms, monotonic_ms)

    # policy

    def offer(self, files: "Files", *, resumed: bool = False) -> None:
        """Verify files as the policy client does, keep them, and offer what they say."""
        try:
            policy = self.world.verified(files)
        except MeshError:
            return
        kept = self.disk.files.get("policy")
        if not resumed and (
            kept is None or self.world.verified(kept).versions["timestamp"] <= policy.versions["timestamp"]
        ):
            self.disk.write("policy", files)
        if policy.versions["timestamp"] >= self.newest[0]:
            self.newest = (policy.versions["timestamp"], files.timestamp)
            self.base = (policy.base.version, hashlib.sha256(files.targets).digest())
        try:
            effects = self.state.offer(
                policy,
                engine_of(files.archive),
                now_ms=self.now_ms(),
                monotonic_ms=self.monotonic_ms(),
                resumed=resumed,
            )
        except StateError:
            return
        self.world.observer.leased(self, policy)
        self.run(effects)

    def run(self, effects: list[Effect]) -> None:
        """Run effects in their order."""
        for effect in effects:
            if isinstance(effect, Persist):
                self.disk.write("record", effect.record)
            elif isinstance(effect, Swap):
                self.keeper.govern(effect.now_in_force.engine.mesh)
                self.pipeline.governance_changed()
            else:
                self.pipeline.governance_changed()

    def _look(self, refresh: Refresh | None) -> None:
        if refresh is not None:
            self.world.spawn(self, self._refresh())

    async def _refresh(self) -> None:
        version = None
        for source in ("cp", *self.world.random.sample([one for one in NODES if one != self.name], 2)):
            try:
                files = await self.world.rpc(
                    self.name, source, functools.partial(self.world.served, source, self.name)
                )
            except UnreachableError:
                continue
            if files is None:
                continue
            try:
                self.offer(files)
                version = self.world.verified(files).versions["timestamp"]
                break
            except MeshError:
                continue
        now_ms, jitter = self.monotonic_ms(), self.world.random.random()
        if version is None:
            self.feed.failed(now_ms=now_ms, jitter=jitter)
        else:
            self._look(self.feed.refreshed(version, now_ms=now_ms, jitter=jitter))

    def _tick(self, boot: int) -> None:
        if not self.up or boot != self.boots:
            return
        now_ms, mono_ms = self.now_ms(), self.monotonic_ms()
        self.run(self.state.tick(now_ms=now_ms, monotonic_ms=mono_ms))
        if self.world.chance(0.1) and self.state.in_force is not None:
            self.run([self.state.checkpoint(mono_ms)])
        self.keeper.tick()
        self._look(self.feed.tick(now_ms=mono_ms))
        roster, held = self.trust.roster, self.state.in_force
        if held is not None:
            self.bundles.seen(held.policy, monotonic_ms=mono_ms)
        due_ms = self.schedule.wake_at_ms(roster, monotonic_ms=mono_ms)
        if roster is not None and held is not None and mono_ms >= due_ms and not self.busy:
            self.busy = True
            self.world.spawn(self, self._attest(roster))
        if self.rounds.wake_at_ms() <= mono_ms:
            self._talk(self.rounds.tick(now_ms=mono_ms))
        self.world.after(250, self._tick, boot)

    # attestation: this node asks

    async def _attest(self, roster: Roster) -> None:
        jitter = self.world.random.random()
        try:
            await self._round(roster)
        except MeshError:
            self.schedule.failed(roster, monotonic_ms=self.monotonic_ms(), jitter=jitter)
        else:
            self.schedule.succeeded(roster, monotonic_ms=self.monotonic_ms(), jitter=jitter)
            if "equivocates" in self.lies:  # it hurries, before the histories meet
                self.schedule.failed(roster, monotonic_ms=self.monotonic_ms(), jitter=jitter)
        self.busy = False

    async def _round(self, roster: Roster) -> None:
        world = self.world
        why: dict[str, str] = {}
        timeout_ms = min(round_timeout_ms(roster), 1_000)
        challenges: Mapping[str, Challenge] = await world.gather(
            {
                name: world.rpc(self.name, name, functools.partial(self._asked_by, name))
                for name in roster.witnesses
            },
            roster.needed,
            timeout_ms,
        )
        asked = tuple(challenges.values())
        check_reached(roster, asked, why)
        check_clock(asked, now_ms=self.now_ms(), needed=roster.needed)
        held = self.state.in_force
        if held is None:
            return
        counter, issued_s = self.counter.next(self.trusted_ms() // 1000)
        faces = [self.fork_at, None] if "equivocates" in self.lies else [None]
        shown: list[tuple[Evidence, Tree]] = []
        for face in faces:
            tree = self.ledger.tree(other_face_from=face)
            checkpoint = tree.checkpoint(log_origin(self.me))
            world.observer.head_made(self, checkpoint, face is not None)
            note = sign_checkpoint(checkpoint, self.private.sign, public_key=self.public)
            statement = statement_of(
                self.me, self.public, asked, held.policy, MEASUREMENT,
                boot=hashlib.sha256(f"{self.name} {self.boots}".encode()).digest()[:8],
                counter=counter, issued_s=issued_s, level=5, checkpoint=note,
            )  # fmt: skip
            shown.append(
                (sign_evidence(statement, self.private.sign, key_id=endorsed(self.endorsement).digest), tree)
            )
            world.observer.stated(shown[-1][0])
        to = {name: world.random.randrange(len(shown)) for name in challenges}
        if len(shown) == 2 and self.hides:  # always the same history to the same witness
            to = {name: int(name != NODES[(NODES.index(self.name) + 1) % len(NODES)]) for name in challenges}
        lines = await world.gather(
            {name: self._vouch(roster, challenges[name], *shown[to[name]]) for name in challenges},
            roster.needed, timeout_ms,
        )  # fmt: skip
        if len(shown) == 2:  # an accomplice signs both
            for name in challenges:
                if "cosigns anything" in world.nodes[name].lies:
                    self._vouch(roster, challenges[name], *shown[1 - to[name]])
        best = max(range(len(shown)), key=lambda face: sum(to[name] == face for name in lines))
        good = [line for name, line in lines.items() if to[name] == best]
        if "boasts" not in self.lies:
            check_vouched(roster, len(good), why)
        data = write_credential(shown[best][0], [one for one, _ in good], [two for _, two in good])
        world.observer.credential_made(data, shown[best][0])
        if "boasts" in self.lies:
            credential = open_credential(data, roster)
            if len(good) or self.trust.own() is None:
                self.trust.own = lambda: credential  # type: ignore[method-assign]
            return
        self.trust.adopt(data, now_ms=self.trusted_ms(), monotonic_ms=self.monotonic_ms())

    def _asked_by(self, witness: str) -> Coroutine[Any, Any, Challenge]:
        return self.world.nodes[witness].asked(self.me)

    async def asked(self, peer: SpiffeId) -> Challenge:
        """Challenge a node, as its witness."""
        challenge = await self.desk.challenge(peer)
        self.world.observer.challenged(self, challenge.nonce)
        return challenge

    def _vouch(self, roster: Roster, challenge: Challenge, evidence: Evidence, tree: Tree) -> Future:
        size = len(tree.leaves)
        proof = tree.proof(challenge.size) if 0 < challenge.size < size else ()
        submission = Submission(self.me, evidence.envelope, self.endorsement, proof)
        world = self.world
        witness = world.nodes[challenge.witness]
        asked = self.world.rpc(
            self.name, challenge.witness, lambda: witness.attested(submission), withheld=True
        )
        stranger = world.nodes[world.random.choice(NODES)]
        if not world.quiet and world.chance(0.15):  # and to a witness that may not have asked, or not lately
            delay_ms = world.random.choice((0, 0, world.random.randint(500, 6_000)))
            world.after(
                delay_ms,
                world._handle,
                self.name,
                stranger.name,
                lambda: stranger.attested(submission),
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

    async def attested(self, submission: Submission) -> tuple[bytes, bytes]:
        """Vouch for a node, as its witness; a liar does it for anything."""
        if "cosigns anything" not in self.lies:
            return await self.desk.attest(submission)
        evidence = open_evidence(submission.evidence)
        time_s, key = self.now_ms() // 1000, self.desk.key
        text = evidence.statement.checkpoint.rpartition(b"\n\n")[0] + b"\n"
        self.world.observer.vouched_by_liar(self, evidence)
        return (
            cosign_attestation(
                attested_text(evidence.statement.node, evidence.sha256), key, self.private.sign, time_s=time_s
            ),
            cosign(text, key.name, self.private.sign, public_key=key.public_key, time_s=time_s),
        )

    def _view(self) -> View | None:
        held, roster = self.state.in_force, self.trust.roster
        if held is None or roster is None:
            return None
        seen = self.bundles.seen(held.policy, monotonic_ms=self.monotonic_ms())
        return View(
            roster=roster,
            bundles={role: Seen(enforced, since) for role, (enforced, since) in seen.items()},
            level=held.engine.mesh.level,
            references=None,
            anchors_pem=b"",
            quarantined=self.keeper.denied_nodes(),
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
            self.keeper.accuse(proof)
        except MeshError:
            return False
        return True

    def _anchors(self) -> Anchors:
        return Anchors(DOMAIN, b"simulated", self.trust.roster, b"")

    # gossip

    def _shown(self) -> list[Head]:
        shows = "equivocates" in self.lies and not self.hides
        lie = self.fork_at if shows and self.world.chance(0.5) else None
        size = self.ledger.durable_size
        head = self._heads_signed.get((size, lie is None))
        if head is None:
            checkpoint = self.ledger.tree(other_face_from=lie).checkpoint(log_origin(self.me))
            note = sign_checkpoint(checkpoint, self.private.sign, public_key=self.public)
            head = self._heads_signed[size, lie is None] = Head(note, self.endorsement)
        return [head, *self.heads.show(3)]

    def _saw(self, head: Head) -> None:
        proof = self.heads.saw(head)
        if proof is not None:
            try:
                self.keeper.accuse(proof)
            except MeshError:
                self.world.observer.unproven += 1

    def _learned(self, spread: Spread) -> None:
        self.news.append(read_directive(spread.directive).id if spread.directive else proof_id(spread.proof))
        self._talk(self.rounds.learned(now_ms=self.monotonic_ms()))

    def _talk(self, talks: list[Talk]) -> None:
        news = tuple(self.news)
        if talks and not self.rounds.hot:
            self.news = []
        for talk in talks:
            self.world.spawn(self, self._exchange(talk.peer, news))

    async def _exchange(self, peer: str, news: tuple[str, ...]) -> None:
        other, them = self.world.nodes[peer], SpiffeId.of(DOMAIN, "node", peer)

        def send(message: pb.GossipMessage, timeout: float = 0.0) -> Future:
            self.world.overheard(self.name, peer, message)
            return self.world.rpc(self.name, peer, lambda: other.answered(message, self.me))

        try:
            await self.member.exchange(SimpleNamespace(Exchange=send), them, news)  # type: ignore[arg-type]
        except (UnreachableError, MeshError):
            self.rounds.failed(peer, now_ms=self.monotonic_ms())
        else:
            self.rounds.answered(peer)

    def answered(self, message: pb.GossipMessage, peer: SpiffeId) -> pb.GossipMessage:
        """Answer one message, as `GossipServicer.Exchange`."""
        told = self.member.receive(message, peer)
        heads = self.member.heads() if told.heads else ()
        return self.member.message(gossip.answer(told, self.member.inventory(), heads=heads))

    # calls

    async def call(self) -> None:
        """The workload alice next to this sidecar pays: outbound door."""
        attempt = Attempt(Direction.OUTBOUND, "payments", PAY, ALICE, Authn.MTLS)
        body = self.world.random.randbytes(8)
        case = self.notary.arrived(attempt, [], CERTIFICATE)
        if case is None:
            return
        pairs = await self._through(attempt, case, body)
        if pairs is None:
            return
        target = self.world.random.choice(CALLEES)
        self.world.observer.forwarded(self, case, body)
        self.world.overheard_call(target, pairs, body)
        status = "UNAVAILABLE"
        with contextlib.suppress(UnreachableError):
            status = await self.world.rpc(
                self.name, target, lambda: self.world.nodes[target].called(pairs, body), twice=True
            )
        self.notary.closed(case, status, 0.001)
        if status == "OK":
            self.world.observer.acknowledged.append((self.name, case.execution_id))

    async def called(
        self, pairs: list[tuple[str, str | bytes]], body: bytes, *, certificate: bytes = CERTIFICATE
    ) -> str:
        """A call arrives for the workload payments next to this sidecar: inbound door."""
        attempt = Attempt(Direction.INBOUND, "payments", PAY, ALICE, Authn.MTLS)
        case = self.notary.arrived(attempt, pairs, certificate)
        if case is None or self.name not in CALLEES:
            return "UNAVAILABLE"
        if await self._through(attempt, case, body) is None:
            return "UNAVAILABLE"
        self.world.observer.executed(self, case, body)
        self.notary.closed(case, "OK", 0.001)
        return "OK"

    async def _through(
        self, attempt: Attempt, case: Case, body: bytes
    ) -> list[tuple[str, str | bytes]] | None:
        """Take a call through the door in the order of `sidecar.edge.door.Execution.authorize`."""
        try:
            try:
                self.notary.admit(case, body, now_ms=self.now_ms())
            except MeshError as error:
                raise RefusedError(self.pipeline.decline(attempt, error)) from None
            if case.permit is not None:
                attempt = attempt.vouched(case.permit)
            permitted = self.pipeline.authorize(attempt, body, now_ms=self.now_ms())
            try:
                pairs = await self.notary.opened(case, permitted.decision, now_ms=self.now_ms())
            except MeshError as error:
                raise RefusedError(self.pipeline.decline(attempt, error)) from None
            withdrawn = self.pipeline.withdrawn(permitted, body, now_ms=self.now_ms())
            if withdrawn is not None:
                raise RefusedError(withdrawn)
        except RefusedError as refused:
            self.world.observer.refusals[refused.decision.reason] += 1
            if not case.opened:
                try:
                    self.notary.refused(case, refused.decision)
                except MeshError:
                    self.world.observer.unproven += 1
            return None
        self.world.observer.allowed(self, permitted.decision)
        return list(pairs)
