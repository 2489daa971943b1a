"""Who is calling: decided from the connection or a verified token, never from a plain header."""

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import grpc
import grpc.aio

from sidecar.edge.metadata import Pair
from trust import limits, x509
from trust.errors import EvidenceError, Reason
from trust.permit import certificate_sha256
from trust.policy.types import Authn
from trust.spiffe import SpiffeId

MAX_CACHED_CALLERS: Final = 4096
MAX_CACHED_TOKENS: Final = 1024
TOKEN_RECHECK_MS: Final = 60_000  # a cached token is verified again this often: keys may have been withdrawn

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Caller:
    """The result of identification; `principal` is None when it failed, and `unidentified` says why."""

    principal: str | None
    authn: Authn | None
    unidentified: Reason | None = None
    certificate_sha256: bytes = b""  # of the peer's certificate (DER), by which a permit is bound to it
    key_sha256: bytes = b""  # of its public key, by which it can be revoked


class Identifier(Protocol):
    """One way to identify callers; a listener has exactly one."""

    @property
    def consumes(self) -> frozenset[str]:
        """Metadata keys that this way uses up: they are not forwarded."""
        ...

    def identify(self, context: Context, sent: Sequence[Pair], *, now_ms: int) -> Caller:
        """Return who makes this call. Never raises: a caller that cannot be identified is a result too."""
        ...


_NOTHING: Final[frozenset[str]] = frozenset()
_NOBODY: Final = Caller(None, None, Reason.CALLER_UNIDENTIFIED)
_EXPIRED: Final = Caller(None, None, Reason.CALLER_CERTIFICATE_EXPIRED)


class Mtls:
    """The peer certificate's one SPIFFE ID, valid at this moment: connections outlive certificates."""

    consumes = _NOTHING

    def __init__(self, trust_domain: str) -> None:
        self._trust_domain = trust_domain
        self._known: dict[bytes, tuple[Caller, int]] = {}  # certificate (PEM) -> who, until when (ms)

    def identify(self, context: Context, sent: Sequence[Pair], *, now_ms: int) -> Caller:
        """Return the workload of the peer certificate; see `Identifier`."""
        pem = next(iter(context.auth_context().get("x509_pem_cert", ())), None)
        if pem is None:
            return _NOBODY
        known = self._known.get(pem)
        if known is None:
            known = self._read(pem)
            if len(self._known) >= MAX_CACHED_CALLERS:
                self._known.pop(next(iter(self._known)))
            self._known[pem] = known
        caller, not_after_ms = known
        if now_ms >= not_after_ms and caller.principal is not None:
            return _EXPIRED
        return caller

    def _read(self, pem: bytes) -> tuple[Caller, int]:
        try:
            spiffe_id = x509.spiffe_id_of(pem)
            not_after_ms = x509.validity(pem)[1]
        except EvidenceError as error:
            ambiguous = error.reason is Reason.CALLER_AMBIGUOUS
            return Caller(None, None, error.reason if ambiguous else Reason.CALLER_UNIDENTIFIED), 0
        if spiffe_id.trust_domain != self._trust_domain:
            return _NOBODY, 0
        key = x509.public_key_sha256(pem)
        return Caller(str(spiffe_id), Authn.MTLS, None, certificate_sha256(pem), key), not_after_ms


class Fixed:
    """The one workload that this listener belongs to: a Unix socket of its own, or loopback for development."""

    consumes = _NOTHING

    def __init__(self, principal: SpiffeId, authn: Authn) -> None:
        if authn not in {Authn.UNIX_SOCKET, Authn.LOOPBACK}:
            raise ValueError(f"a listener cannot vouch for a caller by {authn}")
        self._caller = Caller(str(principal), authn)

    def identify(self, context: Context, sent: Sequence[Pair], *, now_ms: int) -> Caller:
        """Return the listener's workload, whoever asks; see `Identifier`."""
        return self._caller


class JwtSvid:
    """The verified JWT-SVID in `authorization: Bearer`; used up here, so that nobody downstream can replay it."""

    consumes = frozenset({"authorization"})

    def __init__(self, verify: Callable[[str, int], SpiffeId], only: SpiffeId | None = None) -> None:
        """Take `verify(token, now_ms)`, which returns the subject or raises EvidenceError CALLER_TOKEN_INVALID.

        A listener that dials with one workload's certificate must take the tokens of that workload `only`: with
        another's it would decide for one caller and speak as the other.
        """
        self._verify, self._only = verify, only
        self._known: dict[bytes, tuple[Caller, int]] = {}  # SHA-256 of the token -> who, until when (ms)

    def identify(self, context: Context, sent: Sequence[Pair], *, now_ms: int) -> Caller:
        """Return the subject of the one bearer token; see `Identifier`."""
        headers = [value for key, value in sent if key == "authorization"]
        if not headers:
            return _NOBODY
        if len(headers) > 1:
            return Caller(None, None, Reason.CALLER_AMBIGUOUS)
        header = headers[0]
        scheme, _, token = header.partition(" ") if isinstance(header, str) else ("", "", "")
        if scheme.lower() != "bearer" or not 0 < len(token) <= limits.MAX_JWT_SVID_BYTES:
            return Caller(None, None, Reason.CALLER_TOKEN_INVALID)
        digest = hashlib.sha256(token.encode()).digest()
        known = self._known.get(digest)
        if known is not None and now_ms < known[1]:
            return known[0]
        try:
            subject = self._verify(token, now_ms)
        except EvidenceError as error:
            self._known.pop(digest, None)
            return Caller(None, None, error.reason)
        if self._only is not None and subject != self._only:
            return Caller(None, None, Reason.CALLER_TOKEN_INVALID)
        caller = Caller(str(subject), Authn.JWT_SVID)
        if digest not in self._known and len(self._known) >= MAX_CACHED_TOKENS:
            self._known.pop(next(iter(self._known)))
        self._known[digest] = (caller, min(_expiry_ms(token), now_ms + TOKEN_RECHECK_MS))
        return caller


def _expiry_ms(verified_token: str) -> int:
    """Return `exp` of a token that has just been verified, which proves that it is there; 0 if unreadable."""
    try:
        payload = verified_token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return int(claims["exp"] * 1000)
    except (ValueError, KeyError, IndexError, TypeError):
        return 0


def mtls(trust_domain: str) -> Identifier:
    """Identify by the peer certificate of the connection."""
    return Mtls(trust_domain)


def fixed(principal: SpiffeId, authn: Authn) -> Identifier:
    """Identify everybody on this listener as `principal`: UNIX_SOCKET or LOOPBACK.

    Raises:
        ValueError: for any other `authn`.
    """
    return Fixed(principal, authn)


def jwt_svid(verify: Callable[[str, int], SpiffeId], only: SpiffeId | None = None) -> Identifier:
    """Identify by a JWT-SVID, of the subject `only` if given; `verify` returns its subject or raises."""
    return JwtSvid(verify, only)
