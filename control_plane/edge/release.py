"""Making, reviewing and signing proposals at an operator's or approver's terminal.

What is in force is verified here, signature by signature, so that a lying control plane can show an approver
nothing that the quorum did not sign.
"""

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from securesystemslib.signer import Signer
from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import Metadata, Root, Targets

from control_plane.core.bundle_checks import check_bundles
from control_plane.core.proposals import ID_DIGITS
from control_plane.edge.mesh_file import MeshFile
from control_plane.edge.operator_client import Credentials, OperatorClient, ProposalContent
from control_plane.edge.operator_memory import OperatorMemory
from control_plane.edge.source_folder import read_folder
from egm.v1 import operator_pb2
from trust import limits
from trust.authoring import (
    POLICY_LIFETIME_S,
    Holders,
    digest_of,
    first_targets,
    next_namespace,
    next_targets,
    parse_metadata,
    signable_bytes,
)
from trust.bundle import Bundle, read_bundle, read_claimed_bundle
from trust.chain import Stored, sha256_of_target, verify_metadata, verify_policy
from trust.edge.clock import SystemClock
from trust.edge.file_source import GrpcFileSource
from trust.errors import CapacityError, EvidenceError, InputError, Reason
from trust.keys import key_name
from trust.metadata import ONLINE_ROLES, check, check_root, check_targets, lint_rotation
from trust.metadata_diff import HolderChange, holder_changes
from trust.policy.source import build
from trust.ports import FileSource
from trust.quorum import keys_of
from trust.repository import RepositoryState, metadata_path, target_file_path
from trust.verified import BASE_ROLE, VerifiedPolicy, target_path
from trust.x509 import control_plane_dns


@dataclass(frozen=True, slots=True)
class InForce:
    """What the approvers' quorum has put in force, verified here."""

    root: Metadata[Root]
    roles: Mapping[str, Metadata[Targets]]  # empty before the first publication
    policy: VerifiedPolicy | None

    def bundle(self, role: str) -> Bundle | None:
        """Return the bundle of `role` in force, or None."""
        target = None if self.policy is None else self.policy.target(role)
        return None if target is None else read_bundle(target.data, role=role)


