"""Announcements over MQTT 3.1.1: keeps one published, or listens for them, through every broker failure.

The broker is untrusted. It can delay, repeat, reorder, withhold or invent announcements; each is only a hint
to look (`trust.announce`), so the worst it can do is cost time, which polling bounds.
"""

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, Literal

import aiomqtt

from trust import announce, limits
from trust.backoff import RECONNECT, Backoff
from trust.edge.broker_url import DEFAULT_PORT, DEFAULT_TLS_PORT, BrokerUrl
from trust.errors import MeshError

__all__ = ["DEFAULT_PORT", "DEFAULT_TLS_PORT", "BrokerUrl", "MqttAnnouncer", "MqttListener"]

CONNECT_TIMEOUT_S: Final = 3.0  # for the TCP and TLS handshake, and again for each broker answer
KEEPALIVE_S: Final = 15  # a dead broker is noticed within one and a half of these
STABLE_AFTER_S: Final = 10.0  # a connection that lasted this long starts the backoff afresh
# A larger packet cuts the connection before it is buffered; one above the payload limit is merely dropped.
MAX_PACKET_BYTES: Final = 4 * limits.MAX_ANNOUNCEMENT_BYTES
MAX_QUEUED_ANNOUNCEMENTS: Final = 64
_REFUSED: Final = 0x80  # SUBACK return code

_log = logging.getLogger(__name__)
# What the client library would log also reaches us as an exception; we say it once, with what happens next.
_client_log = logging.getLogger(f"{__name__}.client")
_client_log.setLevel(logging.CRITICAL)


class _Link:
    """One connection to a broker, kept up by `run`."""

    def __init__(self, url: BrokerUrl, topic: str, role: str, reconnect: Backoff) -> None:
        self.url = url
        self.topic = topic
        self.connected = False
        self.last_error: str | None = None  # why there is no connection, for status output
        self.connections = 0  # made so far
        self._role = role
        self._reconnect = reconnect

    async def run(self) -> None:
        """Keep the connection until cancelled; reconnect after a bounded wait. Returns at once for `none`."""
        if not self.url.enabled:
            return
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            started = loop.time()
            try:
                async with self._connection() as client:
                    await self._serve(client)
            except (aiomqtt.MqttError, OSError) as error:
                reason = _explain(error)
            finally:
                self.connected = False
            failures = 1 if loop.time() - started >= STABLE_AFTER_S else failures + 1
            delay_ms = self._reconnect.delay_ms(failures, random.random())  # noqa: S311 (spreads load, hides nothing)
            level = logging.WARNING if reason != self.last_error else logging.DEBUG
            _log.log(level, "broker %s: %s; next attempt in %d ms", self.url, reason, delay_ms)
            self.last_error = reason
            await asyncio.sleep(delay_ms / 1000)

    async def _serve(self, client: aiomqtt.Client) -> None:
        """Work on an open connection; raise MqttError when it is lost."""
        raise NotImplementedError

    def _up(self) -> None:
        self.connected = True
        self.connections += 1
        if self.last_error is not None:
            _log.info("broker %s: connected", self.url)
        self.last_error = None

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[aiomqtt.Client]:
        context = await asyncio.to_thread(self.url.tls_context)
        client = aiomqtt.Client(
            self.url.host,
            self.url.port,
            username=self.url.username,
            password=self.url.password,
            # Fresh for each connection (two clients with one id throw each other out), unguessable, and no
            # longer than the 23 bytes that every 3.1.1 broker accepts.
            identifier=f"egm-{self._role}-{secrets.token_hex(8)}",
            protocol=aiomqtt.ProtocolVersion.V311,
            clean_session=True,
            timeout=CONNECT_TIMEOUT_S,
            keepalive=KEEPALIVE_S,
            tls_context=context,
            queue_type=_NewestQueue,
            max_queued_incoming_messages=MAX_QUEUED_ANNOUNCEMENTS,
            logger=_client_log,
        )
        client._client.connect_timeout = CONNECT_TIMEOUT_S
        _bound_packets(client)
        opening = asyncio.ensure_future(client.__aenter__())
        try:
            try:
                await asyncio.shield(opening)
            except asyncio.CancelledError:
                # The handshake runs in a thread that cannot be interrupted: wait for its end (bounded by the
                # timeouts above), or its socket would outlive us.
                await asyncio.wait({opening})
                if not opening.cancelled():
                    opening.exception()
                raise
            _register_at_once(client)
            yield client
        finally:
            try:
                await asyncio.sleep(0)  # lets registrations that are under way happen before the socket goes
            finally:
                _close(client)


