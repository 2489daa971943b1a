"""What a proposal is, what may happen to it, and when it may be published.

A proposal is one new version of one TUF role. It is judged when it arrives and again when it is published,
each time against the metadata in force. That it is *ready* is never stored: it follows from the signatures.
"""

import enum
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from securesystemslib.signer import Signature
from tuf.api.metadata import Metadata, Root, Targets

from trust import limits
from trust.errors import CapacityError, EvidenceError, InputError, Reason, StateError
from trust.metadata import check, check_root, check_targets, expires_ms, lint_rotation
from trust.quorum import Quorum
from trust.repository import (
    RepositoryState,
    add_signature,
    delegators_of,
    digest_of,
    parse_metadata,
    quorums_of,
)
from trust.spiffe import SpiffeId, check_name
from trust.verified import BASE_ROLE, target_path

ROOT_ROLE: Final = "root"
ID_DIGITS: Final = 16
_ONLINE_ROLES: Final = frozenset({"snapshot", "timestamp"})


@enum.unique
class State(enum.StrEnum):
    """Where a proposal stands. Stored; never renamed."""

    OPEN = "open"
    PUBLISHED = "published"
    WITHDRAWN = "withdrawn"
    SUPERSEDED = "superseded"


@enum.unique
class Event(enum.StrEnum):
    """What can happen to a proposal."""

    SIGN = "sign"
    PUBLISH = "publish"
    WITHDRAW = "withdraw"
    SUPERSEDE = "supersede"  # another proposal of its role was published


# Total: every event in every state. None: refused.
NEXT: Final[Mapping[tuple[State, Event], State | None]] = MappingProxyType(
    {
        (State.OPEN, Event.SIGN): State.OPEN,
        (State.OPEN, Event.PUBLISH): State.PUBLISHED,
        (State.OPEN, Event.WITHDRAW): State.WITHDRAWN,
        (State.OPEN, Event.SUPERSEDE): State.SUPERSEDED,
        **{
            (closed, event): None
            for closed in (State.PUBLISHED, State.WITHDRAWN, State.SUPERSEDED)
            for event in Event
        },
    }
)


@dataclass(frozen=True, slots=True)
class Signed:
    """One verified signature of a proposal."""

    key_id: str
    signature_hex: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class Proposal:
    """One proposed version of one role. `metadata` is the TUF envelope without signatures."""

    id: str
    role: str  # "root", "targets" or a namespace
    version: int
    digest: str
    state: State
    title: str
    proposed_by: str
    created_ms: int
    expires_ms: int
    metadata: bytes
    signatures: tuple[Signed, ...] = ()


