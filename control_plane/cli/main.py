"""The `egm` command. A noun's module is imported only when it is named, so that `egm check` stays quick."""

import difflib
import importlib
import importlib.metadata
import os
import sys
from typing import Final

import typer

from control_plane.cli.output import Exit, console, errors, fail
from trust.errors import InputError, MeshError, Reason, StateError

# verb or noun -> (module:attribute, help); other packages add theirs by the entry point group "egm.commands"
_COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "init": ("control_plane.cli.init:app", "Create a trust domain: keys, root metadata, CA."),
    "keys": ("control_plane.cli.keys:app", "Make, show and rotate root and approver keys."),
    "policy": ("control_plane.cli.policy:app", "Write, test, propose, review, sign and publish policy."),
    "up": ("control_plane.cli.up:app", "Run a development mesh for services that you already run."),
    "demo": ("control_plane.cli.demo:app", "The tour: every promise shown and checked, in one terminal."),
    "lab": ("control_plane.cli.lab:app", "Break a real mesh on this machine: partitions, crashes, lies."),
    "status": ("control_plane.cli.status:app", "Nodes, policy version, lease and level."),
    "check": ("control_plane.cli.check:app", "Would this call be allowed? Why, and by which policies?"),
    "doctor": ("control_plane.cli.doctor:app", "What is wrong with this mesh, and how to mend it."),
    "assess": ("control_plane.cli.assess:app", "Measure the maturity level of this mesh, by probing."),
    "audit": ("control_plane.cli.audit:app", "What operators did, newest first."),
    "analytics": (
        "control_plane.cli.analytics:app",
        "Who calls what, how often, how long, how it fails.",
    ),
    "alerts": ("control_plane.cli.alerts:app", "What fires: list, show, ack, test."),
    "top": ("control_plane.cli.top:app", "The mesh live: nodes, services, busiest edges, alerts."),
    "lineage": ("control_plane.cli.lineage:app", "Executions over all nodes: list, show, tree, payload."),
    "ledger": ("control_plane.cli.ledger:app", "A node's append-only log: verify it, take proofs from it."),
    "evidence": (
        "control_plane.cli.evidence:app",
        "Executions as a file that proves itself: export, verify offline.",
    ),
    "approvals": (
        "control_plane.cli.approvals:app",
        "Calls that wait for people: list, show, approve, deny.",
    ),
    "incidents": (
        "control_plane.cli.incidents:app",
        "What detection found, its evidence, what was done about it.",
    ),
    "review": ("control_plane.cli.review:app", "Past executions under another policy: what would differ."),
    "revoke": ("control_plane.cli.revoke:app", "Deny or restrict at once: workload, node, key, method."),
    "node": ("control_plane.cli.node:app", "Nodes of the mesh, and tokens for new ones."),
    "ca": ("control_plane.cli.ca:app", "The embedded CA, and its rotation."),
    "control-plane": ("control_plane.cli.control_plane:app", "Run or check a control plane."),
}
# gRPC's fork handlers only print warnings here: children are started before they use gRPC, by exec.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
_TRACEBACK: Final = "EGM_TRACEBACK"
_GROUP: Final = "egm.commands"
_HELP: Final = {"sidecar": "Run or check a sidecar."}


def commands() -> dict[str, tuple[str, str]]:
    """Return every verb or noun, with where it is and what it is for."""
    points = importlib.metadata.entry_points(group=_GROUP)
    return _COMMANDS | {p.name: (p.value, _HELP.get(p.name, "")) for p in points}


def load(name: str) -> typer.Typer:
    """Import the application of one verb or noun."""
    module, _, attribute = commands()[name][0].partition(":")
    loaded = getattr(importlib.import_module(module), attribute)
    if not isinstance(loaded, typer.Typer):
        raise TypeError(f"{module}:{attribute} is not a typer application")
    return loaded


def _usage() -> None:
    console.print("Usage: egm COMMAND [ARGS]...\n")
    console.print("  A call executes only when signed, fresh policy allows it.\n\nCommands:")
    for name, (_, text) in commands().items():
        console.print(f"  {name:<15}{text}", markup=False)
    console.print("\nOptions:\n  --version      Show the version.")
    console.print("  -h, --help     Show this, or a command's own help.")


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in {"-h", "--help"}:
        _usage()
        return Exit.YES if arguments else Exit.USAGE
    if arguments[0] == "--version":
        console.print(f"egm {importlib.metadata.version('egmesh')}")
        return Exit.YES
    name = arguments[0]
    if name not in commands():
        near = difflib.get_close_matches(name, commands(), n=1)
        hint = f"; did you mean 'egm {near[0]}'?" if near else "; see 'egm --help'"
        errors.print(f"error: no command {name!r}{hint}", markup=False)
        return Exit.USAGE
    load(name)(args=arguments[1:], prog_name=f"egm {name}")
    return Exit.YES


def main() -> None:
    """Run the command; a `MeshError` becomes one line with its reason, never a traceback."""
    as_json = "--json" in sys.argv
    try:
        sys.exit(_dispatch(sys.argv[1:]))
    except MeshError as error:
        fail(error, as_json=as_json)
        sys.exit(Exit.UNKNOWN if error.reason is Reason.SOURCE_UNAVAILABLE else Exit.USAGE)
    except OSError as error:
        fail(InputError(Reason.INPUT_INVALID, str(error)), as_json=as_json)
        sys.exit(Exit.USAGE)
    except Exception as error:
        if os.environ.get(_TRACEBACK):
            raise
        detail = (
            f"{type(error).__name__}: {error}; this is a defect of egm: report it with {_TRACEBACK}=1 set"
        )
        fail(StateError(Reason.INTERNAL, detail), as_json=as_json)
        sys.exit(Exit.UNKNOWN)


if __name__ == "__main__":
    main()
