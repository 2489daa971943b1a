"""Tickets of calls that wait for approvers. Never edited: a later change is a new file here."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables of tickets and of what approvers signed."""
    op.create_table(
        "approval_tickets",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("ticket", sa.LargeBinary, nullable=False),
        sa.Column("call_sha256", sa.String(64), nullable=False),
        sa.Column("caller", sa.String(2048), nullable=False),
        sa.Column("node", sa.String(63), nullable=False),
        sa.Column("inbound", sa.SmallInteger, nullable=False),
        sa.Column("level", sa.SmallInteger, nullable=False),
        sa.Column("opened_ms", sa.BigInteger, nullable=False),
        sa.Column("until_ms", sa.BigInteger, nullable=False),
        sa.Column("spent_ms", sa.BigInteger, nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=True),
        sa.Column("content_bytes", sa.BigInteger, nullable=False),
    )
    op.create_index("approval_tickets_call", "approval_tickets", ["call_sha256", "node"])
    op.create_index("approval_tickets_until", "approval_tickets", ["until_ms"])
    op.create_index("approval_tickets_opened", "approval_tickets", ["opened_ms"])
    op.create_table(
        "approval_notes",
        sa.Column("ticket_id", sa.String(64), sa.ForeignKey("approval_tickets.id"), primary_key=True),
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("verdict", sa.String(16), primary_key=True),
        sa.Column("note", sa.LargeBinary, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
    )
