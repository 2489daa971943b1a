"""Whether this node, and the node that calls, are vouched for now: trust credentials, verified once and kept.

Under a policy that names no witnesses nothing is asked of anybody (and `egm status` says so). Otherwise a node needs a
live credential of the signed quorum; its end is held on the wall clock and on the monotonic one, the earlier counts.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass

from trust import limits
from trust.attestation.credential import Credential, check_live, credential_sha256, open_credential
from trust.attestation.roster import Roster
from trust.errors import EvidenceError, Reason, StateError
from trust.mesh import MeshSettings
from trust.spiffe import SpiffeId


@enum.unique
class Standing(enum.StrEnum):
    """The words of `egm.v1.NodeStatus.attestation`."""

    NO_POLICY = "NO_POLICY"
    NO_WITNESSES = "NO_WITNESSES"  # the signed policy names none
    ATTESTED = "ATTESTED"
    NOT_ATTESTED = "NOT_ATTESTED"


@dataclass(slots=True)
class _Own:
    """This node's newest credential and its end, on both clocks."""

    credential: Credential
    until_ms: int
    until_mono_ms: int


class TrustState:
    """One node's view of who is attested. Not thread-safe: owned by the event loop."""

    def __init__(
        self,
        node: SpiffeId,
        mesh: Callable[[], MeshSettings | None],
        *,
        trusted: Callable[[int], int] = lambda now_ms: now_ms,
        capacity: int = limits.MAX_CREDENTIALS,
        verified: Callable[[Credential], None] = lambda _credential: None,
    ) -> None:
        """Start unattested.

        Args:
            node: this node.
            mesh: returns the signed settings in force; None without policy.
            trusted: raises a wall time to what signed statements prove (`BundleState.trusted_now_ms`): a clock that
                is set back lengthens no credential of a caller.
            capacity: credentials of other nodes that are kept.
            verified: told of each credential of another node when it was verified; must return at once.
        """
        self._node, self._read_mesh, self._capacity = node, mesh, capacity
        self._trusted, self._verified = trusted, verified
        self._mesh: MeshSettings | None = None
        self._roster: Roster | None = None
        self._own: _Own | None = None
        self._peers: dict[bytes, tuple[Credential, int]] = {}  # by digest: with the end of its life, Unix ms

    @property
    def roster(self) -> Roster | None:
        """Who vouches for nodes under the policy in force."""
        mesh = self._read_mesh()
        if mesh is not self._mesh:
            self._mesh = mesh
            roster = None if mesh is None else mesh.roster()
            if (roster and roster.digest) != (self._roster and self._roster.digest):
                self._roster = roster
                self._peers.clear()
        return self._roster

    def standing(self, now_ms: int, monotonic_ms: int) -> Standing:
        """Return how this node stands."""
        roster = self.roster
        if self._mesh is None:
            return Standing.NO_POLICY
        if roster is None:
            return Standing.NO_WITNESSES
        alive = self.remaining_ms(now_ms, monotonic_ms) > 0
        return Standing.ATTESTED if alive else Standing.NOT_ATTESTED

    def attested(self, now_ms: int, monotonic_ms: int) -> bool:
        """Return whether level 5 may execute anything here. Called for every execution."""
        return self.roster is None or self.remaining_ms(now_ms, monotonic_ms) > 0

    def remaining_ms(self, now_ms: int, monotonic_ms: int) -> int:
        """Return for how long this node stays attested without renewal, ms; 0 when it is not."""
        roster, own = self.roster, self._own
        if roster is None or own is None or own.credential.roster != roster.digest:
            return 0
        return max(0, min(own.until_ms - now_ms, own.until_mono_ms - monotonic_ms))

    def own(self) -> Credential | None:
        """Return this node's newest credential, live or not; None when there is none under this roster."""
        roster, own = self.roster, self._own
        return (
            None
            if roster is None or own is None or own.credential.roster != roster.digest
            else own.credential
        )

    def adopt(self, data: bytes, *, now_ms: int, monotonic_ms: int) -> Credential:
        """Take this node's new credential, verified as every other node will.

        Raises:
            EvidenceError: ATTESTATION_INVALID; StateError: ATTESTATION_EXPIRED, NODE_NOT_ATTESTED (no roster).
        """
        roster = self.roster
        if roster is None:
            raise StateError(Reason.NODE_NOT_ATTESTED, "the signed policy names no witnesses")
        credential = open_credential(data, roster)
        if credential.node != self._node:
            raise _invalid(f"it is of {credential.node}")
        until_ms = check_live(credential, roster, now_ms=now_ms)
        self._own = _Own(credential, until_ms, monotonic_ms + (until_ms - now_ms))
        self._keep(credential, until_ms)
        return credential

    def check_peer(
        self,
        sha256: bytes | None,
        carried: bytes | None,
        *,
        node: SpiffeId,
        public_key: bytes,
        now_ms: int,
    ) -> None:
        """Accept that `node` is attested now, by the credential that its permit names.

        Args:
            sha256: the permit's `att`; None when it names none.
            carried: the credential that came with the call; None when none came.
            node: who signed the permit.
            public_key: with which key, 32 bytes.
            now_ms: Unix time, ms.

        Raises:
            EvidenceError: ATTESTATION_MISSING, ATTESTATION_INVALID.
            StateError: ATTESTATION_UNKNOWN, ATTESTATION_EXPIRED.
        """
        roster = self.roster
        if roster is None:
            return
        if sha256 is None:
            raise EvidenceError(
                Reason.ATTESTATION_MISSING,
                f"the permit names no trust credential of {node} (att), and the signed policy names witnesses",
            )
        now_ms = self._trusted(now_ms)
        held = self._peers.get(sha256)
        if held is None:
            held = self._open(sha256, carried, roster, now_ms)
        credential, until_ms = held
        said = credential.evidence.statement
        if credential.node != node or said.public_key != public_key:
            raise _invalid(f"it is of {credential.node}, not of the key that signed the permit of {node}")
        if now_ms >= until_ms:
            self._keep(credential, check_live(credential, roster, now_ms=now_ms))

    def _open(
        self, sha256: bytes, carried: bytes | None, roster: Roster, now_ms: int
    ) -> tuple[Credential, int]:
        if carried is None:
            raise StateError(
                Reason.ATTESTATION_UNKNOWN,
                "the trust credential that the permit names came not with the call and is not known here; call again",
            )
        if credential_sha256(carried) != sha256:
            raise _invalid("it is not the one that the permit names (att)")
        credential = open_credential(carried, roster)
        until_ms = check_live(credential, roster, now_ms=now_ms)
        self._verified(credential)
        return self._keep(credential, until_ms)

    def _keep(self, credential: Credential, until_ms: int) -> tuple[Credential, int]:
        if credential.sha256 not in self._peers and len(self._peers) >= self._capacity:
            del self._peers[next(iter(self._peers))]
        kept = self._peers[credential.sha256] = (credential, until_ms)
        return kept


def _invalid(what: str) -> EvidenceError:
    return EvidenceError(Reason.ATTESTATION_INVALID, f"trust credential refused: {what}")
