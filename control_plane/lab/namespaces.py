"""A network namespace per member, on one bridge: faults below the programs, where the kernel itself loses the packets.

Needs root and iproute2. A cut sends the packets of one member for another to a hardware address that nobody has
(a permanent neighbour entry): as behind a cut cable nothing answers, neither the program's socket nor the kernel, and
what TCP sends again arrives after the heal. Delays, losses and resets: use links.
"""

import asyncio
import contextlib
import itertools
import os
import secrets
import shutil
import socket
import string
import subprocess
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from control_plane.lab.network import NONE, Fault, Pair
from trust.errors import InputError, Reason, StateError

_NOBODY: Final = "02:00:00:00:00:01"  # locally administered; no member has it
_CLONE_NEWNET: Final = 0x40000000
_INSIDE: Final = "eth0"
_TIMEOUT_S: Final = 20.0
_LETTERS: Final = string.ascii_lowercase
_made: Final = itertools.count()  # meshes of this process: each has a letter of its own
_NAMED: Final = Path("/var/run/netns")


class Namespaces:
    """The namespaces of one mesh. Every address is in 10.128.0.0/9, chosen anew for each mesh."""

    def __init__(self, members: Iterable[str]) -> None:
        """Plan one namespace per member; nothing is made.

        Raises:
            InputError: CONFIG_INVALID, when this machine or user cannot have them.
        """
        if os.geteuid() != 0 or shutil.which("ip") is None:
            raise InputError(
                Reason.CONFIG_INVALID,
                "network: namespaces needs root and the command ip (Debian: iproute2); use network: links",
            )
        self._prefix = f"egm{os.getpid()}"
        self._bridge = f"{self._prefix}{_LETTERS[next(_made) % len(_LETTERS)]}"
        self._subnet = f"10.{128 + secrets.randbelow(128)}.{secrets.randbelow(256)}"
        self._names = {name: f"{self._bridge}-{number}" for number, name in enumerate(members)}
        self._hosts = {name: f"{self._subnet}.{number + 2}" for number, name in enumerate(self._names)}
        self._cut: set[Pair] = set()

    def host(self, member: str) -> str:
        """Return the address of a member, which every other member and the lab reach."""
        return self._hosts[member]

    def program(self, member: str, program: Sequence[str]) -> list[str]:
        """Return what runs `program` in the namespace of a member; the process id stays that of the program."""
        return ["ip", "netns", "exec", self._names[member], *program]

    def make(self) -> None:
        """Make bridge, namespaces and the cables between them; those that a killed lab left behind go.

        Raises:
            StateError: SOURCE_UNAVAILABLE, with what the kernel said.
        """
        _remove_abandoned()
        own = [
            f"link add {self._bridge} type bridge",
            f"address add {self._subnet}.1/24 dev {self._bridge}",
            f"link set {self._bridge} up",
        ]
        for number, name in enumerate(self._names.values()):
            own += [
                f"netns add {name}",
                f"link add {self._bridge}{number} type veth peer name {_INSIDE} netns {name}",
                f"link set {self._bridge}{number} master {self._bridge} up",
            ]
        _ip(own)
        for member, name in self._names.items():
            inside = [
                "link set lo up",
                f"address add {self._hosts[member]}/24 dev {_INSIDE}",
                f"link set {_INSIDE} up",
            ]
            _ip(inside, namespace=name)

    def remove(self) -> None:
        """Remove everything that `make` made; never fails because something is gone already."""
        for number, name in enumerate(self._names.values()):
            _forget(f"link delete {self._bridge}{number}")  # with its namespace it would go some time later
            _forget(f"netns delete {name}")
        _forget(f"link delete {self._bridge}")

    def follow(self, faults: Mapping[Pair, Fault]) -> None:
        """Make the faults of the network those of the kernel.

        Raises:
            InputError: INPUT_INVALID, for anything but a cut; nothing has changed then.
        """
        for pair, fault in faults.items():
            if fault not in {NONE, Fault(drop=True)}:
                raise InputError(
                    Reason.INPUT_INVALID,
                    f"{' -> '.join(pair)}: namespaces can cut (drop) and nothing else; use network: links",
                )
        wanted = {pair for pair in faults if set(pair) <= self._names.keys()}
        changes: dict[str, list[str]] = {}
        for source, target in sorted(wanted ^ self._cut):
            entry = f"{self._hosts[target]} dev {_INSIDE}"
            cut = f"neighbour replace {entry} lladdr {_NOBODY} nud permanent"
            mended = f"neighbour delete {entry}"
            changes.setdefault(source, []).append(cut if (source, target) in wanted else mended)
        for source, lines in changes.items():
            _ip(lines, namespace=self._names[source])
        self._cut = wanted

    async def connect(self, member: str, address: tuple[str, int]) -> socket.socket:
        """Return a socket that is connected to an address as seen by a member, its loopback included.

        Raises:
            OSError: as `connect`.
        """
        made = await asyncio.to_thread(self._socket, member)
        try:
            await asyncio.get_running_loop().sock_connect(made, address)
        except BaseException:
            made.close()
            raise
        return made

    def _socket(self, member: str) -> socket.socket:
        """Make a socket in a member's namespace: it stays there whoever uses it."""
        found: list[socket.socket | OSError] = []

        def inside() -> None:  # a thread of its own, which ends: no other may ever run in that namespace
            try:
                with (_NAMED / self._names[member]).open("rb") as namespace:
                    _setns(namespace.fileno())
                found.append(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            except OSError as error:
                found.append(error)

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        (made,) = found
        if isinstance(made, OSError):
            raise made
        made.setblocking(False)
        return made


def _setns(descriptor: int) -> None:
    import ctypes  # os.setns is there from Python 3.12 on

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _ip(lines: Sequence[str], *, namespace: str | None = None) -> None:
    where = [] if namespace is None else ["-netns", namespace]
    done = subprocess.run(
        ["ip", *where, "-batch", "-"],  # noqa: S607
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise StateError(
            Reason.SOURCE_UNAVAILABLE,
            f"the kernel refuses a network namespace: {done.stderr.strip()[:300]}; use network: links",
        )


def _forget(line: str) -> None:
    with contextlib.suppress(StateError):
        _ip([line])


def _remove_abandoned() -> None:
    """Remove what labs left behind that were killed: names begin with the process id of the lab."""
    if not _NAMED.is_dir():
        return
    for name in (entry.name for entry in _NAMED.iterdir()):
        lab, _, number = name.partition("-")
        pid = lab.removeprefix("egm").rstrip(_LETTERS)
        if lab.startswith("egm") and pid.isdigit() and number.isdigit() and not Path("/proc", pid).exists():
            _forget(f"netns delete {name}")
            _forget(f"link delete {lab}")
