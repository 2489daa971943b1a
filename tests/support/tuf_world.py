"""A trust domain in memory with every key at hand, so that tests can publish, and attack, real metadata."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import Metadata, Root, Targets

from trust.keys import NAME_FIELD
from trust.repository import (
    Holders,
    OnlineSigners,
    RepositoryState,
    first_targets,
    metadata_path,
    new_root,
    next_root,
    next_targets,
    publish,
    renew,
    sign,
)
from trust.verified import BASE_ROLE, target_path


def signer(name: str) -> CryptoSigner:
    """Return a fresh Ed25519 signer whose key carries a display name."""
    made = CryptoSigner.generate_ed25519()
    made.public_key.unrecognized_fields[NAME_FIELD] = name
    return made


def public(signers: Sequence[CryptoSigner]) -> list[Key]:
    """Return the public keys of signers."""
    return [s.public_key for s in signers]


def twin(original: CryptoSigner, key_id: str = "ab" * 32) -> CryptoSigner:
    """Return the same key under another key id."""
    key = original.public_key
    other = type(key)(key_id, key.keytype, key.scheme, dict(key.keyval), {NAME_FIELD: "twin"})
    return CryptoSigner(original._private_key, other)


def sign_raw(metadata: Metadata[Any], signers: Sequence[CryptoSigner]) -> bytes:
    """Sign without any of our checks, as an attacker would."""
    for one in signers:
        metadata.sign(one, append=True)
    return metadata.to_bytes()


@dataclass
class World:
    """3 root holders (2 needed), 3 approvers (2 needed), online keys, and what has been published."""

    now_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    roots: list[CryptoSigner] = field(default_factory=lambda: [signer(f"root-{i}") for i in (1, 2, 3)])
    approvers: list[CryptoSigner] = field(
        default_factory=lambda: [signer(f"approver-{i}") for i in (1, 2, 3)]
    )
    online: OnlineSigners = field(
        default_factory=lambda: OnlineSigners(signer("snapshot"), signer("timestamp"))
    )
    files: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make and sign the first root."""
        metadata = new_root(
            trust_domain="mesh.local",
            root=Holders(public(self.roots), 2),
            approvers=Holders(public(self.approvers), 2),
            snapshot=self.online.snapshot.public_key,
            timestamp=self.online.timestamp.public_key,
            now_ms=self.now_ms,
        )
        for holder in self.roots[:2]:
            metadata = sign(metadata, holder, metadata.signed)
        self.root = metadata.to_bytes()
        self.state = RepositoryState(self.root)
        self.files[metadata_path("root", 1)] = self.root

    def publish(
        self,
        role_metadata: Mapping[str, bytes],
        target_files: Mapping[str, bytes] | None = None,
        *,
        lease_ttl_s: int = 60,
        now_ms: int | None = None,
    ) -> dict[str, bytes]:
        """Publish through the real code and keep the files."""
        new = publish(
            self.state,
            role_metadata,
            target_files or {},
            self.online,
            now_ms=self.now_ms if now_ms is None else now_ms,
            lease_ttl_s=lease_ttl_s,
        )
        self.files |= new
        self.state = self.state.after(new)
        return new

    def proposal(self, bundle: bytes | None, role: str = BASE_ROLE, **changes: Any) -> Metadata[Targets]:
        """Return the unsigned next version of a policy role."""
        previous = self.state.role_metadata(role)
        if previous is None:
            assert bundle is not None
            return first_targets(bundle, now_ms=self.now_ms, role=role)
        return next_targets(previous, bundle, now_ms=self.now_ms, role=role, **changes)

    def release(
        self,
        bundle: bytes,
        role: str = BASE_ROLE,
        signers: Sequence[CryptoSigner] | None = None,
        **options: Any,
    ) -> dict[str, bytes]:
        """Propose, sign by two approvers (or `signers`) and publish a bundle."""
        chosen = self.approvers[:2] if signers is None else signers
        data = sign_raw(self.proposal(bundle, role), chosen)
        return self.publish({role: data}, {target_path(role): bundle}, **options)

    def delegate(
        self, namespace: str, holders: Holders | None, *, signers: Sequence[CryptoSigner] | None = None
    ) -> None:
        """Publish a base version that delegates (or with None ends) a namespace."""
        metadata = self.proposal(None, delegate={namespace: holders})
        self.publish({BASE_ROLE: sign_raw(metadata, signers or self.approvers[:2])})

    def rotate(self, signers: Sequence[CryptoSigner] | None = None, **changes: Any) -> Metadata[Root]:
        """Return the next root, signed by two holders (or `signers`); not published."""
        metadata = next_root(self.state.root_metadata(), now_ms=self.now_ms, **changes)
        sign_raw(metadata, self.roots[:2] if signers is None else signers)
        return metadata

    def renew(self, *, now_ms: int | None = None, lease_ttl_s: int = 60) -> dict[str, bytes]:
        """Extend the lease and keep the files."""
        at_ms = self.now_ms if now_ms is None else now_ms
        new = renew(self.state, self.online, now_ms=at_ms, lease_ttl_s=lease_ttl_s)
        self.files |= new
        self.state = self.state.after(new)
        return new

    def source(self) -> "DictSource":
        """Return a source of the files as they are now."""
        return DictSource(dict(self.files))


@dataclass
class DictSource:
    """A `FileSource` over a dictionary, counting what was asked."""

    files: dict[str, bytes]
    asked: list[str] = field(default_factory=list)
    chunk_bytes: int = 64 * 1024

    def fetch(self, path: str) -> Iterator[bytes]:
        """Yield one file in chunks."""
        self.asked.append(path)
        if path not in self.files:
            raise FileNotFoundError(path)
        data = self.files[path]
        for start in range(0, len(data), self.chunk_bytes):
            yield data[start : start + self.chunk_bytes]
