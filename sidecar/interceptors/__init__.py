"""The door inside a service: executes only what its own sidecar handed on, and passes the chain on to its calls.

    interceptors=[AioServerInterceptor("/var/lib/egm/node-key.pub", WORKLOAD)]  for the service's server
    interceptors=AioClientInterceptors()                                        for its channels to the sidecar

The sidecar needs `inbound[].handover: true`. Put the server interceptor first: what comes before it is not guarded.
"""

from sidecar.interceptors.client import AioClientInterceptors, ClientInterceptors
from sidecar.interceptors.current import CurrentCall, current_call
from sidecar.interceptors.server import AioServerInterceptor, ServerInterceptor
from sidecar.interceptors.verification import HEALTH, REFLECTION

__all__ = [
    "HEALTH",
    "REFLECTION",
    "AioClientInterceptors",
    "AioServerInterceptor",
    "ClientInterceptors",
    "CurrentCall",
    "ServerInterceptor",
    "current_call",
]