@dataclass(frozen=True, slots=True)
class ExpectedFile:
    """The one target file that a policy proposal names. `held`: it is in force already, and need not be sent."""

    path: str
    length: int
    sha256: str
    held: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """Who has signed a proposal, and who has not, under the metadata in force."""

    quorums: tuple[Quorum, ...]  # all must be met; a root needs the old and the new root's

    @property
    def ready(self) -> bool:
        """Whether it has every quorum that it needs."""
        return bool(self.quorums) and all(quorum.met for quorum in self.quorums)

    @property
    def threshold(self) -> int:
        """The largest number of signatures that any of its quorums needs."""
        return max((quorum.threshold for quorum in self.quorums), default=0)

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the holders who have not signed."""
        names = {quorum.name(key_id) for quorum in self.quorums for key_id in quorum.missing}
        return tuple(sorted(names))

    def name(self, key_id: str) -> str:
        """Return the signed display name of a key."""
        for quorum in self.quorums:
            if key_id in dict(quorum.names):
                return quorum.name(key_id)
        return key_id[:12]


def advance(proposal: Proposal, event: Event) -> State:
    """Return the state after `event`.

    Raises:
        StateError: CONFLICT, when the proposal is closed.
    """
    following = NEXT[proposal.state, event]
    if following is None:
        raise StateError(
            Reason.CONFLICT, f"proposal {proposal.id} is {proposal.state}; propose a new version instead"
        )
    return following


def open_proposal(
    state: RepositoryState, *, role: str, title: str, metadata: bytes, who: SpiffeId, now_ms: int
) -> Proposal:
    """Judge metadata that an operator proposes as the next version of `role`.

    Signatures that it carries are kept if they verify.

    Args:
        state: what is in force.
        role: "root", "targets" or a delegated namespace.
        title: for people, one line.
        metadata: the TUF envelope.
        who: the operator.
        now_ms: Unix time, ms.

    Raises:
        EvidenceError: METADATA_INVALID, METADATA_UNSAFE, NOT_AUTHORIZED, SIGNATURE_INVALID, POLICY_EXPIRED.
        StateError: CONFLICT, for a version that is not the next one.
        InputError: INPUT_INVALID, for a bad title.
    """
    parsed = _parse(role, metadata)
    delegators = delegators_of(role, parsed, state)
    _check_version(role, parsed.signed.version, state)
    _lint(role, parsed, state, now_ms)
    if now_ms >= expires_ms(parsed.signed):
        raise EvidenceError(Reason.POLICY_EXPIRED, f"the proposed {role} metadata has already expired")
    _check_namespace_lifetime(role, parsed, now_ms)
    signatures = tuple(parsed.signatures.values())
    parsed.signatures.clear()
    for signature in signatures:
        add_signature(parsed, signature.keyid, signature.signature, delegators, role=role)
    digest = digest_of(parsed)
    return Proposal(
        id=digest[:ID_DIGITS],
        role=role,
        version=parsed.signed.version,
        digest=digest,
        state=State.OPEN,
        title=check_title(title),
        proposed_by=str(who),
        created_ms=now_ms,
        expires_ms=expires_ms(parsed.signed),
        metadata=parsed.to_bytes(),
        signatures=tuple(Signed(s.keyid, s.signature, now_ms) for s in signatures),
    )


def check_title(title: str) -> str:
    """Return `title` if it is one printable line.

    Raises:
        InputError: INPUT_INVALID.
    """
    title = title.strip()
    if len(title.encode()) > limits.MAX_PROPOSAL_TITLE_BYTES or not title.isprintable():
        raise InputError(
            Reason.INPUT_INVALID,
            f"a title is one printable line of at most {limits.MAX_PROPOSAL_TITLE_BYTES} bytes",
        )
    return title


def check_room(open_proposals: int) -> None:
    """Refuse a proposal beyond the most that may be open at one time.

    Raises:
        CapacityError: LIMIT_EXCEEDED.
    """
    if open_proposals >= limits.MAX_OPEN_PROPOSALS:
        raise CapacityError(
            Reason.LIMIT_EXCEEDED,
            f"{open_proposals} proposals are open, the most allowed: publish or withdraw some first",
        )


def expected_file(proposal: Proposal, state: RepositoryState) -> ExpectedFile | None:
    """Return the archive that the proposal names; None for a root, which names none."""
    if proposal.role == ROOT_ROLE:
        return None
    path = target_path(proposal.role)
    target = parse_metadata(proposal.metadata, Targets).signed.targets[path]
    previous = state.role_metadata(proposal.role)
    held = previous is not None and previous.signed.targets.get(path) == target
    return ExpectedFile(path, target.length, target.hashes["sha256"], held)


class Upload:
    """Receives the files of one proposal: exactly the named one, never a byte more than its signed length."""

    def __init__(self, expected: ExpectedFile | None) -> None:
        self._expected = expected
        self._data = bytearray()
        self._complete = False

    def take(self, path: str, data: bytes, *, last: bool) -> None:
        """Add one chunk.

        Raises:
            EvidenceError: METADATA_INVALID for a file that the metadata does not name, DIGEST_MISMATCH for a
                byte too many.
        """
        expected = self._expected
        if expected is None or path != expected.path:
            raise EvidenceError(Reason.METADATA_INVALID, f"the metadata does not name a file {path[:120]!r}")
        if self._complete or len(self._data) + len(data) > expected.length:
            raise EvidenceError(
                Reason.DIGEST_MISMATCH,
                f"{path} is longer than the {expected.length} bytes that the metadata says",
            )
        self._data += data
        self._complete = last

    def finish(self) -> dict[str, bytes]:
        """Return target path to content; empty when nothing was needed and nothing was sent.

        Raises:
            EvidenceError: DIGEST_MISMATCH.
        """
        expected = self._expected
        if expected is None or (expected.held and not self._data):
            return {}
        data = bytes(self._data)
        if len(data) != expected.length or hashlib.sha256(data).hexdigest() != expected.sha256:
            raise EvidenceError(
                Reason.DIGEST_MISMATCH, f"{expected.path} as sent is not the file that the metadata names"
            )
        return {expected.path: data}


def sign(
    proposal: Proposal, key_id: str, signature_hex: str, state: RepositoryState, *, now_ms: int
) -> Signed:
    """Judge one approver's signature. The approver is whose key verifies it, whoever delivered it.

    Raises:
        StateError: CONFLICT, when the proposal is closed.
        EvidenceError: NOT_AUTHORIZED, if the key may not sign this role; SIGNATURE_INVALID.
    """
    advance(proposal, Event.SIGN)
    metadata = _parse(proposal.role, proposal.metadata)
    add_signature(
        metadata,
        key_id,
        signature_hex,
        delegators_of(proposal.role, metadata, state),
        role=proposal.role,
    )
    return Signed(key_id, signature_hex, now_ms)


def signed_metadata(proposal: Proposal) -> Metadata[Any]:
    """Return the metadata with the signatures so far, in the order of their key ids."""
    metadata = _parse(proposal.role, proposal.metadata)
    for signed in sorted(proposal.signatures, key=lambda signed: signed.key_id):
        metadata.signatures[signed.key_id] = Signature(signed.key_id, signed.signature_hex)
    return metadata


def standing(proposal: Proposal, state: RepositoryState) -> Standing:
    """Return who has signed, counted under the metadata in force now: a replaced approver no longer counts."""
    metadata = signed_metadata(proposal)
    try:
        return Standing(quorums_of(proposal.role, metadata, state))
    except EvidenceError:
        return Standing(())  # its namespace is no longer delegated: nobody can sign it


def check_publishable(proposal: Proposal, state: RepositoryState) -> None:
    """Refuse what must not be published, with the most helpful reason.

    `trust.repository.publish` decides again, on what would be written.

    Raises:
        StateError: CONFLICT, when it is closed or its version is no longer the next.
        EvidenceError: QUORUM_NOT_MET, naming who is missing; NOT_AUTHORIZED.
    """
    advance(proposal, Event.PUBLISH)
    _check_version(proposal.role, proposal.version, state)
    metadata = signed_metadata(proposal)
    for quorum in quorums_of(proposal.role, metadata, state):
        if not quorum.met:
            raise EvidenceError(
                Reason.QUORUM_NOT_MET, f"{proposal.role} version {proposal.version}: {quorum.explain()}"
            )


def _parse(role: str, metadata: bytes) -> Metadata[Any]:
    if role in _ONLINE_ROLES:
        raise EvidenceError(Reason.NOT_AUTHORIZED, f"{role} metadata is made by the control plane alone")
    if role not in {ROOT_ROLE, BASE_ROLE}:
        check_name(role)
    return parse_metadata(metadata, Root) if role == ROOT_ROLE else parse_metadata(metadata, Targets)


def _check_version(role: str, version: int, state: RepositoryState) -> None:
    current = state.version_of(role)
    if version != current + 1:
        raise StateError(
            Reason.CONFLICT,
            f"{role} is at version {current}, so the next is {current + 1}, not {version}; propose again",
        )


def _check_namespace_lifetime(role: str, metadata: Metadata[Any], now_ms: int) -> None:
    """Nodes enforce all signed metadata or none, so a namespace that ends soon would soon end the mesh's policy.

    The base's approvers need the time to end its delegation.
    """
    least_s = limits.MIN_NAMESPACE_LIFETIME_S
    if role not in {ROOT_ROLE, BASE_ROLE} and expires_ms(metadata.signed) < now_ms + least_s * 1000:
        raise EvidenceError(
            Reason.METADATA_UNSAFE,
            f"the proposed {role} metadata expires in less than {least_s // 86_400} days, and every node's policy "
            "with it; give it longer",
        )


def _lint(role: str, metadata: Metadata[Any], state: RepositoryState, now_ms: int) -> None:
    root = state.root_metadata().signed
    if role == ROOT_ROLE:
        check(lint_rotation(root, metadata.signed))
        check_root(metadata.signed, now_ms=now_ms)
    else:
        check_targets(role, metadata.signed, root, now_ms=now_ms)
