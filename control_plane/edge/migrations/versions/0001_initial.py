"""The first schema. Never edited: a later change is a new file here (a test compares the result with models.py)."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table, and the one row of `repository_head`."""
    _repository()
    _proposals()
    _fleet()
    op.create_table(
        "audit",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True
        ),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("who", sa.Text, nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("proposal_id", sa.String(16), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
    )


def _repository() -> None:
    head = op.create_table(
        "repository_head",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(head, [{"id": 1, "revision": 0}])
    op.create_table(
        "repository_files",
        sa.Column("path", sa.String(512), primary_key=True),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False, index=True),
    )


def _proposals() -> None:
    op.create_table(
        "proposals",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("role", sa.String(64), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("state", sa.String(16), nullable=False, index=True),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("proposed_by", sa.Text, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_ms", sa.BigInteger, nullable=False),
        sa.Column("metadata", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "proposal_files",
        sa.Column("proposal_id", sa.String(16), sa.ForeignKey("proposals.id"), primary_key=True),
        sa.Column("path", sa.String(512), primary_key=True),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "signatures",
        sa.Column("proposal_id", sa.String(16), sa.ForeignKey("proposals.id"), primary_key=True),
        sa.Column("key_id", sa.String(128), primary_key=True),
        sa.Column("signature_hex", sa.Text, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
    )


def _fleet() -> None:
    op.create_table(
        "join_tokens",
        sa.Column("token_sha256", sa.String(64), primary_key=True),
        sa.Column("node", sa.String(63), nullable=False),
        sa.Column("workloads", sa.JSON, nullable=False),
        sa.Column("expires_ms", sa.BigInteger, nullable=False, index=True),
        sa.Column("used_ms", sa.BigInteger, nullable=True),
    )
    op.create_table(
        "node_grants",
        sa.Column("node", sa.String(63), primary_key=True),
        sa.Column("workloads", sa.JSON, nullable=False),
    )
    op.create_table(
        "nodes",
        sa.Column("node", sa.String(63), primary_key=True),
        sa.Column("last_seen_ms", sa.BigInteger, nullable=False),
        sa.Column("certificate_not_after_ms", sa.BigInteger, nullable=False),
        sa.Column("status", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "node_history",
        sa.Column("node", sa.String(63), primary_key=True),
        sa.Column("at_ms", sa.BigInteger, primary_key=True),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("policy_version", sa.BigInteger, nullable=False),
        sa.Column("lease", sa.String(16), nullable=False),
    )
