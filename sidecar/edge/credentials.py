"""Trust credentials from node to node over peer gRPC: a node's newest one, or the one with a digest.

What comes is verified by whoever asked: a node can withhold its credential, and is then not attested there.
"""

import asyncio
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

import grpc.aio

from egm.v1 import credentials_pb2 as pb
from egm.v1 import credentials_pb2_grpc as rpc
from egm.v1 import gossip_pb2, gossip_pb2_grpc
from sidecar.edge.upstream import targets
from trust import limits
from trust.attestation.credential import Credential, credential_sha256
from trust.edge.gossip import PEERS, Check
from trust.edge.grpc_errors import abort, error_from_rpc, readable
from trust.edge.tls import Channels, channel_credentials, channel_options
from trust.errors import CapacityError, EvidenceError, MeshError, Reason, StateError
from trust.identity import IdentitySource
from trust.spiffe import SpiffeId

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
_NEWEST: Final = b""  # in place of a digest


class CredentialsServicer(rpc.CredentialsServicer):
    """egm.v1.Credentials."""

    def __init__(self, own: Callable[[], Credential | None], check: Check) -> None:
        """Answer with `own` whoever `check` lets through."""
        self._own, self._check = own, check

    async def GetCredential(
        self, request: pb.GetCredentialRequest, context: Context
    ) -> pb.GetCredentialResponse:
        """Return this node's newest credential."""
        await self._check(context, PEERS)
        own = self._own()
        if own is None:
            await abort(context, EvidenceError(Reason.NOT_FOUND, "this node holds no trust credential"))
        return pb.GetCredentialResponse(credential=own.data)


class CredentialClient:
    """Asks other nodes for their credentials. Owned by the event loop; equal questions share one answer."""

    def __init__(
        self,
        me: SpiffeId,
        channels: Channels,
        identity: IdentitySource,
        *,
        known: Callable[[], Mapping[str, str]],
        told: Callable[[SpiffeId], str] = lambda _node: "",
        at_once: int = limits.MAX_CREDENTIAL_FETCHES,
    ) -> None:
        """Take the parts.

        Args:
            me: this node.
            channels: mTLS channels, for addresses that are known.
            identity: certificates, for a connection of its own to an address that a node only told.
            known: NAME -> HOST:PORT of nodes, from configuration, signed policy and the control plane.
            told: where a node said in a call that it answers; empty when it did not.
            at_once: questions under way.
        """
        self._me, self._channels, self._identity = me, channels, identity
        self._known, self._told, self._at_once = known, told, at_once
        self._asked: dict[tuple[str, bytes], asyncio.Task[bytes]] = {}

    async def newest(self, node: SpiffeId) -> bytes:
        """Return the newest credential of `node`, unverified.

        Raises:
            MeshError: no address of it is known, or it did not answer in time.
        """
        return await self._shared(node, _NEWEST)

    async def by_digest(self, node: SpiffeId, sha256: bytes) -> bytes:
        """Return the credential of `node` with this SHA-256 (32 bytes), otherwise unverified.

        Raises:
            MeshError: as `newest`; or it does not have it.
        """
        return await self._shared(node, sha256)

    async def close(self) -> None:
        """Give up what is under way."""
        tasks = list(self._asked.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _shared(self, node: SpiffeId, sha256: bytes) -> bytes:
        key = (node.name, sha256)
        task = self._asked.get(key)
        if task is None:
            if len(self._asked) >= self._at_once:
                detail = f"{self._at_once} trust credentials are being fetched already; call again"
                raise CapacityError(Reason.LIMIT_EXCEEDED, detail)
            task = self._asked[key] = asyncio.get_running_loop().create_task(
                self._ask(node, sha256), name=f"credential of {node.name}"
            )
            task.add_done_callback(functools.partial(self._ended, key))
        return await asyncio.shield(task)

    def _ended(self, key: tuple[str, bytes], task: asyncio.Task[bytes]) -> None:
        del self._asked[key]
        if not task.cancelled():
            task.exception()  # whoever waited has it; perhaps nobody does any more

    async def _ask(self, node: SpiffeId, sha256: bytes) -> bytes:
        known, told = self._known().get(node.name, ""), self._told(node)
        error: MeshError = StateError(Reason.ATTESTATION_UNKNOWN, f"no address of {node} is known here")
        if known:
            try:
                channel = self._channels.get(targets([known])[0], client=self._me, server_dns=node.dns_name)
                return await _from(channel, sha256)
            except MeshError as failed:
                error = failed
        if told and told != known:
            # Not from the pool: a node may tell another address with every call.
            credentials = channel_credentials(self._identity, self._me)
            options = channel_options(node.dns_name)
            async with grpc.aio.secure_channel(targets([told])[0], credentials, options) as channel:
                return await _from(channel, sha256)
        raise error


async def _from(channel: grpc.aio.Channel, sha256: bytes) -> bytes:
    """Return what the node behind `channel` answers.

    Raises:
        MeshError: it did not answer in time, or with something else.
    """
    timeout_s = limits.CREDENTIAL_FETCH_TIMEOUT_S
    try:
        if sha256:
            blob = gossip_pb2.GetBlobRequest(sha256=sha256)
            found = await gossip_pb2_grpc.GossipStub(channel).GetBlob(blob, timeout=timeout_s)
            data = readable(found).data
        else:
            newest = pb.GetCredentialRequest()
            answer = await rpc.CredentialsStub(channel).GetCredential(newest, timeout=timeout_s)
            data = readable(answer).credential
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error) from None
    if len(data) > limits.MAX_CREDENTIAL_BYTES or (sha256 and credential_sha256(data) != sha256):
        raise EvidenceError(Reason.ATTESTATION_INVALID, "the node answered with another trust credential")
    return data
