"""Callers that do not play by the rules: HTTP/2 by hand, which no gRPC client would send."""

import asyncio
import contextlib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

# grpc's own accept loop dies of it, with an exception that nobody fetches.
GRPC_DIES = "ignore::pytest.PytestUnraisableExceptionWarning"

NO_TEXT = b"/a/\xff\xfe"
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _GOAWAY = 0, 1, 3, 4, 7
_END_STREAM, _END_HEADERS = 1, 4
Header = tuple[bytes, bytes]


@dataclass(frozen=True)
class Tls:
    """What a member shows (key and chain, or nothing), whom it trusts, all PEM, and the name that it expects."""

    anchors: bytes
    server_name: str
    key: bytes | None = None
    chain: bytes | None = None

    def context(self) -> ssl.SSLContext:
        """Return a client context that speaks HTTP/2."""
        made = ssl.create_default_context(cadata=self.anchors.decode())
        made.set_alpn_protocols(["h2"])
        if self.key is not None and self.chain is not None:
            with TemporaryDirectory() as directory:
                pem = Path(directory) / "pem"
                pem.touch(mode=0o600)
                pem.write_bytes(self.key + self.chain)
                made.load_cert_chain(pem)
        return made


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return one HTTP/2 frame."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def headers(path: bytes, more: Sequence[Header] = ()) -> bytes:
    """Return a request's header block, every field literal and without Huffman coding."""
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"x"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *more,
    ]
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in fields)


def message(data: bytes, *, flag: int = 0) -> bytes:
    """Return one gRPC message; `flag` 1 claims that it is compressed."""
    return bytes([flag]) + len(data).to_bytes(4, "big") + data


def _string(data: bytes) -> bytes:
    if len(data) < 127:
        return bytes([len(data)]) + data
    rest, coded = len(data) - 127, bytearray([127])
    while rest >= 128:
        coded.append(rest % 128 + 128)
        rest //= 128
    return bytes([*coded, rest]) + data


async def exchange(
    address: str, path: bytes, body: bytes, *, tls: Tls | None = None, more: Sequence[Header] = ()
) -> bytes:
    """Send one call and return everything that was answered until the call or the connection ended.

    Args:
        address: "host:port" or "unix:///path".
        path: the method, any bytes.
        body: what the DATA frame holds; the request ends with it.
        tls: None for plaintext.
        more: further header fields.
    """
    if address.startswith("unix:"):
        reader, writer = await asyncio.open_unix_connection(address.removeprefix("unix://"))
    else:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(
            host,
            int(port),
            ssl=None if tls is None else tls.context(),
            server_hostname=None if tls is None else tls.server_name,
        )
    answer = bytearray()
    try:
        writer.write(_PREFACE + frame(_SETTINGS, 0, 0))
        writer.write(frame(_HEADERS, _END_HEADERS, 1, headers(path, more)))
        writer.write(frame(_DATA, _END_STREAM, 1, body))
        await writer.drain()
        async with asyncio.timeout(60):
            while True:
                head = await reader.readexactly(9)
                payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
                answer += head + payload
                ended = head[3] in {_HEADERS, _DATA} and head[4] & _END_STREAM
                if ended or head[3] in {_RST_STREAM, _GOAWAY}:
                    return bytes(answer)
    except (asyncio.IncompleteReadError, ConnectionError):
        return bytes(answer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def knock_out(address: str, tls: Tls | None = None) -> None:
    """Send a method name that is not UTF-8, which ends grpc.aio's accept loop."""
    assert b"grpc-status\x010" not in await exchange(address, NO_TEXT, message(b""), tls=tls)
