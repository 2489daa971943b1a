"""Somebody on the network who keeps what passes, replays it, changes it, forges, and floods; always there."""

import json
import random
from typing import TYPE_CHECKING, Any

from tests.sim.calling import CERTIFICATE, Pairs
from tests.sim.kernel import Violation
from tests.sim.realm import CALLEES, DOMAIN, EMERGENCY, NODES, STRANGER
from trust.attestation.credential import CREDENTIAL_KEY, credential_sha256
from trust.compact import from_base64url, to_base64url
from trust.edge.gossip import to_wire
from trust.gossip import Head, Told
from trust.misbehaviour import LEDGER_FORK, Proof
from trust.permit import PERMIT_KEY
from trust.revocation import Kind
from trust.spiffe import SpiffeId

if TYPE_CHECKING:
    from tests.sim.mesh import Mesh
    from tests.sim.node import Node

_KEPT = 41
_FRESH = 15  # of them, whose credentials may be alive
_HEADS = 40  # more than a message of gossip may hold


class Attacker:
    """What it overheard, and what it does with it."""

    def __init__(self, world: "Mesh") -> None:
        self.world = world
        self.intercepts = False  # keeps calls back and sends what it likes instead
        self._calls: list[tuple[str, Pairs, bytes, str]] = []
        self._credentials: dict[str, bytes] = {}  # by digest, base64url
        self._gossip: list[tuple[str, str, Any]] = []

    def overheard_call(self, target: str, pairs: Pairs, body: bytes, method: str) -> None:
        """Keep a call, and the credential that its permit names even if an earlier call carried it."""
        carried = dict(pairs)
        credential = carried.get(CREDENTIAL_KEY)
        if isinstance(credential, bytes):
            self._credentials[to_base64url(credential_sha256(credential))] = credential
        else:
            named = json.loads(from_base64url(str(carried[PERMIT_KEY]).split(".")[1])).get("att")
            if named in self._credentials:
                pairs = [*pairs, (CREDENTIAL_KEY, self._credentials[named])]
        self._calls = [*self._calls[1 - _KEPT :], (target, pairs, body, method)]

    def overheard(self, source: str, target: str, message: Any) -> None:
        """Keep a message of gossip."""
        self._gossip = [*self._gossip[1 - _KEPT :], (source, target, message)]

    def act(self) -> None:
        """Do one thing, and another a little later."""
        dice, nodes = self.world.random, self.world.nodes
        what = dice.randrange(6)
        if what <= 1 and self._calls:
            self._replay(dice.choice(self._calls), nodes[dice.choice(CALLEES)], changed=not what)
        elif what == 2 and self._gossip:
            source, target, message = dice.choice(self._gossip)
            self._replay_gossip(nodes[source], nodes[target], message)
        elif what == 3:
            self._forge_directive(nodes[dice.choice(NODES)])
        elif what == 4:
            self._accuse_falsely(nodes[dice.choice(NODES)])
        else:
            self._flood(nodes[dice.choice(NODES)])
        self.world.after(dice.randint(150, 700), self.act)

    def replay(self, dice: random.Random, *, changed: bool = False) -> None:
        """Send some of the calls that were kept once more to whom they were for. Not all at once: what is refused
        is spent as well.
        """
        newest = self._calls[-_FRESH:]
        for call in dice.sample(newest, min(2, len(newest))):
            self._replay(call, self.world.nodes[call[0]], changed=changed)

    def _replay(self, call: tuple[str, Pairs, bytes, str], node: "Node", *, changed: bool) -> None:
        # Each sidecar of a service remembers what it spent itself; at another one the permit fits only the
        # certificate of its caller, which the attacker does not have (docs/threat-model.md).
        target, pairs, body, method = call
        certificate = CERTIFICATE if node.name == target else b"\x66" * 32
        if node.up:
            sent = body[::-1] + b"!" if changed else body
            self.world.spawn(node, node.calling.called(pairs, sent, method, certificate=certificate))

    def _replay_gossip(self, source: "Node", target: "Node", message: Any) -> None:
        member = target.talking.member if target.up and source.up else None
        if member is None:
            return
        self.world.guarded(target, lambda: member.receive(message, source.me))
        before = member.exchanges
        if target.up:
            self.world.guarded(target, lambda: member.receive(message, source.me))
        if member.exchanges != before:
            raise Violation(f"gossip: {target.name} took in a message of {source.name} for the second time")

    def _forge_directive(self, node: "Node") -> None:
        world = self.world
        forger = STRANGER if world.chance(0.5) else EMERGENCY
        data = forger.revoke(Kind.WORKLOAD, "alice", now_ms=world.now_ms, ttl_s=60, sequence=1)
        if forger is EMERGENCY:
            data = data.replace(b"alice", b"carol", 1)
        if node.up:
            world.guarded(node, lambda: node.keeper.take([data], []))

    def _accuse_falsely(self, node: "Node") -> None:
        """Accuse an honest member by what it never signed."""
        victim = self.world.nodes[self.world.random.choice(NODES)]
        note = b"mesh.local/node/%s\n1\n%s\n\n\xe2\x80\x94 x AAAA\n"
        pair = (note % (victim.name.encode(), b"a"), note % (victim.name.encode(), b"b"))
        proof = Proof(LEDGER_FORK, str(victim.me), victim.endorsement, pair).encode()
        if node.up:
            self.world.guarded(node, lambda: node.keeper.take([], [proof]))

    def _flood(self, node: "Node") -> None:
        if not node.up:
            return
        sender = SpiffeId.of(DOMAIN, "node", "n3" if node.name != "n3" else "n0")
        heads = tuple(Head(b"%d" % index, b"x") for index in range(_HEADS))
        message = to_wire(Told(heads=heads), sender=str(sender), boot_id="huge", sequence=self.world.events)
        member = node.talking.member
        before = member.exchanges
        self.world.guarded(node, lambda: member.receive(message, sender))
        if node.up and member.exchanges != before:
            raise Violation(f"gossip: {node.name} took in a message beyond its bounds")
