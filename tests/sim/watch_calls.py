"""What the true world knows of calls: who may make them, what was forwarded, executed, approved and written down."""

import hashlib
from collections import Counter
from typing import TYPE_CHECKING

from sidecar.edge.case import Case
from sidecar.edge.spent_file import SPENT_FILE
from tests.sim.realm import CALLEES, GRACE_MS, LEASE_MS, QUORUM, REFUND, RESTOCK, TRUST_TTL_MS
from tests.sim.watch_policy import PolicyWatch
from tests.support.sidecar_core import ALICE, PAY
from trust.approval import Approval, Verdict
from trust.approval_rule import REQUIRE
from trust.record import Side

if TYPE_CHECKING:
    from tests.sim.mesh import Mesh
    from tests.sim.node import Node


class CallWatch(PolicyWatch):
    """Invariants 1, 2, 4, 5 and 7, at every call."""

    def __init__(self, world: "Mesh") -> None:
        super().__init__(world)
        self.vouches: dict[bytes, dict[str, int]] = {}  # evidence -> witness -> true time
        self.speaker: dict[bytes, str] = {}  # evidence -> of which node
        self.credentials: dict[bytes, bytes] = {}  # credential -> its evidence, both by digest
        self.intents: dict[tuple[bytes, Side], int] = {}
        self.sent: dict[bytes, tuple[str, str, bytes, int]] = {}
        self.approvals: dict[tuple[str, str], Approval] = {}  # (ticket, approver) -> what was signed
        self.used_up: set[tuple[str, str, str]] = set()  # node, side, ticket
        self.done: set[bytes] = set()
        self.acknowledged: list[tuple[str, bytes]] = []
        self.refusals: Counter[str] = Counter()
        self.unproven = self.executions = self.forwards = 0

    def allowed(self, node: "Node", what: str = "allowed a call", *, method: str = PAY) -> None:
        """A call was allowed here, and will be forwarded now; or a stream carries a message."""
        now_ms = self.world.now_ms
        held = node.state.in_force
        assert held is not None
        sha256, slack = held.policy.base.sha256, self.world.slack_ms
        if not self._signed(sha256):
            self._fell(1, f"{node.name} {what} under a bundle that no quorum signed")
        if method == RESTOCK:
            newer = self._stock(node, held, what)
        else:
            newer = [at for version, at in self.withdrawn_ms.items() if version > held.version]
            if not self.legitimate.get(sha256, True):
                self._fell(4, f"{node.name} {what} by a right that version {held.version} withdrew")
        over_ms = self._over_since(node, sha256)
        if over_ms is not None and now_ms - over_ms > LEASE_MS + GRACE_MS + slack:
            self._fell(1, f"{node.name} {what} by keys that it has seen replaced {now_ms - over_ms} ms ago")
        late = now_ms - self.newest_lease_ms[node.name] - LEASE_MS - GRACE_MS - slack
        if late > 0:
            self._fell(2, f"{node.name} {what} {late} ms after lease and grace")
        # Whoever holds the online keys can freeze a node for as long as its witnesses let it.
        since_ms = max(min(newer, default=now_ms), self.world.policy.frozen_until_ms(now_ms))
        if now_ms - since_ms > LEASE_MS + GRACE_MS + slack:
            self._fell(4, f"{node.name} {what} {now_ms - since_ms} ms after the right was withdrawn")
        if "boasts" not in node.lies:
            own = node.trust.own()
            self._attested(node.name, None if own is None else own.evidence.sha256)
        self._not_revoked(node, what)
        if node.keeper.denials.of_node(str(node.me)) is not None:
            self._fell(4, f"{node.name} {what} although it knows itself quarantined")

    def carried(self, node: "Node", case: Case) -> None:
        """A message of an open stream goes through a door: the right that it was opened with must still be there."""
        self.allowed(node, "carries a message of a stream")
        permit = case.permit
        if permit is None:
            return
        caller = permit.key.node.name
        oldest = self.world.now_ms - TRUST_TTL_MS - self.world.slack_ms - 1_000
        if not any(at > oldest for at in self._vouched_for(caller)):
            self._fell(2, f"{node.name} carries a message of a stream of {caller}, for which nobody vouches")
        if node.keeper.denials.of_node(str(permit.key.node)) is not None:
            self._fell(4, f"{node.name} carries a message of a stream of {caller}, which is in quarantine")

    def _vouched_for(self, name: str) -> list[int]:
        """Return the times at which the quorum was reached for what a node said of itself."""
        return [
            sorted(times.values(), reverse=True)[QUORUM - 1]
            for evidence, times in self.vouches.items()
            if len(times) >= QUORUM and self.speaker[evidence] == name
        ]

    def _not_revoked(self, node: "Node", what: str) -> None:
        for (name, directive), until_ms in self.heard.items():
            if name == node.name and self.world.now_ms < until_ms - self.world.slack_ms:
                self._fell(4, f"{node.name} {what} of alice, whom directive {directive[:8]} revoked there")

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
        self._approved(node, case, body)
        self.sent[case.execution_id] = (case.attempt.service, case.attempt.method, body, self.world.now_ms)

    def executed(self, node: "Node", case: Case, body: bytes) -> None:
        """The service executes a call."""
        self.executions += 1
        self._durable(node, case, Side.INBOUND)
        self._approved(node, case, body)
        service, method, wanted, at_ms = self.sent.get(case.execution_id, ("", "", b"", 0))
        if case.execution_id in self.done:
            self._fell(7, f"{node.name} executed a call for the second time")
        self.done.add(case.execution_id)
        right = node.name in CALLEES and (case.attempt.service, case.attempt.method) == (service, method)
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

    def approved(self, said: Approval, name: str) -> None:
        """An approver signed what he says of a ticket."""
        self.approvals[said.ticket.id, name] = said

    def _approved(self, node: "Node", case: Case, body: bytes) -> None:
        """A call goes on: did k approvers sign this very request, in time, and for no other call on this side?"""
        if case.attempt.method != REFUND:
            return
        proofs = [value.rpartition("=")[2].split() for name, value in case.obligations if name == REQUIRE]
        tickets, now_ms, slack = {one[0] for one in proofs}, self.world.now_ms, self.world.slack_ms
        said = {one[1]: self.approvals.get((one[0], one[1])) for one in proofs if len(one) == 3}
        good = [one for one in said.values() if one is not None and one.verdict is Verdict.APPROVE]
        if len(tickets) != 1 or len(good) < 2:
            self._fell(1, f"{node.name} lets a call go on that {len(good)} of 2 approvers signed")
        if any(one.ticket.request != hashlib.sha256(body).hexdigest() for one in good):
            self._fell(1, f"{node.name} lets a call go on with the approval of another request")
        late_ms = now_ms - min(one.until_s for one in good) * 1000
        if late_ms > slack:
            self._fell(1, f"{node.name} lets a call go on {late_ms} ms after its approval ended")
        if node.name in self.world.restored:
            return
        side, ticket = case.attempt.direction.value, tickets.pop()
        if (node.name, side, ticket) in self.used_up:
            self._fell(7, f"{node.name} lets a second call go on with one approval")
        if f"{side}:{ticket}".encode() not in node.disk.files.get(SPENT_FILE, b""):
            self._fell(5, f"{node.name} goes on with an approval whose use is not on disk")
        self.used_up.add((node.name, side, ticket))
        self.saw[f"approval used {side}"] += 1

    def _durable(self, node: "Node", case: Case, side: Side) -> None:
        at = self.intents.get((case.execution_id, side))
        if at is None or node.ledger.durable_size < at:
            self._fell(5, f"{node.name} went on with a call whose intent is not durable")

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

    def ended(self, directive: str) -> None:
        """The quorum ended a directive: it may be used again from now on."""
        self.heard = {key: until for key, until in self.heard.items() if key[1] != directive}
