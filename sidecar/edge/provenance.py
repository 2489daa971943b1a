"""What makes the executions of one node provable: its key, its ledger, the notary that uses both, and shipping.

DIR/node-key.pem      the Ed25519 key that signs permits and checkpoints
DIR/node-key.pub      its public half, for the interceptors of local services
DIR/permit-floor      from when on permits count after a restart
DIR/ledger/           the ledger (C2SP tlog-tiles), DIR/ledger.name which one it is
DIR/ledger-head       a copy of its last checkpoint: notices a restored older ledger directory
DIR/endorsements/     what vouched for the key over time, for evidence
DIR/credentials/      trust credentials that permits named, for evidence: of this node, in `peers` of others
DIR/ledger-open       the index of the oldest execution that was still open
"""

import asyncio
import logging
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from sidecar.config import SidecarConfig
from sidecar.core.bundle_state import BundleState
from sidecar.core.endorsements import Endorsements
from sidecar.core.permits import Minter, Verifier
from sidecar.core.pipeline import Pipeline
from sidecar.core.readiness import Alarms
from sidecar.core.replay import ReplayCache
from sidecar.edge.attestation_files import CREDENTIAL_FILE
from sidecar.edge.case import Journal, Signing, Trust
from sidecar.edge.group_commit import GroupCommit
from sidecar.edge.ledger_feed import LedgerFeed, RecentRecords
from sidecar.edge.node_signer import KEY_FILE, NodeSigner
from sidecar.edge.notary import Notary
from sidecar.edge.permit_floor import FLOOR_FILE, PermitFloor
from sidecar.edge.shipping import Shipper
from trust import limits
from trust.edge.credential_files import KeptCredentials
from trust.edge.endorsements import EndorsementFiles, PeerEndorsements
from trust.edge.files import write_atomic
from trust.edge.ids import ExecutionIds
from trust.edge.ledger import Archiver, Ledger
from trust.edge.ledger.place import below
from trust.edge.tls import Channels
from trust.errors import CapacityError, MeshError, Reason, StateError
from trust.execution import OpenExecutions
from trust.gossip import Head
from trust.identity import IdentitySource
from trust.permit import certificate_sha256
from trust.ports import Clock
from trust.record import Intent, Outcome, build_record, interrupted, parse_record
from trust.spiffe import SpiffeId

logger = logging.getLogger(__name__)

LEDGER_DIRECTORY: Final = "ledger"
ENDORSEMENTS_DIRECTORY: Final = "endorsements"
CREDENTIALS_DIRECTORY: Final = "credentials"
_OPEN_PERIOD_S: Final = 5.0
_MAX_INDEX_DIGITS: Final = 20
_ALARM: Final = "ledger"


class LedgerJournal:
    """The ledger as the notary writes to it, with what is still open and what shipping needs next."""

    def __init__(self, ledger: Ledger, opened: OpenExecutions, recent: RecentRecords) -> None:
        self._ledger, self._opened, self._recent = ledger, opened, recent
        self._commit = GroupCommit(ledger.durable, lambda: len(opened))

    def append(self, record: Intent | Outcome) -> object:
        """Take one record; see `sidecar.edge.case.Journal`."""
        data = build_record(record)
        if isinstance(record, Intent):
            waiting = self._ledger.size - self._ledger.durable_size
            if waiting >= limits.MAX_LEDGER_QUEUE_RECORDS - limits.LEDGER_OUTCOME_ROOM_RECORDS:
                raise CapacityError(
                    Reason.LIMIT_EXCEEDED,
                    f"the ledger's disk is behind: {waiting} records wait for it; try again",
                )
        pending = self._ledger.append(data)
        self._recent.note(pending.index, data)
        self._opened.note(pending.index, record)
        return pending

    async def durable(self, pending: object) -> None:
        """Wait until the record is durable; see `sidecar.edge.case.Journal`."""
        await self._commit.durable(pending)  # type: ignore[arg-type]  # what `append` returned


class Unwritable:
    """The ledger of a node whose disk or history does not allow one: level 5 refuses, lower levels alarm."""

    def __init__(self, why: MeshError) -> None:
        self._why = why

    def append(self, record: Intent | Outcome) -> object:
        """Refuse; see `sidecar.edge.case.Journal`."""
        raise StateError(Reason.LEDGER_UNAVAILABLE, self._why.detail)

    async def durable(self, pending: object) -> None:
        """Refuse; see `sidecar.edge.case.Journal`."""
        raise StateError(Reason.LEDGER_UNAVAILABLE, self._why.detail)


