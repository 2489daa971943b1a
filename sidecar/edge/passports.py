"""Which trust credential goes with a call, and whether the one that an incoming permit names is good.

A credential is named by its digest in every permit. It travels until the callee's sidecar says that it holds it, and
with it where its node answers peers; what a callee lacks all the same it fetches from that node.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from sidecar.core.carriage import HELD_KEY, Carriage
from sidecar.edge.case import Case, Trust
from sidecar.edge.metadata import Pair
from trust import limits
from trust.address import split_address
from trust.attestation.credential import CREDENTIAL_KEY, Credential
from trust.errors import MeshError
from trust.permit import Permit
from trust.spiffe import SpiffeId

logger = logging.getLogger(__name__)

ADDRESS_KEY: Final = "egm-node-address"  # gRPC metadata key beside a credential: HOST:PORT of its node

Fetch = Callable[[SpiffeId, bytes], Awaitable[bytes]]  # from which node, its SHA-256; raises MeshError


class Passports:
    """The credentials of one node's calls, both ways. Not thread-safe: owned by the event loop."""

    def __init__(
        self,
        trust: Trust,
        *,
        named: Callable[[Credential], None] = lambda _credential: None,
    ) -> None:
        """Take the parts; `fetch` and `address` are set when this node has an identity.

        Args:
            trust: who is attested.
            named: told of this node's credential when a permit names it; must return at once.
        """
        self._trust, self._named, self._carriage = trust, named, Carriage()
        self.fetch: Fetch | None = None  # from the node itself; None: what is missing is refused
        self.address: Callable[[], str] = lambda: ""  # where this node answers peers

    # incoming calls

    def check(self, case: Case, permit: Permit, *, now_ms: int) -> None:
        """Refuse the permit of a node that no quorum vouches for now.

        Raises:
            MeshError: ATTESTATION_*, MEASUREMENT_REFUSED.
        """
        named, key = permit.claims.credential_sha256, permit.key
        self._trust.check_peer(
            named,
            case.credential,
            node=key.node,
            public_key=key.public_key.public_bytes_raw(),
            now_ms=now_ms,
        )
        if case.credential is not None and named is not None and self._trust.holds(named):
            case.took = named
            if case.node_address:
                self._trust.met(key.node, case.node_address)

    async def obtain(self, case: Case, permit: Permit) -> bool:
        """Fetch the credential that a permit names from its node; return whether it came. It is not verified yet."""
        named, key = permit.claims.credential_sha256, permit.key
        if self.fetch is None or named is None:
            return False
        try:
            case.credential = await self.fetch(key.node, named)
        except MeshError as error:
            logger.debug("the credential of %s was not fetched: %s", key.node, error)
            return False
        return True

    # outgoing calls

    def own(self) -> Credential | None:
        """Return the credential for permits to name; None when there is none, or none is asked for."""
        return self._trust.own()

    def carry(self, case: Case, credential: Credential) -> tuple[Pair, ...]:
        """Return the metadata that goes with a call whose permit names `credential`."""
        case.named = credential.sha256
        self._named(credential)
        case.carries = self._carriage.needed(case.attempt.service, credential.sha256)
        if not case.carries:
            return ()
        address = self.address()
        told: tuple[Pair, ...] = ((ADDRESS_KEY, address),) if address else ()
        return ((CREDENTIAL_KEY, credential.data), *told)

    def answered(self, case: Case, initial: Iterable[Pair]) -> tuple[Pair, ...]:
        """Learn from the first metadata of an answer; return what to add to it for the caller's sidecar."""
        if case.carries:
            self._carriage.answered(case.attempt.service, case.named, initial)
        return ((HELD_KEY, case.took),) if case.took else ()

    def ended(self, case: Case, status: str) -> None:
        """Learn from how a call ended."""
        if case.named:
            self._carriage.ended(case.attempt.service, carried=case.carries, status=status)


def told_address(sent: Iterable[Pair]) -> str:
    """Return where the caller's node says that it answers; empty when that cannot be used: it is only a hint."""
    found = [value for key, value in sent if key == ADDRESS_KEY]
    if len(found) != 1 or not isinstance(found[0], str) or len(found[0]) > limits.MAX_ADDRESS_CHARS:
        return ""
    try:
        _, port = split_address(found[0])
    except ValueError:
        return ""
    return found[0] if port else ""
