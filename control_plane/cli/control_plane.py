"""`egm control-plane`: run one, or check its configuration."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from control_plane.cli.context import JsonFlag
from control_plane.cli.output import console, emit
from control_plane.config import json_schema, load_config

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Run or check a control plane.")

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The YAML configuration file.")]


@app.command()
def run(config: ConfigOption, as_json: JsonFlag = False) -> None:
    """Run a control plane in the foreground until SIGTERM. With --json, one line says when and where it is ready."""
    from control_plane.edge import driver
    from trust.edge import logs

    settings = load_config(config)
    logs.configure()

    def ready(event: dict[str, object]) -> None:
        if as_json:
            sys.stdout.write(json.dumps(event) + "\n")
            sys.stdout.flush()
        else:
            console.print(f"control plane {event['name']} of {event['trust_domain']} is ready", markup=False)
            console.print(f"  operators, nodes   {event['advertise']}", markup=False)
            console.print(f"  enrolment          {event['join_listen']}", markup=False)
            console.print(f"  broker             {event['broker']}", markup=False)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(driver.run(settings, ready=ready))


@app.command()
def check(config: ConfigOption, as_json: JsonFlag = False) -> None:
    """Check a configuration and everything it names, without starting anything."""
    from control_plane.edge import driver

    found = driver.check(load_config(config))
    emit(
        {"ok": True, **found},
        as_json=as_json,
        text=lambda: console.print(
            f"{config} is good: " + ", ".join(f"{key} {value}" for key, value in found.items()), markup=False
        ),
    )


@app.command()
def schema(
    as_json: Annotated[
        bool, typer.Option("--json", help="Without line breaks; it is JSON either way.")
    ] = False,
) -> None:
    """Print the JSON Schema of the configuration file."""
    sys.stdout.write(json.dumps(json_schema(), indent=None if as_json else 2, sort_keys=True) + "\n")
