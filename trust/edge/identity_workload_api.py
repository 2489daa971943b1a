"""Certificates from a SPIFFE Workload API (SPIRE's agent, for example), which pushes every rotation."""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from spiffe import JwtBundleSet, TrustDomain, WorkloadApiClient
from spiffe.errors import PySpiffeError
from spiffe.workloadapi.x509_context import X509Context

from trust.backoff import RENEW
from trust.edge.subscribers import Subscribers
from trust.errors import MeshError, Reason, StateError
from trust.identity import Svid
from trust.jwt_svid import JwtKeys, from_public_key
from trust.ports import Clock
from trust.spiffe import SpiffeId
from trust.x509 import check_svid, to_pem

logger = logging.getLogger(__name__)

START_TIMEOUT_S: Final = 30.0


class WorkloadApiIdentity:
    """An `IdentitySource` over a Workload API socket; also supplies JWT bundles (`trust.edge.jwt_bundles`).

    The client library delivers updates from threads of its own; every update is taken over on the event loop.
    The set of identities is always exactly the last one pushed: an identity that is withdrawn is gone.
    """

    def __init__(
        self,
        socket: str,
        spiffe_ids: Sequence[SpiffeId],
        *,
        trust_domain: str,
        clock: Clock,
        jwt: bool = False,
    ) -> None:
        """Prepare; nothing is asked before `start`.

        Args:
            socket: "unix:///path/to/agent.sock".
            spiffe_ids: the identities needed; others that the API offers are ignored.
            trust_domain: whose bundle becomes the anchors.
            clock: real or fake.
            jwt: also follow the JWT bundles.
        """
        self._socket, self._ids, self._clock = socket, tuple(spiffe_ids), clock
        self._trust_domain, self._jwt = trust_domain, jwt
        self._svids: dict[SpiffeId, Svid] = {}
        self._anchors = b""
        self._jwt_keys: Mapping[str, JwtKeys] = {}
        self._subscribers = Subscribers()
        self._changed = asyncio.Event()
        self._why_not = "no answer from the Workload API yet"
        self._tasks: list[asyncio.Task[None]] = []

    # IdentitySource and JwtBundles

    def svid(self, spiffe_id: SpiffeId) -> Svid:
        """Return the current SVID; StateError IDENTITY_UNAVAILABLE when there is none or it has expired."""
        svid = self._svids.get(spiffe_id)
        if svid is None:
            raise StateError(
                Reason.IDENTITY_UNAVAILABLE,
                f"the Workload API gave no certificate for {spiffe_id}: {self._why_not}",
            )
        if self._clock.now_ms() >= svid.not_after_ms:
            raise StateError(
                Reason.IDENTITY_UNAVAILABLE, f"the certificate of {spiffe_id} has expired: {self._why_not}"
            )
        return svid

    def anchors_pem(self) -> bytes:
        """Return the CA certificates of the trust domain (PEM); empty before `start`."""
        return self._anchors

    def jwt_keys(self) -> Mapping[str, JwtKeys]:
        """Return the JWT-SVID keys of every trust domain that the API names."""
        return self._jwt_keys

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Call `changed` (on the loop) after each update."""
        self._subscribers.add(changed)

    # life cycle

    async def start(self, *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Follow the API and wait until every identity (and the JWT keys, if wanted) has arrived.

        Raises:
            StateError: IDENTITY_UNAVAILABLE, saying which is missing and why.
        """
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self._follow(self._watch_x509)))
        if self._jwt:
            self._tasks.append(loop.create_task(self._follow(self._watch_jwt)))
        try:
            async with asyncio.timeout(timeout_s):
                while not self._complete():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            await self.close()
            missing = [str(spiffe_id) for spiffe_id in self._ids if spiffe_id not in self._svids]
            what = ", ".join(missing) or "the JWT bundles"
            raise StateError(
                Reason.IDENTITY_UNAVAILABLE,
                f"the Workload API at {self._socket} did not provide {what}: {self._why_not}",
            ) from None

    def _complete(self) -> bool:
        return all(i in self._svids for i in self._ids) and (not self._jwt or bool(self._jwt_keys))

    async def run(self) -> None:
        """Follow updates until cancelled."""
        try:
            await asyncio.gather(*self._tasks)
        finally:
            await self.close()

    async def close(self) -> None:
        """Stop following; what is held stays usable until it expires."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, watch: Callable[[WorkloadApiClient, asyncio.Future[str]], Any]) -> None:
        """Keep one stream open; reconnect with backoff whatever ends it."""
        loop, failures, draw = asyncio.get_running_loop(), 0, random.Random()  # noqa: S311
        while True:
            began = self._clock.monotonic_ms()
            why = await self._follow_once(watch, loop)
            self._why_not = why
            if self._clock.monotonic_ms() - began > 60_000:  # it had worked
                failures = 0
            failures += 1
            wait_s = RENEW.delay_ms(failures, draw.random()) / 1000
            logger.warning("Workload API: %s; reconnecting in %.1f s", why, wait_s)
            await asyncio.sleep(wait_s)

    async def _follow_once(
        self,
        watch: Callable[[WorkloadApiClient, asyncio.Future[str]], Any],
        loop: asyncio.AbstractEventLoop,
    ) -> str:
        try:
            client = WorkloadApiClient(self._socket)
        except PySpiffeError as error:
            return str(error)
        ended: asyncio.Future[str] = loop.create_future()
        stream = watch(client, ended)
        try:
            return await ended
        finally:
            stream.cancel()
            client.close()

    def _watch_x509(self, client: WorkloadApiClient, ended: "asyncio.Future[str]") -> object:
        loop = asyncio.get_running_loop()
        return client.stream_x509_contexts(
            on_success=lambda context: _post(loop, self._adopt, context),
            on_error=lambda error: _post(loop, _resolve, ended, str(error)),
            retry_connect=False,  # our own loop reconnects, also after errors that the library takes for final
        )

    def _watch_jwt(self, client: WorkloadApiClient, ended: "asyncio.Future[str]") -> object:
        loop = asyncio.get_running_loop()
        return client.stream_jwt_bundles(
            on_success=lambda bundles: _post(loop, self._adopt_jwt, bundles),
            on_error=lambda error: _post(loop, _resolve, ended, str(error)),
            retry_connect=False,
        )

    def _adopt(self, context: X509Context) -> None:
        """Take over one update: all of it, or (when an identity does not verify) none, and keep the old."""
        bundle = context.x509_bundle_set.get_bundle_for_trust_domain(TrustDomain(self._trust_domain))
        if bundle is None:
            self._why_not = f"the Workload API has no bundle for trust domain {self._trust_domain}"
            logger.error("%s", self._why_not)
            return
        authorities = sorted(bundle.x509_authorities, key=_newest_first)
        anchors, now_ms = to_pem(authorities), self._clock.now_ms()
        received: dict[SpiffeId, Svid] = {}
        try:
            for offered in context.x509_svids:
                spiffe_id = SpiffeId.parse(str(offered.spiffe_id))
                if spiffe_id not in self._ids:
                    continue
                key_pem = offered.private_key.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                )
                chain_pem = to_pem(offered.cert_chain)
                received[spiffe_id] = check_svid(
                    chain_pem, key_pem, anchors, expected=spiffe_id, now_ms=now_ms
                )
        except MeshError as error:
            self._why_not = error.detail
            logger.error("unusable update from the Workload API, keeping the old: %s", error)
            return
        for spiffe_id in self._svids.keys() - received.keys():
            logger.warning("the Workload API withdrew %s", spiffe_id)
        if self._ids and not received:
            self._why_not = "no registration entry matches this process"
        self._svids, self._anchors = received, anchors
        self._changed.set()
        self._subscribers.notify()

    def _adopt_jwt(self, bundles: JwtBundleSet) -> None:
        self._jwt_keys = {
            bundle.trust_domain.name: {
                kid: key
                for kid, raw in bundle.jwt_authorities.items()
                if (key := from_public_key(raw)) is not None
            }
            for bundle in bundles.bundles
        }
        self._changed.set()


def _newest_first(certificate: x509.Certificate) -> tuple[float, int]:
    return -certificate.not_valid_before_utc.timestamp(), certificate.serial_number


def _resolve(future: "asyncio.Future[str]", text: str) -> None:
    if not future.done():
        future.set_result(text)


def _post(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: object) -> None:
    """Run `function` on the loop, from a thread; a loop that has closed no longer cares."""
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        logger.debug("update after the loop closed")
