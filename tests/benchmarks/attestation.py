"""What attestation costs: per node and per witness, at 10, 100 and 1,000 nodes with a roster of five.

    python -m tests.benchmarks.attestation

The cores run for real, message by message (what each message weighs is its protobuf encoding); the network and the
ledger's proofs are left out, and the disk of a witness is measured by itself. Times are CPU of the thread.
"""

import os
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from egm.v1 import attestation_pb2 as pb
from sidecar.core.attester import Challenge, check_clock, check_reached, check_vouched
from sidecar.core.endorsements import Endorsements
from sidecar.core.trust_state import TrustState
from sidecar.edge.attestation_files import WitnessStore
from tests.support.attestation import (
    DOMAIN,
    NOW_MS,
    NOW_S,
    AttestedNode,
    WitnessHolder,
    roster_of,
    settings_of,
    view_of,
)
from tests.support.pki import Authority
from trust.attestation.cosignature import cosign_attestation
from trust.attestation.credential import check_lines, open_credential, write_credential
from trust.attestation.memory import Memory, read_memory, write_memory
from trust.attestation.statement import NONCE_BYTES, sign_evidence
from trust.attestation.witness import Challenges, Submission, View, authenticate, judge
from trust.mesh import MeshSettings
from trust.node_key import NodeKey, endorsement_digest
from trust.note import cosign

NODES = (10, 100, 1_000)
WITNESSES = 5
TTL_S = 60
PERIOD_S = TTL_S / 3
_T = TypeVar("_T")


@dataclass
class Costs:
    """CPU of one kind of work, in microseconds each."""

    taken: list[float] = field(default_factory=list)

    def of(self, work: Callable[[], _T]) -> _T:
        """Do it and note its time."""
        started = time.thread_time_ns()
        made = work()
        self.taken.append((time.thread_time_ns() - started) / 1000)
        return made

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.taken)


@dataclass
class Witness:
    """A witness's core: no network, its memory as bytes."""

    holder: WitnessHolder
    view: View
    challenges: Challenges = field(default_factory=Challenges)
    memories: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.endorsements = Endorsements(lambda: self.view.anchors_pem, DOMAIN)

    def challenge(self, node: AttestedNode) -> Challenge:
        nonce = secrets.token_bytes(NONCE_BYTES)
        self.challenges.open(node.id, nonce, monotonic_ms=0)
        return Challenge(self.holder.name, nonce, self.memory(node).size, NOW_MS)

    def memory(self, node: AttestedNode) -> Memory:
        data = self.memories.get(node.name)
        return Memory() if data is None else read_memory(data)

    def _known(self, endorsement: bytes) -> NodeKey:
        return self.endorsements.key_of(endorsement_digest(endorsement), endorsement, now_ms=NOW_MS)

    def attest(self, sent: Submission) -> tuple[bytes, bytes]:
        evidence, _ = authenticate(sent, self.view, now_ms=NOW_MS, known=self._known)
        self.challenges.answer(evidence.statement, monotonic_ms=1)
        data = self.memories.get(sent.peer.name)
        memory = Memory() if data is None else read_memory(data)
        answer = judge(memory, sent, evidence, self.view, now_ms=NOW_MS, monotonic_ms=1)
        self.memories[sent.peer.name] = write_memory(answer.memory)
        key, sign = self.holder.key, self.holder.private.sign
        return (
            cosign_attestation(answer.text, key, sign, time_s=answer.time_s),
            cosign(answer.checkpoint, key.name, sign, public_key=key.public_key, time_s=answer.time_s),
        )


