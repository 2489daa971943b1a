"""The one place where the published repository changes: publication, lease, following others."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from control_plane.core.proposals import (
    ROOT_ROLE,
    Event,
    Proposal,
    advance,
    check_publishable,
    signed_metadata,
)
from control_plane.edge.repository_files import TIMESTAMP, RepositoryFiles
from control_plane.edge.signing import OnlineKeyring
from control_plane.edge.store import audit, proposals, repository
from control_plane.edge.store.database import Database
from trust.authoring import digest_of
from trust.bundle import Bundle, read_bundle
from trust.chain import sha256_of_target
from trust.edge.threads import to_thread_until_done
from trust.errors import EvidenceError, InputError, MeshError, Reason, StateError
from trust.mesh import LeaseSettings, MeshSettings
from trust.ports import Clock
from trust.repository import (
    RepositoryState,
    metadata_path,
    parse_metadata,
    publish,
    renew,
    target_file_path,
)
from trust.spiffe import SpiffeId
from trust.verified import BASE_ROLE, target_path

logger = logging.getLogger(__name__)

# How soon another control plane's publication on the same database is noticed.
SYNC_PERIOD_S: Final = 1.0

Announce = Callable[[bytes], Awaitable[None]]
# (role, archive, other archives in force) -> the bundle; raises a MeshError when nodes could not enforce it
Checker = Callable[[str, bytes, dict[str, bytes]], Bundle]


@dataclass(frozen=True, slots=True)
class Published:
    """A publication that is durable."""

    proposal: Proposal
    snapshot_version: int
    timestamp_version: int


class Publisher:
    """Knows what is in force, and changes it under the database's lock so that of several control planes one wins."""

    def __init__(
        self,
        database: Database,
        files: RepositoryFiles,
        keyring: OnlineKeyring,
        clock: Clock,
        *,
        announce: Announce,
        check: Checker,
        renew_fraction: float,
        governed: Callable[[MeshSettings], None] = lambda _settings: None,
    ) -> None:
        """Take the parts; `governed` is told of the settings of every base bundle that comes into force."""
        self._governed = governed
        self._database, self._files, self._keyring, self._clock = database, files, keyring, clock
        self._announce, self._check, self._renew_fraction = announce, check, renew_fraction
        self._revision = -1
        self._state: RepositoryState | None = None
        self._settings: MeshSettings | None = None
        self._settings_told: MeshSettings | None = None
        self.base: tuple[int, bytes] = (0, b"")  # version, SHA-256 of the canonical bytes of its metadata
        self._settings_of = ""  # SHA-256 of the base archive they come from
        self._announced: bytes | None = None
        self._changing = asyncio.Lock()
        self.problem: str | None = None  # why the last renewal or synchronisation failed

    @property
    def state(self) -> RepositoryState:
        """What is in force, as far as this control plane knows.

        Raises:
            StateError: POLICY_MISSING, before `start`.
        """
        if self._state is None:
            raise StateError(Reason.POLICY_MISSING, "the repository has not been loaded yet")
        return self._state

    @property
    def settings(self) -> MeshSettings | None:
        """The signed settings in force; None before the first policy."""
        return self._settings

    @property
    def lease_ttl_s(self) -> int:
        """How long a lease lasts, as the signed settings say; the default before the first policy."""
        settings = self._settings
        return LeaseSettings().ttl_s if settings is None else settings.lease.ttl_s

    def lease_expires_ms(self) -> int:
        """When the lease in force ends, Unix ms; 0 before the first policy."""
        return self.state.lease_expires_ms() or 0

    async def start(self, root: bytes, root_path: Path) -> None:
        """Load the repository; into an empty store, put the trust anchor.

        Raises:
            InputError: CONFIG_INVALID, when the store belongs to another trust anchor.
        """
        async with self._database.write() as connection:
            anchor = metadata_path(ROOT_ROLE, parse_metadata(root, Root).signed.version)
            held = await repository.load(connection, [metadata_path(ROOT_ROLE, 1), anchor])
            if not held and anchor == metadata_path(ROOT_ROLE, 1):
                revision = await repository.lock_head(connection)
                await repository.write(connection, {anchor: root}, revision=revision)
            elif not held:
                raise InputError(
                    Reason.CONFIG_INVALID,
                    f"the store is empty, and {root_path} is a later root version: restore the database, or begin "
                    "with root version 1, which 'egm init' wrote",
                )
            elif held.get(anchor) != root:
                raise InputError(
                    Reason.CONFIG_INVALID,
                    f"{root_path} is not the root of the repository in the store; use the root.json that "
                    "'egm init' wrote for this trust domain, or another store",
                )
        await self.synchronise()

    async def synchronise(self) -> bool:
        """Adopt what the store holds if it is newer; return whether it was."""
        async with self._changing:
            return await self._synchronise()

    async def publish(self, proposal_id: str, *, who: SpiffeId) -> Published:
        """Publish a proposal that has its quorum; durable when this returns.

        Raises:
            EvidenceError: QUORUM_NOT_MET, naming who is missing, and what `trust.repository.publish` raises.
            StateError: CONFLICT, when another version was published first. InputError: NOT_FOUND.
        """
        await self.synchronise()
        async with self._database.read() as connection:
            proposal = required(await proposals.get(connection, proposal_id), proposal_id)
            uploaded = await proposals.files_of(connection, proposal_id)
        check_publishable(proposal, self.state)
        # Compiling may take seconds: before the lock, so that the lease is renewed meanwhile.
        checked_against = dict(self.state.roles)
        settings = await self.check_enforceable(proposal, uploaded)
        async with self._changing:
            async with self._database.write() as connection:
                revision = await repository.lock_head(connection)
                state = await load_state(connection)
                if dict(state.roles) != checked_against:
                    raise StateError(
                        Reason.CONFLICT, "another policy was published at the same moment; publish again"
                    )
                proposal = required(await proposals.get(connection, proposal_id, lock=True), proposal_id)
                new = await asyncio.to_thread(self._signed_files, proposal, uploaded, state, settings)
                await repository.write(connection, new, revision=revision)
                await self._close(connection, proposal, who)
            try:
                await self._synchronise()
            except (MeshError, OSError) as error:
                # It is published: the store has it. `run` brings it to disk and announces it.
                self._failed(f"a publication is not served yet: {error}")
        after = state.after(new).versions()
        logger.info("published %s version %d (%s)", proposal.role, proposal.version, proposal.id)
        closed = replace(proposal, state=advance(proposal, Event.PUBLISH))
        return Published(closed, after.get("snapshot", 0), after.get("timestamp", 0))

    async def renew_if_due(self) -> bool:
        """Extend the lease when its time has come and no other control plane did; return whether it was extended."""
        if self._state is None or not self._is_due(self._state):
            return False
        async with self._changing:
            async with self._database.write() as connection:
                revision = await repository.lock_head(connection)
                state = await load_state(connection)
                if not self._is_due(state):  # another control plane was first
                    new: dict[str, bytes] = {}
                else:
                    signers = self._keyring.for_root(state)
                    new = renew(state, signers, now_ms=self._clock.now_ms(), lease_ttl_s=self.lease_ttl_s)
                await repository.write(connection, new, revision=revision)
            await self._synchronise()
        return bool(new)

    async def run(self) -> None:
        """Follow the store and keep the lease fresh until cancelled. Failures are kept in `problem` and retried."""
        while True:
            try:
                await self.synchronise()
                await self.renew_if_due()
                self.problem = None
            except (MeshError, OSError) as error:
                self._failed(str(error))
            except Exception:  # a fault of ours must not end the lease of the whole mesh: say it and go on
                logger.exception("lease renewal")
                self._failed("internal error; the log has the details")
            await asyncio.sleep(min(SYNC_PERIOD_S, self.lease_ttl_s * self._renew_fraction / 2))

    def _failed(self, why: str) -> None:
        problem = f"publication and renewal: {why}"
        if problem != self.problem:
            logger.error("%s; will retry", problem)
        self.problem = problem

    async def check_enforceable(
        self, proposal: Proposal, uploaded: Mapping[str, bytes]
    ) -> MeshSettings | None:
        """Check that nodes can enforce the proposal with all else in force; return the settings it leads to.

        Args:
            proposal: open, of any role.
            uploaded: target path to archive; empty when only the metadata changes.

        Raises:
            MeshError: what is wrong with the bundle, for its author.
        """
        role, state = proposal.role, self.state
        if role == ROOT_ROLE:
            return self._settings
        base = (
            parse_metadata(proposal.metadata, Targets)
            if role == BASE_ROLE
            else state.role_metadata(BASE_ROLE)
        )
        paths = {
            name: target_file_path(name, sha256_of_target(name, metadata.signed))
            for name in {*_delegated(base), role}
            if (metadata := state.role_metadata(name)) is not None
        }
        async with self._database.read() as connection:
            held = await repository.load(connection, paths.values())
        archives = {name: held[path] for name, path in paths.items()}
        archive = uploaded.get(target_path(role), archives.pop(role, None))
        if archive is None:
            raise EvidenceError(Reason.DIGEST_MISMATCH, f"the archive of {role} was not sent")
        bundle = await asyncio.to_thread(self._check, role, archive, archives)
        return bundle.mesh if role == BASE_ROLE else self._settings

    def _signed_files(
        self,
        proposal: Proposal,
        uploaded: dict[str, bytes],
        state: RepositoryState,
        settings: MeshSettings | None,
    ) -> dict[str, bytes]:
        check_publishable(proposal, state)
        metadata = signed_metadata(proposal)
        data = metadata.to_bytes()
        following = (
            state.after({metadata_path(ROOT_ROLE, proposal.version): data})
            if proposal.role == ROOT_ROLE
            else state
        )
        return publish(
            state,
            {proposal.role: data},
            uploaded,
            self._keyring.for_root(following),
            now_ms=self._clock.now_ms(),
            lease_ttl_s=(LeaseSettings() if settings is None else settings.lease).ttl_s,
        )

    async def _close(self, connection: AsyncConnection, proposal: Proposal, who: SpiffeId) -> None:
        await proposals.set_state(connection, proposal.id, advance(proposal, Event.PUBLISH))
        for other in await proposals.open_of_role(connection, proposal.role):
            await proposals.set_state(connection, other.id, advance(other, Event.SUPERSEDE))
        await audit.record(
            connection,
            at_ms=self._clock.now_ms(),
            who=str(who),
            action="publish",
            proposal_id=proposal.id,
            detail=f"{proposal.role} version {proposal.version}",
        )

    async def _synchronise(self) -> bool:
        async with self._database.read() as connection:
            revision = await repository.revision(connection)
            if revision == self._revision:
                return False
            state = await load_state(connection)
            changed = await repository.listing(connection, after=self._revision)
            wanted = {file.path: file.sha256 for file in changed}
            missing = await asyncio.to_thread(self._files.missing, wanted)
            # One file at a time: they may be large. timestamp.json is the last in this order.
            for path in missing:
                files = await repository.load(connection, [path])
                # To its end: an older timestamp.json must not come over one that is written next.
                await to_thread_until_done(self._files.write, files)
        settings = await to_thread_until_done(self._read_settings, state)
        base = state.role_metadata(BASE_ROLE)
        if base is not None:
            self.base = (base.signed.version, bytes.fromhex(digest_of(base)))
        fresh = settings is not None and settings is not self._settings_told
        self._state, self._settings, self._revision = state, settings, revision
        if fresh and settings is not None:
            self._settings_told = settings
            self._governed(settings)
        if state.timestamp is not None and state.timestamp != self._announced:
            await self._announce(state.timestamp)
            self._announced = state.timestamp
        return True

    def _read_settings(self, state: RepositoryState) -> MeshSettings | None:
        base = state.role_metadata(BASE_ROLE)
        if base is None:
            return None
        sha256 = sha256_of_target(BASE_ROLE, base.signed)
        if sha256 != self._settings_of or self._settings is None:
            opened = self._files.open(target_file_path(BASE_ROLE, sha256))
            if opened is None:
                raise EvidenceError(Reason.METADATA_INVALID, "the repository lacks the base bundle in force")
            with opened[0] as file:
                self._settings = read_bundle(file.read(), role=BASE_ROLE).mesh
            self._settings_of = sha256
        return self._settings

    def _is_due(self, state: RepositoryState) -> bool:
        expires_ms = state.lease_expires_ms()
        if expires_ms is None:
            return False
        left_ms = self.lease_ttl_s * 1000 * (1 - self._renew_fraction)
        return expires_ms - self._clock.now_ms() <= left_ms


