"""The MQTT client against brokers that misbehave on the wire, over TLS, and at its end."""

import asyncio
import contextlib
import datetime
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from control_plane.edge.broker import EmbeddedBroker
from tests.support.eventually import eventually
from tests.support.mosquitto import Mosquitto
from trust import limits
from trust.backoff import Backoff
from trust.edge.mqtt import MAX_PACKET_BYTES, BrokerUrl, MqttAnnouncer, MqttListener
from trust.errors import InputError, Reason, StateError

DOMAIN = "mesh.test"
SOON = Backoff(min_ms=10, max_ms=50)
CONNACK, SUBACK = b"\x20\x02\x00\x00", b"\x90\x03\x00\x01\x01"

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]]


@contextlib.asynccontextmanager
async def hostile_broker(script: Script) -> AsyncIterator[BrokerUrl]:
    """Serve `script(reader, writer, number of the connection)` to each connection, then close it."""
    count = 0
    serving = set[asyncio.Task[None] | None]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        serving.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await script(reader, writer, count)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield BrokerUrl("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.gather(*(task for task in serving if task is not None))


async def until_subscribed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Play an obedient broker up to the SUBACK."""
    await read_packet(reader)
    writer.write(CONNACK)
    await read_packet(reader)
    writer.write(SUBACK)


async def read_packet(reader: asyncio.StreamReader) -> bytes:
    """Read one packet of less than 128 bytes."""
    header = await reader.readexactly(2)
    return header + await reader.readexactly(header[1])


def publish_packet(payload: bytes, topic: bytes = b"egm/v1/mesh.test/policy") -> bytes:
    body = len(topic).to_bytes(2) + topic + payload
    size, length = len(body), bytearray()
    while True:
        size, digit = divmod(size, 128)
        length.append(digit | (0x80 if size else 0))
        if not size:
            return b"\x30" + bytes(length) + body


@contextlib.asynccontextmanager
async def listening(listener: MqttListener) -> AsyncIterator[None]:
    task = asyncio.ensure_future(listener.run())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    ("name", "poison"),
    [
        ("a packet type that does not exist", b"\xf0\x00"),
        ("a topic that is not UTF-8", publish_packet(b"x", topic=b"\xff\xfe")),
        ("a topic longer than its packet", b"\x30\x03\xff\xffx"),
        ("an empty body where a topic must be", b"\x30\x00"),
        ("a length field that never ends", b"\x30\xff\xff\xff\xff\xff\x7f"),
        ("noise", bytes(range(256)) * 8),
        ("a packet declared as 256 MB", b"\x30\xff\xff\xff\x7f" + b"a" * 1000),
        ("a packet just above the bound", publish_packet(b"a" * MAX_PACKET_BYTES)),
    ],
)
async def test_poison_on_the_wire_cuts_the_connection_and_the_next_one_works(
    name: str, poison: bytes
) -> None:
    """A broker can break its own connection, never the listener."""
    heard = list[bytes]()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await until_subscribed(reader, writer)
        writer.write(poison if number == 1 else publish_packet(b"good"))
        await writer.drain()
        await reader.read()  # until the client hangs up

    async with hostile_broker(script) as url:
        listener = MqttListener(url, DOMAIN, heard.append, reconnect=SOON)
        async with listening(listener):
            await eventually(lambda: heard == [b"good"], f"recovery after {name}")
    assert listener.connections >= 2


async def test_a_payload_above_the_limit_is_dropped_without_losing_the_connection() -> None:
    """Between the payload limit and the packet bound the message alone is lost."""
    heard = list[bytes]()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _number: int) -> None:
        await until_subscribed(reader, writer)
        writer.write(publish_packet(b"a" * (limits.MAX_ANNOUNCEMENT_BYTES + 1)))
        writer.write(publish_packet(b""))
        writer.write(publish_packet(b"b" * limits.MAX_ANNOUNCEMENT_BYTES))
        await writer.drain()
        await reader.read()

    async with hostile_broker(script) as url:
        listener = MqttListener(url, DOMAIN, heard.append, reconnect=SOON)
        async with listening(listener):
            await eventually(lambda: heard, "the payload at the limit arrives")
    assert heard == [b"b" * limits.MAX_ANNOUNCEMENT_BYTES]
    assert (listener.refused, listener.connections) == (2, 1)


async def test_a_broker_that_refuses_the_subscription_is_reported() -> None:
    """A listener that hears nothing must not call itself connected."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _number: int) -> None:
        await read_packet(reader)
        writer.write(CONNACK)
        await read_packet(reader)
        writer.write(b"\x90\x03\x00\x01\x80")
        await reader.read()

    async with hostile_broker(script) as url:
        listener = MqttListener(url, DOMAIN, lambda _payload: None, reconnect=SOON)
        async with listening(listener):
            await eventually(lambda: listener.last_error, "the refusal is reported")
            assert not listener.connected
    assert "refuses a subscription" in str(listener.last_error)


async def test_a_silent_broker_is_given_up_and_nothing_is_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A broker that accepts and then says nothing costs one timeout, and its socket is closed."""
    monkeypatch.setattr("trust.edge.mqtt.CONNECT_TIMEOUT_S", 0.05)
    closed = 0

    async def script(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter, _number: int) -> None:
        nonlocal closed
        await reader.read()
        closed += 1

    async with hostile_broker(script) as url:
        listener = MqttListener(url, DOMAIN, lambda _payload: None, reconnect=SOON)
        async with listening(listener):
            await eventually(lambda: closed >= 2, "each silent connection is closed")
        assert listener.connections == 0


async def test_stopping_while_the_broker_is_silent_closes_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shutting down during a handshake must not leak what the handshake opened."""
    monkeypatch.setattr("trust.edge.mqtt.CONNECT_TIMEOUT_S", 0.3)
    opened, closed = asyncio.Event(), asyncio.Event()

    async def script(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter, _number: int) -> None:
        opened.set()
        await reader.read()
        closed.set()

    async with hostile_broker(script) as url:
        async with listening(MqttListener(url, DOMAIN, lambda _payload: None, reconnect=SOON)):
            await opened.wait()
        async with asyncio.timeout(60):
            await closed.wait()


async def test_without_a_broker_nothing_runs() -> None:
    """`none` is a choice, not an error: the Watch stream and polling do the work."""
    await MqttListener(BrokerUrl.parse("none"), DOMAIN, lambda _payload: None).run()
    announcer = MqttAnnouncer(BrokerUrl.parse("none"), DOMAIN)
    await announcer.announce(b"kept")
    await announcer.run()
    assert not announcer.connected


@pytest.mark.component("mosquitto")
async def test_tls_with_a_client_certificate_and_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker's name and CA are checked, and a broker that wants a client certificate gets one."""
    monkeypatch.setattr("trust.edge.mqtt.CONNECT_TIMEOUT_S", 1.0)
    files = certificates(tmp_path)
    broker = Mosquitto(tmp_path, tls=(files["broker.crt"], files["broker.key"], files["ca.crt"]))
    await broker.start()
    query = f"?ca={files['ca.crt']}&cert={files['client.crt']}&key={files['client.key']}"
    heard = list[bytes]()
    try:
        listener = MqttListener(BrokerUrl.parse(broker.url + query), DOMAIN, heard.append, reconnect=SOON)
        announcer = MqttAnnouncer(BrokerUrl.parse(broker.publisher_url + query), DOMAIN, reconnect=SOON)
        nameless = BrokerUrl.parse(f"{broker.url}?ca={files['ca.crt']}")
        strangers_ca = BrokerUrl.parse(broker.url + query.replace("ca.crt", "other-ca.crt"))
        wrong_name = BrokerUrl.parse((broker.url + query).replace("localhost", "127.0.0.1"))
        refused = [
            MqttListener(url, DOMAIN, heard.append, reconnect=SOON)
            for url in (nameless, strangers_ca, wrong_name)
        ]
        async with contextlib.AsyncExitStack() as stack:
            for one in (listener, *refused):
                await stack.enter_async_context(listening(one))
            task = asyncio.ensure_future(announcer.run())
            stack.callback(task.cancel)
            await announcer.announce(b"over tls")
            await eventually(lambda: set(heard) == {b"over tls"}, "the announcement crosses TLS")
            for one in refused:
                await eventually(lambda one=one: one.last_error is not None, f"{one.url} is refused")  # type: ignore[misc]
                assert one.connections == 0
        await asyncio.gather(task, return_exceptions=True)
    finally:
        await broker.stop()


def certificates(directory: Path) -> dict[str, Path]:
    """Write a CA, a stranger's CA, a broker's and a client's certificate; return paths by file name."""
    files = dict[str, Path]()
    now = datetime.datetime.now(datetime.UTC)

    def write(name: str, data: bytes) -> None:
        files[name] = directory / name
        files[name].write_bytes(data)
        files[name].chmod(0o600)

    def issue(
        common_name: str, ca: tuple[ec.EllipticCurvePrivateKey, x509.Name] | None
    ) -> tuple[ec.EllipticCurvePrivateKey, x509.Name]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        signer, issuer = ca or (key, subject)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca is None, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
            )
        )
        if ca is not None:
            usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            names: list[x509.GeneralName] = [x509.DNSName("localhost")]
            if common_name == "client":
                names = [x509.IPAddress(ipaddress.ip_address("192.0.2.1"))]
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(signer, hashes.SHA256())
        write(f"{common_name}.crt", certificate.public_bytes(serialization.Encoding.PEM))
        write(
            f"{common_name}.key",
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )
        return key, subject

    ca = issue("ca", None)
    issue("other-ca", None)
    issue("broker", ca)
    issue("client", ca)
    return files


