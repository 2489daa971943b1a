"""A node's certificates and keys on disk: always one whole SVID per file, readable by its owner only.

Key and chain share a file, so that one atomic replacement changes both and a crash leaves the old or the new pair.
"""

from pathlib import Path
from typing import Final

from trust.edge.files import check_private, write_atomic
from trust.errors import EvidenceError, InputError, MeshError, Reason
from trust.identity import Svid
from trust.spiffe import SpiffeId
from trust.x509 import check_anchors, read_svid

ANCHORS_FILE: Final = "ca.pem"
_KEY_END: Final = b"-----END PRIVATE KEY-----\n"


class SvidStore:
    """Holds SVIDs and trust anchors under one directory (0700)."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def _path(self, spiffe_id: SpiffeId) -> Path:
        # "+" cannot occur in a SPIFFE ID path, so different IDs never share a file
        return self._directory / f"{spiffe_id.path.replace('/', '+')}.svid.pem"

    def _make_directory(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._directory.stat().st_mode & 0o077:
            self._directory.chmod(0o700)

    def save(self, svid: Svid) -> None:
        """Replace the stored SVID of this identity, durably.

        Raises:
            OSError: the old one is still there.
        """
        if not svid.key_pem.endswith(_KEY_END):
            raise EvidenceError(Reason.IDENTITY_INVALID, "private key is not PKCS#8 PEM")
        self._make_directory()
        write_atomic(self._path(svid.spiffe_id), svid.key_pem + svid.chain_pem, mode=0o600)

    def save_anchors(self, anchors_pem: bytes) -> None:
        """Replace the stored trust anchors, durably."""
        self._make_directory()
        write_atomic(self._directory / ANCHORS_FILE, anchors_pem)

    def load(self, spiffe_id: SpiffeId) -> Svid | None:
        """Return the stored SVID of `spiffe_id`, expired or not; None when there is none.

        Raises:
            InputError: IDENTITY_INVALID or KEY_UNREADABLE, naming the file and what to do.
        """
        path = self._path(spiffe_id)
        if not path.exists():
            return None
        check_private(path)
        key_pem, end, chain_pem = path.read_bytes().partition(_KEY_END)
        try:
            svid = read_svid(chain_pem, key_pem + end)
        except MeshError as error:
            raise InputError(
                Reason.IDENTITY_INVALID, f"{path}: {error.detail}; remove it and enrol again"
            ) from None
        if svid.spiffe_id != spiffe_id:
            raise InputError(
                Reason.IDENTITY_INVALID,
                f"{path} is for {svid.spiffe_id}, not {spiffe_id}; remove it and enrol again",
            )
        return svid

    def load_anchors(self) -> bytes | None:
        """Return the stored trust anchors (PEM), None when there are none.

        Raises:
            InputError: IDENTITY_INVALID, naming the file.
        """
        path = self._directory / ANCHORS_FILE
        if not path.exists():
            return None
        data = path.read_bytes()
        try:
            check_anchors(data)
        except MeshError as error:
            raise InputError(
                Reason.IDENTITY_INVALID, f"{path}: {error.detail}; remove it and enrol again"
            ) from None
        return data
