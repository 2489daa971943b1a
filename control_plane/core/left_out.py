"""Which signed settings a proposal would end by not naming them: what it leaves out, as the lines that keep it."""

import json
from collections.abc import Mapping
from typing import Any, Final

import yaml

from trust.mesh import MeshSettings

# Settings whose absence ends something (a right to revoke, who vouches, who is told); a changed one is no oversight.
_ENDING: Final = (
    "emergency_keys",
    "attestation",
    "detection",
    "alerts",
    "approver_groups",
    "auditors",
    "revocations",
    "ended_revocations",
    "released_proofs",
)


def left_out(before: MeshSettings | None, after: MeshSettings | None) -> dict[str, Any]:
    """Return the settings in force that the proposed bundle does not name at all, as `bundle.yaml` spells them.

    Args:
        before: the settings in force; None before the first publication.
        after: those that are proposed; None for a namespace, which has none.
    """
    if before is None or after is None:
        return {}
    held = _plain(before)
    return {name: held[name] for name in _ENDING if held.get(name) and not getattr(after, name)}


def as_lines(settings: Mapping[str, Any]) -> list[str]:
    """Return one line of YAML per setting, to be put into `bundle.yaml`."""
    return [
        yaml.safe_dump({name: value}, default_flow_style=None, sort_keys=False, width=10**6).rstrip()
        if not isinstance(value, dict)
        else f"{name}: {yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6).strip()}"
        for name, value in settings.items()
    ]


def _plain(settings: MeshSettings) -> dict[str, Any]:
    return dict(json.loads(settings.model_dump_json(exclude_defaults=True)))