async def test_the_embedded_broker_keeps_its_port_across_restarts(tmp_path: Path) -> None:
    """Nodes have the URL in their configuration: a restarted control plane must answer there."""
    first = EmbeddedBroker(data_dir=tmp_path)
    url = await first.start()
    await first.stop()
    second = EmbeddedBroker(data_dir=tmp_path)
    assert await second.start() == url
    third = EmbeddedBroker(data_dir=tmp_path)  # the remembered port is taken: any other will do
    assert await third.start() != url
    await third.stop()
    await second.stop()


async def test_the_embedded_broker_says_when_its_port_is_taken(tmp_path: Path) -> None:
    """Two control planes on one machine: the second must say why it does not start."""
    first = EmbeddedBroker(data_dir=tmp_path)
    port = int((await first.start()).rpartition(":")[2])
    with pytest.raises(StateError) as caught:
        await EmbeddedBroker(port=port, data_dir=tmp_path / "second").start()
    assert caught.value.reason is Reason.CONFLICT
    assert str(port) in caught.value.detail
    await first.stop()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "broker.example"])
def test_the_embedded_broker_refuses_to_listen_beyond_loopback(host: str, tmp_path: Path) -> None:
    """It has no TLS: exposing it is refused, with what to use instead."""
    with pytest.raises(InputError, match="Mosquitto"):
        EmbeddedBroker(host, data_dir=tmp_path)
