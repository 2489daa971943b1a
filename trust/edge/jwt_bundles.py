"""Which keys may sign JWT-SVIDs now: from a file that is followed, or from the Workload API."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from trust.errors import InputError, MeshError, Reason
from trust.jwt_svid import JwtKeys, parse_jwks, verify_jwt_svid
from trust.spiffe import SpiffeId, check_trust_domain

logger = logging.getLogger(__name__)


class JwtBundles(Protocol):
    """Supplies the JWT-SVID keys of each trust domain. `WorkloadApiIdentity` is one."""

    def jwt_keys(self) -> Mapping[str, JwtKeys]:
        """Return trust domain -> keys, as known now."""
        ...


class FileJwtBundles:
    """The JWKS (or SPIFFE bundle document) of one trust domain in a file, read again when it changes."""

    def __init__(self, path: Path, trust_domain: str) -> None:
        """Read the file.

        Raises:
            InputError: IDENTITY_INVALID, naming it and what is wrong.
        """
        self._path, self._domain = path, check_trust_domain(trust_domain)
        self._stamp = self._stamp_now()
        try:
            self._keys = parse_jwks(path.read_bytes())
        except MeshError as error:
            raise InputError(Reason.IDENTITY_INVALID, f"{path}: {error.detail}") from None
        except OSError as error:
            raise InputError(
                Reason.IDENTITY_INVALID, f"{path}: {error.strerror}; jwt.jwks names it"
            ) from None

    def jwt_keys(self) -> Mapping[str, JwtKeys]:
        """Return the keys; a file that became unreadable or malformed changes nothing and is logged."""
        stamp = self._stamp_now()
        if stamp not in (self._stamp, None):
            try:
                self._keys = parse_jwks(self._path.read_bytes())
            except (MeshError, OSError) as error:
                logger.warning("%s: keeping the old keys: %s", self._path, error)
            self._stamp = stamp
        return {self._domain: self._keys}

    def _stamp_now(self) -> tuple[int, int, int] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino


def verifier(bundles: JwtBundles, audience: str) -> Callable[[str, int], SpiffeId]:
    """Return `verify(token, now_ms)`: the token's SPIFFE ID, or EvidenceError CALLER_TOKEN_INVALID."""

    def verify(token: str, now_ms: int) -> SpiffeId:
        return verify_jwt_svid(
            token, jwks_by_trust_domain=bundles.jwt_keys(), audience=audience, now_ms=now_ms
        )

    return verify