class Provenance:
    """The parts, opened together and closed together. Without a usable ledger there is only a notary."""

    def __init__(
        self,
        notary: Notary,
        ledger: Ledger | None,
        opened: OpenExecutions,
        open_path: Path,
        shipper: Shipper | None,
        *,
        vouch: Callable[[], None] = lambda: None,
        peers: PeerEndorsements | None = None,
    ) -> None:
        """Use `open`. `vouch` writes down what vouches for the key now, `peers` what vouched for those of others."""
        self.notary, self.ledger, self.shipper = notary, ledger, shipper
        self.signer: NodeSigner | None = None  # set by `open`
        self.archiver: Archiver | None = None  # set by `open`
        self.credentials: KeptCredentials | None = None  # set by `open`
        self._opened, self._open_path, self._vouch, self._peers = opened, open_path, vouch, peers

    @classmethod
    async def open(
        cls,
        config: SidecarConfig,
        *,
        identity: IdentitySource,
        channels: Channels,
        pipeline: Pipeline,
        state: BundleState,
        callee: Callable[[str], str],
        boot_id: str,
        clock: Clock,
        alarms: Alarms,
        trust: Trust | None = None,
        credentials: KeptCredentials | None = None,
    ) -> Self:
        """Open (or create) key and ledger, and close what a crash left open. `credentials` are kept for evidence.

        A ledger that cannot be used (LEDGER_CONTRADICTED, LEDGER_UNAVAILABLE) is an alarm here: what it means for a
        call depends on the level in force.

        Raises:
            InputError: KEY_UNREADABLE; CONFIG_INVALID, for an archive that cannot be used on this machine.
        """
        node = config.spiffe_id("node", config.node)
        peers = PeerEndorsements(config.data_dir / ENDORSEMENTS_DIRECTORY)
        signer = NodeSigner(config.data_dir / KEY_FILE, node, identity, clock)
        open_path = config.data_dir / "ledger-open"
        ledger, shipper, opened = None, None, OpenExecutions()
        journal: Journal
        try:
            ledger = await asyncio.to_thread(_open_ledger, config, signer, clock)
            opened = await asyncio.to_thread(_left_open, open_path, ledger)
            feed = LedgerFeed(ledger)
            journal = LedgerJournal(ledger, opened, feed.recent)
            _close_orphans(journal, opened, boot_id, clock)
            shipper = Shipper(
                channels,
                config.control_plane.addresses,
                node=node,
                ledger=_ledger_name(config.data_dir / "ledger.name", ledger),
                source=feed.read,
                size=lambda: ledger.durable_size,
            )
        except (MeshError, OSError) as error:
            failure = (
                error if isinstance(error, MeshError) else StateError(Reason.LEDGER_UNAVAILABLE, str(error))
            )
            _alarm(alarms, f"the ledger cannot be used: {failure}")
            journal = Unwritable(failure)
        notary = Notary(
            node=config.node,
            boot_id=boot_id,
            clock=clock,
            ids=ExecutionIds().new,
            level=pipeline.level,
            in_force=lambda: state.in_force,
            callee=callee,
            journal=journal,
            signing=_signing(config, signer, identity, node, clock, peers=peers),
            alarm=lambda text: _alarm(alarms, text),
            trust=trust,
            named=(lambda _credential: None) if credentials is None else credentials.own.note,
        )
        kept = EndorsementFiles(config.data_dir / ENDORSEMENTS_DIRECTORY)

        def vouch() -> None:
            try:
                kept.keep(signer.endorsement(), identity.anchors_pem())
            except (MeshError, OSError) as error:
                logger.warning("the endorsement of the signing key was not kept for evidence: %s", error)

        made = cls(notary, ledger, opened, open_path, shipper, vouch=vouch, peers=peers)
        made.signer = signer
        made.credentials = credentials
        if credentials is not None:
            await asyncio.to_thread(credentials.restore, config.data_dir / CREDENTIAL_FILE)
        if ledger is not None and shipper is not None:
            made.archiver = _archiver(config, ledger, opened, shipper)
        return made

    async def run(self) -> None:
        """Ship records, and remember from where on executions are open, until cancelled."""
        async with asyncio.TaskGroup() as group:
            if self.shipper is not None:
                group.create_task(self.shipper.run(), name="shipping")
            if self.archiver is not None:
                group.create_task(self.archiver.run(), name="archiving")
            if self.credentials is not None:
                group.create_task(self.credentials.run(), name="credentials for evidence")
            group.create_task(self._remember(), name="open executions")

    def head(self) -> Head | None:
        """Return the ledger's last signed tree head with what vouches for its key; None when there is none."""
        if self.ledger is None or self.signer is None or not self.ledger.last_checkpoint:
            return None
        try:
            return Head(self.ledger.last_checkpoint, self.signer.endorsement())
        except MeshError:
            return None

    def notes(self) -> tuple[str, ...]:
        """Return what is wrong with recording and shipping, for the alarms of the status."""
        found = []
        if self.ledger is not None and self.ledger.failure is not None:
            found.append(f"the ledger cannot be written: {self.ledger.failure}")
        if self.shipper is not None and self.shipper.last_error is not None:
            found.append(f"{self.shipper.lag} records wait for the index: {self.shipper.last_error}")
        if self.archiver is not None and self.archiver.last_error is not None:
            found.append(f"the ledger is not archived: {self.archiver.last_error}")
        return tuple(found)

    def archiving(self) -> tuple[float, float]:
        """Return how many segments were archived since the start, and 1 while archiving fails; for metrics."""
        if self.archiver is None:
            return 0.0, 0.0
        return float(self.archiver.segments), float(self.archiver.last_error is not None)

    async def close(self) -> None:
        """Make everything durable and sign the last checkpoint."""
        self._vouch()
        await self._keep_peers()
        if self.credentials is not None:
            await self.credentials.flush()
        await self._note_open()
        if self.ledger is not None:
            await self.ledger.close()

    async def _remember(self) -> None:
        while True:
            self._vouch()
            await self._keep_peers()
            await asyncio.sleep(_OPEN_PERIOD_S)
            await self._note_open()

    async def _keep_peers(self) -> None:
        noted = {} if self._peers is None else self._peers.take()
        if self._peers is not None and noted:
            try:
                await asyncio.to_thread(
                    self._peers.write, noted
                )  # many at once after a start of the whole mesh
            except OSError as error:
                logger.warning("endorsements of other nodes were not kept for evidence: %s", error)

    async def _note_open(self) -> None:
        """Write down from where on executions are open; in a thread, because no call may wait for this disk."""
        if self.ledger is None:
            return
        # Never beyond what is durable: a crash must find the records from there on.
        oldest = min(self._opened.oldest_index(self.ledger.size), self.ledger.durable_size)
        try:
            await asyncio.to_thread(write_atomic, self._open_path, b"%d\n" % oldest, mode=0o600)
        except OSError as error:  # an older index is good, too: the next start reads more
            logger.warning("%s was not written: %s", self._open_path, error)


