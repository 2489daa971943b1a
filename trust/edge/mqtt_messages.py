"""Single messages over MQTT 3.1.1: each is published once a broker takes it, none is retained."""

import asyncio
from typing import Any

import aiomqtt

from trust.announce import check_payload
from trust.backoff import RECONNECT, Backoff
from trust.edge.mqtt import BrokerUrl, _Link, _until_lost
from trust.errors import Reason, StateError


class MqttMessages(_Link):
    """A connection over which messages are published (QoS 1), for as long as `run` runs."""

    def __init__(self, url: BrokerUrl, topic: str, *, reconnect: Backoff = RECONNECT) -> None:
        """Publish to `topic`."""
        super().__init__(url, topic, "m", reconnect)
        self._client: aiomqtt.Client | None = None

    async def publish(self, payload: bytes) -> None:
        """Publish one message; return once the broker has it.

        Raises:
            StateError: SOURCE_UNAVAILABLE, when there is no connection or the broker does not take it.
            InputError: INPUT_INVALID, for an empty or too large payload.
        """
        check_payload(payload)
        client = self._client
        if client is None:
            why = f": {self.last_error}" if self.last_error else ""
            text = f"broker {self.url} is not connected{why}" if self.url.enabled else "there is no broker"
            raise StateError(Reason.SOURCE_UNAVAILABLE, text)
        try:
            await client.publish(self.topic, payload, qos=1)
        except aiomqtt.MqttError as error:
            raise StateError(
                Reason.SOURCE_UNAVAILABLE, f"broker {self.url} did not take the message: {error}"
            ) from None

    async def _serve(self, client: aiomqtt.Client) -> None:
        self._up()
        self._client = client
        lost: asyncio.Future[Any] = asyncio.ensure_future(_until_lost(client))
        try:
            await lost
        finally:
            self._client = None
            lost.cancel()
            await asyncio.gather(lost, return_exceptions=True)
