"""Execution analytics, alerts and what is delivered of them."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables of sums and alerts."""
    op.create_table(
        "analytics_keys",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("digest", sa.LargeBinary(32), nullable=False, unique=True),
        sa.Column("node", sa.String(63), nullable=False, index=True),
        sa.Column("side", sa.SmallInteger, nullable=False),
        sa.Column("caller", sa.String(2048), nullable=False),
        sa.Column("service", sa.String(512), nullable=False),
        sa.Column("method", sa.String(512), nullable=False),
    )
    op.create_table(
        "analytics_counts",
        sa.Column("resolution_s", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("bucket_s", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("key_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("measure", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("label", sa.String(64), primary_key=True),
        sa.Column("count", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    _alerts()


def _alerts() -> None:
    op.create_table(
        "alerts",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("rule", sa.String(128), nullable=False),
        sa.Column("subject", sa.String(512), nullable=False),
        sa.Column("severity", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False, index=True),
        sa.Column("value", sa.Float, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("since_ms", sa.BigInteger, nullable=False),
        sa.Column("fired_ms", sa.BigInteger, nullable=False),
        sa.Column("ended_ms", sa.BigInteger, nullable=False),
        sa.Column("seen_ms", sa.BigInteger, nullable=False),
        sa.Column("notified_ms", sa.BigInteger, nullable=False),
        sa.Column("told", sa.String(16), nullable=False),
        sa.Column("acked_by", sa.Text, nullable=False),
        sa.Column("acked_ms", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "alert_deliveries",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True
        ),
        sa.Column("alert_id", sa.String(16), nullable=False, index=True),
        sa.Column("channel", sa.String(128), nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("next_ms", sa.BigInteger, nullable=False, index=True),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("error", sa.Text, nullable=False),
    )