class World:
    """A mesh of `count` nodes, of which the first five are witnesses."""

    def __init__(self, count: int) -> None:
        ca = Authority(DOMAIN)
        self.nodes = [AttestedNode(f"n{i}", ca=ca) for i in range(count)]
        holders = [WitnessHolder(node.name, private=node.private) for node in self.nodes[:WITNESSES]]
        self.roster = roster_of(holders)
        self.mesh = MeshSettings(trust_domain=DOMAIN, level=5, attestation=settings_of(holders))
        view = view_of(self.nodes[0], self.roster)
        self.witnesses = {holder.name: Witness(holder, view) for holder in holders}
        self.messages = self.bytes = 0
        self.attester, self.witness = Costs(), Costs()

    def round(self, node: AttestedNode) -> bytes:
        """Attest one node; count what went over the network (its own vote does not)."""
        asked = {name: witness.challenge(node) for name, witness in self.witnesses.items()}
        evidence = self.attester.of(lambda: self._evidence(node, asked))
        lines: dict[str, tuple[bytes, bytes]] = {}
        for name, witness in self.witnesses.items():
            sent = node.submission(evidence, since=asked[name].size)
            lines[name] = self.witness.of(partial(witness.attest, sent))
            if name != node.name:
                self._sent(
                    pb.ChallengeRequest(),
                    pb.ChallengeResponse(
                        nonce=asked[name].nonce, cosigned_size=asked[name].size, now_ms=NOW_MS
                    ),
                    pb.AttestRequest(
                        evidence=sent.evidence, endorsement=sent.endorsement, consistency=sent.consistency
                    ),
                    pb.AttestResponse(attested=lines[name][0], logged=lines[name][1]),
                )
        return self.attester.of(lambda: self._credential(node, evidence, lines))

    def _evidence(self, node: AttestedNode, asked: dict[str, Challenge]) -> Any:
        challenges = tuple(asked.values())
        check_reached(self.roster, challenges, {})
        check_clock(challenges, now_ms=NOW_MS)
        node.counter += 1
        said = replace(
            node.statement(counter=node.counter), nonces=tuple(sorted(one.nonce for one in challenges))
        )
        return sign_evidence(said, node.private.sign, key_id=endorsement_digest(node.endorsement))

    def _credential(self, node: AttestedNode, evidence: Any, lines: dict[str, tuple[bytes, bytes]]) -> bytes:
        for name, (attested, logged) in lines.items():
            check_lines(evidence, self.roster.witnesses[name], attested, logged)
        check_vouched(self.roster, len(lines), {})
        data = write_credential(evidence, [a for a, _ in lines.values()], [b for _, b in lines.values()])
        open_credential(data, self.roster)
        return data

    def _sent(self, *messages: Any) -> None:
        self.messages += len(messages)
        self.bytes += sum(message.ByteSize() for message in messages)


def rows() -> list[dict[str, Any]]:
    """Measure every size of mesh, each node twice: first sight, and a ledger that grew."""
    found = []
    for count in NODES:
        world = World(count)
        for node in world.nodes:
            world.round(node)
        world.messages = world.bytes = 0
        world.attester, world.witness = Costs(), Costs()
        for node in world.nodes:
            node.grow(os.urandom(8), os.urandom(8))
            world.round(node)
        witness_ms_s = world.witness.median * count / PERIOD_S / 1000
        found.append(
            {
                "nodes": count,
                "messages_per_node_and_round": round(world.messages / count, 1),
                "bytes_per_node_and_round": round(world.bytes / count),
                "node_cpu_us_per_round": round(sum(world.attester.taken) / count),
                "node_cpu_ms_per_minute": round(sum(world.attester.taken) / count * 60 / PERIOD_S / 1000, 1),
                "witness_cpu_us_per_node": round(world.witness.median),
                "witness_cpu_ms_per_s": round(witness_ms_s, 1),
            }
        )
    return found


def relying() -> list[dict[str, Any]]:
    """What a callee pays: once per credential, and per call; and a witness's disk."""
    world = World(WITNESSES + 1)
    caller = world.nodes[-1]
    data = world.round(caller)
    first, later = Costs(), Costs()
    now_ms = NOW_S * 1000
    public = caller.private.public_key().public_bytes_raw()
    for _ in range(300):
        state = TrustState(world.nodes[0].id, lambda: world.mesh)
        sha256 = open_credential(data, world.roster).sha256
        first.of(partial(state.check_peer, sha256, data, node=caller.id, public_key=public, now_ms=now_ms))
        later.of(partial(state.check_peer, sha256, None, node=caller.id, public_key=public, now_ms=now_ms))
    waits = []
    with tempfile.TemporaryDirectory() as folder:
        store, memory = WitnessStore(Path(folder)), Memory()
        for number in range(50):
            after = replace(memory, revision=number + 1, evidence=b"x" * 1500, endorsement=b"x" * 1500)
            started = time.perf_counter()
            store.swap("a", memory, after)
            waits.append((time.perf_counter() - started) * 1000)
            memory = after
    return [
        {
            "credential_bytes": len(data),
            "verify_us_first_call": round(first.median),
            "verify_us_later_calls": round(later.median, 1),
            "witness_disk_ms_per_node": round(statistics.median(waits), 2),
        }
    ]


def run() -> dict[str, list[dict[str, Any]]]:
    """Measure everything."""
    return {"rounds": rows(), "relying": relying()}


def main() -> None:
    """Print both tables."""
    for table in run().values():
        for row in table:
            sys.stdout.write(f"{row}\n")


if __name__ == "__main__":
    main()
