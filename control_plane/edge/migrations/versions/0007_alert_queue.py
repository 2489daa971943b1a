"""Settled deliveries of alerts leave the queue; on whose word alone an incident rests. Never edited later."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_NEVER_MS = 2**62


def upgrade() -> None:
    """Put what is settled behind everything that is due, and tell incidents of one node apart."""
    table = sa.table("alert_deliveries", sa.column("next_ms", sa.BigInteger), sa.column("state", sa.String))
    op.execute(table.update().where(table.c.state != "waiting").values(next_ms=_NEVER_MS))
    op.create_index("alerts_rule", "alerts", ["rule"])
    # incidents that are there already count as shown by several nodes: they use up no node's share
    op.add_column("incidents", sa.Column("only_node", sa.String(63), nullable=False, server_default=""))
    op.create_index("incidents_only_node", "incidents", ["only_node", "state"])
