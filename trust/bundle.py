"""A policy bundle: one archive, read safely, written deterministically.

The archive is a gzip-compressed tar with regular files only. Reading is total:
any bytes give a `Bundle` or an `EvidenceError`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from trust.mesh import MeshSettings


@dataclass(frozen=True, slots=True)
class Manifest:
    """`manifest.json`: what the archive claims to hold. `files` maps path to SHA-256 (hex)."""

    format: int
    name: str
    namespace: str | None  # None: the base bundle
    description: str
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Bundle:
    """The content of one archive, parsed. `digest` is the SHA-256 (hex) of the archive bytes."""

    manifest: Manifest
    policies: Mapping[str, str]  # "policies/x.cedar" -> text
    schema: str  # Cedar schema, human syntax
    entities: str  # Cedar entities, JSON
    descriptors: bytes | None  # FileDescriptorSet
    mesh: MeshSettings | None  # base bundle only
    tests: Mapping[str, str]  # "tests/x.yaml" -> text
    digest: str
