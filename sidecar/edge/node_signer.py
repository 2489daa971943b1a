"""The node's signing key: made here once, kept in one file, endorsed by whatever certificate the node has now."""

import logging
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from trust import limits
from trust.ed25519 import Signer
from trust.edge.node_key_file import KEY_FILE, load_or_make_key, write_public_key
from trust.errors import MeshError, Reason, StateError
from trust.identity import IdentitySource
from trust.node_key import endorsement_digest, make_endorsement
from trust.ports import Clock
from trust.spiffe import SpiffeId

logger = logging.getLogger(__name__)

__all__ = [
    "KEY_FILE",
    "PUBLIC_SUFFIX",
    "RENEW_MS",
    "RETRY_MS",
    "NodeSigner",
    "load_or_make_key",
    "write_public_key",
]

PUBLIC_SUFFIX: Final = ".pub"
RENEW_MS: Final = 3_600_000  # an endorsement is replaced at this age at the latest
RETRY_MS: Final = 10_000


class NodeSigner:
    """Signs with the node key and supplies its endorsement. Not thread-safe: owned by the event loop."""

    def __init__(self, path: Path, node: SpiffeId, identity: IdentitySource, clock: Clock) -> None:
        """Read the key file, or make a key and write it (mode 0600); write its public half beside it (.pub, PEM).

        The endorsement is made when it is first needed: by then the identity source holds a certificate.

        Args:
            path: of the key file.
            node: whose key it is.
            identity: supplies the node's certificate; followed when it rotates.
            clock: real or fake.

        Raises:
            InputError: KEY_UNREADABLE, naming the file and what to do.
        """
        private = load_or_make_key(path)
        self._public, self._signer = private.public_key(), Signer(private)
        write_public_key(path.with_suffix(PUBLIC_SUFFIX), self._public)
        self._node, self._identity, self._clock = node, identity, clock
        self._endorsement: bytes | None = None
        self._key_id = ""
        self._not_after_ms = self._renew_at_ms = 0
        identity.subscribe(self._rotated)

    @property
    def public_key(self) -> Ed25519PublicKey:
        """The public half of the node key."""
        return self._public

    def sign(self, data: bytes) -> bytes:
        """Return the Ed25519 signature of `data`, 64 bytes."""
        return self._signer.sign(data)

    def key_id(self) -> str:
        """Return the digest of the endorsement in force: the key id of permits.

        Raises:
            StateError: PERMIT_UNVERIFIABLE, if the node has no certificate to endorse its key with.
        """
        self._keep_endorsed()
        return self._key_id

    def endorsement(self) -> bytes:
        """Return the endorsement in force; it goes with every permit. Same bytes until it is renewed.

        Raises:
            StateError: PERMIT_UNVERIFIABLE, as for `key_id`.
        """
        self._keep_endorsed()
        if self._endorsement is None:
            raise AssertionError("endorsed without endorsement")
        return self._endorsement

    def _rotated(self) -> None:
        """Endorse anew with the new certificate, at the next use."""
        self._renew_at_ms = 0

    def _keep_endorsed(self) -> None:
        now_ms = self._clock.now_ms()
        if now_ms < self._renew_at_ms and now_ms < self._not_after_ms:
            return
        try:
            svid = self._identity.svid(self._node)
            endorsement = make_endorsement(svid, self.public_key, now_ms)
        except MeshError as error:
            if self._endorsement is not None and now_ms < self._not_after_ms:
                logger.warning("keeping the old endorsement of the node key: %s", error)
                self._renew_at_ms = now_ms + RETRY_MS
                return
            raise StateError(
                Reason.PERMIT_UNVERIFIABLE,
                f"this node has no certificate to vouch for its signing key: {error.detail}",
            ) from None
        self._endorsement, self._key_id = endorsement, endorsement_digest(endorsement)
        self._not_after_ms = min(svid.not_after_ms, now_ms + limits.MAX_ENDORSEMENT_LIFETIME_S * 1000)
        self._renew_at_ms = now_ms + RENEW_MS
