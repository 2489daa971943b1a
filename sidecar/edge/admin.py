"""egm.v1.Node: a node's status, and decisions without execution, for operators and the control plane."""

from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf import json_format

from egm.v1 import node_pb2, node_pb2_grpc, operator_pb2
from sidecar.core.call import Attempt, Direction
from sidecar.edge.status import NodeView, lease_word
from trust import limits
from trust.edge.grpc_errors import abort
from trust.edge.tls import peer_of
from trust.errors import EvidenceError, InputError, MeshError, Reason, StateError
from trust.policy.engine import Engine
from trust.policy.types import Authn
from trust.spiffe import SpiffeId

ALLOWED_KINDS: Final = frozenset({"operator", "control-plane"})
Context = grpc.aio.ServicerContext[Any, Any]


class NodeServicer(node_pb2_grpc.NodeServicer):
    """Thin: who asks, then ask the core."""

    def __init__(self, view: NodeView, trust_domain: str) -> None:
        """Serve `view`."""
        self._view, self._trust_domain = view, trust_domain

    async def GetStatus(
        self, request: node_pb2.GetNodeStatusRequest, context: Context
    ) -> operator_pb2.NodeStatus:
        """Return the node's status."""
        await self._check_peer(context)
        return self._view.status()

    async def Check(self, request: node_pb2.CheckRequest, context: Context) -> node_pb2.CheckResponse:
        """Decide without executing and without counting."""
        await self._check_peer(context)
        try:
            return check(self._view, self._trust_domain, request)
        except MeshError as error:
            await abort(context, error)

    async def _check_peer(self, context: Context) -> None:
        try:
            peer = peer_of(context, trust_domain=self._trust_domain, now_ms=self._view.clock.now_ms())
            if peer.kind not in ALLOWED_KINDS:
                raise EvidenceError(
                    Reason.NOT_AUTHORIZED, f"{peer} may not ask a node; operators and the control plane may"
                )
        except MeshError as error:
            await abort(context, error)


def check(view: NodeView, trust_domain: str, request: node_pb2.CheckRequest) -> node_pb2.CheckResponse:
    """Decide the call that `request` describes, as this node would decide it now at its inbound listener.

    Raises:
        InputError: INPUT_INVALID, when the caller or the request JSON is not one.
        StateError: UNKNOWN_SERVICE, when this node carries no calls for the service.
    """
    if request.service not in view.services:
        known = ", ".join(sorted(view.services)) or "none"
        raise StateError(
            Reason.UNKNOWN_SERVICE,
            f"node {view.node} carries no calls for {request.service!r}, only: {known}",
        )
    method = request.method.removeprefix("/")
    attempt = Attempt(
        Direction.INBOUND, request.service, method, str(_caller(trust_domain, request.caller)), Authn.MTLS
    )
    message = _message(view, request.service, method, request.request_json)
    now_ms = view.clock.now_ms()
    decision = view.pipeline.preview(attempt, message, now_ms=now_ms)
    return node_pb2.CheckResponse(
        allowed=decision.allowed,
        reason=decision.reason,
        detail=decision.detail,
        policies=decision.policies,
        policy_version=decision.policy_version,
        level=decision.level,
        lease=lease_word(view.lease()),
        would_deny=decision.would_deny is not None,
        errors=decision.errors,
        obligations=[f"{name} {value}" for name, value in decision.obligations],
        permit_binds=view.pipeline.binds(attempt, decision),
        limits=[
            node_pb2.CheckResponse.Limit(
                name=control.name,
                value=control.text,
                policy=control.source,
                left=view.pipeline.left(control, attempt, now_ms=now_ms),
            )
            for control in decision.controls
        ],
    )


def _caller(trust_domain: str, text: str) -> SpiffeId:
    try:
        return SpiffeId.parse(text) if "://" in text else SpiffeId.of(trust_domain, "workload", text)
    except EvidenceError as error:
        raise InputError(Reason.INPUT_INVALID, f"caller: {error.detail}") from None


def _message(view: NodeView, service: str, method: str, text: str) -> bytes | None:
    """Return the request as bytes, by the descriptors in force; an absent one is the empty message."""
    held = view.state.in_force
    engine = None if held is None else held.engine
    info = engine.methods_of(service).get(method) if isinstance(engine, Engine) else None
    if info is None or not info.has_request:
        if text and engine is not None:
            raise InputError(
                Reason.INPUT_INVALID,
                f"the policy in force has no descriptor of a single request of {method}, so it cannot be given as "
                "JSON; add the descriptors to the bundle, or leave the request out",
            )
        return None
    if not text:
        return b""
    if len(text) > limits.MAX_REQUEST_JSON_BYTES:
        raise InputError(Reason.INPUT_INVALID, f"request: larger than {limits.MAX_REQUEST_JSON_BYTES} bytes")
    message = info.input_class()
    try:
        json_format.Parse(text, message, descriptor_pool=info.input_type.file.pool)
    except (json_format.ParseError, ValueError, RecursionError) as error:
        raise InputError(
            Reason.INPUT_INVALID, f"request: not a {info.input_type.full_name} in JSON: {error}"[:500]
        ) from None
    return message.SerializeToString()