class MqttAnnouncer(_Link):
    """Keeps the newest announcement retained (QoS 1) on the trust domain's topic."""

    def __init__(
        self,
        url: BrokerUrl,
        trust_domain: str,
        *,
        reconnect: Backoff = RECONNECT,
        topic: str | None = None,
    ) -> None:
        """Publish to the topic of policy announcements, or to `topic`."""
        super().__init__(url, topic or announce.topic(trust_domain), "p", reconnect)
        self._latest: bytes | None = None
        self._changed = asyncio.Event()
        # the last payload that a broker confirmed on the present connection
        self.acknowledged: bytes | None = None

    async def announce(self, payload: bytes) -> None:
        """Remember `payload` as the newest and have it published now, or as soon as there is a broker again.

        Never waits for the broker: publication of policy must not depend on it.

        Raises:
            InputError: INPUT_INVALID, for an empty or too large payload.
        """
        self._latest = announce.check_payload(payload)
        self._changed.set()

    async def _serve(self, client: aiomqtt.Client) -> None:
        self.acknowledged = None
        self._up()
        lost = asyncio.ensure_future(_until_lost(client))
        changed: asyncio.Task[Literal[True]] | None = None
        try:
            while True:
                self._changed.clear()
                if (payload := self._latest) is not None:
                    await client.publish(self.topic, payload, qos=1, retain=True)
                    self.acknowledged = payload
                waiting: set[asyncio.Future[Any]] = {
                    lost,
                    changed := asyncio.ensure_future(self._changed.wait()),
                }
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if lost.done():
                    await lost
        finally:
            tasks: list[asyncio.Task[Any]] = [lost] if changed is None else [lost, changed]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class MqttListener(_Link):
    """Hands every announcement of the trust domain to `on_payload`, in the event loop.

    `on_payload` gets 1 to `limits.MAX_ANNOUNCEMENT_BYTES` unverified bytes and may raise a MeshError to
    refuse them; refusals and payloads of another size are counted in `refused`.
    """

    def __init__(
        self,
        url: BrokerUrl,
        trust_domain: str,
        on_payload: Callable[[bytes], None],
        *,
        reconnect: Backoff = RECONNECT,
        topic: str | None = None,
    ) -> None:
        super().__init__(url, topic or announce.topic(trust_domain), "l", reconnect)
        self._on_payload = on_payload
        self.received = 0
        self.refused = 0

    async def _serve(self, client: aiomqtt.Client) -> None:
        granted = await client.subscribe(self.topic, qos=1)
        if any((code if isinstance(code, int) else code.value) >= _REFUSED for code in granted):
            raise aiomqtt.MqttError(
                f"the broker refuses a subscription to {self.topic}; check its access rules"
            )
        self._up()
        async for message in client.messages:
            self._take(message.payload)

    def _take(self, payload: object) -> None:
        self.received += 1
        if not isinstance(payload, bytes) or not 0 < len(payload) <= limits.MAX_ANNOUNCEMENT_BYTES:
            self.refused += 1
            return
        try:
            self._on_payload(payload)
        except MeshError as error:
            self.refused += 1
            _log.debug("broker %s: %s", self.url, error)


class _NewestQueue(asyncio.Queue[aiomqtt.Message]):
    """A full queue loses its oldest message: the newest announcement is the one that matters."""

    def put_nowait(self, item: aiomqtt.Message) -> None:
        while self.full():
            self.get_nowait()
        super().put_nowait(item)


def _explain(error: Exception) -> str:
    """Say what happened in terms of the broker; the client library speaks of its own internals."""
    text = str(error) or type(error).__name__
    if text == "Operation timed out":
        return "no answer (is it an MQTT broker? does it want TLS, or a client certificate?)"
    if text.startswith("Disconnected during"):
        cause = str(error.__cause__ or "")
        return f"connection lost ({cause})" if cause and "Unspecified" not in cause else "connection lost"
    return text


async def _until_lost(client: aiomqtt.Client) -> None:
    async for _ in client.messages:
        pass


def _bound_packets(client: aiomqtt.Client) -> None:
    """Cut the connection when a broker declares a packet above MAX_PACKET_BYTES.

    paho buffers up to 256 MiB for one packet and has no limit of its own for MQTT 3.1.1; it asks the socket
    for the whole rest of the packet, so the declared size is seen before the first of its bytes is kept.
    """
    paho = client._client
    receive = paho._sock_recv

    def bounded(size: int) -> bytes:
        if size > MAX_PACKET_BYTES:
            raise ConnectionAbortedError(
                f"broker sent a packet of {size} bytes, the limit is {MAX_PACKET_BYTES}"
            )
        return receive(size)

    paho._sock_recv = bounded  # type: ignore[method-assign, assignment]


def _register_at_once(client: aiomqtt.Client) -> None:
    """Have the event loop watch for writability directly, now that everything happens in its thread.

    aiomqtt defers it by a turn of the loop. A broker that cuts the connection in between gets another socket of this
    process, one that took over the number of the closed one, watched for ever.
    """
    paho, loop = client._client, asyncio.get_running_loop()

    def write() -> None:
        try:
            paho.loop_write()
        except (OSError, ValueError) as error:
            if not client._disconnected.done():
                client._disconnected.set_exception(error)

    def register(_client: object, _userdata: object, sock: Any) -> None:
        loop.add_writer(sock.fileno(), write)

    paho.on_socket_register_write = register


def _close(client: aiomqtt.Client) -> None:
    """Close for good: say DISCONNECT if that is possible at once, then drop the socket.

    aiomqtt leaves the socket and its timer behind when a broker never answers CONNECT or sends what cannot be
    parsed.
    """
    paho = client._client
    paho.on_socket_register_write = None  # then paho writes at once
    with contextlib.suppress(OSError, ValueError):
        paho.disconnect()
    paho._sock_close()
    for future in (client._connected, client._disconnected):
        if future.done() and not future.cancelled():
            future.exception()  # already reported through the call that failed
