"""Whether this node, and the nodes that call, are vouched for now: trust credentials, verified once and kept.

Under a policy that names no witnesses nothing is asked of anybody (and `egm status` says so). Otherwise a node needs a
live credential of the signed quorum; its end is held on the wall clock and on the monotonic one, the earlier counts.

What is kept outlives a change of policy: under another roster, or other reference values, it is verified again when it
is next asked for, and dropped when it does not hold there. So it is when a witness is revoked or convicted.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from trust import limits
from trust.attestation.accepted import check_accepted
from trust.attestation.credential import (
    Credential,
    check_live,
    credential_sha256,
    live_until_ms,
    open_credential,
)
from trust.attestation.measurement import ReferenceValues
from trust.attestation.roster import Roster
from trust.denials import Denials
from trust.errors import EvidenceError, MeshError, Reason, StateError
from trust.mesh import MeshSettings
from trust.spiffe import SpiffeId

_K = TypeVar("_K")
_V = TypeVar("_V")
Caller = tuple[SpiffeId, bytes]  # a node, and the public key (32 bytes) that signs its permits and evidence


@enum.unique
class Standing(enum.StrEnum):
    """The words of `egm.v1.NodeStatus.attestation`."""

    NO_POLICY = "NO_POLICY"
    NO_WITNESSES = "NO_WITNESSES"  # the signed policy names none
    ATTESTED = "ATTESTED"
    NOT_ATTESTED = "NOT_ATTESTED"


@dataclass(frozen=True, slots=True, eq=False)
class _Terms:
    """What the policy in force accepts: whose cosignatures, and of which builds (None: of any)."""

    roster: Roster
    references: ReferenceValues | None

    def same_as(self, other: "_Terms | None") -> bool:
        """Return whether what was verified under the one need not be verified again under the other."""
        return (
            other is not None
            and self.roster.digest == other.roster.digest
            and self.references == other.references
        )

    def open(self, data: bytes) -> Credential:
        """Return the credential with all its signatures verified and its measurement accepted; it may be too old.

        Raises:
            EvidenceError: ATTESTATION_INVALID, MEASUREMENT_REFUSED.
        """
        credential = open_credential(data, self.roster)
        check_accepted(self.references, credential.evidence.statement)
        return credential


@dataclass(frozen=True, slots=True)
class _Own:
    """This node's newest credential, and when it was adopted, on both clocks."""

    credential: Credential
    terms: _Terms
    until_ms: int
    adopted_ms: int
    adopted_mono_ms: int

    @property
    def until_mono_ms(self) -> int:
        """Its end on the monotonic clock."""
        return self.adopted_mono_ms + (self.until_ms - self.adopted_ms)


@dataclass(frozen=True, slots=True)
class _Held:
    """A credential of another node: what it was verified under, and the end of its life, Unix ms."""

    credential: Credential
    terms: _Terms
    until_ms: int

    @property
    def caller(self) -> Caller:
        """Whose it is."""
        said = self.credential.evidence.statement
        return said.node, said.public_key