@dataclass(frozen=True, slots=True)
class Reviewed:
    """A proposal whose parts were checked against each other: what an approver may look at and sign."""

    content: ProposalContent
    metadata: Metadata[Any]
    role: str
    bundle: Bundle | None  # None: the role's keys or delegations change, not its bundle
    previous: Bundle | None
    base: Bundle | None  # the base in force, for a namespace
    holders: tuple[HolderChange, ...]  # who may sign what, and until when: not part of any bundle

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the bytes that a signature covers."""
        return digest_of(self.metadata)


class Release:
    """One mesh as its operators and approvers see it."""

    def __init__(self, mesh: MeshFile, directory: Path, client: OperatorClient) -> None:
        self._mesh, self._directory, self._client = mesh, directory, client
        self._clock, self._memory = SystemClock(), OperatorMemory(directory)
        self._loop: asyncio.AbstractEventLoop | None = None  # of the connections; files are read in threads

    async def in_force(self) -> InForce:
        """Fetch and verify what is published now.

        Raises:
            MeshError: the control plane cannot be reached, or serves what does not verify.
        """
        self._loop = asyncio.get_running_loop()
        return await asyncio.to_thread(self._in_force)

    def _in_force(self) -> InForce:
        trusted = Path(self._mesh.root).read_bytes()
        source = self._source()

        def read(path: str) -> bytes | None:
            try:
                return _fetch(source, path)
            except FileNotFoundError:
                return None

        try:
            state = RepositoryState.load(read, anchor=trusted)
            root = state.root_metadata()
            if state.timestamp is None or state.snapshot is None:
                self._memory.check_floor({"root": root.signed.version}, frozenset({BASE_ROLE}))
                return InForce(root, {}, None)
            # Expiry is not judged here: an expired policy is what a new proposal must be able to follow.
            stored = Stored((), state.timestamp, state.snapshot, state.roles)
            verified = verify_metadata(root.signed, stored)
            delegations = verified.roles[BASE_ROLE].delegations
            delegated = frozenset() if delegations is None else frozenset(delegations.roles or {})
            self._memory.check_floor(verified.versions, delegated | {BASE_ROLE})
            paths = {sha256_of_target(role, targets): role for role, targets in verified.roles.items()}
            policy = verify_policy(verified, lambda sha256: read(target_file_path(paths[sha256], sha256)))
        finally:
            source.close()
        roles = {role: parse_metadata(data, Targets) for role, data in state.roles.items()}
        return InForce(root, {role: roles[role] for role in verified.roles}, policy)

    def _source(self) -> GrpcFileSource:
        credentials = Credentials.load(self._directory / self._mesh.operator)
        return GrpcFileSource(
            [self._mesh.control_plane],
            lambda: grpc.ssl_channel_credentials(credentials.anchors, credentials.key, credentials.chain),
            [("grpc.ssl_target_name_override", control_plane_dns(self._mesh.trust_domain))],
            loop=self._loop,
        )

    async def propose(
        self, archive: bytes, *, role: str, title: str, lifetime_s: int = POLICY_LIFETIME_S
    ) -> operator_pb2.Proposal:
        """Propose `archive` as the next version of `role`."""
        now_ms = self._clock.now_ms()
        previous = (await self.in_force()).roles.get(role)
        if role != BASE_ROLE:
            metadata = next_namespace(previous, role, archive, now_ms=now_ms, lifetime_s=lifetime_s)
        elif previous is None:
            metadata = first_targets(archive, now_ms=now_ms, lifetime_s=lifetime_s)
        else:
            metadata = next_targets(previous, archive, now_ms=now_ms, lifetime_s=lifetime_s)
        files = {target_path(role): archive}
        return await self._client.propose(role=role, title=title, metadata=metadata.to_bytes(), files=files)

    async def propose_namespace(
        self, namespace: str, holders: Holders | None, *, title: str
    ) -> operator_pb2.Proposal:
        """Propose new approvers for a namespace, or (None) its end. Signed by the base's approvers."""
        previous = (await self.in_force()).roles.get(BASE_ROLE)
        if previous is None:
            raise InputError(Reason.POLICY_MISSING, "publish a base bundle before delegating a namespace")
        metadata = next_targets(previous, None, now_ms=self._clock.now_ms(), delegate={namespace: holders})
        return await self._client.propose(role=BASE_ROLE, title=title, metadata=metadata.to_bytes(), files={})

    async def propose_root(self, metadata: bytes, *, title: str) -> operator_pb2.Proposal:
        """Propose a new root version, made by `egm keys rotate`."""
        parse_metadata(metadata, Root)
        return await self._client.propose(role="root", title=title, metadata=metadata, files={})

    async def rollback(self, *, role: str, version: int) -> operator_pb2.Proposal:
        """Propose the content that `role` had at `version`, as a new version.

        Raises:
            InputError: NOT_FOUND, if that version was never published or is the one in force.
        """
        in_force = await self.in_force()
        current = in_force.roles.get(role)
        if current is None or version >= current.signed.version:
            newest = 0 if current is None else current.signed.version
            raise InputError(
                Reason.NOT_FOUND, f"{role} is at version {newest}; choose an earlier version than that"
            )
        archive = await self.archive(role, version)
        title = f"Roll back {'the base' if role == BASE_ROLE else role} to the content of version {version}"
        return await self.propose(archive, role=role, title=title)

    async def archive(self, role: str, version: int) -> bytes:
        """Return the archive that `role` had at `version`, as its metadata names it.

        Raises:
            InputError: NOT_FOUND, if that version was never published.
            EvidenceError: DIGEST_MISMATCH.
        """
        self._loop = asyncio.get_running_loop()
        return await asyncio.to_thread(self._old_archive, role, version)

    def _old_archive(self, role: str, version: int) -> bytes:
        source = self._source()
        try:
            old = parse_metadata(_fetch(source, metadata_path(role, version)), Targets)
            target = old.signed.targets[target_path(role)]
            archive = _fetch(source, target_file_path(role, target.hashes["sha256"]))
            target.verify_length_and_hashes(archive)
        except (FileNotFoundError, KeyError):
            raise InputError(
                Reason.NOT_FOUND, f"version {version} of {role} is not in the repository"
            ) from None
        except LengthOrHashMismatchError:
            detail = f"the archive of version {version} of {role} is not the one that its metadata names"
            raise EvidenceError(Reason.DIGEST_MISMATCH, detail) from None
        finally:
            source.close()
        return archive

    async def review(self, proposal_id: str) -> Reviewed:
        """Fetch a proposal and check that its parts belong together and follow what is in force.

        Nothing that the control plane says of the proposal is believed: the id must be that of the metadata, the
        metadata must be acceptable for its role, and the bundle must be one that nodes could enforce.

        Raises:
            MeshError: DIGEST_MISMATCH, METADATA_INVALID, METADATA_UNSAFE, POLICY_ROLLBACK, INPUT_INVALID and
                what else nodes would refuse: do not sign this.
        """
        content = await self._client.proposal(proposal_id)
        return await asyncio.to_thread(self._reviewed, proposal_id, content, await self.in_force())

    def _reviewed(self, proposal_id: str, content: ProposalContent, in_force: InForce) -> Reviewed:
        role = content.proposal.role
        metadata: Metadata[Any] = parse_metadata(content.metadata, Root if role == "root" else Targets)
        if digest_of(metadata)[:ID_DIGITS] != proposal_id:
            raise EvidenceError(
                Reason.DIGEST_MISMATCH,
                f"the control plane sent something else than proposal {proposal_id[:ID_DIGITS]}: do not sign it",
            )
        self._check_metadata(role, metadata, in_force)
        current: Metadata[Any] | None = in_force.root if role == "root" else in_force.roles.get(role)
        expected = 1 if current is None else current.signed.version + 1
        if metadata.signed.version != expected:
            raise EvidenceError(
                Reason.POLICY_ROLLBACK,
                f"proposal {proposal_id} is version {metadata.signed.version} of {role}, "
                f"what comes next is {expected}; propose it again",
            )
        base = in_force.bundle(BASE_ROLE) if role != BASE_ROLE else None
        bundle = None
        if role != "root":
            archive = _archive_of(metadata, role, content.files, in_force)
            others = _others(metadata, role, in_force)
            bundle = check_bundles(role, archive, others, trust_domain=self._mesh.trust_domain)
        holders = tuple(holder_changes(None if current is None else current.signed, metadata.signed))
        return Reviewed(content, metadata, role, bundle, in_force.bundle(role), base, holders)

    def _check_metadata(self, role: str, metadata: Metadata[Any], in_force: InForce) -> None:
        """Refuse what a node would refuse, above all metadata of another role than the one it is shown as."""
        now_ms, root = self._clock.now_ms(), in_force.root.signed
        if role == "root":
            check(lint_rotation(root, metadata.signed))
            check_root(metadata.signed, now_ms=now_ms)
        elif role in ONLINE_ROLES:
            raise EvidenceError(Reason.NOT_AUTHORIZED, f"{role} metadata is made by the control plane alone")
        else:
            check_targets(role, metadata.signed, root, now_ms=now_ms)

    def remember(self, reviewed: Reviewed) -> None:
        """Note what was shown to the person at this terminal, for `check_reviewed`."""
        self._memory.note_reviewed(reviewed.digest)

    def check_reviewed(self, reviewed: Reviewed, digest: str | None = None) -> None:
        """Refuse to sign anything but what was shown: an id is the start of a digest, and two may begin alike.

        Args:
            reviewed: what the control plane sends now.
            digest: what the person saw elsewhere; None: what `remember` noted here, if anything.

        Raises:
            EvidenceError: DIGEST_MISMATCH.
        """
        self._memory.check_reviewed(reviewed.digest, digest)

    async def sign(
        self, reviewed: Reviewed, signer: Signer, *, digest: str | None = None
    ) -> operator_pb2.Proposal:
        """Sign what was reviewed, and hand the signature in.

        Args:
            reviewed: from `review`.
            signer: the approver's key.
            digest: what the approver saw, if it was on another machine.

        Raises:
            EvidenceError: DIGEST_MISMATCH, if a person at this terminal was shown something else.
            EvidenceError: NOT_AUTHORIZED, before anything is sent, if the key may not sign this role.
        """
        self.check_reviewed(reviewed, digest)
        in_force = await self.in_force()
        allowed = _allowed_keys(reviewed, in_force)
        if signer.public_key.keyid not in allowed:
            names = ", ".join(sorted(map(key_name, allowed.values())))
            raise EvidenceError(
                Reason.NOT_AUTHORIZED,
                f"this key is not an approver of {reviewed.role}; approvers are: {names}",
            )
        signature = signer.sign(signable_bytes(reviewed.metadata))
        return await self._client.add_signature(
            reviewed.content.proposal.id, signature.keyid, signature.signature
        )


