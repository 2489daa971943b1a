"""Which nodes each show an incident by their own records. Never edited: a later change is a new file here."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing is known of the incidents that are there: they count as shown by one."""
    op.add_column("incidents", sa.Column("alone", sa.JSON, nullable=False, server_default="[]"))
