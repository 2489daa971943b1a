"""Findings, incidents and what was done about them. Never edited: a later change is a new file here."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables of detection and response."""
    op.create_table(
        "incidents",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("rule", sa.String(16), nullable=False),
        sa.Column("severity", sa.SmallInteger, nullable=False),
        sa.Column("subject", sa.String(2048), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("opened_ms", sa.BigInteger, nullable=False),
        sa.Column("last_ms", sa.BigInteger, nullable=False),
        sa.Column("findings", sa.BigInteger, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("evidence", sa.JSON, nullable=False),
        sa.Column("nodes", sa.JSON, nullable=False),
        sa.Column("resolved_by", sa.Text, nullable=False),
        sa.Column("resolved_why", sa.Text, nullable=False),
        sa.Column("resolved_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("incidents_subject", "incidents", ["subject", "rule", "last_ms"])
    op.create_index("incidents_state", "incidents", ["state", "last_ms", "id"])
    op.create_index("incidents_time", "incidents", ["last_ms", "id"])
    op.create_table(
        "findings",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("incident_id", sa.String(16), sa.ForeignKey("incidents.id"), nullable=False, index=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
    )
    _responses()
    op.create_table(
        "detection_state",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("until_ms", sa.BigInteger, nullable=False),
        sa.Column("learned", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "detection_positions",
        sa.Column("ledger_id", sa.Integer, sa.ForeignKey("record_ledgers.id"), primary_key=True),
        sa.Column("next_index", sa.BigInteger, nullable=False),
    )


def _responses() -> None:
    op.create_table(
        "incident_responses",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True
        ),
        sa.Column("incident_id", sa.String(16), sa.ForeignKey("incidents.id"), nullable=False, index=True),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("fate", sa.String(16), nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("value", sa.String(512), nullable=False),
        sa.Column("ttl_s", sa.BigInteger, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("directive", sa.String(64), nullable=False),
    )
    op.create_index("incident_responses_fate", "incident_responses", ["fate", "at_ms"])
