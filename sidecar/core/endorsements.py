"""Whose key signed a permit: the node keys that were verified, so that none is verified at every call."""

from collections.abc import Callable

from trust import limits
from trust.errors import EvidenceError, Reason, StateError
from trust.node_key import ENDORSEMENT_KEY, NodeKey, endorsement_digest, verify_endorsement


class Endorsements:
    """Keys of other nodes that were verified, by key id; bounded, the oldest leaves. Not thread-safe."""

    def __init__(
        self,
        anchors_pem: Callable[[], bytes],
        trust_domain: str,
        *,
        capacity: int = limits.MAX_NODE_KEYS,
        note: Callable[[bytes, bytes], None] = lambda _endorsement, _anchors_pem: None,
    ) -> None:
        """Start empty.

        Args:
            anchors_pem: returns the CA certificates to trust now; call `forget_all` when they change.
            trust_domain: which nodes must belong to.
            capacity: keys held at most.
            note: told of each endorsement that was verified, and under which CA certificates: it is evidence.
        """
        self._anchors_pem, self._trust_domain, self._capacity = anchors_pem, trust_domain, capacity
        self._note = note
        self._held: dict[str, NodeKey] = {}

    def __len__(self) -> int:
        """Return how many keys are held."""
        return len(self._held)

    def key_of(self, kid: str, endorsement: bytes | None, *, now_ms: int) -> NodeKey:
        """Return the key that `kid` names: a held one, or the one that `endorsement` proves.

        Raises:
            EvidenceError: PERMIT_INVALID, if the endorsement does not verify or is another than `kid` names.
            StateError: PERMIT_UNVERIFIABLE, if there is none, or it has ended.
        """
        held = self._held.get(kid)
        if held is not None and now_ms < held.not_after_ms:
            return held
        if endorsement is None:
            raise StateError(
                Reason.PERMIT_UNVERIFIABLE,
                f"the key that signed the permit is not known here and came without endorsement ({ENDORSEMENT_KEY})",
            )
        if endorsement_digest(endorsement) != kid:
            raise EvidenceError(
                Reason.PERMIT_INVALID, "permit refused: the endorsement is not that of its key (kid)"
            )
        anchors_pem = self._anchors_pem()
        key = verify_endorsement(endorsement, anchors_pem, self._trust_domain, now_ms)
        self.hold(key)
        self._note(endorsement, anchors_pem)
        return key

    def hold(self, key: NodeKey) -> None:
        """Keep a verified key."""
        if key.digest not in self._held and len(self._held) >= self._capacity:
            del self._held[next(iter(self._held))]
        self._held[key.digest] = key

    def forget_all(self) -> None:
        """Verify every endorsement again at its next use: the trust anchors or the revocations changed."""
        self._held.clear()
