"""The embedded MQTT broker: loopback only, anyone may read announcements, only its control plane may publish.

It is still untrusted by design: announcements are signed and only hints. What the access rules save is work.
Use Mosquitto or EMQX when nodes on other machines should hear announcements over MQTT.
"""

import asyncio
import hmac
import ipaddress
import logging
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from amqtt.broker import Broker
from amqtt.contexts import Action, BrokerConfig, ListenerConfig
from amqtt.errors import BrokerError
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session

from trust import announce, limits
from trust.edge.files import write_atomic
from trust.errors import InputError, Reason, StateError

_LISTENER: Final = "default"
_PUBLISHER: Final = "control-plane"
_PORT_FILE: Final = "broker.port"
_STOP_TIMEOUT_S: Final = 5.0

_log = logging.getLogger(__name__)
_amqtt_log = logging.getLogger("amqtt")
logging.getLogger("transitions").setLevel(logging.ERROR)  # amqtt's state machines narrate every step


class PublisherOnlyPlugin(BaseAuthPlugin, BaseTopicPlugin):  # type: ignore[misc]  # amqtt has no type information
    """Who may do what: anonymous clients subscribe to the one topic, the publisher also publishes to it."""

    @dataclass
    class Config:
        """Filled in by `EmbeddedBroker`; the defaults let nobody publish anything."""

        username: str = ""
        password: str = ""

    async def authenticate(self, *, session: Session) -> bool | None:
        """Accept clients without credentials and the publisher with the right ones; refuse every other."""
        if session.username is None and session.password is None:
            return True
        return self._is_publisher(session)

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: Action | None = None
    ) -> bool | None:
        """Allow announcement topics, literally (no wildcards); publication to the publisher alone."""
        if session is None or topic is None or not announce.is_topic(topic):
            return False
        return action in {Action.SUBSCRIBE, Action.RECEIVE} or (
            action == Action.PUBLISH and self._is_publisher(session)
        )

    def _is_publisher(self, session: Session) -> bool:
        if not self.config.password:
            return False
        claimed = f"{session.username}\0{session.password}".encode()
        return hmac.compare_digest(claimed, f"{self.config.username}\0{self.config.password}".encode())


class EmbeddedBroker:
    """An amqtt broker in this event loop. Retained messages live in memory: the announcer brings them back.

    Args:
        host: a loopback address.
        port: 0 takes the port of the last run if it is free, so that nodes find the broker again, else any.
        data_dir: remembers that port; created when missing.
        password: the publisher's; None: one that only this instance knows.
        anywhere: also on another address than loopback, for the lab's own namespaces.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        data_dir: Path,
        password: str | None = None,
        anywhere: bool = False,
    ) -> None:
        if not anywhere and not _is_loopback(host):
            raise InputError(
                Reason.CONFIG_INVALID,
                f"the embedded broker has no TLS and listens on loopback only, not on {host!r}; "
                "use 127.0.0.1, or run Mosquitto and give its mqtts:// URL",
            )
        self._host, self._port, self._data_dir = host, port, data_dir
        self._password = password or secrets.token_urlsafe(32)  # of this instance: a stop and start keeps it
        self._broker: Broker | None = None
        self._bound_port = 0

    async def start(self) -> str:
        """Start listening and return the URL for listeners (`url`).

        Raises:
            StateError: CONFLICT, when the port is taken.
            OSError: `data_dir` cannot be written; the broker is not running then.
        """
        if self._broker is not None:
            return self.url
        remembered = self._remembered_port() if self._port == 0 else 0
        broker = await self._listen(remembered) if remembered else None
        if broker is None:
            broker = await self._listen(self._port)
        if broker is None:
            raise StateError(
                Reason.CONFLICT,
                f"the embedded broker cannot listen on {self._host}:{self._port}; "
                "is another process using the port?",
            )
        self._broker = broker
        self._bound_port = int(broker._servers[_LISTENER].instance.sockets[0].getsockname()[1])
        try:
            write_atomic(self._data_dir / _PORT_FILE, f"{self._bound_port}\n".encode())
        except OSError:
            await self.stop()
            raise
        _log.info("embedded broker: %s", self.url)
        return self.url

    @property
    def url(self) -> str:
        """Where listeners connect, without credentials."""
        return f"mqtt://{self._address()}:{self._bound_port}"

    @property
    def publisher_url(self) -> str:
        """Where the control plane connects: with the credentials of this instance. Keep it in memory."""
        return f"mqtt://{_PUBLISHER}:{quote(self._password, safe='')}@{self._address()}:{self._bound_port}"

    async def stop(self) -> None:
        """Disconnect every client and stop listening."""
        broker, self._broker = self._broker, None
        if broker is None:
            return
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await broker.shutdown()
        except TimeoutError:
            _log.warning("embedded broker: still busy after %g s, stopped waiting", _STOP_TIMEOUT_S)

    async def _listen(self, port: int) -> Broker | None:
        # A taken port is ours to report, not a traceback.
        _amqtt_log.setLevel(logging.CRITICAL)
        broker = Broker(self._config(port))
        try:
            await broker.start()
        except BrokerError as error:
            _log.debug("embedded broker on port %d: %s", port, error)
            return None
        finally:
            _amqtt_log.setLevel(logging.ERROR)  # below that it reports every client that comes or leaves
        return broker

    def _config(self, port: int) -> BrokerConfig:
        plugin = f"{__name__}.{PublisherOnlyPlugin.__name__}"
        settings: dict[str, Any] = {
            "username": _PUBLISHER,
            "password": self._password,
        }
        # amqtt passes everything before the last colon to the resolver: an IPv6 address goes without brackets.
        listener = ListenerConfig(bind=f"{self._host}:{port}", max_connections=limits.MAX_NODES)
        return BrokerConfig(listeners={_LISTENER: listener}, plugins={plugin: settings})

    def _address(self) -> str:
        return f"[{self._host}]" if ":" in self._host else self._host

    def _remembered_port(self) -> int:
        try:
            text = (self._data_dir / _PORT_FILE).read_text().strip()
        except OSError:
            return 0
        return int(text) if text.isascii() and text.isdigit() and 0 < int(text) < 65536 else 0


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
