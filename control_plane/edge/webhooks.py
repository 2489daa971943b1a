"""Sends alerts to the webhooks of this control plane's configuration: signed, over verified TLS, bounded in time.

A receiver that drips its answer is cut off like one that says nothing, and holds up no other: each has its own threads.

No redirect is followed and nothing of the answer is read but its status: a receiver can neither send this process
elsewhere nor feed it anything. Proxies of the environment are not used.
"""

import asyncio
import contextlib
import hashlib
import os
import socket
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import urllib3
from urllib3.connection import HTTPSConnection
from urllib3.connectionpool import HTTPSConnectionPool
from urllib3.exceptions import HTTPError
from urllib3.util import Timeout

from control_plane.config import WebhookConfig
from trust import limits
from trust.alerting import DELIVERY_HEADER, SIGNATURE_HEADER, sign
from trust.edge.files import check_private
from trust.errors import InputError, Reason
from trust.ports import Clock

_CONNECT_TIMEOUT_S: Final = 3.0
_MIN_SECRET_BYTES: Final = 16


class Webhooks:
    """Every webhook that this control plane may call, by name."""

    def __init__(self, configured: Mapping[str, WebhookConfig], clock: Clock) -> None:
        """Read the secrets.

        Raises:
            InputError: KEY_UNREADABLE or CONFIG_INVALID, naming the webhook and what to do.
        """
        self._clock = clock
        self._hooks = {
            name: (config.url, read_secret(name, config.secret_file)) for name, config in configured.items()
        }
        self._pools = {name: _pool(name, config.url, config.ca) for name, config in configured.items()}
        # Not those of the loop: a receiver that is slow must not keep files and policy waiting.
        self._threads = {
            name: ThreadPoolExecutor(limits.WEBHOOKS_AT_ONCE, thread_name_prefix=f"webhook-{name}")
            for name in configured
        }

    @property
    def names(self) -> list[str]:
        """Those that are configured, sorted."""
        return sorted(self._hooks)

    async def send(self, name: str, body: bytes, delivery: str) -> str:
        """Send `body`; return what went wrong, or an empty text when the receiver answered 2xx.

        Args:
            name: of a webhook.
            body: JSON.
            delivery: the same for every attempt at one message, so that a receiver can drop repetitions.
        """
        if name not in self._hooks:
            return f"this control plane has no webhook {name!r}: add it under webhooks in its configuration"
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads[name], self._send, name, body, delivery)

    def _send(self, name: str, body: bytes, delivery: str) -> str:
        url, secret = self._hooks[name]
        path = urllib3.util.parse_url(url).request_uri
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "egm-alerts",
            DELIVERY_HEADER: delivery,
            SIGNATURE_HEADER: sign(secret, body, now_s=self._clock.now_ms() // 1000),
        }
        try:
            answer = self._pools[name].request(
                "POST",
                path,
                body=body,
                headers=headers,
                redirect=False,
                retries=False,
                preload_content=False,
                timeout=Timeout(connect=_CONNECT_TIMEOUT_S, total=limits.WEBHOOK_TIMEOUT_S),
            )
        except (HTTPError, OSError) as error:
            return f"{type(error).__name__}: {error}"[: limits.MAX_ALERT_DETAIL_CHARS]
        answer.close()  # its body is nobody's business, and the connection is not kept
        return "" if 200 <= answer.status < 300 else f"the receiver answered {answer.status}"

    def close(self) -> None:
        """Drop idle connections and threads; an attempt under way ends by its time."""
        for pool in self._pools.values():
            pool.close()
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)


def read_secret(name: str, path: Path) -> bytes:
    """Return the secret of a webhook: what the file holds, without white space around it.

    Raises:
        InputError: KEY_UNREADABLE, when others may read the file; CONFIG_INVALID, when it is missing or too short.
    """
    try:
        check_private(path)
        secret = path.read_bytes().strip()
    except OSError as error:
        raise InputError(
            Reason.CONFIG_INVALID,
            f"webhooks.{name}.secret_file: {error}; make one with: openssl rand -hex 32 > {path}; chmod 600 {path}",
        ) from None
    if len(secret) < _MIN_SECRET_BYTES:
        raise InputError(
            Reason.CONFIG_INVALID,
            f"webhooks.{name}.secret_file: {path} has {len(secret)} bytes; at least {_MIN_SECRET_BYTES} "
            f"(openssl rand -hex 32 > {path})",
        )
    return secret


def delivery_id(alert: str, number: int, created_ms: int) -> str:
    """Return the id of one message, the same for every attempt.

    A store that forgot its rows counts them anew, so the number alone would name a later message like an earlier one,
    and a receiver that drops repetitions would never tell anybody of it.
    """
    return hashlib.sha256(f"{alert}:{number}:{created_ms}".encode()).hexdigest()[:32]


class _Bounded(HTTPSConnection):
    """A connection that ends WEBHOOK_TIMEOUT_S after it was asked for, whatever the other side sends meanwhile.

    Timeouts of sockets begin anew with every byte; so one byte every few seconds would hold a thread for hours.
    """

    _ending: tuple[threading.Timer, socket.socket] | None = None

    def _new_conn(self) -> socket.socket:
        made = super()._new_conn()
        # A socket of its own on the same connection: `made` is taken over by TLS.
        other = socket.socket(fileno=os.dup(made.fileno()))
        timer = threading.Timer(limits.WEBHOOK_TIMEOUT_S, _end, (other,))
        timer.daemon = True
        timer.start()
        self._ending = (timer, other)
        return made

    def close(self) -> None:
        ending, self._ending = self._ending, None
        if ending is not None:
            ending[0].cancel()
            ending[1].close()
        super().close()


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it ended at the same moment
        connection.shutdown(socket.SHUT_RDWR)


class _BoundedPool(HTTPSConnectionPool):
    ConnectionCls = _Bounded


def _pool(name: str, url: str, ca: Path | None) -> HTTPSConnectionPool:
    if ca is not None and not ca.is_file():
        raise InputError(Reason.CONFIG_INVALID, f"webhooks.{name}.ca: {ca} is not a file")
    parts = urllib3.util.parse_url(url)
    return _BoundedPool(
        str(parts.host).strip("[]"),
        parts.port,
        maxsize=limits.WEBHOOKS_AT_ONCE,
        cert_reqs="CERT_REQUIRED",
        ca_certs=None if ca is None else str(ca),
    )