def _alarm(alarms: Alarms, text: str) -> None:
    if alarms.set(_ALARM, text):
        logger.error("alarm: %s", text)


def _open_ledger(config: SidecarConfig, signer: NodeSigner, clock: Clock) -> Ledger:
    return Ledger.open(
        config.data_dir / LEDGER_DIRECTORY,
        origin=f"{config.trust_domain}/node/{config.node}",
        signer=signer.sign,
        public_key=signer.public_key.public_bytes_raw(),
        clock=clock,
        head_file=config.data_dir / "ledger-head",
    )


def _archiver(
    config: SidecarConfig, ledger: Ledger, opened: OpenExecutions, shipper: Shipper
) -> Archiver | None:
    """Return what archives the ledger: never what is not shipped yet, or belongs to an execution that is open."""
    if config.archive is None:
        return None
    kept = config.archive.keep_records

    def before() -> int:
        oldest_open = opened.oldest_index(ledger.size)
        return max(0, min(ledger.durable_size - kept, oldest_open, shipper.acknowledged))

    return Archiver(ledger.directory, below(config.archive.to, ledger.origin), before=before)


def _left_open(path: Path, ledger: Ledger) -> OpenExecutions:
    """Return the executions whose outcome is not in the ledger, reading from where the last run said."""
    text = path.read_bytes().strip() if path.exists() else b"0"
    start = int(text) if text.isdigit() and len(text) < _MAX_INDEX_DIGITS else 0
    start = max(start, ledger.first)  # nothing that is archived was open
    opened = OpenExecutions()
    for frame in ledger.scan(min(start, ledger.durable_size)):
        opened.note(frame.index, parse_record(frame.record))
    return opened


def _close_orphans(journal: LedgerJournal, opened: OpenExecutions, boot_id: str, clock: Clock) -> None:
    orphans = list(opened)
    for intent in orphans:
        outcome = interrupted(
            intent, boot_id=boot_id, wall_ms=clock.now_ms(), monotonic_ms=clock.monotonic_ms()
        )
        journal.append(outcome)
    if orphans:
        logger.warning("%d executions were interrupted by the last stop", len(orphans))


def _signing(
    config: SidecarConfig,
    signer: NodeSigner,
    identity: IdentitySource,
    node: SpiffeId,
    clock: Clock,
    *,
    peers: PeerEndorsements,
) -> Signing:
    floor = PermitFloor(config.data_dir / FLOOR_FILE, clock)
    endorsements = Endorsements(identity.anchors_pem, config.trust_domain, note=peers.note)
    identity.subscribe(endorsements.forget_all)
    verifier = Verifier(endorsements, ReplayCache(boot_ms=floor.boot_ms, remember=floor.remember))
    minter = Minter(node, signer.key_id, signer.sign, lambda: os.urandom(16))
    digests: dict[str, tuple[bytes, bytes]] = {}
    workloads: dict[str, SpiffeId] = {}  # as many as this node dials for

    def client_certificate(principal: str) -> bytes:
        spiffe_id = workloads.get(principal) or SpiffeId.parse(principal)
        chain = identity.svid(spiffe_id).chain_pem
        workloads[principal] = spiffe_id
        known = digests.get(principal)
        if known is None or known[0] != chain:
            known = digests[principal] = (chain, certificate_sha256(chain))
        return known[1]

    return Signing(minter, verifier, signer.endorsement, client_certificate)


def _ledger_name(path: Path, ledger: Ledger) -> str:
    """Return the name that tells this ledger from any other that the node ever had."""
    if ledger.durable_size and path.exists():
        return path.read_text().strip()
    name = f"{ledger.origin}#{secrets.token_hex(8)}"
    write_atomic(path, name.encode())
    return name
