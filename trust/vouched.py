"""What witnesses vouched for of each node, as trust credentials show it, and whether that convicts somebody.

A credential travels with calls and by gossip, so that what a witness vouched for at one place meets what it vouched
for at another. Two credentials of one node can convict a witness that signed both (it vouched for an older state after
a newer one, or for two histories of one ledger), and the node itself, by the statements inside.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from trust import limits
from trust.accusation import by_checkpoints, by_cosignatures, by_credentials, by_evidence
from trust.attestation.cosignature import attested_text, signature_lines
from trust.attestation.credential import Credential, credential_sha256, open_credential
from trust.attestation.roster import Roster, Witness
from trust.attestation.statement import evidence_key_id
from trust.compact import parse_object
from trust.errors import MeshError
from trust.node_key import NODE_KIND, endorsement_digest
from trust.spiffe import SpiffeId

_KEPT: Final = 4  # credentials of one node: those with the highest counters
_SEEN: Final = 4_096  # digests that need no second look


@dataclass(slots=True)
class _Node:
    """The credentials of one node, highest counter first."""

    kept: list[Credential] = field(default_factory=list)


class Vouchings:
    """Credentials by node; bounded. Not thread-safe: owned by the event loop."""

    def __init__(
        self,
        roster: Callable[[], Roster | None],
        endorsement: Callable[[SpiffeId], bytes | None] = lambda _node: None,
        *,
        capacity: int = limits.MAX_VOUCHED_NODES,
    ) -> None:
        """Know nothing.

        Args:
            roster: the witnesses of the policy in force; None when it names none.
            endorsement: the newest that is known of a node's key, to accuse the node itself.
            capacity: nodes at most; the one that was heard of longest ago leaves.
        """
        self._roster, self._endorsement, self._capacity = roster, endorsement, capacity
        self._digest = ""  # of the roster that everything kept was verified under
        self._nodes: dict[str, _Node] = {}  # what a quorum signed
        self._weak: dict[str, _Node] = {}  # what fewer signed, of anybody whom one of them invents
        self._seen: dict[bytes, None] = {}
        self._turn: Iterator[str] = iter(())

    def __len__(self) -> int:
        """Return of how many nodes credentials are known."""
        return len(self._nodes.keys() | self._weak.keys())

    def saw(self, data: bytes) -> list[bytes]:
        """Take a credential; return the misbehaviour proofs that it makes with those known. Never raises for bad bytes.

        Args:
            data: as received. What was seen before, or does not verify under the roster in force, is passed over.
        """
        roster = self._current()
        digest = credential_sha256(data)
        if roster is None or digest in self._seen:
            return []
        if len(self._seen) >= _SEEN:
            del self._seen[next(iter(self._seen))]
        self._seen[digest] = None
        try:
            credential = open_credential(data, roster)
        except MeshError:
            return []
        return self._compare(credential, roster) if credential.attested_s or credential.logged_s else []

    def show(self, count: int) -> list[bytes]:
        """Return the newest credentials of a few nodes, others each time: those that a quorum signed.

        What fewer signed is worth nothing to who has it, and one lying witness can make any number of them.
        """
        shown: list[bytes] = []
        for _ in range(min(count, len(self._nodes))):
            name = next(self._turn, None)
            if name is None:
                self._turn = iter(list(self._nodes))
                name = next(self._turn)
            if name in self._nodes:
                shown.append(self._nodes[name].kept[0].data)
        return shown

    def _current(self) -> Roster | None:
        """Return the roster in force; what was verified under another is verified again."""
        roster = self._roster()
        digest = "" if roster is None else roster.digest
        if digest != self._digest:
            self._digest = digest
            nodes = (*self._nodes.values(), *self._weak.values())
            before = [one.data for node in nodes for one in reversed(node.kept)]
            self._nodes, self._weak, self._seen = {}, {}, {}
            for data in before:
                self.saw(data)
        return roster

    def _compare(self, credential: Credential, roster: Roster) -> list[bytes]:
        name = str(credential.node)
        proofs: list[bytes] = []
        for known in self._known(name):
            proofs += [proof for proof in accusations(known, credential, roster) if proof not in proofs]
            own = self._own(known, credential)
            if own is not None and own not in proofs:
                proofs.append(own)
        if _quorum_signed(credential, roster):
            _keep(self._nodes, name, credential, self._capacity)
        else:
            _keep(self._weak, name, credential, limits.MAX_WEAKLY_VOUCHED_NODES)
        return proofs

    def _known(self, name: str) -> list[Credential]:
        return [one for held in (self._nodes, self._weak) if name in held for one in held[name].kept]

    def _own(self, one: Credential, two: Credential) -> bytes | None:
        """Return what the two statements prove of the node itself, when an endorsement of its key is known."""
        endorsement = self._endorsement(one.node)
        if endorsement is None or not all(_signed_with(c, endorsement) for c in (one, two)):
            return None
        try:
            return by_evidence(one.evidence, two.evidence, endorsement) or by_checkpoints(
                one.node,
                one.evidence.statement.checkpoint,
                two.evidence.statement.checkpoint,
                endorsement,
            )
        except MeshError:
            return None


def _quorum_signed(credential: Credential, roster: Roster) -> bool:
    enough = len(credential.attested_s) >= roster.needed
    return enough and len(credential.logged_s) >= roster.log_needed


def _keep(held: dict[str, _Node], name: str, credential: Credential, capacity: int) -> None:
    """Keep a credential among those of its node with the highest counters; who was heard of longest ago leaves."""
    node = held.pop(name, None)
    if node is None:
        if len(held) >= capacity:
            del held[next(iter(held))]
        node = _Node()
    held[name] = node
    node.kept.append(credential)
    node.kept.sort(key=lambda one: one.evidence.statement.counter, reverse=True)
    del node.kept[_KEPT:]


def accusations(one: Credential, two: Credential, roster: Roster) -> list[bytes]:
    """Return a proof for every witness of the roster that must not have signed both credentials.

    Args:
        one: of a node, verified under `roster`.
        two: of the same node, likewise, in any order.
        roster: of the policy in force; it pins the keys of those who are accused.
    """
    if one.node != two.node or one.evidence.sha256 == two.evidence.sha256:
        return []
    proofs: dict[str, bytes] = {}
    for name in sorted(one.attested_s.keys() & two.attested_s.keys()):
        pair = _in_order(one, two, one.attested_s[name], two.attested_s[name], counters=True)
        if pair is not None:
            accused = SpiffeId.of(one.node.trust_domain, NODE_KIND, name)
            proofs[name] = by_credentials(accused, pair[0].data, pair[1].data)
    logged1, logged2 = (_logged_s(credential, roster) for credential in (one, two))
    for name in sorted(logged1.keys() & logged2.keys() - proofs.keys()):
        pair = _in_order(one, two, logged1[name], logged2[name], counters=False)
        if pair is not None:
            witness = roster.log_witnesses.get(name) or roster.witnesses[name]
            in_mesh = name in roster.witnesses
            who = str(SpiffeId.of(one.node.trust_domain, NODE_KIND, name)) if in_mesh else name
            notes = [_cosigned(credential, witness) for credential in pair]
            proofs[name] = by_cosignatures(who, witness.key, notes[0], notes[1])
    return list(proofs.values())


def _logged_s(credential: Credential, roster: Roster) -> dict[str, int]:
    """Return who of the roster cosigned the checkpoint of a credential, and when (Unix seconds)."""
    times = {(s.name, s.key_id): s.time_s for s in credential.checkpoint.note.verified}
    found: dict[str, int] = {}
    for witness in (*roster.witnesses.values(), *roster.log_witnesses.values()):
        time_s = times.get((witness.key.name, witness.key.key_id))
        if time_s is not None:
            found[witness.name] = time_s
    return found


def _in_order(
    one: Credential, two: Credential, time1: int, time2: int, *, counters: bool
) -> tuple[Credential, Credential] | None:
    """Return the two in the order in which one cosigner must not have signed them; None when it may have."""
    heads = [credential.checkpoint.checkpoint for credential in (one, two)]
    if heads[0].size == heads[1].size and heads[0].root != heads[1].root:
        return one, two
    if time1 == time2:
        return None
    (first, head1), (second, head2) = (
        ((one, heads[0]), (two, heads[1])) if time1 < time2 else ((two, heads[1]), (one, heads[0]))
    )
    back = counters and second.evidence.statement.counter <= first.evidence.statement.counter
    return (first, second) if back or head2.size < head1.size else None


def _cosigned(credential: Credential, witness: Witness) -> bytes:
    """Return the checkpoint of a credential with the node's own signature and one cosigner's."""
    note = credential.evidence.statement.checkpoint
    text = attested_text(credential.node, credential.evidence.sha256)
    lines = logged_lines(credential.data)
    own = [
        line
        for line, signature in zip(lines.splitlines(keepends=True), signature_lines(text, lines), strict=True)
        if (signature.name, signature.key_id) == (witness.key.name, witness.key.key_id)
    ]
    return note + b"".join(own)


def logged_lines(data: bytes) -> bytes:
    """Return the cosignature/v1 lines of a credential that was verified."""
    value: Mapping[str, str] = parse_object(data)
    return value["logged"].encode()


def _signed_with(credential: Credential, endorsement: bytes) -> bool:
    return evidence_key_id(credential.evidence.envelope) == endorsement_digest(endorsement)


__all__: Sequence[str] = ["Vouchings", "accusations", "logged_lines"]
