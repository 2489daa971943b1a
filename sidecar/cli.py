"""`egm sidecar run|check|witness-key|measure|schema`."""

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from sidecar.config_file import json_schema, load_config

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Run or check a sidecar.")

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The configuration file (YAML).")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")]


def _print_json(value: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


@app.command()
def run(config: ConfigOption, as_json: JsonFlag = False) -> None:
    """Run a sidecar in the foreground until SIGTERM; then drain."""
    import uvloop

    from sidecar.edge import collector, driver
    from trust.edge import logs
    from trust.edge.files import owned_by_this_process

    logs.configure()
    os.umask(
        0o077
    )  # whatever this process creates, sockets that are bound again included, is its owner's alone
    loaded = load_config(config)

    def ready(event: Mapping[str, object]) -> None:
        if as_json:
            _print_json(event)

    collector.keep_what_is_loaded()
    with (
        owned_by_this_process(loaded.data_dir),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(driver.run(loaded, ready=ready))


@app.command()
def check(config: ConfigOption, as_json: JsonFlag = False) -> None:
    """Check a configuration, and the files that it names, without starting anything.

    Exit 0: it can work; 2: it cannot, and the error says what to change.
    """
    from sidecar.edge.preflight import preflight

    loaded = load_config(config)
    notes = preflight(loaded)
    if as_json:
        _print_json({"ok": True, "node": loaded.node, "notes": list(notes)})
        return
    typer.echo(f"{config}: ok (node {loaded.node})")
    for note in notes:
        typer.echo(f"note: {note}")


@app.command("witness-key")
def witness_key(config: ConfigOption, as_json: JsonFlag = False) -> None:
    """Print the key with which this node vouches for others, for `attestation: witnesses:` in bundle.yaml.

    It is the node key; a node that never ran gets one now.
    """
    from trust.attestation.roster import witness_key_name
    from trust.edge.node_key_file import KEY_FILE, load_or_make_key
    from trust.note import KeyKind, Verifier

    loaded = load_config(config)
    public = load_or_make_key(loaded.data_dir / KEY_FILE).public_key().public_bytes_raw()
    name = witness_key_name(loaded.trust_domain, loaded.node)
    key = Verifier(name, public, KeyKind.COSIGNATURE_V1).encode()
    if as_json:
        _print_json({"node": loaded.node, "key": key})
    else:
        typer.echo(key)


@app.command()
def measure(config: ConfigOption, as_json: JsonFlag = False) -> None:
    """Measure what is installed here and how it is configured, as reference_values.json of the base bundle wants it.

    Without --json a complete reference_values.json that accepts this installation, with any configuration. With `tpm`
    in the configuration, also the TPM's attestation key and PCR values as they are now: run it on the node itself, in a
    state that you trust; who signs the output pins this TPM.
    """
    from sidecar.edge.measurer import SoftwareMeasurer
    from sidecar.edge.tpm import ToolsTpm

    loaded = load_config(config)
    found = SoftwareMeasurer(loaded).measure()
    tpm = None if loaded.tpm is None else ToolsTpm(loaded.tpm).reference().model_dump(mode="json")
    if as_json:
        more = {} if tpm is None else {"tpm": tpm}
        _print_json({"node": loaded.node, **found.to_json(), "sha256": found.sha256.hex(), **more})
        return
    accepted = {"version": found.version, "sha256": found.distribution.hex()}
    values: dict[str, object] = {"format": 1, "distributions": [accepted]}
    if tpm is not None:
        values["tpm"] = {loaded.node: tpm}
    typer.echo(json.dumps(values, indent=1))


@app.command()
def schema(
    as_json: Annotated[
        bool, typer.Option("--json", help="Without line breaks; it is JSON either way.")
    ] = False,
) -> None:
    """Print the JSON Schema of the configuration file."""
    sys.stdout.write(json.dumps(json_schema(), indent=None if as_json else 2) + "\n")
