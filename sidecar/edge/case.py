"""One execution at a door, and what the notary needs to follow it: a ledger, keys, and who is attested."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sidecar.core.call import Attempt
from sidecar.core.permits import Minter, Verifier
from sidecar.edge.metadata import Pair
from trust.attestation.credential import Credential
from trust.errors import MeshError, Reason
from trust.permit import Permit
from trust.record import Intent, Link, Outcome
from trust.spiffe import SpiffeId


class Journal(Protocol):
    """Where records go: the node's ledger."""

    def append(self, record: Intent | Outcome) -> object:
        """Take one record; returns what `durable` waits for.

        Raises:
            EvidenceError: RECORD_MALFORMED; CapacityError: LIMIT_EXCEEDED; StateError: LEDGER_UNAVAILABLE.
        """
        ...

    async def durable(self, pending: object) -> None:
        """Wait until the record, and all before it, survive a crash.

        Raises:
            StateError: LEDGER_UNAVAILABLE.
        """
        ...


@dataclass(slots=True)
class Case:
    """One execution on its way through a door: what came with it, and what was found out."""

    attempt: Attempt
    level: int
    token: str | None = None
    endorsement: bytes | None = None
    malformed: MeshError | None = None  # what came in place of a permit
    credential: bytes | None = None  # trust credential that came with it (inbound)
    node_address: str = ""  # and where its node says that it answers peers
    took: bytes = b""  # digest of it, once it is held here
    unattested: Permit | None = None  # spent, but the credential that it names is missing
    named: bytes = b""  # digest of the one that our permit names (outbound)
    carries: bool = False  # and it went with the call
    certificate_sha256: bytes = b""
    traceparent: str = ""
    execution_id: bytes = b""
    root_id: bytes = b""
    link: Link = Link.NONE
    parent: Permit | None = None
    permit: Permit | None = None  # accepted (inbound)
    permit_sha256: bytes = b""
    permit_token: bytes = b""  # what it is the digest of: minted (outbound) or accepted (inbound)
    request_sha256: bytes = b""
    hand_over: bool = False  # the local service accepts only what this sidecar signs for it
    opened: bool = False
    request_messages: int = 0
    request_bytes: int = 0
    response_messages: int = 0
    response_bytes: int = 0
    response_sha256: bytes = b""
    request: bytes | None = None  # as received, until it is kept or not
    audited: bool = False  # policy asks to keep the payload
    obligations: tuple[tuple[str, str], ...] = ()  # as recorded: with what was done about each
    sealed_request: bytes = b""
    sealed_response: bytes = b""
    approvals: tuple[str | bytes, ...] = ()  # what came as `egm-approval-bin`
    remaining_s: float | None = None  # until the caller's deadline; None: it has none
    held: bool = False  # waited for approvers
    extra: tuple[Pair, ...] = ()  # metadata that a duty adds to the call
    would_deny: Reason | None = None  # why a duty would have refused, at a level that blocks nothing
    cut: Reason | None = None


class Trust(Protocol):
    """Who is attested; `sidecar.core.trust_state.TrustState` is the real one."""

    def own(self) -> Credential | None:
        """Return this node's credential; None when it has none, or none is asked for."""
        ...

    def check_peer(
        self, sha256: bytes | None, carried: bytes | None, *, node: SpiffeId, public_key: bytes, now_ms: int
    ) -> None:
        """Accept that `node` is attested now.

        Raises:
            MeshError: ATTESTATION_*, MEASUREMENT_REFUSED.
        """
        ...

    def holds(self, sha256: bytes) -> bool:
        """Return whether the credential with this digest need not come with a call."""
        ...

    def met(self, node: SpiffeId, address: str) -> None:
        """Remember where an attested node said that it answers peers."""
        ...


@dataclass(frozen=True, slots=True)
class Signing:
    """What a node needs to mint and to verify; see `sidecar.edge.node_signer`."""

    minter: Minter
    verifier: Verifier
    endorsement: Callable[[], bytes]
    client_certificate_sha256: Callable[[str], bytes]  # caller's SPIFFE ID -> digest of the one it dials with