def _fetch(source: FileSource, path: str) -> bytes:
    """Return one file, refusing more bytes than any file of the repository may have."""
    data = bytearray()
    for chunk in source.fetch(path):
        data += chunk
        if len(data) > limits.MAX_BUNDLE_ARCHIVE_BYTES:
            raise CapacityError(
                Reason.LIMIT_EXCEEDED, f"{path} is over {limits.MAX_BUNDLE_ARCHIVE_BYTES} bytes"
            )
    return bytes(data)


def _archive_of(
    metadata: Metadata[Targets], role: str, files: Mapping[str, bytes], in_force: InForce
) -> bytes:
    """Return the archive that linted metadata names, from the proposal or, if unchanged, from what is in force."""
    path, named = target_path(role), metadata.signed.targets[target_path(role)]
    data = files.get(path)
    if data is None:
        held = None if in_force.policy is None else in_force.policy.target(role)
        if held is None or held.sha256 != named.hashes["sha256"]:
            raise EvidenceError(Reason.DIGEST_MISMATCH, f"the proposal names a {path} that it does not carry")
        return held.data
    if hashlib.sha256(data).hexdigest() != named.hashes["sha256"] or len(data) != named.length:
        raise EvidenceError(Reason.DIGEST_MISMATCH, f"the file {path} is not the one that the metadata names")
    return data


