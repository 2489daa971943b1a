"""Batches of records taken into an index, as a control plane's servicer does, one transaction each."""

from control_plane.core.executions import Batch
from control_plane.core.fresh import FreshEvents
from control_plane.core.standing import Serves
from control_plane.edge.store.database import Database
from control_plane.edge.store.intake import Intake
from tests.support.records import START_MS
from trust.errors import MeshError

TRUST_DOMAIN = "mesh.test"


def new_intake(
    *,
    now_ms: int = START_MS + 120_000,
    serves: Serves = lambda _service: None,
    fresh: FreshEvents | None = None,
) -> Intake:
    """Return an intake of the tests' trust domain whose clock stands still."""
    return Intake(TRUST_DOMAIN, lambda: now_ms, serves=serves, fresh=fresh)


async def taken(database: Database, *batches: Batch, intake: Intake | None = None) -> int:
    """Take batches, each in a transaction of its own; return the last position. Raises what the first refusal says."""
    by, reached = intake or new_intake(), 0
    for one in batches:
        (answer,) = await by.take(database, [one])
        if isinstance(answer, MeshError):
            raise answer
        reached = answer
    return reached
