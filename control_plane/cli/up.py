"""`egm up`: a development mesh for services that the user already runs."""

import asyncio
import contextlib
import fcntl
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from control_plane.cli.context import JsonFlag, run
from control_plane.cli.output import Exit, console, emit, errors, table
from control_plane.lab.bootstrap import Say, base_of_folder, bring_up, prepare, trust_domain_of_folder
from control_plane.lab.mesh import DevelopmentMesh, Plan
from trust.address import split_address
from trust.errors import InputError, Reason, StateError

app = typer.Typer(add_completion=False)


@app.command()
def up(
    directory: Annotated[
        Path, typer.Option("--dir", help="Where the mesh lives; started again, it goes on.")
    ] = Path(".egm"),
    service: Annotated[
        list[str] | None,
        typer.Option(help="NAME=HOST:PORT or NAME=unix:///PATH of a running service; repeat."),
    ] = None,
    workload: Annotated[
        list[str] | None, typer.Option(help="A caller, with an address per service; repeat.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="Policy folder. Without one everything is denied.")
    ] = None,
    level: Annotated[
        int | None, typer.Option(help="Default level, instead of the folder's (or 4).", min=0, max=5)
    ] = None,
    trust_domain: Annotated[
        str | None, typer.Option(help="Default: the policy folder's, else mesh.local.")
    ] = None,
    broker: Annotated[str, typer.Option(help="embedded, none, mqtt://… or mqtts://…")] = "embedded",
    as_json: JsonFlag = False,
) -> None:
    """Run a development mesh: one node per service, keys and policy included. Ctrl-C stops it.

    DIR/mesh.json is written when every node is ready; other verbs take --mesh DIR.
    """
    directory = directory.resolve()
    services = _services(service or [])
    if policy is not None:
        base_of_folder(policy, level)  # its mistakes are told before anything is made or started
    wanted = trust_domain or trust_domain_of_folder(policy)
    with _alone(directory):
        plan = Plan(prepare(directory, wanted), services, tuple(workload or ()), broker=broker)
        (directory / "mesh.json").unlink(missing_ok=True)
        raise typer.Exit(run(_stay_up(directory, plan, policy, level, as_json=as_json)))


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the mesh directory for one `egm up`; the kernel lets go of it however this process ends.

    Raises:
        StateError: CONFLICT, when another one runs the mesh; nothing of it was touched.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (directory / "up.lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError(
                Reason.CONFLICT, f"another 'egm up' runs {directory}; stop it first, or use another --dir"
            ) from None
        yield


def _services(options: list[str]) -> dict[str, str]:
    services = {}
    for option in options:
        name, equals, address = option.partition("=")
        if not name or not equals or not (address.startswith("unix:") or _is_address(address)):
            raise InputError(
                Reason.INPUT_INVALID, f"--service {option!r}: write NAME=HOST:PORT or NAME=unix:///PATH"
            )
        if name in services:
            raise InputError(Reason.INPUT_INVALID, f"--service {name!r} is given twice")
        services[name] = address
    return services


def _is_address(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return split_address(text)[1] > 0
    return False


async def _stay_up(
    directory: Path, plan: Plan, policy: Path | None, level: int | None, *, as_json: bool
) -> int:
    def say(line: str) -> None:
        errors.print(f"egm up: {line}", markup=False, soft_wrap=True)

    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    starting = asyncio.create_task(bring_up(directory, plan, policy=policy, level=level, say=say))
    stopping = asyncio.create_task(stopped.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        return Exit.NO
    mesh = await starting
    data = {"event": "ready", "mesh": str(directory / "mesh.json"), **mesh.mesh.model_dump()}
    emit(data, as_json=as_json, text=lambda: _print(mesh))
    watching = [asyncio.create_task(_report_end(mesh, name, stopped, say)) for name in mesh.processes]
    await stopping
    say("stopping")
    for task in watching:
        task.cancel()
    await asyncio.gather(*watching, return_exceptions=True)
    (directory / "mesh.json").unlink(missing_ok=True)
    await mesh.stop()
    return Exit.YES


async def _report_end(mesh: DevelopmentMesh, name: str, stopped: asyncio.Event, say: Say) -> None:
    code = await mesh.processes[name].wait()
    if not stopped.is_set():
        log = mesh.processes[name].log
        say(f"{name} ended with code {code}; the others go on. See {log}; 'egm up' again starts it anew")


def _print(mesh: DevelopmentMesh) -> None:
    file = mesh.mesh
    console.print(
        f"mesh ready  trust domain {file.trust_domain}, control plane {file.control_plane}", markup=False
    )
    rows = [
        (workload, service, address)
        for workload, entry in sorted(file.workloads.items())
        for service, address in sorted(entry.outbound.items())
    ]
    if rows:
        console.print()
        table(("workload", "calls", "at (plaintext gRPC)"), rows)
    else:
        console.print("no caller has an address yet: name one with --workload NAME", markup=False)
    console.print(
        f"\nOther terminals: export EGM_MESH={mesh.directory}, then egm status, egm doctor.   Ctrl-C stops the mesh.",
        markup=False,
        soft_wrap=True,
    )
