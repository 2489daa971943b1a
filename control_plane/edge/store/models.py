"""The tables of a control plane; the same on SQLite and PostgreSQL. Migrations create them (`migrations/`)."""

from typing import Final

import sqlalchemy as sa

metadata: Final = sa.MetaData()

# The shared truth of what is published: several control planes may use one database.
repository_head: Final = sa.Table(
    "repository_head",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),  # always 1
    sa.Column("revision", sa.BigInteger, nullable=False),  # grows with every change of the files
)

repository_files: Final = sa.Table(
    "repository_files",
    metadata,
    sa.Column("path", sa.String(512), primary_key=True),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False, index=True),  # that last wrote it
)

proposals: Final = sa.Table(
    "proposals",
    metadata,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("role", sa.String(64), nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("proposed_by", sa.Text, nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("expires_ms", sa.BigInteger, nullable=False),
    sa.Column("metadata", sa.LargeBinary, nullable=False),  # as proposed, without signatures
)

proposal_files: Final = sa.Table(
    "proposal_files",
    metadata,
    sa.Column("proposal_id", sa.String(16), sa.ForeignKey("proposals.id"), primary_key=True),
    sa.Column("path", sa.String(512), primary_key=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
)

# One row per key: the same key twice is one signature.
signatures: Final = sa.Table(
    "signatures",
    metadata,
    sa.Column("proposal_id", sa.String(16), sa.ForeignKey("proposals.id"), primary_key=True),
    sa.Column("key_id", sa.String(128), primary_key=True),
    sa.Column("signature_hex", sa.Text, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
)

join_tokens: Final = sa.Table(
    "join_tokens",
    metadata,
    sa.Column("token_sha256", sa.String(64), primary_key=True),
    sa.Column("node", sa.String(63), nullable=False),
    sa.Column("workloads", sa.JSON, nullable=False),
    sa.Column("expires_ms", sa.BigInteger, nullable=False, index=True),
    sa.Column("used_ms", sa.BigInteger, nullable=True),
)

node_grants: Final = sa.Table(
    "node_grants",
    metadata,
    sa.Column("node", sa.String(63), primary_key=True),
    sa.Column("workloads", sa.JSON, nullable=False),
)

# For which workloads each node speaks or spoke; "" is the node itself. `until_ms`: Unix ms, NULL while it holds.
# Rows are ended, and kept as long as a certificate may live: a node that was removed may still ship.
node_workloads: Final = sa.Table(
    "node_workloads",
    metadata,
    sa.Column("node", sa.String(63), primary_key=True),
    sa.Column("workload", sa.String(63), primary_key=True),
    sa.Column("until_ms", sa.BigInteger, nullable=True),
)

nodes: Final = sa.Table(
    "nodes",
    metadata,
    sa.Column("node", sa.String(63), primary_key=True),
    sa.Column("last_seen_ms", sa.BigInteger, nullable=False),
    sa.Column("certificate_not_after_ms", sa.BigInteger, nullable=False),
    sa.Column("status", sa.LargeBinary, nullable=False),  # egm.v1.NodeStatus
)

node_history: Final = sa.Table(
    "node_history",
    metadata,
    sa.Column("node", sa.String(63), primary_key=True),
    sa.Column("at_ms", sa.BigInteger, primary_key=True),
    sa.Column("state", sa.String(32), nullable=False),
    sa.Column("policy_version", sa.BigInteger, nullable=False),
    sa.Column("lease", sa.String(16), nullable=False),
)

audit: Final = sa.Table(
    "audit",
    metadata,
    # SQLite numbers rows itself only when the type is exactly INTEGER
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("action", sa.String(32), nullable=False),
    sa.Column("proposal_id", sa.String(16), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
)

# How far the index of each ledger of each node reaches.
record_ledgers: Final = sa.Table(
    "record_ledgers",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("node", sa.String(63), nullable=False),
    sa.Column("ledger", sa.String(255), nullable=False),
    sa.Column("next_index", sa.BigInteger, nullable=False),  # every record below is here
    sa.Column("missing", sa.BigInteger, nullable=False),  # that the node no longer held
    sa.UniqueConstraint("node", "ledger", name="record_ledgers_node_ledger"),
)

# The records as the nodes wrote them, never changed.
records: Final = sa.Table(
    "records",
    metadata,
    sa.Column("ledger_id", sa.Integer, sa.ForeignKey("record_ledgers.id"), primary_key=True),
    sa.Column("ledger_index", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("record", sa.LargeBinary, nullable=False),
)

# One row per side of an execution that a node recorded: what filters need, and where its records are.
executions: Final = sa.Table(
    "executions",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
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
    # 0: the node does not speak for whom it names (control_plane.core.standing), so nothing is concluded from it
    sa.Column("counts", sa.SmallInteger, nullable=False, server_default="1"),
    sa.UniqueConstraint("node", "execution_id", "side", name="executions_node_execution_side"),
    sa.Index("executions_execution", "execution_id", "id"),
    # Each filter has an index that ends in the order of pages (time, id), so that a page never sorts or scans.
    sa.Index("executions_time", "at_ms", "id"),
    sa.Index("executions_root", "root_id", "at_ms", "id"),
    sa.Index("executions_trace", "trace_id", "at_ms", "id"),
    sa.Index("executions_caller", "caller", "at_ms", "id"),
    sa.Index("executions_service", "service", "at_ms", "id"),
    sa.Index("executions_method", "method", "at_ms", "id"),
    sa.Index("executions_allowed", "allowed", "at_ms", "id"),
    sa.Index("executions_would_deny", "would_deny", "at_ms", "id"),
    sa.Index("executions_reason", "reason", "at_ms", "id"),
    sa.Index("executions_node", "node", "at_ms", "id"),
)

# Proposed bundles that nodes try beside the one in force.
shadow_runs: Final = sa.Table(
    "shadow_runs",
    metadata,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("proposal_id", sa.String(16), sa.ForeignKey("proposals.id"), nullable=False),
    sa.Column("signed_order", sa.LargeBinary, nullable=False),  # trust.shadow
    sa.Column("role", sa.String(64), nullable=False),
    sa.Column("bundle_path", sa.String(512), nullable=False),
    sa.Column("started_by", sa.Text, nullable=False),
    sa.Column("approver", sa.Text, nullable=False),
    sa.Column("started_ms", sa.BigInteger, nullable=False, index=True),
    sa.Column("until_ms", sa.BigInteger, nullable=False),
    sa.Column("stopped_ms", sa.BigInteger, nullable=False),
)

# The newest report of each start of each node: what it counts begins with the start.
shadow_reports: Final = sa.Table(
    "shadow_reports",
    metadata,
    sa.Column("run_id", sa.String(16), sa.ForeignKey("shadow_runs.id"), primary_key=True),
    sa.Column("node", sa.String(63), primary_key=True),
    sa.Column("boot_id", sa.String(64), primary_key=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("report", sa.LargeBinary, nullable=False),  # egm.v1.ShadowReport
)

# Analytics: who calls what, by node and side. A key is found by the SHA-256 of its parts.
analytics_keys: Final = sa.Table(
    "analytics_keys",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("digest", sa.LargeBinary(32), nullable=False, unique=True),
    sa.Column("node", sa.String(63), nullable=False, index=True),
    sa.Column("side", sa.SmallInteger, nullable=False),
    sa.Column("caller", sa.String(2048), nullable=False),
    sa.Column("service", sa.String(512), nullable=False),
    sa.Column("method", sa.String(512), nullable=False),
)

# Sums per key and time bucket; in the order in which queries read them.
analytics_counts: Final = sa.Table(
    "analytics_counts",
    metadata,
    sa.Column("resolution_s", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("bucket_s", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("key_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("measure", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("label", sa.String(64), primary_key=True),
    sa.Column("count", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# One row per rule and subject, whatever its state; a change of state raises the revision.
alerts: Final = sa.Table(
    "alerts",
    metadata,
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
    sa.Index("alerts_rule", "rule"),
)

# Messages about alerts that are to be delivered, or were.
alert_deliveries: Final = sa.Table(
    "alert_deliveries",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("alert_id", sa.String(16), nullable=False, index=True),
    sa.Column("channel", sa.String(128), nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("next_ms", sa.BigInteger, nullable=False, index=True),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("error", sa.Text, nullable=False),
)

# Calls that wait for approvers; `content` is the request until the ticket is used or over.
approval_tickets: Final = sa.Table(
    "approval_tickets",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("ticket", sa.LargeBinary, nullable=False),  # trust.ticket
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
    sa.Index("approval_tickets_call", "call_sha256", "node"),
    sa.Index("approval_tickets_until", "until_ms"),
    sa.Index("approval_tickets_opened", "opened_ms"),
)

# What approvers signed about them, as they signed it.
approval_notes: Final = sa.Table(
    "approval_notes",
    metadata,
    sa.Column("ticket_id", sa.String(64), sa.ForeignKey("approval_tickets.id"), primary_key=True),
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("verdict", sa.String(16), primary_key=True),
    sa.Column("note", sa.LargeBinary, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
)

# What detection found: one incident per rule and subject while it goes on.
incidents: Final = sa.Table(
    "incidents",
    metadata,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("rule", sa.String(16), nullable=False),
    sa.Column("severity", sa.SmallInteger, nullable=False),  # trust.detection.Severity.rank
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
    # on whose records alone it rests; empty: on those of several
    sa.Column("only_node", sa.String(63), nullable=False, server_default=""),
    sa.Column("alone", sa.JSON, nullable=False, server_default="[]"),
    sa.Index("incidents_only_node", "only_node", "state"),
    sa.Index("incidents_subject", "subject", "rule", "last_ms"),
    sa.Index("incidents_state", "state", "last_ms", "id"),
    sa.Index("incidents_time", "last_ms", "id"),
)

findings: Final = sa.Table(
    "findings",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("incident_id", sa.String(16), sa.ForeignKey("incidents.id"), nullable=False, index=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
)

# Written before anything is done about an incident, and again when it is done.
incident_responses: Final = sa.Table(
    "incident_responses",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("incident_id", sa.String(16), sa.ForeignKey("incidents.id"), nullable=False, index=True),
    sa.Column("action", sa.String(32), nullable=False),
    sa.Column("fate", sa.String(16), nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("value", sa.String(512), nullable=False),
    sa.Column("ttl_s", sa.BigInteger, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("directive", sa.String(64), nullable=False),
    sa.Index("incident_responses_fate", "fate", "at_ms"),
)

# Which control plane detects, and what it has learned of the records before `detection_positions`.
detection_state: Final = sa.Table(
    "detection_state",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),  # always 1
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("until_ms", sa.BigInteger, nullable=False),
    sa.Column("learned", sa.LargeBinary, nullable=False),  # JSON, compressed; empty: nothing
)

detection_positions: Final = sa.Table(
    "detection_positions",
    metadata,
    sa.Column("ledger_id", sa.Integer, sa.ForeignKey("record_ledgers.id"), primary_key=True),
    sa.Column("next_index", sa.BigInteger, nullable=False),
)
