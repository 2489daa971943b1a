"""Shadow runs and their reports. Never edited: a later change is a new file here."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables of shadow runs and reports."""
    op.create_table(
        "shadow_runs",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("proposal_id", sa.String(16), sa.ForeignKey("proposals.id"), nullable=False),
        sa.Column("signed_order", sa.LargeBinary, nullable=False),
        sa.Column("role", sa.String(64), nullable=False),
        sa.Column("bundle_path", sa.String(512), nullable=False),
        sa.Column("started_by", sa.Text, nullable=False),
        sa.Column("approver", sa.Text, nullable=False),
        sa.Column("started_ms", sa.BigInteger, nullable=False),
        sa.Column("until_ms", sa.BigInteger, nullable=False),
        sa.Column("stopped_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_shadow_runs_started_ms", "shadow_runs", ["started_ms"])
    op.create_table(
        "shadow_reports",
        sa.Column("run_id", sa.String(16), sa.ForeignKey("shadow_runs.id"), primary_key=True),
        sa.Column("node", sa.String(63), primary_key=True),
        sa.Column("boot_id", sa.String(64), primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("report", sa.LargeBinary, nullable=False),
    )