def _others(metadata: Metadata[Targets], role: str, in_force: InForce) -> dict[str, bytes]:
    """Return every other archive that nodes would enforce together with the proposal."""
    if in_force.policy is None:
        return {}
    others = {name: target.data for name, target in in_force.policy.namespaces.items() if name != role}
    if role != BASE_ROLE:
        return {**others, BASE_ROLE: in_force.policy.base.data}
    delegations = metadata.signed.delegations
    delegated = {} if delegations is None else delegations.roles or {}
    return {name: data for name, data in others.items() if name in delegated}


def _allowed_keys(reviewed: Reviewed, in_force: InForce) -> dict[str, Any]:
    if reviewed.role == "root":
        return keys_of(in_force.root.signed, "root") | keys_of(reviewed.metadata.signed, "root")
    if reviewed.role == BASE_ROLE:
        return keys_of(in_force.root.signed, BASE_ROLE)
    base = in_force.roles.get(BASE_ROLE)
    if base is None:
        raise EvidenceError(
            Reason.NOT_AUTHORIZED, f"nobody may sign {reviewed.role}: there is no base bundle"
        )
    return keys_of(base.signed, reviewed.role)


def build_folder(folder: Path, *, level_override: int | None = None) -> tuple[bytes, str, str]:
    """Build a policy folder; return the archive, the TUF role that signs it, and the bundle's name.

    Raises:
        InputError: INPUT_INVALID, every mistake with file and line.
    """
    archive = build(read_folder(folder), level_override=level_override)
    manifest = read_claimed_bundle(archive).manifest
    return archive, manifest.namespace or BASE_ROLE, manifest.name


def proposal_to_dict(proposal: operator_pb2.Proposal) -> dict[str, object]:
    """Return a proposal as JSON values."""
    state = operator_pb2.ProposalState.Name(proposal.state).removeprefix("PROPOSAL_STATE_")
    return {
        "id": proposal.id,
        "role": proposal.role,
        "version": proposal.version,
        "digest": proposal.digest,
        "state": state,
        "title": proposal.title,
        "signed_by": [signature.name or signature.key_id for signature in proposal.signatures],
        "threshold": proposal.threshold,
        "missing": list(proposal.missing),
        "proposed_by": proposal.proposed_by,
        "created_ms": proposal.created_ms,
        "expires_ms": proposal.expires_ms,
    }