class TrustState:
    """One node's view of who is attested. Not thread-safe: owned by the event loop."""

    def __init__(
        self,
        node: SpiffeId,
        mesh: Callable[[], MeshSettings | None],
        *,
        references: Callable[[], ReferenceValues | None] = lambda: None,
        trusted: Callable[[int], int] = lambda now_ms: now_ms,
        denials: Denials | None = None,
        capacity: int = limits.MAX_CREDENTIALS,
        verified: Callable[[Credential], None] = lambda _credential: None,
    ) -> None:
        """Start unattested.

        Args:
            node: this node.
            mesh: returns the signed settings in force; None without policy.
            references: returns the builds that the policy in force accepts; None for any. Witnesses asked before
                they vouched; asked again here, a build that is no longer accepted is refused at once.
            trusted: raises a wall time to what signed statements prove (`BundleState.trusted_now_ms`): a clock that
                is set back lengthens no credential of a caller.
            denials: what is revoked or quarantined; such a witness's word counts neither for this node nor for others.
            capacity: credentials of other nodes that are kept.
            verified: told of each credential of another node when it was verified; must return at once.
        """
        self._node, self._read_mesh, self._capacity = node, mesh, capacity
        self._references, self.trusted, self._verified = references, trusted, verified
        self._denials = Denials(node.trust_domain) if denials is None else denials
        self._denied = -1  # revision of the denials that the terms were made under
        self._mesh: MeshSettings | None = None
        self._terms: _Terms | None = None
        self._own: _Own | None = None
        self._peers: dict[bytes, _Held] = {}  # by digest
        self._newest: dict[Caller, _Held] = {}
        self._addresses: dict[str, str] = {}

    @property
    def roster(self) -> Roster | None:
        """Who vouches for nodes under the policy in force; without the word of witnesses that are denied."""
        terms = self._in_force()
        return None if terms is None else terms.roster

    def _in_force(self) -> _Terms | None:
        mesh = self._read_mesh()
        if mesh is not self._mesh or self._denied != self._denials.revision:
            denied = self._denials.revision
            roster = None if mesh is None else mesh.roster()
            if roster is not None:
                roster = roster.without(self._denials.struck(roster))
            terms = None if roster is None else _Terms(roster, self._references())
            if terms is None or not terms.same_as(self._terms):
                self._terms = terms
            # Last: whoever looks meanwhile must not take the terms of before for those of this policy.
            self._mesh, self._denied = mesh, denied
        return self._terms

    # this node

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
        return self._in_force() is None or self.remaining_ms(now_ms, monotonic_ms) > 0

    def remaining_ms(self, now_ms: int, monotonic_ms: int) -> int:
        """Return for how long this node stays attested without renewal, ms; 0 when it is not."""
        own = self._held_own()
        if own is None:
            return 0
        return max(0, min(own.until_ms - now_ms, own.until_mono_ms - monotonic_ms))

    def own(self) -> Credential | None:
        """Return this node's newest credential, live or not; None when there is none that this roster signed."""
        own = self._held_own()
        return None if own is None else own.credential

    def adopt(self, data: bytes, *, now_ms: int, monotonic_ms: int) -> Credential:
        """Take this node's new credential, verified as every other node will.

        Raises:
            EvidenceError: ATTESTATION_INVALID, MEASUREMENT_REFUSED.
            StateError: ATTESTATION_EXPIRED, NODE_NOT_ATTESTED (no roster).
        """
        terms = self._in_force()
        if terms is None:
            raise StateError(Reason.NODE_NOT_ATTESTED, "the signed policy names no witnesses")
        credential = terms.open(data)
        if credential.node != self._node:
            raise _invalid(f"it is of {credential.node}")
        until_ms = check_live(credential, terms.roster, now_ms=now_ms)
        self._own = _Own(credential, terms, until_ms, now_ms, monotonic_ms)
        self._keep(_Held(credential, terms, until_ms))
        return credential

    def _held_own(self) -> _Own | None:
        """Return what this node holds under the policy in force: from before it too, if that accepts it."""
        terms, own = self._in_force(), self._own
        if terms is None or own is None or own.terms is terms:
            return None if terms is None else own
        self._own = None
        try:
            credential = terms.open(own.credential.data)
        except EvidenceError:
            return None  # a new round is due at once: the roster or the accepted builds have changed
        # As of its adoption, so that a wall clock that was set back since lengthens nothing.
        until_ms = live_until_ms(credential, terms.roster, now_ms=own.adopted_ms)
        if until_ms <= own.adopted_ms:
            return None  # too few of this roster signed it
        self._own = _Own(credential, terms, until_ms, own.adopted_ms, own.adopted_mono_ms)
        return self._own

    # nodes that call

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
            EvidenceError: ATTESTATION_MISSING, ATTESTATION_INVALID, MEASUREMENT_REFUSED.
            StateError: ATTESTATION_UNKNOWN, ATTESTATION_EXPIRED.
        """
        terms = self._in_force()
        if terms is None:
            return
        if sha256 is None:
            raise EvidenceError(
                Reason.ATTESTATION_MISSING,
                f"the permit names no trust credential of {node} (att), and the signed policy names witnesses",
            )
        now_ms = self.trusted(now_ms)
        held = self._peers.get(sha256)
        if held is None:
            if carried is None:
                raise StateError(
                    Reason.ATTESTATION_UNKNOWN,
                    "the trust credential that the permit names came not with the call and is not known here; call "
                    "again",
                )
            if credential_sha256(carried) != sha256:
                raise _invalid("it is not the one that the permit names (att)")
            held = self._open(carried, terms, now_ms)
        self._check_held(held, terms, (node, public_key), now_ms)

    def holds(self, sha256: bytes) -> bool:
        """Return whether the credential with this digest need not come with a call."""
        return sha256 in self._peers

    def check_caller(self, caller: Caller, *, now_ms: int) -> int:
        """Return until when a node is attested by the newest of its credentials that is known here, Unix ms.

        What keeps a stream open after the credential that its permit named has ended.

        Args:
            caller: the node, and the key that signed the permit.
            now_ms: Unix time, ms.

        Raises:
            EvidenceError: ATTESTATION_INVALID, MEASUREMENT_REFUSED.
            StateError: ATTESTATION_UNKNOWN, ATTESTATION_EXPIRED.
        """
        terms = self._in_force()
        if terms is None:
            return now_ms + limits.MAX_ATTESTATION_TTL_S * 1000
        held = self._newest.get(caller)
        if held is None:
            raise StateError(Reason.ATTESTATION_UNKNOWN, f"no trust credential of {caller[0]} is known here")
        return self._check_held(held, terms, caller, self.trusted(now_ms)).until_ms

    def learn(self, data: bytes, caller: Caller, *, now_ms: int) -> None:
        """Keep a credential of `caller` that came from anywhere.

        Raises:
            EvidenceError: ATTESTATION_INVALID, MEASUREMENT_REFUSED.
            StateError: ATTESTATION_EXPIRED.
        """
        terms = self._in_force()
        if terms is None:
            return
        now_ms = self.trusted(now_ms)
        self._check_held(self._open(data, terms, now_ms, caller), terms, caller, now_ms)

    def met(self, node: SpiffeId, address: str) -> None:
        """Remember where an attested node said that it answers, HOST:PORT: a hint, nobody is believed for it."""
        self._addresses.pop(node.name, None)
        _make_room(self._addresses, self._capacity)
        self._addresses[node.name] = address

    def address_of(self, node: SpiffeId) -> str:
        """Return where `node` said that it answers; empty when it did not say."""
        return self._addresses.get(node.name, "")

    def _open(self, data: bytes, terms: _Terms, now_ms: int, caller: Caller | None = None) -> _Held:
        credential = terms.open(data)
        held = _Held(credential, terms, check_live(credential, terms.roster, now_ms=now_ms))
        if caller is not None and held.caller != caller:
            raise _not_of(caller[0], credential)
        self._verified(credential)
        return self._keep(held)

    def _check_held(self, held: _Held, terms: _Terms, caller: Caller, now_ms: int) -> _Held:
        """Return what is held, checked under the policy in force, at this moment.

        Raises:
            MeshError: it does not hold; then it is forgotten, unless it has only ended or is somebody else's.
        """
        if held.caller != caller:
            raise _not_of(caller[0], held.credential)
        if held.terms is not terms:
            try:
                credential = terms.open(held.credential.data)
                held = self._keep(
                    _Held(credential, terms, check_live(credential, terms.roster, now_ms=now_ms))
                )
            except MeshError:
                self._forget(held)
                raise
        elif now_ms >= held.until_ms:
            until_ms = check_live(held.credential, terms.roster, now_ms=now_ms)
            held = self._keep(_Held(held.credential, terms, until_ms))
        return held

    def _keep(self, held: _Held) -> _Held:
        sha256 = held.credential.sha256
        if sha256 not in self._peers:
            _make_room(self._peers, self._capacity)
        self._peers[sha256] = held
        newest = self._newest.get(held.caller)
        if newest is None or _counter(newest) <= _counter(held):
            self._newest.pop(held.caller, None)
            _make_room(self._newest, self._capacity)
            self._newest[held.caller] = held
        return held

    def _forget(self, held: _Held) -> None:
        self._peers.pop(held.credential.sha256, None)
        newest = self._newest.get(held.caller)
        if newest is not None and newest.credential.sha256 == held.credential.sha256:
            del self._newest[held.caller]


def _make_room(known: dict[_K, _V], capacity: int) -> None:
    """Let the oldest leave a dict that is full."""
    if len(known) >= capacity:
        del known[next(iter(known))]


def _counter(held: _Held) -> int:
    return held.credential.evidence.statement.counter


def _not_of(node: SpiffeId, credential: Credential) -> EvidenceError:
    return _invalid(f"it is of {credential.node}, not of the key that signed the permit of {node}")


def _invalid(what: str) -> EvidenceError:
    return EvidenceError(Reason.ATTESTATION_INVALID, f"trust credential refused: {what}")
