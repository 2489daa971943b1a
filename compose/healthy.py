"""Health check of a container: exit 0 when grpc.health.v1 at HOST:PORT says SERVING. With --svid DIR over mTLS."""

import argparse
import asyncio
import sys
from pathlib import Path

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc


async def check(address: str, svid: Path | None, server: str) -> bool:
    """Return whether the server at `address` is SERVING."""
    options = [("grpc.enable_http_proxy", 0)]
    if svid is None:
        channel = grpc.aio.insecure_channel(address, options=options)
    else:
        anchors, key, chain = ((svid / name).read_bytes() for name in ("ca.pem", "svid.key.pem", "svid.pem"))
        options.append(("grpc.ssl_target_name_override", server))
        credentials = grpc.ssl_channel_credentials(anchors, key, chain)
        channel = grpc.aio.secure_channel(address, credentials, options=options)
    async with channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=3)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def main() -> None:
    """Ask once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--svid", type=Path)
    parser.add_argument("--server", default="control-plane.mesh.local")
    options = parser.parse_args()
    try:
        sys.exit(0 if asyncio.run(check(options.address, options.svid, options.server)) else 1)
    except (grpc.aio.AioRpcError, OSError) as error:
        sys.exit(f"unhealthy: {error}")


if __name__ == "__main__":
    main()
