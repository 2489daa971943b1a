"""For which workloads each node speaks, also after it joined anew. Never edited: a later change is a new file here."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Begin with what each node holds now; what it held before was not written down."""
    created = op.create_table(
        "node_workloads",
        sa.Column("node", sa.String(63), primary_key=True),
        sa.Column("workload", sa.String(63), primary_key=True),
        sa.Column("until_ms", sa.BigInteger, nullable=True),
    )
    grants = sa.table("node_grants", sa.column("node", sa.String), sa.column("workloads", sa.JSON))
    rows = [
        {"node": grant.node, "workload": workload, "until_ms": None}
        for grant in op.get_bind().execute(sa.select(grants))
        for workload in ("", *grant.workloads)
    ]
    if rows:
        op.bulk_insert(created, rows)
    op.add_column("executions", sa.Column("counts", sa.SmallInteger, nullable=False, server_default="1"))
