"""Certificates from the embedded CA: enrolled once with a token, then renewed before they expire."""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import grpc
import grpc.aio

from egm.v1 import join_pb2, join_pb2_grpc
from trust import limits
from trust.backoff import RENEW
from trust.edge.grpc_errors import error_from_rpc, readable
from trust.edge.identity_directory import DirectoryIdentity
from trust.edge.leaf_keys import key_to_pem, make_csr, new_key
from trust.edge.subscribers import Subscribers
from trust.edge.svid_store import SvidStore
from trust.edge.tls import channel_options
from trust.errors import EvidenceError, InputError, MeshError, Reason, StateError
from trust.identity import Svid
from trust.ports import Clock
from trust.renewal import due_ms
from trust.spiffe import SpiffeId
from trust.x509 import check_anchors, check_svid, control_plane_dns

__all__ = ["DirectoryIdentity", "EmbeddedIdentity"]

logger = logging.getLogger(__name__)

_MIN_PERIOD_S: Final = 0.5  # certificates that end with their CA get ever shorter: do not ask in a tight loop


class EmbeddedIdentity:
    """An `IdentitySource` over the control plane's Join service; keeps what it has until it has something newer."""

    def __init__(
        self,
        directory: Path,
        spiffe_ids: Sequence[SpiffeId],
        *,
        control_plane: Sequence[str],
        join_addresses: Sequence[str] = (),
        trust_domain: str,
        ca_pem: bytes,
        token: str | None,
        clock: Clock,
        anchors_refresh_s: float = limits.ANCHORS_REFRESH_S,
    ) -> None:
        """Prepare; nothing is read or asked before `start`.

        Args:
            directory: where certificates and keys are kept.
            spiffe_ids: the node's own first, then its workloads'.
            control_plane: "host:port" of mTLS listeners, for renewal; tried in order.
            join_addresses: "host:port" of enrolment listeners.
            trust_domain: of all of them.
            ca_pem: CA certificates to trust when enrolling (later the stored ones count).
            token: one-time join token, None when the node has enrolled before.
            clock: real or fake.
            anchors_refresh_s: how often to ask for the trust bundle between renewals.
        """
        self._store = SvidStore(directory)
        self._directory = directory
        self._ids = tuple(spiffe_ids)
        self._control_plane, self._join = tuple(control_plane), tuple(join_addresses)
        self._trust_domain, self._ca_pem, self._token = trust_domain, ca_pem, token
        self._clock = clock
        self._refresh_s = anchors_refresh_s
        self._svids: dict[SpiffeId, Svid] = {}
        self._anchors = ca_pem
        self._subscribers = Subscribers()
        self._lock = asyncio.Lock()
        self._draw = random.Random()  # noqa: S311  # spreads load, guards nothing

    # IdentitySource

    def svid(self, spiffe_id: SpiffeId) -> Svid:
        """Return the current SVID; StateError IDENTITY_UNAVAILABLE when there is none or it has expired."""
        svid = self._svids.get(spiffe_id)
        if svid is None:
            raise StateError(Reason.IDENTITY_UNAVAILABLE, f"this node holds no certificate for {spiffe_id}")
        if self._clock.now_ms() >= svid.not_after_ms:
            raise StateError(
                Reason.IDENTITY_UNAVAILABLE,
                f"the certificate of {spiffe_id} has expired and could not be renewed; is the control plane reachable?",
            )
        return svid

    def anchors_pem(self) -> bytes:
        """Return the CA certificates to trust now (PEM)."""
        return self._anchors

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Call `changed` after an SVID or the anchors were replaced."""
        self._subscribers.add(changed)

    # life cycle

    async def start(self) -> None:
        """Hold a certificate for every identity: from disk, else by renewal, else by enrolling with the token.

        Raises:
            InputError: CONFIG_INVALID, when there is neither; says what to do. IDENTITY_INVALID for a broken store.
            MeshError: the control plane refused (JOIN_TOKEN_INVALID, NOT_AUTHORIZED) or could not be reached.
        """
        check_anchors(self._ca_pem, trust_domain=self._trust_domain)
        self._load()
        missing = [spiffe_id for spiffe_id in self._ids if spiffe_id not in self._svids]
        if not missing:
            return
        if self._ids[0] in self._svids and self._token is None:
            await self._renew(missing)  # a workload was added to a node that is enrolled
            return
        if self._token is None:
            raise InputError(
                Reason.CONFIG_INVALID,
                f"{self._directory} holds no valid certificate for {missing[0]} and there is no join token; "
                f"make one on the control plane (egm node token {self._ids[0].name}) and configure join_token_file",
            )
        await self._enrol(self._token)

    async def run(self) -> None:
        """Renew at half the lifetime and follow the trust bundle, until cancelled. Failures are retried, and logged."""
        failures = 0
        while True:
            try:
                await asyncio.sleep(self._until_next_s())
                if self._due():
                    await self.renew_now()
                else:
                    await self._renew([])
                failures = 0
            except (MeshError, OSError) as error:
                failures += 1
                wait_s = RENEW.delay_ms(failures, self._draw.random()) / 1000
                logger.warning("identity not renewed, trying again in %.0f s: %s", wait_s, error)
                await asyncio.sleep(wait_s)

    async def renew_now(self) -> None:
        """Replace every certificate with a new one and a fresh key; the old ones stay in force if this fails.

        Raises:
            MeshError: why not.
        """
        await self._renew(self._ids)

    def _until_next_s(self) -> float:
        due = min(due_ms(svid.not_before_ms, svid.not_after_ms, draw=0.0) for svid in self._svids.values())
        wait_s = (due - self._clock.now_ms()) / 1000
        jittered = self._refresh_s * (1 - 0.1 * self._draw.random())
        return max(_MIN_PERIOD_S, min(wait_s, jittered))

    def _due(self) -> bool:
        now_ms, draw = self._clock.now_ms(), self._draw.random()
        return any(
            now_ms >= due_ms(svid.not_before_ms, svid.not_after_ms, draw=draw)
            for svid in self._svids.values()
        )

    def _load(self) -> None:
        """Take from disk what is still valid under the anchors that are stored with it."""
        self._anchors = self._store.load_anchors() or self._ca_pem
        now_ms = self._clock.now_ms()
        for spiffe_id in self._ids:
            stored = self._store.load(spiffe_id)
            if stored is None:
                continue
            try:
                self._svids[spiffe_id] = check_svid(
                    stored.chain_pem, stored.key_pem, self._anchors, expected=spiffe_id, now_ms=now_ms
                )
            except MeshError as error:
                logger.warning("stored certificate of %s is not usable: %s", spiffe_id, error)

    # the two calls

    async def _enrol(self, token: str) -> None:
        if not self._join:
            raise InputError(Reason.CONFIG_INVALID, "a join token needs control_plane.join_addresses")
        async with self._lock:
            keys = {spiffe_id: new_key() for spiffe_id in self._ids}
            requests = [
                join_pb2.CertificateRequest(spiffe_id=str(spiffe_id), csr_der=make_csr(key))
                for spiffe_id, key in keys.items()
            ]
            request = join_pb2.EnrolRequest(token=token, requests=requests)
            credentials = grpc.ssl_channel_credentials(self._ca_pem)
            issued = await self._call(self._join, credentials, "Enrol", request)
            self._adopt(issued, {spiffe_id: key_to_pem(key) for spiffe_id, key in keys.items()})
        logger.info("enrolled %s", self._ids[0])

    async def _renew(self, spiffe_ids: Sequence[SpiffeId]) -> None:
        async with self._lock:
            own = self.svid(self._ids[0])
            keys = {spiffe_id: new_key() for spiffe_id in spiffe_ids}
            request = join_pb2.RenewRequest(
                requests=[
                    join_pb2.CertificateRequest(spiffe_id=str(spiffe_id), csr_der=make_csr(key))
                    for spiffe_id, key in keys.items()
                ]
            )
            credentials = grpc.ssl_channel_credentials(self._anchors, own.key_pem, own.chain_pem)
            issued = await self._call(self._control_plane, credentials, "Renew", request)
            self._adopt(issued, {spiffe_id: key_to_pem(key) for spiffe_id, key in keys.items()})

    async def _call(
        self,
        addresses: Sequence[str],
        credentials: grpc.ChannelCredentials,
        method: str,
        request: join_pb2.EnrolRequest | join_pb2.RenewRequest,
    ) -> join_pb2.IssuedCertificates:
        """Ask the addresses in order; a refusal is final, an address without a readable answer is not.

        Raises:
            MeshError: the refusal; StateError SOURCE_UNAVAILABLE of the last one, when none answered.
        """
        last: MeshError = StateError(Reason.SOURCE_UNAVAILABLE, "no control plane address is configured")
        for address in addresses:
            options = channel_options(control_plane_dns(self._trust_domain))
            async with grpc.aio.secure_channel(address, credentials, options) as channel:
                stub = join_pb2_grpc.JoinStub(channel)
                try:
                    reply: join_pb2.IssuedCertificates = readable(
                        await getattr(stub, method)(request, timeout=limits.IDENTITY_RPC_TIMEOUT_S)
                    )
                except grpc.aio.AioRpcError as error:
                    last = error_from_rpc(error)
                except StateError as error:  # it answered what nobody can read
                    last = error
                else:
                    return reply
            if last.reason is not Reason.SOURCE_UNAVAILABLE:
                raise last
            last = StateError(last.reason, f"{method} at {address}: {last.detail}")
        raise last

    def _adopt(self, issued: join_pb2.IssuedCertificates, keys: dict[SpiffeId, bytes]) -> None:
        """Check everything, persist it, then switch to it, then tell: in that order."""
        check_anchors(issued.ca_bundle_pem, trust_domain=self._trust_domain)
        now_ms = self._clock.now_ms()
        received: dict[SpiffeId, Svid] = {}
        for certificate in issued.certificates:
            spiffe_id = SpiffeId.parse(certificate.spiffe_id)
            key_pem = keys.get(spiffe_id)
            if key_pem is None:
                raise EvidenceError(
                    Reason.IDENTITY_INVALID, f"the control plane sent a certificate for {spiffe_id}"
                )
            received[spiffe_id] = check_svid(
                certificate.chain_pem, key_pem, issued.ca_bundle_pem, expected=spiffe_id, now_ms=now_ms
            )
        if received.keys() != keys.keys():
            raise EvidenceError(Reason.IDENTITY_INVALID, "the control plane left out a certificate")
        if not received and issued.ca_bundle_pem == self._anchors:
            return
        if issued.ca_bundle_pem != self._anchors or self._store.load_anchors() is None:
            self._store.save_anchors(issued.ca_bundle_pem)
        for svid in received.values():
            self._store.save(svid)
        self._anchors = issued.ca_bundle_pem
        self._svids.update(received)
        self._subscribers.notify()
