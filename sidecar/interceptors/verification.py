"""Whether a call that reached the service was handed over by its own sidecar, once."""

import os
import stat
import threading
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from sidecar.core.replay import ReplayCache
from sidecar.interceptors.current import CurrentCall
from trust.errors import EvidenceError, MeshError, Reason, StateError
from trust.handover import HANDOVER_KEY, Handover, authenticate_handover, check_handover
from trust.permit import PERMIT_KEY, permit_sha256
from trust.permit_claims import format_id
from trust.ports import Clock
from trust.spiffe import SpiffeId

HEALTH: Final = ("grpc.health.v1.Health",)
REFLECTION: Final = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
_MAX_KEY_BYTES: Final = 4096

Sent = Iterable[tuple[str, str | bytes]]


class KeyFile:
    """The node's public key, read again whenever its file changes. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        """Remember where it is; it may appear later, when the sidecar starts."""
        self._path = path
        self._seen: tuple[int, ...] = ()
        self._key: Ed25519PublicKey | None = None

    def key(self) -> Ed25519PublicKey:
        """Return the key that is in the file now.

        Raises:
            StateError: PERMIT_UNVERIFIABLE, saying why it cannot be used.
        """
        try:
            found = self._path.stat()
            seen = (found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_mode)
            if self._key is not None and seen == self._seen:
                return self._key
            self._key = None  # whatever happens now, the old one is not in the file any more
            with self._path.open("rb") as file:
                writable = stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o022
                data = file.read(_MAX_KEY_BYTES)
        except OSError as error:
            self._key = None
            raise _unverifiable(f"the node's public key cannot be read: {error.strerror or error}") from None
        if writable:
            raise _unverifiable("the node's public key can be written by others than its owner; chmod 644 it")
        try:
            key = load_pem_public_key(data)
        except ValueError:
            raise _unverifiable("the file of the node's public key is damaged; restart the sidecar") from None
        if not isinstance(key, Ed25519PublicKey):
            raise _unverifiable("the file of the node's public key holds a key of another kind")
        self._key, self._seen = key, seen
        return key


class Guard:
    """Decides for one service process. Thread-safe.

    What was used is remembered in this process: several processes behind one port cannot see each other's. Tokens
    of the second in which the process started, or before, are refused: nobody knows whether they were used.
    """

    def __init__(self, key_file: Path, workload: str, exempt: Collection[str], clock: Clock) -> None:
        """Take where the key is, who we are, and what may be called without.

        Args:
            key_file: `node-key.pub` in the sidecar's data_dir, or a copy that is kept current.
            workload: SPIFFE ID of this service's workload.
            exempt: "package.Service" or "package.Service/Method", each.
            clock: real or fake.

        Raises:
            EvidenceError: IDENTITY_INVALID, `workload` is no SPIFFE ID.
        """
        self._workload = str(SpiffeId.parse(workload))
        self._exempt, self._clock = frozenset(exempt), clock
        self._key = KeyFile(key_file)
        self._replay = ReplayCache(boot_ms=clock.now_ms(), remember=_dated_ahead)
        self._lock = threading.Lock()

    def exempts(self, path: str) -> bool:
        """Return whether "/package.Service/Method" may be called without a hand-over."""
        method = path.removeprefix("/")
        return method in self._exempt or method.rpartition("/")[0] in self._exempt

    def admit(self, path: str, sent: Sent) -> tuple[Handover, CurrentCall]:
        """Return the hand-over of a call, spent, and what its handler may know. The request is checked later.

        A genuine token is spent as soon as it is shown to its audience, also when it is for another call.

        Args:
            path: "/package.Service/Method".
            sent: the metadata of the call.

        Raises:
            EvidenceError: PERMIT_MISSING, PERMIT_INVALID, PERMIT_MISMATCH.
            StateError: PERMIT_EXPIRED, PERMIT_REPLAYED, PERMIT_UNVERIFIABLE.
            CapacityError: PERMIT_UNVERIFIABLE.
        """
        token, permit = _presented(sent)
        now_ms = self._clock.now_ms()
        with self._lock:
            key = self._key.key()
        claims = authenticate_handover(token, key, audience=self._workload, now_ms=now_ms)
        with self._lock:
            self._spend(claims, now_ms)
        check_handover(
            claims,
            method=path.removeprefix("/"),
            permit_sha256=None if permit is None else permit_sha256(permit),
        )
        return claims, CurrentCall(claims.caller, format_id(claims.execution_id), permit)

    def _spend(self, claims: Handover, now_ms: int) -> None:
        try:
            self._replay.spend(
                claims.token_id.hex(),
                iat_ms=claims.issued_s * 1000,
                exp_ms=claims.expires_s * 1000,
                now_ms=now_ms,
            )
        except MeshError as error:
            if error.reason is Reason.PERMIT_REPLAYED:
                raise StateError(Reason.PERMIT_REPLAYED, "the hand-over was used before") from None
            raise


def _presented(sent: Sent) -> tuple[str, str | None]:
    found: dict[str, Any] = {}
    for key, value in sent:
        if key in {HANDOVER_KEY, PERMIT_KEY}:
            if key in found or not isinstance(value, str):
                raise EvidenceError(Reason.PERMIT_INVALID, f"{key} must be in the metadata once, as text")
            found[key] = value
    token = found.get(HANDOVER_KEY)
    if token is None:
        raise EvidenceError(
            Reason.PERMIT_MISSING,
            f"the call carries no {HANDOVER_KEY}: this service takes calls from its own sidecar only "
            "(inbound handover: true)",
        )
    return token, found.get(PERMIT_KEY)


def _unverifiable(why: str) -> StateError:
    return StateError(Reason.PERMIT_UNVERIFIABLE, why)


def _dated_ahead(_until_ms: int) -> None:
    """Refuse: on one machine no token is dated ahead, unless the clock was set back."""
    raise OSError("no token of this machine is")
