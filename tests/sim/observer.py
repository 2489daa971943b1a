"""Somebody who knows the true time and everything that was ever signed, and holds the mesh against DESIGN's invariants.

It uses none of the product's judgement: it compares what members did with what it saw them do before.
"""

import functools
import hashlib
from typing import TYPE_CHECKING

from sidecar.core.bundle_state import InForce
from tests.sim.realm import (
    MAX_LAG_MS,
    QUORUM,
)
from tests.sim.watch_calls import CallWatch
from trust import limits
from trust.attestation.statement import Evidence, open_evidence
from trust.attestation.witness import Answer
from trust.checkpoint import Checkpoint
from trust.checkpoint import parse_checkpoint as _parsed
from trust.denials import By
from trust.revocation import Kind
from trust.verified import BASE_ROLE

if TYPE_CHECKING:
    from tests.sim.mesh import Mesh
    from tests.sim.node import Node

Leaves = tuple[bytes, ...]
_head = functools.lru_cache(maxsize=4_096)(_parsed)


class Observer(CallWatch):
    """The checks. Each names the invariant of DESIGN that falls."""

    def __init__(self, world: "Mesh") -> None:
        super().__init__(world)
        self.highest: dict[str, int] = {}
        self.nonces: dict[tuple[str, bytes], int] = {}
        self.stated_ms: dict[bytes, int] = {}
        self.memory: dict[tuple[str, str], tuple[int, int]] = {}  # (witness, node) -> counter, size
        self.leaves: dict[tuple[str, int, bytes], Leaves] = {}  # tree head -> what is in that tree
        self.shown: dict[tuple[str, str], Leaves] = {}  # (witness, node) -> the newest history it cosigned
        self.settled: dict[str, Leaves] = {}  # node -> the longest history that gathered a quorum
        self.cosigned: dict[tuple[str, int, bytes], set[str]] = {}
        self.genuine: set[str] = set()  # directives that the emergency key signed
        self.behind_since: dict[tuple[str, int], int] = {}
        self._looked_at: dict[str, InForce] = {}  # by node; what is in force is never changed, only replaced

    # what members do

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
        checkpoint = _head(said.checkpoint.rpartition(b"\n\n")[0] + b"\n")
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
        self.speaker[evidence.sha256] = said.node.name
        head = _head(said.checkpoint.rpartition(b"\n\n")[0] + b"\n")
        node = said.node.name
        signers = self.cosigned.setdefault((node, head.size, head.root), set())
        signers.add(witness)
        if len(signers) >= QUORUM:
            leaves, longest = self.leaves[node, head.size, head.root], self.settled.get(node, ())
            both = min(len(leaves), len(longest))
            if leaves[:both] != longest[:both]:
                self._fell(6, f"two histories of the ledger of {node} gathered {QUORUM} cosignatures each")
            self.settled[node] = max(leaves, longest, key=len)

    # after every step

    def check(self) -> None:
        """Hold every node that is up against what must be true of it at any time."""
        now_ms = self.world.now_ms
        for node in self.world.nodes.values():
            if not node.up:
                continue
            held = node.state.in_force
            if held is not None and held is not self._looked_at.get(node.name):
                self._looked_at[node.name] = held
                before = self.highest.get(node.name, 0)
                if held.version < before and node.name not in self.world.restored:
                    self._fell(3, f"{node.name} went from version {before} to {held.version}")
                if held.version > before:
                    self.highest[node.name] = held.version
                self.behind_since.setdefault((node.name, node.boots * 10_000 + held.version), now_ms)
                self._never_back(node, "root version", held.policy.versions["root"], self.highest_root)
                if held.policy.versions[BASE_ROLE] and not self._signed(held.policy.base.sha256):
                    self._fell(1, f"{node.name} enforces a bundle that no quorum signed")
                self.delegates(node, held)
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
        if held.policy.versions["root"] != self.world.policy.root_version:
            return (
                8,
                f"{node.name} is at root {held.policy.versions['root']}, not {self.world.policy.root_version}",
            )
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
