"""Somebody who knows the true time and everything that was ever signed, and holds the mesh against DESIGN's invariants.

It uses none of the product's judgement: it compares what members did with what it saw them do before.
"""

import hashlib
from collections import Counter
from typing import TYPE_CHECKING

from sidecar.core.call import Decision
from sidecar.edge.case import Case
from tests.sim.kernel import Violation
from tests.sim.realm import CALLEES, GRACE_MS, LEASE_MS, MAX_LAG_MS, PAYMENTS, QUORUM, TRUST_TTL_MS
from tests.support.sidecar_core import ALICE, PAY
from trust import limits
from trust.attestation.statement import Evidence, open_evidence
from trust.attestation.witness import Answer
from trust.checkpoint import Checkpoint, parse_checkpoint
from trust.denials import By
from trust.record import Side
from trust.revocation import Kind
from trust.verified import BASE_ROLE, VerifiedPolicy

if TYPE_CHECKING:
    from tests.sim.mesh import Mesh
    from tests.sim.node import Node

Leaves = tuple[bytes, ...]


class Observer:
    """The checks. Each names the invariant of DESIGN that falls."""

    def __init__(self, world: "Mesh") -> None:
        self.world = world
        self.legitimate: dict[str, bool] = {}  # SHA-256 of archives that two approvers signed: may alice pay
        self.withdrawn_ms: dict[int, int] = {}  # version without the right -> true time of its publication
        self.lease_signed_ms: dict[bytes, int] = {}  # timestamp.json -> true time
        self.newest_lease_ms: dict[str, int] = {}  # node -> when the newest lease that it took was signed
        self.highest: dict[str, int] = {}
        self.nonces: dict[tuple[str, bytes], int] = {}
        self.vouches: dict[bytes, dict[str, int]] = {}  # evidence -> witness -> true time
        self.stated_ms: dict[bytes, int] = {}
        self.credentials: dict[bytes, bytes] = {}  # credential -> its evidence, both by digest
        self.memory: dict[tuple[str, str], tuple[int, int]] = {}  # (witness, node) -> counter, size
        self.leaves: dict[tuple[str, int, bytes], Leaves] = {}  # tree head -> what is in that tree
        self.shown: dict[tuple[str, str], Leaves] = {}  # (witness, node) -> the newest history it cosigned
        self.settled: dict[str, Leaves] = {}  # node -> the longest history that gathered a quorum
        self.cosigned: dict[tuple[str, int, bytes], set[str]] = {}
        self.heard: dict[tuple[str, str], int] = {}  # (node, directive) -> its end, true time
        self.genuine: set[str] = set()  # directives that the emergency key signed
        self.behind_since: dict[tuple[str, int], int] = {}
        self.intents: dict[tuple[bytes, Side], int] = {}
        self.sent: dict[bytes, tuple[str, bytes, int]] = {}
        self.done: set[bytes] = set()
        self.acknowledged: list[tuple[str, bytes]] = []
        self.refusals: Counter[str] = Counter()
        self.unproven = self.executions = self.forwards = 0

    def _fell(self, number: int, text: str) -> None:
        raise Violation(f"invariant {number}: {text}")

    # what members do

    def leased(self, node: "Node", policy: VerifiedPolicy) -> None:
        """A node took a lease."""
        signed = self.lease_signed_ms.get(node.newest[1], 0)
        self.newest_lease_ms[node.name] = max(self.newest_lease_ms.get(node.name, 0), signed)

    def challenged(self, witness: "Node", nonce: bytes) -> None:
        """An honest witness gave out a nonce."""
        self.nonces[f"{witness.name} {witness.boots}", nonce] = self.world.now_ms

    def stated(self, evidence: Evidence) -> None:
        """A node signed a statement."""
        self.stated_ms[evidence.sha256] = self.world.now_ms

    def credential_made(self, credential: bytes, evidence: Evidence) -> None:
        """A node put a credential together; whether it is worth anything is not asked here."""
        self.credentials[hashlib.sha256(credential).digest()] = evidence.sha256

    def head_made(self, node: "Node", checkpoint: Checkpoint, leaves: Leaves) -> None:
        """A node signed a tree head over these records."""
        self.leaves[node.name, checkpoint.size, checkpoint.root] = leaves

    def vouched_by_liar(self, witness: "Node", evidence: Evidence) -> None:
        """A lying witness cosigned."""
        self._cosigned(witness.name, evidence)

    def vouched(self, witness: "Node", answer: Answer) -> None:
        """An honest witness is about to cosign: did it have to know better?"""
        evidence = open_evidence(answer.memory.evidence)
        said, now_ms, name = evidence.statement, self.world.now_ms, evidence.statement.node.name
        given = [
            self.nonces.get((f"{witness.name} {witness.boots}", nonce), -(10**9)) for nonce in said.nonces
        ]
        if max(given) < now_ms - limits.NONCE_LIFETIME_MS:
            self._fell(2, f"{witness.name} vouches for a statement of {name} that it did not ask for in 15 s")
        checkpoint = parse_checkpoint(said.checkpoint.rpartition(b"\n\n")[0] + b"\n")
        counter, size = self.memory.get((witness.name, name), (0, 0))
        if witness.name not in self.world.restored:
            if said.counter <= counter or checkpoint.size < size:
                self._fell(
                    3,
                    f"{witness.name} vouches for {name} at {said.counter}/{checkpoint.size} after {counter}/{size}",
                )
            self.memory[witness.name, name] = (said.counter, checkpoint.size)
        leaves = self.leaves[name, checkpoint.size, checkpoint.root]
        if witness.name not in self.world.restored:
            before = self.shown.get((witness.name, name), ())
            if leaves[: len(before)] != before:
                self._fell(6, f"{witness.name} itself cosigned two histories of the ledger of {name}")
            self.shown[witness.name, name] = leaves
        if witness.keeper.denials.of_node(str(said.node)) is not None:
            self._fell(4, f"{witness.name} vouches for {name}, which it knows to be quarantined or revoked")
        held = witness.state.in_force
        if held is not None and said.policy.version < held.version:
            since = self.behind_since.get((witness.name, witness.boots * 10_000 + held.version), now_ms)
            if now_ms - since > MAX_LAG_MS + 300:
                self._fell(3, f"{witness.name} vouches for {name}, {now_ms - since} ms behind its policy")
        self._cosigned(witness.name, evidence)

    def _cosigned(self, witness: str, evidence: Evidence) -> None:
        self.vouches.setdefault(evidence.sha256, {})[witness] = self.world.now_ms
        said = evidence.statement
        head = parse_checkpoint(said.checkpoint.rpartition(b"\n\n")[0] + b"\n")
        node = said.node.name
        signers = self.cosigned.setdefault((node, head.size, head.root), set())
        signers.add(witness)
        if len(signers) >= QUORUM:
            leaves, longest = self.leaves[node, head.size, head.root], self.settled.get(node, ())
            both = min(len(leaves), len(longest))
            if leaves[:both] != longest[:both]:
                self._fell(6, f"two histories of the ledger of {node} gathered {QUORUM} cosignatures each")
            self.settled[node] = max(leaves, longest, key=len)

    def allowed(self, node: "Node", decision: Decision) -> None:
        """A call was allowed here, and will be forwarded now."""
        now_ms = self.world.now_ms
        held = node.state.in_force
        assert held is not None
        if held.policy.base.sha256 not in self.legitimate:
            self._fell(1, f"{node.name} allowed a call under a bundle that no quorum signed")
        if not self.legitimate[held.policy.base.sha256]:
            self._fell(4, f"{node.name} used a right that version {held.version} withdrew")
        slack = self.world.slack_ms
        late = now_ms - self.newest_lease_ms[node.name] - LEASE_MS - GRACE_MS - slack
        if late > 0:
            self._fell(2, f"{node.name} allowed {late} ms after lease and grace")
        newer = [at for version, at in self.withdrawn_ms.items() if version > held.version]
        # Whoever holds the online keys can freeze a node for as long as its witnesses let it.
        since_ms = max(min(newer, default=now_ms), self.world.policy.frozen_until_ms(now_ms))
        if now_ms - since_ms > LEASE_MS + GRACE_MS + slack:
            self._fell(4, f"{node.name} used a right {now_ms - since_ms} ms after it was withdrawn")
        if "boasts" not in node.lies:
            own = node.trust.own()
            self._attested(node.name, None if own is None else own.evidence.sha256)
        self._not_revoked(node)
        if node.keeper.denials.of_node(str(node.me)) is not None:
            self._fell(4, f"{node.name} allowed a call although it knows itself quarantined")

    def _not_revoked(self, node: "Node") -> None:
        for (name, directive), until_ms in self.heard.items():
            if name == node.name and self.world.now_ms < until_ms - self.world.slack_ms:
                self._fell(
                    4, f"{node.name} allowed a call of alice, whom directive {directive[:8]} revoked there"
                )

    def _attested(self, node: str, evidence: bytes | None) -> None:
        times = self.vouches.get(evidence or b"", {})
        oldest = self.world.now_ms - TRUST_TTL_MS - self.world.slack_ms - 1_000
        young = {name for name, at in times.items() if at > oldest}
        if len(young) < QUORUM:
            self._fell(2, f"a call of {node} was allowed with {len(young)} of {QUORUM} live cosignatures")

    def forwarded(self, node: "Node", case: Case, body: bytes) -> None:
        """A call leaves its caller's sidecar."""
        self.forwards += 1
        self._durable(node, case, Side.OUTBOUND)
        self.sent[case.execution_id] = (PAYMENTS, body, self.world.now_ms)

    def executed(self, node: "Node", case: Case, body: bytes) -> None:
        """The service executes a call."""
        self.executions += 1
        self._durable(node, case, Side.INBOUND)
        audience, wanted, at_ms = self.sent.get(case.execution_id, ("", b"", 0))
        if case.execution_id in self.done:
            self._fell(7, f"{node.name} executed a call for the second time")
        self.done.add(case.execution_id)
        right = node.name in CALLEES and audience == PAYMENTS and case.attempt.method == PAY
        if not right or body != wanted or case.attempt.principal != ALICE:
            self._fell(7, f"{node.name} executed what no sidecar had forwarded like this")
        if self.world.now_ms - at_ms > 60_000 + self.world.slack_ms:
            self._fell(
                7, f"{node.name} executed a call {self.world.now_ms - at_ms} ms after it was forwarded"
            )
        permit = case.permit
        if permit is None or permit.claims.credential_sha256 is None:
            self._fell(2, f"{node.name} executed a call whose node showed no credential")
            return
        self._attested(permit.key.node.name, self.credentials.get(permit.claims.credential_sha256))
        if node.keeper.denials.of_node(str(permit.key.node)) is not None:
            self._fell(4, f"{node.name} executed a call vouched for by a quarantined node")

    def _durable(self, node: "Node", case: Case, side: Side) -> None:
        at = self.intents.get((case.execution_id, side))
        if at is None or node.ledger.durable_size < at:
            self._fell(5, f"{node.name} went on with a call whose intent is not durable")

    # after every step

    def check(self) -> None:
        """Hold every node that is up against what must be true of it at any time."""
        now_ms = self.world.now_ms
        for node in self.world.nodes.values():
            if not node.up:
                continue
            held = node.state.in_force
            if held is not None:
                before = self.highest.get(node.name, 0)
                if held.version < before and node.name not in self.world.restored:
                    self._fell(3, f"{node.name} went from version {before} to {held.version}")
                if held.version > before:
                    self.highest[node.name] = held.version
                self.behind_since.setdefault((node.name, node.boots * 10_000 + held.version), now_ms)
                if held.policy.versions[BASE_ROLE] and held.policy.base.sha256 not in self.legitimate:
                    self._fell(1, f"{node.name} enforces a bundle that no quorum signed")
            if node.keeper.denials.any:
                self._denials(node)

    def _denials(self, node: "Node") -> None:
        now_ms = self.world.now_ms
        for denial in node.keeper.denials.active:
            if denial.by is By.EMERGENCY:
                if denial.id not in self.genuine:
                    self._fell(4, f"{node.name} obeys a directive that no emergency key signed")
                until_ms = denial.until_ms or 0
                if now_ms > until_ms + self.world.slack_ms + 500:
                    self._fell(4, f"{node.name} still denies {now_ms - until_ms} ms after a directive's end")
                if (
                    denial.subject.kind is Kind.WORKLOAD
                    and denial.subject.value == "alice"
                    and node.name not in self.world.restored
                ):
                    self.heard[node.name, denial.id] = until_ms
            elif denial.by is By.PROOF:
                bad = self.world.nodes[denial.subject.value]
                if not bad.lies and bad.name not in self.world.restored:
                    self._fell(4, f"{node.name} has {bad.name} in quarantine, which never lied")

    def ended(self, directive: str) -> None:
        """The quorum ended a directive: it may be used again from now on."""
        self.heard = {key: until for key, until in self.heard.items() if key[1] != directive}

    def lost(self, node: "Node") -> None:
        """After a crash: nothing that was acknowledged is gone."""
        for name, execution_id in self.acknowledged:
            at = self.intents.get((execution_id, Side.OUTBOUND))
            if (
                name == node.name
                and name not in self.world.restored
                and not node.lies
                and (at is None or at > len(node.ledger.leaves))
            ):
                self._fell(5, f"{node.name} lost an acknowledged call in a crash")

    # after the heal

    def converged(self) -> None:
        """Everything that must be true again some periods after the heal."""
        missing = self.unsettled()
        if missing is not None:
            self._fell(*missing)

    def unsettled(self) -> tuple[int, str] | None:
        """Return which invariant does not hold again yet after the heal, and why."""
        honest = [node for node in self.world.nodes.values() if not node.lies]
        for node in self.world.nodes.values():
            missing = self._behind(node) or self._unproven(node, honest)
            if missing is not None:
                return missing
        directives = {
            tuple(
                one.id
                for one in node.keeper.denials.active
                if one.by is By.EMERGENCY and (one.until_ms or 0) > self.world.now_ms + self.world.slack_ms
            )
            for node in honest
        }
        if len(directives) > 1:
            return 8, "nodes hold different directives after the heal"
        proofs = {frozenset(node.keeper.denied_nodes()) for node in honest}
        if len(proofs) > 1:
            seen = sorted(map(sorted, proofs))
            return 8, f"nodes disagree on who is in quarantine after the heal: {seen}"
        return None

    def _behind(self, node: "Node") -> tuple[int, str] | None:
        held, newest = node.state.in_force, self.world.policy.version
        if held is None or held.version != newest:
            return 8, f"{node.name} is at version {None if held is None else held.version}, not {newest}"
        bad = bool(node.lies) or node.name in self.world.restored
        denied = node.keeper.denials.of_node(str(node.me)) is not None
        if not bad and not denied and not node.trust.attested(node.trusted_ms(), node.monotonic_ms()):
            return 8, f"{node.name} is not attested after the heal"
        return None

    def _unproven(self, node: "Node", honest: "list[Node]") -> tuple[int, str] | None:
        """Whether a node showed two histories, and somebody does not hold that against it."""
        two = node.equivocated()
        if two and any(one.keeper.denials.of_node(str(node.me)) is None for one in honest):
            return 6, f"{node.name} showed two histories and is not quarantined everywhere"
        return None
