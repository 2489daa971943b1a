"""Which trust anchor and identity source a node uses, and how patiently it waits for its first certificates."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Protocol

from sidecar.config import SidecarConfig
from trust.edge.identity_embedded import EmbeddedIdentity
from trust.edge.jwt_bundles import FileJwtBundles, JwtBundles
from trust.edge.tls import read_ca_file
from trust.errors import InputError, MeshError, Reason
from trust.identity import IdentitySource
from trust.ports import Clock
from trust.spiffe import SpiffeId

logger = logging.getLogger(__name__)

RETRY_MIN_S: Final = 0.5
RETRY_MAX_S: Final = 10.0
MAX_TOKEN_BYTES: Final = 4096
# Worth waiting for: the control plane or the Workload API may simply start later than we do.
_PATIENT: Final = frozenset({Reason.SOURCE_UNAVAILABLE, Reason.IDENTITY_UNAVAILABLE})


class RunningIdentity(IdentitySource, Protocol):
    """An identity source with a life cycle."""

    async def start(self) -> None:
        """Hold every certificate, or raise."""
        ...

    async def run(self) -> None:
        """Keep them current until cancelled."""
        ...


def read_root(path: Path) -> bytes:
    """Return the trust anchor.

    Raises:
        InputError: CONFIG_INVALID, naming the file.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            Reason.CONFIG_INVALID,
            f"root: {path}: {error.strerror}; it is the root.json that `egm init` wrote",
        ) from None


def members(config: SidecarConfig) -> tuple[SpiffeId, ...]:
    """Return every identity this node needs, its own first."""
    node = config.spiffe_id("node", config.node)
    return node, *(config.spiffe_id("workload", name) for name in config.workloads())


def make_identity(config: SidecarConfig, clock: Clock) -> tuple[RunningIdentity, JwtBundles | None]:
    """Return the identity source that the configuration names, and where JWT keys come from, if any.

    Raises:
        InputError: CONFIG_INVALID or IDENTITY_INVALID, naming the file that is not there or not usable.
    """
    own, jwt = members(config), config.jwt
    if config.identity.source == "workload-api":
        from trust.edge.identity_workload_api import WorkloadApiIdentity

        api = WorkloadApiIdentity(
            config.identity.workload_api or "",
            own,
            trust_domain=config.trust_domain,
            clock=clock,
            jwt=jwt is not None and jwt.jwks is None,
        )
        if jwt is None:
            return api, None
        return api, api if jwt.jwks is None else FileJwtBundles(jwt.jwks, config.trust_domain)
    if config.identity.ca is None:
        raise InputError(Reason.CONFIG_INVALID, "identity.ca is required with source embedded")
    embedded = EmbeddedIdentity(
        config.data_dir / "identity",
        own,
        control_plane=config.control_plane.addresses,
        join_addresses=config.control_plane.join_addresses,
        trust_domain=config.trust_domain,
        ca_pem=read_ca_file(config.identity.ca),
        token=_token(config),
        clock=clock,
    )
    keys = None if jwt is None or jwt.jwks is None else FileJwtBundles(jwt.jwks, config.trust_domain)
    return embedded, keys


def _token(config: SidecarConfig) -> str | None:
    """Return the join token; a file that is gone is normal after enrolment."""
    path = config.identity.join_token_file
    if path is None:
        return None
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(
            Reason.CONFIG_INVALID, f"identity.join_token_file: {path}: {error.strerror}"
        ) from None
    try:
        token = data.decode("ascii").strip()
    except UnicodeDecodeError:
        token = ""
    if not token or len(data) > MAX_TOKEN_BYTES:
        raise InputError(Reason.CONFIG_INVALID, f"identity.join_token_file: {path} holds no join token")
    return token


async def start_patiently(
    start: Callable[[], Awaitable[None]],
    waiting: Callable[[str], None],
    *,
    min_s: float = RETRY_MIN_S,
    max_s: float = RETRY_MAX_S,
) -> None:
    """Run `start` until it succeeds; what only time can mend is retried, with growing pauses.

    Args:
        start: an identity source's `start`.
        waiting: told why, each time.
        min_s: first pause, seconds.
        max_s: longest pause, seconds.

    Raises:
        MeshError: waiting cannot help (a refused token, a broken file).
    """
    pause_s = min_s
    while True:
        try:
            await start()
        except MeshError as error:
            if error.reason not in _PATIENT:
                raise
            waiting(str(error))
            logger.warning("no certificates yet, trying again in %.1f s: %s", pause_s, error)
        else:
            return
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, max_s)
