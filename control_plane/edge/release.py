"""Making, reviewing and signing proposals at an operator's or approver's terminal.

What is in force is verified here, signature by signature, so that a lying control plane can show an approver
nothing that the quorum did not sign.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, Root, Targets

from control_plane.edge.mesh_file import MeshFile
from control_plane.edge.operator_client import Credentials, OperatorClient, ProposalContent
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
from trust.edge.distribution_client import GrpcFileSource
from trust.edge.files import write_atomic
from trust.errors import CapacityError, EvidenceError, InputError, Reason, StateError
from trust.metadata import ONLINE_ROLES
from trust.policy.source import build
from trust.ports import FileSource
from trust.quorum import keys_of
from trust.repository import RepositoryState, metadata_path, target_file_path
from trust.verified import BASE_ROLE, VerifiedPolicy, target_path

FLOOR_FILE: Final = "operator-floor.json"


@dataclass(frozen=True, slots=True)
class InForce:
    """What the approvers' quorum has put in force, verified here."""

    root: Metadata[Root]
    roles: Mapping[str, Metadata[Targets]]  # empty before the first publication
    policy: VerifiedPolicy | None

    def bundle(self, role: str) -> Bundle | None:
        """Return the bundle of `role` in force, or None."""
        if self.policy is None:
            return None
        target = self.policy.base if role == BASE_ROLE else self.policy.namespaces.get(role)
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

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the bytes that a signature covers."""
        return digest_of(self.metadata)


class Release:
    """One mesh as its operators and approvers see it."""

    def __init__(self, mesh: MeshFile, directory: Path, client: OperatorClient) -> None:
        self._mesh, self._directory, self._client = mesh, directory, client
        self._clock = SystemClock()

    async def in_force(self) -> InForce:
        """Fetch and verify what is published now.

        Raises:
            MeshError: the control plane cannot be reached, or serves what does not verify.
        """
        return await asyncio.to_thread(self._in_force)

    def _in_force(self) -> InForce:
        trusted = Path(self._mesh.root).read_bytes()
        version = parse_metadata(trusted, Root).signed.version
        source = self._source()

        def read(path: str) -> bytes | None:
            if path == metadata_path("root", version):
                return trusted
            try:
                return _fetch(source, path)
            except FileNotFoundError:
                return None

        try:
            state = RepositoryState.load(read)
            root = state.root_metadata()
            if state.timestamp is None or state.snapshot is None:
                self._check_floor({"root": root.signed.version})
                return InForce(root, {}, None)
            # Expiry is not judged here: an expired policy is what a new proposal must be able to follow.
            stored = Stored((), state.timestamp, state.snapshot, state.roles)
            verified = verify_metadata(root.signed, stored)
            self._check_floor(verified.versions)
            paths = {sha256_of_target(role, targets): role for role, targets in verified.roles.items()}
            policy = verify_policy(verified, lambda sha256: read(target_file_path(paths[sha256], sha256)))
        finally:
            source.close()
        roles = {role: parse_metadata(data, Targets) for role, data in state.roles.items()}
        return InForce(root, {role: roles[role] for role in verified.roles}, policy)

    def _check_floor(self, versions: Mapping[str, int]) -> None:
        """Refuse a control plane that shows less than it once showed here; then remember what it shows."""
        file = self._directory / FLOOR_FILE
        floor: dict[str, int] = json.loads(file.read_bytes()) if file.is_file() else {}
        for role, lowest in floor.items():
            if role not in ONLINE_ROLES and versions.get(role, lowest) < lowest:
                raise StateError(
                    Reason.POLICY_ROLLBACK,
                    f"the control plane shows version {versions[role]} of {role}; it showed {lowest} before",
                )
        if floor != (raised := floor | dict(versions)):
            write_atomic(file, json.dumps(raised, sort_keys=True).encode())

    def _source(self) -> GrpcFileSource:
        credentials = Credentials.load(self._directory / self._mesh.operator)
        return GrpcFileSource(
            [self._mesh.control_plane],
            lambda: grpc.ssl_channel_credentials(credentials.anchors, credentials.key, credentials.chain),
            [("grpc.ssl_target_name_override", f"control-plane.{self._mesh.trust_domain}")],
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
        archive = await asyncio.to_thread(self._old_archive, role, version)
        title = f"Roll back {'the base' if role == BASE_ROLE else role} to the content of version {version}"
        return await self.propose(archive, role=role, title=title)

    def _old_archive(self, role: str, version: int) -> bytes:
        source = self._source()
        try:
            old = parse_metadata(_fetch(source, metadata_path(role, version)), Targets)
            target = old.signed.targets[target_path(role)]
            archive = _fetch(source, target_file_path(role, target.hashes["sha256"]))
        except (FileNotFoundError, KeyError):
            raise InputError(
                Reason.NOT_FOUND, f"version {version} of {role} is not in the repository"
            ) from None
        finally:
            source.close()
        target.verify_length_and_hashes(archive)
        return archive

    async def review(self, proposal_id: str) -> Reviewed:
        """Fetch a proposal and check that its parts belong together and follow what is in force.

        Raises:
            EvidenceError: DIGEST_MISMATCH, METADATA_INVALID or POLICY_ROLLBACK: do not sign this.
        """
        content = await self._client.proposal(proposal_id)
        in_force = await self.in_force()
        role = content.proposal.role
        metadata: Metadata[Any] = parse_metadata(content.metadata, Root if role == "root" else Targets)
        current: Metadata[Any] | None = in_force.root if role == "root" else in_force.roles.get(role)
        expected = 1 if current is None else current.signed.version + 1
        if metadata.signed.version != expected:
            raise EvidenceError(
                Reason.POLICY_ROLLBACK,
                f"proposal {proposal_id} is version {metadata.signed.version} of {role}, "
                f"what comes next is {expected}; propose it again",
            )
        base = in_force.bundle(BASE_ROLE) if role != BASE_ROLE else None
        bundle = None if role == "root" else _bundle_of(metadata, role, content.files, in_force)
        return Reviewed(content, metadata, role, bundle, in_force.bundle(role), base)

    async def sign(self, reviewed: Reviewed, signer: Signer) -> operator_pb2.Proposal:
        """Sign what was reviewed, and hand the signature in.

        Raises:
            EvidenceError: NOT_AUTHORIZED, before anything is sent, if the key may not sign this role.
        """
        in_force = await self.in_force()
        allowed = _allowed_keys(reviewed, in_force)
        if signer.public_key.keyid not in allowed:
            names = ", ".join(
                sorted(str(k.unrecognized_fields.get("x-egm-name", i[:12])) for i, k in allowed.items())
            )
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


def _bundle_of(
    metadata: Metadata[Targets], role: str, files: Mapping[str, bytes], in_force: InForce
) -> Bundle | None:
    """Return the bundle that the metadata names, from the proposal or, if unchanged, from what is in force."""
    path = target_path(role)
    named = metadata.signed.targets.get(path)
    if named is None:
        return None
    data = files.get(path)
    if data is None:
        unchanged = in_force.bundle(role)
        if unchanged is None or unchanged.digest != named.hashes.get("sha256"):
            raise EvidenceError(Reason.DIGEST_MISMATCH, f"the proposal names a {path} that it does not carry")
        return unchanged
    bundle = read_bundle(data, role=role)
    if bundle.digest != named.hashes.get("sha256") or len(data) != named.length:
        raise EvidenceError(Reason.DIGEST_MISMATCH, f"the file {path} is not the one that the metadata names")
    return bundle


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
