"""Decides whether what nodes say of themselves is what a test waits for."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from trust.errors import InputError, Reason

Status = Mapping[
    str, Any
]  # of one node: the fields of egm.v1.NodeStatus; {"state": "UNREACHABLE"} when it is not
Wanted = str | Mapping[str, Any]  # of one node

STATES: Final = ("STARTING", "READY", "NOT_READY", "DRAINING", "UNREACHABLE")
LEASES: Final = ("NONE", "FRESH", "STALE", "SEALED")
UNREACHABLE: Final[Status] = {"state": "UNREACHABLE"}
AT_LEAST: Final = "_at_least"


def expand(wanted: Wanted | Mapping[str, Wanted], nodes: tuple[str, ...]) -> dict[str, Mapping[str, Any]]:
    """Return the fields wanted of each node.

    Args:
        wanted: "SEALED" (every node), {"a": "SEALED", "b": {"policy_version_at_least": 3}}, or fields of every node.
        nodes: of the mesh.

    Raises:
        InputError: INPUT_INVALID, saying what can be waited for.
    """
    if isinstance(wanted, Mapping) and wanted and all(name in nodes for name in wanted):
        return {name: _fields(one) for name, one in wanted.items()}
    if not wanted:
        raise InputError(Reason.INPUT_INVALID, f"nothing to wait for; name {_choices()}")
    fields = _fields(wanted)
    return dict.fromkeys(nodes, fields)


def missing(wanted: Mapping[str, Any], status: Status) -> str:
    """Return what of `wanted` the status lacks, for a person; "" when it has everything."""
    lacking = []
    for field, value in wanted.items():
        name = field.removesuffix(AT_LEAST)
        found = status.get(name)
        if field.endswith(AT_LEAST):
            held = isinstance(found, int) and found >= value
        elif isinstance(found, list | tuple):
            held = any(str(value) in str(one) for one in found)  # alarms, not_ready
        elif isinstance(value, Mapping):
            held = isinstance(found, Mapping) and not missing(value, found)  # attestation: {standing: ...}
        else:
            held = found == value
        if not held:
            lacking.append(f"{field} {value!r} (is {found!r})")
    return ", ".join(lacking)


def _fields(wanted: object) -> Mapping[str, Any]:
    if isinstance(wanted, Mapping):
        if unknown := [key for key in wanted if not _is_field(str(key))]:
            raise InputError(
                Reason.INPUT_INVALID, f"{unknown[0]!r} is neither a node nor a field of its status"
            )
        return wanted
    if wanted in LEASES:
        return {"lease": wanted}
    if wanted in STATES:
        return {"state": wanted}
    raise InputError(Reason.INPUT_INVALID, f"{wanted!r} is nothing to wait for; name {_choices()}")


def _is_field(name: str) -> bool:
    from egm.v1 import operator_pb2

    return name.removesuffix(AT_LEAST) in operator_pb2.NodeStatus.DESCRIPTOR.fields_by_name


def _choices() -> str:
    return f"one of {', '.join((*LEASES, *STATES))}, or fields such as {{policy_version_at_least: 2}}"


Predicate = Callable[[Mapping[str, Status]], object]
