"""Runs `egm` in processes forked from one that has imported it: each a process of its own, minus the imports.

Importing what a command needs is most of what it costs (more than a second of CPU time), and tests run some hundred
commands. `tests.support.cli` starts one server per test process. A client sends its arguments and environment over a
Unix socket, with the ends of pipes for standard output and error, and gets the process id, then the exit code.
"""

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import select
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Final, NoReturn

# What commands import only when they need it.
_LATER: Final = (
    "control_plane.edge.store.database",
    "control_plane.edge.evidence_export",
    "grpc.aio",
    "uvloop",
)
_REQUEST_BYTES: Final = 1 << 20


def _run(request: dict[str, object], ends: list[int]) -> NoReturn:
    """Become the command."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(request["environment"])  # type: ignore[call-overload]  # texts, from `tests.support.cli`
    os.chdir(str(request["directory"]))
    for standard, end in zip((0, 1, 2), (os.open(os.devnull, os.O_RDONLY), *ends), strict=True):
        os.dup2(end, standard)
        os.close(end)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="utf-8")
    sys.stderr = io.TextIOWrapper(
        io.FileIO(2, "w", closefd=False), errors="backslashreplace", write_through=True
    )
    sys.argv = ["egm", *request["arguments"]]  # type: ignore[misc]
    from control_plane.cli import main

    code = 0
    try:
        main.main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    # What an interpreter does at its end, but for taking every module apart, which costs as much as importing them.
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _serve(connection: socket.socket) -> NoReturn:
    """Start the command of one client in a process, and tell how it ended."""
    received, ends, _, _ = socket.recv_fds(connection, _REQUEST_BYTES, 2)
    while not received.endswith(b"\n"):
        received += connection.recv(_REQUEST_BYTES)
    if (pid := os.fork()) == 0:
        try:
            connection.close()
            _run(json.loads(received), list(ends))
        finally:
            os._exit(70)
    for end in ends:
        os.close(end)
    with contextlib.suppress(BrokenPipeError):  # the client gave up, and has ended the command
        connection.sendall(b"%d\n" % pid)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        connection.sendall(b"%d\n" % code)
    os._exit(0)


def main(path: str) -> None:
    """Serve at `path` until standard input ends, as it does with the process of the tests."""
    importlib.invalidate_caches()
    from control_plane.cli.main import commands, load

    for name in commands():
        load(name)
    for module in _LATER:
        importlib.import_module(module)
    if threading.active_count() != 1:
        raise RuntimeError("an import starts a thread: a process forked from this one would lack it")
    gc.freeze()  # what is imported is shared by all, as long as nobody writes to it
    signal.signal(signal.SIGCHLD, lambda *_: _reap())
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    Path(f"{path}.ready").touch()
    while sys.stdin not in select.select([listener, sys.stdin], (), ())[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            try:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _serve(connection)
            finally:
                os._exit(70)
        connection.close()


def _reap() -> None:
    """Take note of commands that ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    main(sys.argv[1])
