"""A real CA, a real control plane's Join service on real sockets, and a clock that tests move by hand."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio

from control_plane.core.join_tokens import Grant, TokenStore, invalid_token
from control_plane.edge.ca import CertificateAuthority, create_ca, issue_to_directory
from control_plane.edge.join import JoinServicer
from egm.v1 import join_pb2_grpc
from trust.edge.clock import SystemClock
from trust.edge.grpc_errors import FixedInternalErrors
from trust.edge.identity_directory import DirectoryIdentity
from trust.edge.leaf_keys import key_to_pem, make_csr, new_key
from trust.edge.tls import ServerCredentials, server_options
from trust.identity import Svid
from trust.spiffe import SpiffeId
from trust.x509 import read_svid

TRUST_DOMAIN = "mesh.test"


class ShiftedClock:
    """The real clock, moved by `shift_ms`: certificates must be real for TLS, so time only moves relative to now."""

    def __init__(self) -> None:
        self._real = SystemClock()
        self.shift_ms = 0

    def now_ms(self) -> int:
        """Return Unix time, shifted."""
        return self._real.now_ms() + self.shift_ms

    def monotonic_ms(self) -> int:
        """Return monotonic time, shifted."""
        return self._real.monotonic_ms() + self.shift_ms


@dataclass
class MemoryTokenStore:
    """A second implementation of `TokenStore`: dictionaries."""

    tokens: dict[str, tuple[Grant, int]] = field(default_factory=dict)
    grants: dict[str, Grant] = field(default_factory=dict)

    async def create(self, token_sha256: str, grant: Grant, *, expires_ms: int, now_ms: int) -> None:
        """Remember a token."""
        self.tokens[token_sha256] = (grant, expires_ms)

    async def consume(self, token_sha256: str, now_ms: int) -> Grant:
        """Spend a token."""
        grant, expires_ms = self.tokens.pop(token_sha256, (None, 0))
        if grant is None or now_ms >= expires_ms:
            raise invalid_token()
        self.grants[grant.node] = grant
        return grant

    async def grant_of(self, node: str) -> Grant | None:
        """Return what a node was granted."""
        return self.grants.get(node)


def member(kind: str, name: str) -> SpiffeId:
    """Return a SPIFFE ID of the test domain."""
    return SpiffeId.of(TRUST_DOMAIN, kind, name)


def make_ca(directory: Path) -> CertificateAuthority:
    """Return a fresh CA of the test domain in `directory`."""
    create_ca(directory, TRUST_DOMAIN)
    return CertificateAuthority.open(directory)


def make_svid(ca: CertificateAuthority, spiffe_id: SpiffeId, *, ttl_s: int = 3600) -> Svid:
    """Return a fresh SVID issued now."""
    key = new_key()
    chain_pem, _ = ca.issue(make_csr(key), spiffe_id, ttl_s=ttl_s, now_ms=SystemClock().now_ms())
    return read_svid(chain_pem, key_to_pem(key))


@dataclass
class ControlPlane:
    """What an embedded identity talks to."""

    ca: CertificateAuthority
    tokens: TokenStore
    clock: ShiftedClock
    address: str  # mTLS
    join_address: str  # server-authenticated TLS
    identity: DirectoryIdentity


@asynccontextmanager
async def control_plane(
    directory: Path, *, svid_ttl_s: int = 3600, join: JoinServicer | None = None
) -> AsyncIterator[ControlPlane]:
    """Run a Join service on two ephemeral ports."""
    ca = make_ca(directory / "ca")
    clock, tokens = ShiftedClock(), MemoryTokenStore()
    me = member("control-plane", "cp-1")
    issue_to_directory(ca, me, directory / "identity")
    identity = DirectoryIdentity(directory / "identity", clock)
    servicer = join or JoinServicer(ca, tokens, clock, svid_ttl_s=svid_ttl_s)
    servers, ports = [], []
    for require_client in (True, False):
        server = grpc.aio.server(interceptors=[FixedInternalErrors()], options=server_options())
        join_pb2_grpc.add_JoinServicer_to_server(servicer, server)
        credentials = ServerCredentials(identity, me, require_client=require_client)()
        ports.append(server.add_secure_port("127.0.0.1:0", credentials))
        await server.start()
        servers.append(server)
    try:
        yield ControlPlane(ca, tokens, clock, f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}", identity)
    finally:
        for server in servers:
            await server.stop(0.5)
