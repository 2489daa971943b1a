"""Looks at one address from outside, as anybody could."""

import asyncio
import importlib.metadata
import secrets
from typing import Final

from control_plane.assess.answers import UNREACHED, Answer
from control_plane.assess.catalogue import load_catalogue
from control_plane.assess.edge.calls import call, call_anyhow, ping
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
    tls = (
        Answer(UNREACHED, detail="not tried over a Unix socket")
        if unix
        else await call_anyhow(target, run, TIMEOUT_S)
    )
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