def required(proposal: Proposal | None, proposal_id: str) -> Proposal:
    """Return the proposal.

    Raises:
        InputError: NOT_FOUND, when there is none.
    """
    if proposal is None:
        raise InputError(
            Reason.NOT_FOUND, f"there is no proposal {proposal_id[:64]!r}; list them with: egm policy status"
        )
    return proposal


async def load_state(connection: AsyncConnection) -> RepositoryState:
    """Read what is in force from the store.

    Raises:
        EvidenceError: METADATA_INVALID and the others of `trust.chain`, if the store was tampered with.
    """
    held = await repository.load_roots(connection)
    held |= await repository.load(connection, [TIMESTAMP])
    if TIMESTAMP in held:
        pinned = parse_metadata(held[TIMESTAMP], Timestamp).signed.snapshot_meta
        snapshot_path = metadata_path("snapshot", pinned.version)
        held |= await repository.load(connection, [snapshot_path])
        if snapshot_path in held:
            listed = parse_metadata(held[snapshot_path], Snapshot).signed.meta
            roles = [metadata_path(name.removesuffix(".json"), meta.version) for name, meta in listed.items()]
            held |= await repository.load(connection, roles)
    return RepositoryState.load(held.get)


def _delegated(base: Metadata[Targets] | None) -> set[str]:
    """Return the roles whose bundles a node enforces under this base policy."""
    if base is None:
        return set()
    delegations = base.signed.delegations
    return {BASE_ROLE, *((delegations.roles or {}) if delegations is not None else {})}
