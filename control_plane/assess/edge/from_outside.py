"""Looks at one address from outside, as anybody could."""

import asyncio
import importlib.metadata
import secrets
import ssl
from typing import Final

from cryptography import x509

from control_plane.assess.answers import UNREACHED, Answer
from control_plane.assess.catalogue import load_catalogue
from control_plane.assess.edge.calls import Identity, call, ping
from control_plane.assess.model import Assessment
from control_plane.assess.outside import outside
from trust.address import split_address
from trust.edge.clock import SystemClock
from trust.errors import InputError, Reason, StateError

TIMEOUT_S: Final = 6.0


async def look(target: str) -> Assessment:
    """Return the assessment of the service at `target`, HOST:PORT or unix:///PATH.

    Raises:
        InputError: INPUT_INVALID, for no address.
        StateError: SOURCE_UNAVAILABLE, when nobody is there.
    """
    unix = target.startswith("unix:")
    if not unix:
        try:
            split_address(target)
        except ValueError as error:
            raise InputError(Reason.INPUT_INVALID, f"--target: {error}; write HOST:PORT") from None
    await _reach(target)
    clock, run = SystemClock(), secrets.token_hex(6)
    started_ms = clock.now_ms()
    plain = await call(target, ping(run), identity=None, timeout_s=TIMEOUT_S)
    tls = Answer(UNREACHED, detail="not tried over a Unix socket") if unix else await _tls(target, run)
    graded, notes = outside(load_catalogue(), target, plain, tls)
    version = importlib.metadata.version("egmesh")
    return Assessment(run, started_ms, clock.now_ms(), target, "outside", 0, version, (graded,), notes)


async def _reach(target: str) -> None:
    """Connect once: nothing can be told of an address where nobody is."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            if target.startswith("unix:"):
                opening = asyncio.open_unix_connection(target.removeprefix("unix:").replace("//", "", 1))
            else:
                opening = asyncio.open_connection(*split_address(target))
            _, writer = await opening
        writer.close()
    except (OSError, TimeoutError) as error:
        raise StateError(
            Reason.SOURCE_UNAVAILABLE,
            f"--target {target}: nobody answers there ({error}); is the service running?",
        ) from None


async def _tls(target: str, run: str) -> Answer:
    """Call with TLS, trusting whatever certificate the server shows: this asks who is let in, not who answers."""
    host, port = split_address(target)
    try:
        pem = await asyncio.wait_for(asyncio.to_thread(ssl.get_server_certificate, (host, port)), TIMEOUT_S)
    except (OSError, ValueError, TimeoutError) as error:
        return Answer(UNREACHED, detail=f"no TLS: {error}"[:200])
    return await call(
        target,
        ping(run),
        identity=Identity(pem.encode()),
        server_dns=_name_in(pem.encode()),
        timeout_s=TIMEOUT_S,
    )


def _name_in(pem: bytes) -> str:
    """Return a DNS name of a certificate; empty when it has none."""
    try:
        names = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
    except (ValueError, x509.ExtensionNotFound):
        return ""
    return next(iter(names.value.get_values_for_type(x509.DNSName)), "")
