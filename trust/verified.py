"""What TUF vouches for at one moment: the type that everything downstream must hold before it enforces."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VerifiedTarget:
    """One bundle archive, verified by k signatures of distinct approvers of its role."""

    path: str  # TUF target path: "base.tar.gz" or "<namespace>/bundle.tar.gz"
    role: str  # "targets" for the base, else the namespace
    version: int  # of the role's metadata; this is the policy version
    sha256: str  # hex
    data: bytes
    signers: tuple[str, ...]  # key ids whose signatures verify, sorted
    threshold: int
    expires_ms: int  # of the role's metadata


@dataclass(frozen=True, slots=True)
class VerifiedPolicy:
    """The base bundle and every namespace bundle, with the lease under which they count as fresh."""

    base: VerifiedTarget
    namespaces: Mapping[str, VerifiedTarget]
    versions: Mapping[str, int]  # TUF role -> version, with root, timestamp and snapshot
    lease_expires_ms: int  # expiry of timestamp.json, Unix ms
    expires_ms: int  # earliest expiry of all other metadata, Unix ms

    @property
    def digest(self) -> str:
        """Identify the enforced content: base and namespace digests, independent of the lease."""
        parts = [self.base.sha256, *(f"{name}={t.sha256}" for name, t in sorted(self.namespaces.items()))]
        return ",".join(parts)

    def target(self, role: str) -> VerifiedTarget | None:
        """Return the bundle of `role` ("targets" or a namespace), or None."""
        return self.base if role == BASE_ROLE else self.namespaces.get(role)


# Target path and TUF role of the base bundle; a namespace uses its own name as role.
BASE_TARGET = "base.tar.gz"
BASE_ROLE = "targets"


def target_path(role: str) -> str:
    """Return the target path that `role` may sign: its one bundle."""
    return BASE_TARGET if role == BASE_ROLE else f"{role}/bundle.tar.gz"
