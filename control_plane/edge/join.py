"""Who may have which certificate: a token's bearer once, a node for itself and its workloads from then on."""

import base64
import logging
import secrets
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias

import grpc.aio

from control_plane.core.join_tokens import (
    RANDOM_BYTES,
    TEXT_PREFIX,
    Grant,
    TokenStore,
    check_ttl,
    make_grant,
    token_digest,
)
from control_plane.edge.ca import CertificateAuthority
from egm.v1 import join_pb2, join_pb2_grpc
from trust import limits
from trust.edge.grpc_errors import abort
from trust.edge.tls import peer_of
from trust.errors import CapacityError, EvidenceError, MeshError, Reason, StateError
from trust.ports import Clock
from trust.spiffe import SpiffeId

logger = logging.getLogger(__name__)

MAX_REQUESTS: Final = limits.MAX_WORKLOADS_PER_NODE + 1  # the node's own
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


def new_token() -> str:
    """Return a fresh join token; show it once, store only `token_digest` of it."""
    return TEXT_PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(RANDOM_BYTES)).rstrip(b"=").decode()


async def create_token(
    tokens: TokenStore, node: str, workloads: Iterable[str], *, ttl_s: int, now_ms: int
) -> tuple[str, int]:
    """Make a join token for `node` and `workloads`; return its text and its expiry (Unix ms).

    Args:
        tokens: where its digest is remembered.
        node: name of the node.
        workloads: names of the workloads that it may serve.
        ttl_s: seconds, 0 for the default.
        now_ms: Unix time, ms.

    Raises:
        InputError, EvidenceError: bad names or lifetime.
    """
    grant = make_grant(node, workloads)
    token, expires_ms = new_token(), now_ms + check_ttl(ttl_s) * 1000
    await tokens.create(token_digest(token), grant, expires_ms=expires_ms, now_ms=now_ms)
    return token, expires_ms


class JoinServicer(join_pb2_grpc.JoinServicer):
    """egm.v1.Join. `Enrol` is for the listener without client certificates, `Renew` for the mTLS one.

    Both may be registered on both: `Renew` refuses a caller without a certificate.
    """

    def __init__(
        self,
        ca: CertificateAuthority,
        tokens: TokenStore,
        clock: Clock,
        *,
        svid_ttl_s: int = limits.SVID_TTL_S,
    ) -> None:
        self._ca, self._tokens, self._clock, self._svid_ttl_s = ca, tokens, clock, svid_ttl_s

    async def Enrol(self, request: join_pb2.EnrolRequest, context: Context) -> join_pb2.IssuedCertificates:
        """Trade a one-time token for certificates."""
        try:
            wanted = _wanted(request.requests)
            if not wanted:
                raise EvidenceError(Reason.INPUT_INVALID, "an enrolment asks for at least one certificate")
            now_ms = self._clock.now_ms()
            # Spent before the costly part, and also when that part refuses: a token buys one attempt.
            grant = await self._tokens.consume(token_digest(request.token), now_ms)
            issued = self._issue(grant, wanted, now_ms=now_ms)
        except MeshError as error:
            logger.warning("enrolment refused: %s", error)
            await abort(context, error)
        logger.info("node %s enrolled with %d certificates", grant.node, len(wanted))
        return issued

    async def Renew(self, request: join_pb2.RenewRequest, context: Context) -> join_pb2.IssuedCertificates:
        """Issue anew to a node that still has a certificate; without requests, only tell the trust bundle."""
        try:
            now_ms = self._clock.now_ms()
            node = peer_of(context, trust_domain=self._ca.trust_domain, now_ms=now_ms)
            grant = await self._grant_of(node)
            issued = self._issue(grant, _wanted(request.requests), now_ms=now_ms)
        except MeshError as error:
            logger.warning("renewal refused: %s", error)
            await abort(context, error)
        return issued

    async def _grant_of(self, node: SpiffeId) -> Grant:
        grant = await self._tokens.grant_of(node.name) if node.kind == "node" else None
        if grant is None:
            raise StateError(
                Reason.NOT_AUTHORIZED, f"{node} is not an enrolled node; enrol it with a join token"
            )
        return grant

    def _issue(
        self, grant: Grant, wanted: Sequence[tuple[SpiffeId, bytes]], *, now_ms: int
    ) -> join_pb2.IssuedCertificates:
        for spiffe_id, _ in wanted:  # all or nothing
            if not grant.allows(spiffe_id, trust_domain=self._ca.trust_domain):
                raise StateError(
                    Reason.NOT_AUTHORIZED,
                    f"node {grant.node} was not granted {spiffe_id}; ask for a token that names this workload",
                )
        result = join_pb2.IssuedCertificates(ca_bundle_pem=self._ca.anchors_pem())
        for spiffe_id, csr_der in wanted:
            chain_pem, not_after_ms = self._ca.issue(
                csr_der, spiffe_id, ttl_s=self._svid_ttl_s, now_ms=now_ms
            )
            result.certificates.add(spiffe_id=str(spiffe_id), chain_pem=chain_pem, not_after_ms=not_after_ms)
        return result


def _wanted(requests: Sequence[join_pb2.CertificateRequest]) -> list[tuple[SpiffeId, bytes]]:
    """Parse the requests; refuse too many, too big and repeated ones before anything is spent on them."""
    if len(requests) > MAX_REQUESTS:
        raise CapacityError(
            Reason.LIMIT_EXCEEDED, f"{len(requests)} certificates asked; at most {MAX_REQUESTS}"
        )
    wanted = [(SpiffeId.parse(item.spiffe_id), item.csr_der) for item in requests]
    if len({spiffe_id for spiffe_id, _ in wanted}) != len(wanted):
        raise EvidenceError(Reason.INPUT_INVALID, "one certificate is asked for twice")
    if any(len(csr_der) > limits.MAX_CSR_BYTES for _, csr_der in wanted):
        raise EvidenceError(
            Reason.INPUT_INVALID, f"certificate request larger than {limits.MAX_CSR_BYTES} bytes"
        )
    return wanted
