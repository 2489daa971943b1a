"""Dials a service past its sidecars: at its own address, on every address of this machine, and wherever else its
process listens."""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import yaml

from control_plane.assess.answers import UNREACHED, Answer
from control_plane.assess.bypass import OTHERWISE, Bypass, judge
from control_plane.assess.edge.calls import call, call_anyhow, ping
from control_plane.assess.edge.collect import Installation
from control_plane.assess.model import Check
from trust.address import split_address

DIAL_S: Final = 3.0
MOST_SIBLINGS: Final = 16  # further sockets of one service's process that are tried
_UNIX: Final = "unix:"


@dataclass(frozen=True, slots=True)
class Listening:
    """One socket that a process of this machine takes connections at. `host` is empty for a Unix socket."""

    pid: int
    host: str
    port: int
    path: str = ""


async def past(installation: Installation, service: str, run: str) -> Check:
    """Dial a service past every sidecar of it."""
    known = await asyncio.to_thread(upstreams, installation, service)
    machine = await asyncio.to_thread(machine_addresses)
    own = dict(one for upstream in known.values() if upstream for one in reachable(upstream, machine))
    found = await asyncio.gather(*(dialled(address, run) for address in own))
    attempts = [Bypass(*one, answer) for one, answer in zip(own.items(), found, strict=True)]
    listening = await asyncio.to_thread(sockets)
    others = dict(
        one
        for upstream in known.values()
        if upstream
        for one in siblings(upstream, listening, machine)
        if one[0] not in own
    )
    heard = await asyncio.gather(*(dialled(address, run) for address in others))
    # what does not speak gRPC there is another door of that process, say its metrics: no way to execute anything
    attempts += [
        Bypass(*one, answer)
        for one, answer in zip(others.items(), heard, strict=True)
        if answer.code not in {UNREACHED, OTHERWISE}
    ]
    return judge(service, attempts, [node for node, upstream in known.items() if not upstream])


async def dialled(address: str, run: str) -> Answer:
    """Call in plaintext, then with TLS; tell a port where nobody is from one that does not say what it is."""
    answer = await call(address, ping(run), identity=None, timeout_s=DIAL_S)
    if answer.code != UNREACHED or not await accepts(address):
        return answer
    tls = Answer(UNREACHED) if address.startswith(_UNIX) else await call_anyhow(address, run, DIAL_S)
    return tls if tls.code != UNREACHED else Answer(OTHERWISE, detail=answer.detail)


async def connect(address: str, timeout_s: float = DIAL_S) -> None:
    """Connect to HOST:PORT or unix:///PATH once. Raises OSError or TimeoutError when nobody is there."""
    async with asyncio.timeout(timeout_s):
        if address.startswith(_UNIX):
            opening = asyncio.open_unix_connection(address.removeprefix(_UNIX).replace("//", "", 1))
        else:
            opening = asyncio.open_connection(*split_address(address))
        _, writer = await opening
    writer.close()


async def accepts(address: str, timeout_s: float = DIAL_S) -> bool:
    """Whether something accepts connections at HOST:PORT or unix:///PATH."""
    try:
        await connect(address, timeout_s)
    except (OSError, TimeoutError):
        return False
    return True


def upstreams(installation: Installation, service: str) -> dict[str, str]:
    """Return node -> where its sidecar finds the service, as its configuration says; "" when that is not known here.

    An address that means something on the node's own machine alone says nothing when that is another one: dialled here
    it would find nobody, and a service that is open there would pass for closed.
    """
    found: dict[str, str] = {}
    for name, entry in installation.mesh.nodes.items():
        listeners = [
            one for one in node_config(entry.config).get("inbound") or () if one.get("service") == service
        ]
        if not listeners and service not in entry.inbound:
            continue
        addresses = [str((one.get("upstream") or {}).get("address") or "") for one in listeners]
        upstream = addresses[0] if addresses else ""
        elsewhere = not is_here(entry.inbound.get(service, "")) and is_local(upstream)
        found[name] = "" if elsewhere or not resolves(upstream) else upstream
    return found


