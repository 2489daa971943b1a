"""What one member notices of others by itself: contradictions in what they signed become proofs, and are acted on.

Tree heads and trust credentials pass through here, from whomever they come (gossip, calls, statements to a witness);
a proof that two of them make is held against whom it convicts at once, and told to everybody, by the `DenialKeeper`.
"""

import logging
from collections.abc import Callable, Sequence

from trust import limits
from trust.attestation.roster import Roster
from trust.edge.denial_keeper import DenialKeeper
from trust.errors import MeshError
from trust.gossip import Head
from trust.heads import Heads
from trust.node_key import NodeKey
from trust.vouched import Vouchings

logger = logging.getLogger(__name__)


class Lookout:
    """Heads and credentials of one member. Owned by the event loop."""

    def __init__(
        self,
        keeper: DenialKeeper,
        verify: Callable[[bytes], NodeKey],
        roster: Callable[[], Roster | None],
    ) -> None:
        """Know nothing.

        Args:
            keeper: acts on proofs.
            verify: returns the node key that an endorsement proves now, or raises MeshError.
            roster: the witnesses of the policy in force.
        """
        self._keeper = keeper
        self.heads = Heads(verify)
        self.vouchings = Vouchings(roster, self.heads.endorsement)
        self._own: bytes = b""

    def saw(self, head: Head) -> None:
        """Take a tree head."""
        proof = self.heads.saw(head)
        if proof is not None:
            self.accuse(proof, "two ledger heads contradict each other")

    def vouched(self, credential: bytes) -> None:
        """Take a trust credential of any node."""
        for proof in self.vouchings.saw(credential):
            self.accuse(proof, "two trust credentials contradict each other")

    def gained(self, credential: bytes) -> None:
        """Take this member's own new credential: it is shown first."""
        self._own = credential
        self.vouched(credential)

    def shown_heads(self, own: Head | None = None) -> list[Head]:
        """Return the tree heads to show, `own` first."""
        first = [] if own is None else [own]
        return [*first, *self.heads.show(limits.MAX_GOSSIP_HEADS - len(first))]

    def shown_credentials(self) -> Sequence[bytes]:
        """Return the trust credentials to show, this member's first."""
        first = [self._own] if self._own else []
        others = self.vouchings.show(limits.MAX_GOSSIP_CREDENTIALS - len(first))
        return [*first, *(one for one in others if one != self._own)]

    def accuse(self, proof: bytes, why: str) -> bool:
        """Act on a proof that was made here; return whether it holds."""
        try:
            self._keeper.accuse(proof)
        except MeshError as error:
            logger.warning("%s, but prove nothing: %s", why, error)
            return False
        return True
