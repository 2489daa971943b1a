"""Signs what the control plane does about incidents: directives, with an emergency key that the approvers have named.

Such a key can only take away, and only for a time: whoever steals it denies service, and gains nothing else.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from securesystemslib.signer import Signer

from control_plane.config import ControlPlaneConfig
from trust.edge.denial_keeper import DenialKeeper
from trust.edge.keyfiles import load_signer, passphrase_source, read_passphrase
from trust.errors import EvidenceError, InputError, MeshError, Reason, StateError
from trust.keys import key_name
from trust.mesh import MeshSettings
from trust.revocation import Directive, sign_directive
from trust.spiffe import check_name

_MAKE: Final = "egm keys new NAME --purpose emergency makes one"


def responder_signer(config: ControlPlaneConfig) -> Signer | None:
    """Open the key that is configured as `responder_key`; None when none is.

    Raises:
        InputError: KEY_UNREADABLE or KEY_UNSAFE, saying what to do.
    """
    ref, file = config.responder_key, config.responder_passphrase_file
    if not ref:
        return None
    source: Callable[[], bytes] = (
        passphrase_source(Path(ref)) if file is None else lambda: read_passphrase(file)
    )
    signer = load_signer(ref, source)
    key = signer.public_key
    try:
        check_name(key_name(key))
    except EvidenceError as error:
        raise InputError(Reason.KEY_UNSAFE, f"responder_key: {ref}: {error.detail}; {_MAKE}") from None
    if key.keytype != "ed25519":
        detail = f"responder_key: {ref} is {key.scheme}; an emergency key is Ed25519; {_MAKE}"
        raise InputError(Reason.KEY_UNSAFE, detail)
    return signer


class Responder:
    """One emergency key in the control plane's hands."""

    def __init__(self, signer: Signer, name: str, keeper: DenialKeeper) -> None:
        """Sign with `signer`, the emergency key called `name`; hand in to `keeper`, which tells every node."""
        self._signer, self._keeper = signer, keeper
        self.name = name
        self._public = str(signer.public_key.keyval["public"])

    @classmethod
    def open(cls, config: ControlPlaneConfig, keeper: DenialKeeper) -> Self | None:
        """Open the configured key; None when none is.

        Raises:
            InputError: KEY_UNREADABLE or KEY_UNSAFE, saying what to do.
        """
        signer = responder_signer(config)
        return None if signer is None else cls(signer, key_name(signer.public_key), keeper)

    def problem(self, mesh: MeshSettings | None) -> str:
        """Say why nobody would believe this key; empty when policy names it."""
        if mesh is None:
            return "no policy is published yet"
        named = mesh.emergency_keys.get(self.name)
        if named == self._public:
            return ""
        what = "names another key by that name" if named else "does not name it"
        return (
            f"the responder's key {self.name} ({self._public[:16]}…) is configured, but policy {what} under "
            "emergency_keys: its directives would count nowhere"
        )

    async def issue(self, directive: Directive, mesh: MeshSettings | None) -> str:
        """Sign a directive and bring it into effect everywhere; return its id. Doing it again changes nothing.

        Raises:
            StateError: NOT_AUTHORIZED: policy does not name the key.
            EvidenceError: REVOCATION_INVALID: it is over, or policy does not allow it.
            CapacityError: LIMIT_EXCEEDED: the key has signed too many.
        """
        problem = self.problem(mesh)
        if problem:
            raise StateError(Reason.NOT_AUTHORIZED, problem)
        data = await asyncio.to_thread(self._sign, directive)
        return self._keeper.revoke(data)[0]

    def _sign(self, directive: Directive) -> bytes:
        try:
            return sign_directive(
                directive,
                self.name,
                lambda text: bytes.fromhex(self._signer.sign(text).signature),
                public_key=bytes.fromhex(self._public),
            )
        except MeshError:
            raise
        except Exception as error:  # a key store that is away: each library has exceptions of its own
            raise StateError(
                Reason.SOURCE_UNAVAILABLE, f"the responder's key cannot sign: {type(error).__name__}: {error}"
            ) from error