def node_config(path: str) -> Mapping[str, Any]:
    """Return a sidecar's configuration; empty when it is not on this machine or not readable."""
    if not path or not Path(path).is_file():
        return {}
    try:
        data = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def is_local(address: str) -> bool:
    """Whether an address is reached from its own machine alone."""
    return address.startswith(_UNIX) or any(_loopback(one) for one in _addresses(address))


def is_here(address: str) -> bool:
    """Whether HOST:PORT is an address of this machine."""
    own = {one.partition("%")[0] for one in machine_addresses()}
    return any(_loopback(one) or one in own for one in _addresses(address))


def resolves(address: str) -> bool:
    """Whether this machine knows where an address is: a name that is known elsewhere alone cannot be dialled here."""
    return address.startswith(_UNIX) or bool(_addresses(address))


def _addresses(address: str) -> list[str]:
    try:
        host, port = split_address(address)
        return sorted({str(one[4][0]) for one in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)})
    except (OSError, ValueError):
        return []


def _loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    return False


def machine_addresses() -> list[str]:
    """Return every address by which other machines may reach this one, of every interface."""
    found = {
        one.address
        for addresses in psutil.net_if_addrs().values()
        for one in addresses
        if one.family in {socket.AF_INET, socket.AF_INET6}
    }
    with contextlib.suppress(OSError):  # a machine need not know its own name
        found |= {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)}
    return sorted(
        one for one in found if not _loopback(one) and "%" not in one
    )  # link-local: no address by itself


def reachable(upstream: str, machine: Iterable[str]) -> list[tuple[str, bool]]:
    """Return the addresses at which to try a service: its own, and its port on every other address of this machine.

    The flag says whether only this machine can try it that way.
    """
    if upstream.startswith(_UNIX):
        return [(upstream, True)]
    host, port = split_address(upstream)
    own = (joined(host, port), is_local(upstream))
    return [own, *(one for one in ((joined(other, port), False) for other in machine) if one[0] != own[0])]


def joined(host: str, port: int) -> str:
    """Return HOST:PORT, IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def sockets() -> list[Listening]:
    """Return where processes of this machine take connections, as far as this user may see them."""
    found = []
    for kind in ("inet", "unix"):
        with contextlib.suppress(psutil.Error, OSError):  # other systems show it to root alone
            for one in psutil.net_connections(kind):
                place: Any = one.laddr  # a path of a Unix socket, whatever the types say
                if one.pid is None or not place:
                    continue
                if kind == "unix":
                    found.append(Listening(one.pid, "", 0, str(place)))
                elif one.status == psutil.CONN_LISTEN:
                    found.append(Listening(one.pid, place.ip.removeprefix("::ffff:"), place.port))
    return found


def siblings(upstream: str, listening: Iterable[Listening], machine: Iterable[str]) -> list[tuple[str, bool]]:
    """Return where the process that a sidecar's upstream belongs to listens besides: with the flag of `reachable`."""
    every = list(listening)
    if upstream.startswith(_UNIX):
        path = upstream.removeprefix(_UNIX).replace("//", "", 1)
        processes = {one.pid for one in every if one.path == path}
    else:
        port = split_address(upstream)[1]
        processes = {one.pid for one in every if one.host and one.port == port}
    found = [one for each in every if each.pid in processes for one in _ways(each, list(machine))]
    return list(dict.fromkeys(found))[:MOST_SIBLINGS]


def _ways(one: Listening, machine: list[str]) -> Iterator[tuple[str, bool]]:
    if not one.host:
        if one.path.startswith("/"):  # an abstract one has no path to dial
            yield f"{_UNIX}//{one.path}", True
        return
    if not ipaddress.ip_address(one.host.partition("%")[0]).is_unspecified:
        yield joined(one.host, one.port), _loopback(one.host)
        return
    yield joined("127.0.0.1" if "." in one.host else "::1", one.port), True
    for other in machine:
        if one.host == "::" or ":" not in other:
            yield joined(other, one.port), False
