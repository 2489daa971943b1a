"""The control plane's own certificate: issued by the CA it holds, renewed at half its life."""

import asyncio
import logging
from pathlib import Path
from typing import Final

from control_plane.edge.ca import CertificateAuthority, ensure_directory
from trust.edge.identity_directory import DirectoryIdentity
from trust.errors import MeshError
from trust.ports import Clock
from trust.spiffe import SpiffeId

logger = logging.getLogger(__name__)

RENEW_PERIOD_S: Final = 10.0  # also how soon a rotated CA is served


class OwnIdentity:
    """An identity directory that renews itself."""

    def __init__(self, ca: CertificateAuthority, spiffe_id: SpiffeId, directory: Path, clock: Clock) -> None:
        """Issue a certificate if there is none, and load it.

        Raises:
            InputError: what is wrong with the directory.
        """
        self._ca, self.spiffe_id, self._directory, self._clock = ca, spiffe_id, directory, clock
        ensure_directory(ca, spiffe_id, directory, clock=clock)
        self.source = DirectoryIdentity(directory, clock)
        self.not_after_ms = self.source.svid(spiffe_id).not_after_ms
        self.problem: str | None = None

    def renew(self) -> None:
        """Renew when due, and load what is new; a failure is kept in `problem`."""
        try:
            ensure_directory(self._ca, self.spiffe_id, self._directory, clock=self._clock)
            self.problem = None
        except (MeshError, OSError) as error:
            if self.problem is None:
                logger.error("own certificate cannot be renewed, will retry: %s", error)
            self.problem = f"own certificate cannot be renewed: {error}"

    async def run(self) -> None:
        """Renew from time to time until cancelled."""
        while True:
            await asyncio.sleep(RENEW_PERIOD_S)
            await asyncio.to_thread(self.renew)
            if self.source.reload():
                self.not_after_ms = self.source.svid(self.spiffe_id).not_after_ms
