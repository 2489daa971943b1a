"""A certificate in three files (svid.pem, svid.key.pem, ca.pem), followed when somebody replaces them."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from trust.edge.files import check_private
from trust.edge.subscribers import Subscribers
from trust.errors import InputError, MeshError, Reason, StateError
from trust.identity import Svid
from trust.ports import Clock
from trust.spiffe import SpiffeId
from trust.x509 import check_svid, read_svid

logger = logging.getLogger(__name__)

SVID_FILE: Final = "svid.pem"
KEY_FILE: Final = "svid.key.pem"
ANCHORS_FILE: Final = "ca.pem"
_POLL_S: Final = 2.0


class DirectoryIdentity:
    """An `IdentitySource` over a directory: for the control plane and for operators."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        """Read the directory.

        Raises:
            InputError: IDENTITY_INVALID or KEY_UNREADABLE, naming what is wrong with which file.
        """
        self._directory, self._clock = directory, clock
        self._subscribers = Subscribers()
        self._problem = ""  # why the files of now are not in force, as it was logged
        self._stamp = self._stamp_now()
        try:
            self._svid, self._anchors = self._read()
        except (MeshError, OSError) as error:
            raise self._explained(error) from None

    @property
    def spiffe_id(self) -> SpiffeId:
        """Whose certificate the directory holds."""
        return self._svid.spiffe_id

    def svid(self, spiffe_id: SpiffeId) -> Svid:
        """Return the SVID; StateError IDENTITY_UNAVAILABLE when it is another's or has expired."""
        if spiffe_id != self._svid.spiffe_id:
            raise StateError(
                Reason.IDENTITY_UNAVAILABLE,
                f"{self._directory} is for {self._svid.spiffe_id}, not {spiffe_id}",
            )
        if self._clock.now_ms() >= self._svid.not_after_ms:
            raise StateError(
                Reason.IDENTITY_UNAVAILABLE,
                f"the certificate in {self._directory} has expired; have it issued anew",
            )
        return self._svid

    def anchors_pem(self) -> bytes:
        """Return the CA certificates to trust now (PEM)."""
        return self._anchors

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Call `changed` after a reload."""
        self._subscribers.add(changed)

    def reload(self) -> bool:
        """Read the files again if they changed; return whether something new is in force.

        Files that do not fit together (a writer is between two of them) or do not verify change nothing.
        """
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return False
        try:
            svid, anchors = self._read()
        except (MeshError, OSError) as error:
            why = self._explained(error).detail
            if why != self._problem:  # the files are looked at every few seconds
                logger.warning("keeping the old certificate: %s", why)
            self._problem = why
            return False
        self._stamp, self._problem = stamp, ""
        if (svid, anchors) == (self._svid, self._anchors):
            return False
        self._svid, self._anchors = svid, anchors
        self._subscribers.notify()
        return True

    async def run(self, *, poll_s: float = _POLL_S) -> None:
        """Follow the files until cancelled."""
        while True:
            await asyncio.sleep(poll_s)
            self.reload()

    def _stamp_now(self) -> tuple[tuple[int, int, int], ...]:
        stamps = []
        for name in (SVID_FILE, KEY_FILE, ANCHORS_FILE):
            try:
                stat = (self._directory / name).stat()
            except OSError:
                continue
            stamps.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
        return tuple(stamps)

    def _read(self) -> tuple[Svid, bytes]:
        check_private(self._directory / KEY_FILE)
        chain = (self._directory / SVID_FILE).read_bytes()
        key = (self._directory / KEY_FILE).read_bytes()
        anchors = (self._directory / ANCHORS_FILE).read_bytes()
        expected = read_svid(chain, key).spiffe_id
        return check_svid(chain, key, anchors, expected=expected, now_ms=self._clock.now_ms()), anchors

    def _explained(self, error: MeshError | OSError) -> InputError:
        if isinstance(error, MeshError):
            reason = error.reason if isinstance(error, InputError) else Reason.IDENTITY_INVALID
            return InputError(reason, f"{self._directory}: {error.detail}")
        return InputError(
            Reason.IDENTITY_INVALID, f"{error.filename}: {error.strerror}; have a certificate issued"
        )
