"""Assessments made of the table of breakages, for reports, comparisons and the command line."""

from dataclasses import replace

from control_plane.assess.catalogue import load_catalogue
from control_plane.assess.model import Assessment, grade
from tests.support.breakages import GOOD, World

STARTED_MS = 1_795_000_000_000


def assessment(run: str = "0123456789ab", notes: tuple[str, ...] = (), **worlds: World) -> Assessment:
    """Return an assessment of services by name."""
    services = tuple(
        grade(
            load_catalogue(),
            name,
            [replace(check, subject=name if check.subject else "") for check in world.checks()],
            signed_level=5,
        )
        for name, world in (worlds or {"shop": GOOD}).items()
    )
    return Assessment(run, STARTED_MS, STARTED_MS + 12_000, "mesh.local", "full", 3, "0.1.0", services, notes)
