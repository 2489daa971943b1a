"""Levels 1 and 2: alerts, analytics, dashboards, detectors, incidents and responses of the running control plane."""

from pathlib import Path

from control_plane.assess.edge.collect import Installation
from control_plane.assess.model import Check
from control_plane.edge.operator_client import OperatorClient


async def checks(
    installation: Installation, directory: Path, client: OperatorClient, *, run: str, since_ms: int
) -> list[Check]:
    """Return the checks of levels 1 and 2 that need the control plane's services."""
    return []
