"""A small SPIFFE Workload API server on a Unix socket: the real protocol, with rotation at a test's command."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from joserfc import jws
from joserfc.jwk import ECKey
from spiffe._proto import workload_pb2, workload_pb2_grpc

from trust.edge.clock import SystemClock
from trust.identity import Svid
from trust.x509 import load_chain


def _der(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(cert.public_bytes(serialization.Encoding.DER) for cert in certificates)


class WorkloadApi:
    """The servicer and its state. Each `set_*` pushes a new message on every open stream."""

    def __init__(self) -> None:
        self._x509 = workload_pb2.X509SVIDResponse()
        self._jwt = workload_pb2.JWTBundlesResponse()
        self._signers: dict[str, ECKey] = {}
        self._version = 0
        self._moved = asyncio.Condition()
        self.streams = 0
        self.refuse: grpc.StatusCode | None = None

    async def set_x509(self, svids: Sequence[Svid], anchors_pem: bytes) -> None:
        """Offer these SVIDs under this trust bundle."""
        bundle = _der(load_chain(anchors_pem))
        self._x509 = workload_pb2.X509SVIDResponse(
            svids=[
                workload_pb2.X509SVID(
                    spiffe_id=str(svid.spiffe_id),
                    x509_svid=_der(load_chain(svid.chain_pem)),
                    x509_svid_key=serialization.load_pem_private_key(svid.key_pem, None).private_bytes(
                        serialization.Encoding.DER,
                        serialization.PrivateFormat.PKCS8,
                        serialization.NoEncryption(),
                    ),
                    bundle=bundle,
                )
                for svid in svids
            ]
        )
        await self._push()

    async def set_raw(self, response: workload_pb2.X509SVIDResponse) -> None:
        """Offer anything, for hostile cases."""
        self._x509 = response
        await self._push()

    async def rotate_jwt(self, trust_domain: str, kid: str) -> None:
        """Publish a new JWT key as the only one of `trust_domain`."""
        key = self._signers[trust_domain] = ECKey.generate_key("P-256", {"kid": kid})
        jwks = {"keys": [{**key.as_dict(private=False), "kid": kid, "use": "jwt-svid"}]}
        self._jwt.bundles[f"spiffe://{trust_domain}"] = json.dumps(jwks).encode()
        await self._push()

    async def drop_streams(self) -> None:
        """End every open stream, as a restarting agent does."""
        self.refuse = grpc.StatusCode.UNAVAILABLE
        await self._push()
        self.refuse = None

    def sign(self, spiffe_id: str, audience: Sequence[str], *, ttl_s: int = 300) -> str:
        """Return a JWT-SVID signed with the current key of its trust domain."""
        key = self._signers[spiffe_id.removeprefix("spiffe://").partition("/")[0]]
        claims = {"sub": spiffe_id, "aud": list(audience), "exp": SystemClock().now_ms() // 1000 + ttl_s}
        return jws.serialize_compact(
            {"alg": "ES256", "kid": str(key.kid), "typ": "JWT"}, json.dumps(claims), key
        )

    async def _push(self) -> None:
        async with self._moved:
            self._version += 1
            self._moved.notify_all()

    async def _check_header(self, context: Any) -> None:
        if ("workload.spiffe.io", "true") not in tuple(context.invocation_metadata()):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")

    async def _stream(self, context: Any, current: Any) -> AsyncIterator[Any]:
        await self._check_header(context)
        self.streams += 1
        try:
            while True:
                seen = self._version
                yield current()
                async with self._moved:
                    await self._moved.wait_for(lambda seen=seen: self._version != seen)  # type: ignore[misc]
                if self.refuse is not None:
                    await context.abort(self.refuse, "agent is going away")
        finally:
            self.streams -= 1

    async def FetchX509SVID(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """Stream every SVID and bundle, now and after each change."""
        async for message in self._stream(context, lambda: self._x509):
            yield message

    async def FetchX509Bundles(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """Stream the bundles alone."""
        bundles = lambda: workload_pb2.X509BundlesResponse(  # noqa: E731
            bundles={"spiffe://" + s.spiffe_id.split("/")[2]: s.bundle for s in self._x509.svids}
        )
        async for message in self._stream(context, bundles):
            yield message

    async def FetchJWTBundles(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """Stream the JWT bundles."""
        async for message in self._stream(context, lambda: self._jwt):
            yield message

    async def FetchJWTSVID(self, request: Any, context: Any) -> Any:
        """Sign a JWT-SVID for one of the offered identities."""
        await self._check_header(context)
        if not request.audience:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "audience must be specified")
        who = request.spiffe_id or self._x509.svids[0].spiffe_id
        token = self.sign(who, request.audience)
        return workload_pb2.JWTSVIDResponse(svids=[workload_pb2.JWTSVID(spiffe_id=who, svid=token)])

    async def ValidateJWTSVID(self, request: Any, context: Any) -> Any:
        """Not used by the mesh, which validates tokens itself."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "validate tokens with the JWT bundles")


@asynccontextmanager
async def workload_api(socket: Path) -> AsyncIterator[WorkloadApi]:
    """Serve a Workload API on `socket`."""
    servicer = WorkloadApi()
    server = grpc.aio.server()
    workload_pb2_grpc.add_SpiffeWorkloadAPIServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    try:
        yield servicer
    finally:
        await server.stop(None)
