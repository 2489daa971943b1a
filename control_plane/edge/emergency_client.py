"""Hands directives and proofs to whoever of the mesh can be reached, and asks what is denied."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import grpc.aio

from control_plane.edge.mesh_file import MeshFile
from control_plane.edge.operator_client import Credentials
from egm.v1 import gossip_pb2, gossip_pb2_grpc
from trust.edge.grpc_errors import error_from_rpc
from trust.errors import MeshError, Reason, StateError
from trust.spiffe import SpiffeId
from trust.x509 import control_plane_dns

CONTROL_PLANE: Final = "control plane"
CALL_TIMEOUT_S: Final = 5.0
_AT_ONCE: Final = 16  # connections


@dataclass(frozen=True, slots=True)
class Answer:
    """What one member said: `error` is None when it took what was handed in."""

    member: str
    error: MeshError | None = None
    news: bool = False
    summary: str = ""

    @property
    def reached(self) -> bool:
        """Whether it answered at all."""
        return self.error is None or self.error.reason is not Reason.SOURCE_UNAVAILABLE


class EmergencyClient:
    """Talks to every member that an address book names."""

    def __init__(self, mesh: MeshFile, directory: Path) -> None:
        """Use the operator credentials that the address book names.

        Raises:
            InputError: KEY_UNREADABLE.
        """
        self._credentials = Credentials.load(directory / mesh.operator)
        self._members: Mapping[str, tuple[str, str]] = {
            CONTROL_PLANE: (mesh.control_plane, control_plane_dns(mesh.trust_domain)),
            **{
                name: (entry.admin, SpiffeId.of(mesh.trust_domain, "node", name).dns_name)
                for name, entry in mesh.nodes.items()
            },
        }

    async def revoke(self, directive: bytes) -> list[Answer]:
        """Hand a directive to everybody at once."""

        async def hand(stub: "gossip_pb2_grpc.EmergencyAsyncStub", member: str) -> Answer:
            request = gossip_pb2.RevokeRequest(directive=directive)
            answer = await stub.Revoke(request, timeout=CALL_TIMEOUT_S)
            return Answer(member, news=answer.news)

        return await self._everybody(hand)

    async def accuse(self, proof: bytes) -> list[Answer]:
        """Hand a misbehaviour proof to everybody at once."""

        async def hand(stub: "gossip_pb2_grpc.EmergencyAsyncStub", member: str) -> Answer:
            answer = await stub.Accuse(gossip_pb2.AccuseRequest(proof=proof), timeout=CALL_TIMEOUT_S)
            return Answer(member, news=answer.news, summary=answer.summary)

        return await self._everybody(hand)

    async def denials(self) -> tuple[str, gossip_pb2.ListDenialsResponse]:
        """Return who answered and what is denied there: the control plane, else the first node that answers.

        Raises:
            StateError: SOURCE_UNAVAILABLE, when nobody does.
        """
        errors: list[str] = []
        for member in self._members:
            try:
                return member, await self.denials_at(member)
            except MeshError as error:
                errors.append(f"{member}: {error.detail}")
        raise StateError(Reason.SOURCE_UNAVAILABLE, "; ".join(errors))

    async def denials_at(self, member: str) -> gossip_pb2.ListDenialsResponse:
        """Return what is denied at one member: CONTROL_PLANE or the name of a node.

        Raises:
            MeshError: what it answered, or SOURCE_UNAVAILABLE when it did not.
        """
        try:
            async with self._channel(member) as channel:
                stub = gossip_pb2_grpc.EmergencyStub(channel)
                return await stub.ListDenials(gossip_pb2.ListDenialsRequest(), timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from None

    async def _everybody(
        self, hand: Callable[["gossip_pb2_grpc.EmergencyAsyncStub", str], Awaitable[Answer]]
    ) -> list[Answer]:
        room = asyncio.Semaphore(_AT_ONCE)

        async def one(member: str) -> Answer:
            async with room:
                try:
                    async with self._channel(member) as channel:
                        return await hand(gossip_pb2_grpc.EmergencyStub(channel), member)
                except grpc.aio.AioRpcError as error:
                    return Answer(member, error_from_rpc(error))

        return list(await asyncio.gather(*map(one, self._members)))

    def _channel(self, member: str) -> grpc.aio.Channel:
        address, dns = self._members[member]
        return self._credentials.channel(address, dns)
