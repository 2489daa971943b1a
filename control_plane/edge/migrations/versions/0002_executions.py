"""Execution records and their index. Never edited: a later change is a new file here."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Each filter has an index that ends in the order of pages.
_PAGED = ("root_id", "trace_id", "caller", "service", "method", "allowed", "would_deny", "reason", "node")


def upgrade() -> None:
    """Create the tables of records and executions."""
    op.create_table(
        "record_ledgers",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("node", sa.String(63), nullable=False),
        sa.Column("ledger", sa.String(255), nullable=False),
        sa.Column("next_index", sa.BigInteger, nullable=False),
        sa.Column("missing", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("node", "ledger", name="record_ledgers_node_ledger"),
    )
    op.create_table(
        "records",
        sa.Column("ledger_id", sa.Integer, sa.ForeignKey("record_ledgers.id"), primary_key=True),
        sa.Column("ledger_index", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("record", sa.LargeBinary, nullable=False),
    )
    _executions()
    op.create_index("executions_execution", "executions", ["execution_id", "id"])
    op.create_index("executions_time", "executions", ["at_ms", "id"])
    for column in _PAGED:
        op.create_index(f"executions_{column.removesuffix('_id')}", "executions", [column, "at_ms", "id"])


def _executions() -> None:
    op.create_table(
        "executions",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True
        ),
        sa.Column("node", sa.String(63), nullable=False),
        sa.Column("execution_id", sa.LargeBinary(16), nullable=False),
        sa.Column("side", sa.SmallInteger, nullable=False),
        sa.Column("ledger_id", sa.Integer, sa.ForeignKey("record_ledgers.id"), nullable=False),
        sa.Column("root_id", sa.LargeBinary(16), nullable=False),
        sa.Column("trace_id", sa.LargeBinary(16), nullable=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("caller", sa.String(2048), nullable=False),
        sa.Column("service", sa.String(512), nullable=False),
        sa.Column("method", sa.String(512), nullable=False),
        sa.Column("allowed", sa.SmallInteger, nullable=False),
        sa.Column("would_deny", sa.SmallInteger, nullable=False),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.Column("intent_index", sa.BigInteger, nullable=False),
        sa.Column("intent_bytes", sa.Integer, nullable=False),
        sa.Column("outcome_index", sa.BigInteger, nullable=True),
        sa.Column("outcome_bytes", sa.Integer, nullable=False),
        sa.UniqueConstraint("node", "execution_id", "side", name="executions_node_execution_side"),
    )
