"""One process of a lab mesh: the real `egm` command, a broker or a sample service, under a clock the lab can set.

`egm` itself has no such switch: no configuration and no variable moves the clock of a sidecar. This is another program,
started by the lab alone. The clock is moved where the product reads it (`trust.edge.clock`); TLS and the kernel
keep the real time.
"""

import argparse
import asyncio
import importlib.metadata
import json
import mmap
import os
import signal
import struct
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from control_plane.lab.processes import die_with_parent

_OFFSET: Final = struct.Struct("<q")  # milliseconds added to the wall clock


class SkewFile:
    """The offset of one member's wall clock, in a file that the lab writes and the member maps."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(self) -> None:
        """Make the file, without an offset, unless there is one."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self._path.exists():
            self._path.write_bytes(_OFFSET.pack(0))

    def set(self, offset_ms: int) -> None:
        """Set the offset; a running member has it at once (eight bytes, written as one)."""
        descriptor = os.open(self._path, os.O_WRONLY)
        try:
            os.pwrite(descriptor, _OFFSET.pack(offset_ms), 0)
        finally:
            os.close(descriptor)

    def get(self) -> int:
        """Return the offset, in milliseconds."""
        return int(_OFFSET.unpack(self._path.read_bytes())[0])

    def reader(self) -> Callable[[], int]:
        """Map the file; return what reads the offset."""
        with self._path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), _OFFSET.size, prot=mmap.PROT_READ)
        return lambda: int(_OFFSET.unpack(mapped[: _OFFSET.size])[0])


def move_clock(offset_ms: Callable[[], int]) -> None:
    """Add an offset to what `SystemClock` says of the time of day; monotonic time is left alone."""
    from trust.edge.clock import SystemClock

    real = SystemClock.now_ms

    def now_ms(self: SystemClock) -> int:
        return real(self) + offset_ms()

    SystemClock.now_ms = now_ms  # type: ignore[method-assign]  # what this program is for


async def _broker(listen: str, data_dir: str, password: str) -> None:
    from control_plane.edge.broker import EmbeddedBroker

    host, _, port = listen.rpartition(":")
    broker = EmbeddedBroker(host, int(port), data_dir=Path(data_dir), password=password, anywhere=True)
    await _serve_until_told({"event": "ready", "broker": await broker.start()}, broker.stop)


async def _sample(listen: str) -> None:
    from control_plane.lab import sample

    server, address = await sample.serve(listen)
    await _serve_until_told({"event": "ready", "listen": address}, lambda: server.stop(1.0))


async def _serve_until_told(ready: dict[str, object], stop: Callable[[], Awaitable[object]]) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    sys.stdout.write(json.dumps(ready) + "\n")
    sys.stdout.flush()
    await stopped.wait()
    await stop()


def main() -> None:
    """Run `egm …`, `broker …`, `sample …`, or any other program (`exec …`) that is to end with the lab."""
    parser = argparse.ArgumentParser(prog="control_plane.lab.member", description=__doc__)
    parser.add_argument(
        "--parent", type=int, required=True, help="process id of the lab: ends this one with it"
    )
    parser.add_argument("--clock", type=Path, help="file with the offset of the clock")
    parser.add_argument("role", choices=("egm", "broker", "sample", "exec"))
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    die_with_parent(signal.SIGKILL)
    if os.getppid() != options.parent:
        sys.exit("the lab that started this process is gone")
    if options.clock is not None:
        move_clock(SkewFile(options.clock).reader())
    if options.role == "exec":
        os.execvp(options.arguments[0], options.arguments)  # noqa: S606 (the command of the plan, no shell)
    if options.role == "broker":
        listen, data_dir, password_file = options.arguments
        asyncio.run(_broker(listen, data_dir, Path(password_file).read_text()))
    elif options.role == "sample":
        asyncio.run(_sample(*options.arguments))
    else:
        (command,) = importlib.metadata.entry_points(group="console_scripts", name="egm")
        sys.argv = ["egm", *options.arguments]
        command.load()()


if __name__ == "__main__":
    main()
