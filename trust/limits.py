"""Every bound of the mesh, named, unit last. Raising one is a security decision: see docs/limits.md."""

from typing import Final

# bundles: gzip-compressed tar archives
MAX_BUNDLE_ARCHIVE_BYTES: Final = 64 * 1024 * 1024
MAX_BUNDLE_UNPACKED_BYTES: Final = 256 * 1024 * 1024
MAX_BUNDLE_ENTRIES: Final = 20_000
MAX_BUNDLE_ENTRY_BYTES: Final = 64 * 1024 * 1024
MAX_BUNDLE_PATH_BYTES: Final = 255
MAX_POLICIES: Final = 200_000
MAX_POLICY_ID_BYTES: Final = 200
MAX_CEDAR_NESTING: Final = 50  # brackets in brackets; some hundred overflow the native parser's stack
MAX_CEDAR_CHAIN: Final = 500  # operators in one expression; some thousand overflow it, too

# TUF
MAX_METADATA_BYTES: Final = 1024 * 1024
MAX_ROOT_ROTATIONS: Final = 256
MAX_CHUNK_BYTES: Final = 256 * 1024
MIN_APPROVER_THRESHOLD: Final = 2
MAX_ROLE_KEYS: Final = 64  # holders of one role
MAX_NAMESPACES: Final = 64
MAX_ROOT_LIFETIME_S: Final = 5 * 366 * 24 * 3600
MAX_POLICY_LIFETIME_S: Final = 2 * 366 * 24 * 3600  # targets, namespaces and snapshot
MIN_NAMESPACE_LIFETIME_S: Final = 7 * 24 * 3600  # when proposed: its end is the end of the whole policy
FETCH_TIMEOUT_S: Final = 10.0  # without a byte
FETCH_DEADLINE_S: Final = 60.0  # for one whole file
FETCH_MIN_BYTES_PER_S: Final = 1024
FETCH_HEDGE_S: Final = 0.5  # of silence, until the next source is asked beside
FETCH_SILENCE_S: Final = 3.0  # waited for a silent source when others have said that they lack the file

# lease
MIN_LEASE_TTL_S: Final = 2
MAX_LEASE_TTL_S: Final = 24 * 3600
MAX_LEASE_GRACE_S: Final = 7 * 24 * 3600
MAX_CLOCK_SKEW_MS: Final = 5_000

# decisions
MAX_MESSAGE_DEPTH: Final = 4  # nesting of messages represented in `context.request`
MAX_DECISION_CACHE_ENTRIES: Final = 16_384
MAX_SLICE_CACHE_ENTRIES: Final = 16_384
MAX_CACHED_KEY_CHARS: Final = 4 * 1024  # of what a verdict is kept under; a longer call is decided each time
MAX_METADATA_VALUE_BYTES: Final = 1024  # a metadata value shown to policies
MAX_REQUEST_JSON_BYTES: Final = 1024 * 1024

# authoring
MAX_TESTS_CHARS: Final = 2 * 1024 * 1024  # of all tests of one bundle
MAX_ANCESTORS: Final = 1_000_000  # over all entities of a bundle; Cedar holds every one of them
MAX_ACTION_MEMBERSHIPS: Final = 400_000  # over all actions of a schema; 8 million took Cedar 16 s
MAX_DIFF_CALLS: Final = 20_000  # calls that `egm policy diff` decides under each bundle
MAX_REFLECTION_FILES: Final = 2_000
MAX_REFLECTION_BYTES: Final = 32 * 1024 * 1024
REFLECTION_TIMEOUT_S: Final = 10.0  # for one question

# proxy
MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
STREAM_WINDOW_BYTES: Final = (
    1024 * 1024
)  # what a sidecar takes ahead of a slow reader, per stream and direction
MAX_METADATA_BYTES_PER_CALL: Final = 64 * 1024
MAX_CONNECTION_AGE_MS: Final = 10 * 60 * 1000
MAX_CONCURRENT_STREAMS: Final = 10_000
DRAIN_GRACE_S: Final = 20.0
MAX_OPEN_STREAMS: Final = 100_000  # registered for re-decision on one node
MAX_STREAM_REQUEST_KEPT_BYTES: Final = 64 * 1024  # of a stream's request, to decide it again
STREAMS_PER_STEP: Final = 64  # decided again before the loop may do something else
MAX_ALARMS: Final = 64

# identity
SVID_TTL_S: Final = 24 * 3600
JOIN_TOKEN_TTL_S: Final = 600
MAX_JOIN_TOKEN_TTL_S: Final = 7 * 24 * 3600
MAX_WORKLOADS_PER_NODE: Final = 256
MAX_JWT_SVID_BYTES: Final = 8 * 1024
MAX_JWT_SVID_LIFETIME_S: Final = 3600
MAX_JWKS_BYTES: Final = 256 * 1024
MAX_SVID_TTL_S: Final = 90 * 24 * 3600
MAX_CSR_BYTES: Final = 8 * 1024
MAX_CERTIFICATE_CHAIN: Final = 8  # certificates
MAX_CERTIFICATE_CHAIN_BYTES: Final = 256 * 1024
CA_TTL_S: Final = 5 * 365 * 24 * 3600
ANCHORS_REFRESH_S: Final = 300  # how soon a node learns of a new CA
IDENTITY_RPC_TIMEOUT_S: Final = 10.0

# revocation, gossip, misbehaviour
MAX_EMERGENCY_KEYS: Final = 16
MAX_REVOCATION_BYTES: Final = 4 * 1024  # one signed directive
MAX_REVOCATION_TTL_S: Final = 30 * 24 * 3600  # policy may set a lower bound, not a higher one
MAX_REVOCATION_REASON_CHARS: Final = 200
MAX_REVOCATION_VALUE_CHARS: Final = 400  # a method name
MAX_REVOCATIONS_PER_KEY: Final = 1_000  # one emergency key cannot use up the room of another
MAX_PERMANENT_REVOCATIONS: Final = 10_000  # of each list in the signed policy
MAX_PROOFS: Final = 256  # misbehaviour proofs that a member holds
MAX_PROOFS_PER_NODE: Final = 4  # one is enough to quarantine it
MAX_PROOF_BYTES: Final = 256 * 1024
MAX_GOSSIP_BYTES: Final = 1024 * 1024  # of one message, with everything in it
MAX_GOSSIP_HEADS: Final = 4  # ledger heads in one message: its cost does not grow with the mesh
MAX_GOSSIP_CREDENTIALS: Final = 2  # trust credentials in one message
MAX_GOSSIP_SENDERS: Final = 10_000  # whose sequence is remembered
MAX_KNOWN_HEADS: Final = 10_000  # ledgers whose newest head a node remembers
MAX_GOSSIP_ITEMS: Final = 2_048  # directives and proofs in one message
MAX_GOSSIP_REFUSED: Final = (
    64  # items of one message that do not verify, before the rest of it is passed over
)
MAX_REFUSED_ITEMS: Final = 4_096  # whose digests are remembered, so that each costs one look
MAX_VOUCHED_NODES: Final = 1_000  # whose last trust credentials a member compares
MAX_WEAKLY_VOUCHED_NODES: Final = (
    64  # the same, of nodes of which only credentials without the quorum are known
)
MAX_BLOBS: Final = 4_096  # pieces of evidence kept for peers
MAX_BLOBS_BYTES: Final = 64 * 1024 * 1024
MAX_PEERS: Final = 64  # that a node talks to; each message of the control plane names so many
GOSSIP_PEERS: Final = 2  # peers in one round, however many there are
GOSSIP_FANOUT: Final = 4  # peers in a round that news starts
GOSSIP_PERIOD_MS: Final = 1_000
GOSSIP_HOT_MS: Final = 150  # between the rounds that follow news
GOSSIP_HOT_ROUNDS: Final = 2
GOSSIP_TIMEOUT_S: Final = 3.0
MAX_DENIALS_BYTES: Final = 128 * 1024 * 1024  # what a node keeps of them across restarts

# permits
MAX_PERMIT_BYTES: Final = 4 * 1024
MAX_PERMIT_LIFETIME_S: Final = 30
MAX_PERMIT_DELAY_S: Final = 20  # from an execution's beginning, when its id is drawn, to its permit
MAX_HANDOVER_LIFETIME_S: Final = 30  # from a sidecar to the service next to it
MAX_ENDORSEMENT_BYTES: Final = 16 * 1024  # of a node key, with its certificate chain
MAX_ENDORSEMENT_LIFETIME_S: Final = 24 * 3600
MAX_NODE_KEYS: Final = 4_096  # verified endorsements that a sidecar keeps
MAX_SPENT_PERMITS: Final = 500_000  # remembered until they expire; full means refuse
MAX_PARENT_PERMITS: Final = 100_000  # of executions that are still open
OPENING_MESSAGE_TIMEOUT_S: Final = (
    10.0  # how long a stream may take to send the message that its permit binds
)

# approvals
MAX_APPROVER_GROUPS: Final = 64
MAX_GROUP_APPROVERS: Final = 32
MAX_APPROVAL_BYTES: Final = 8 * 1024  # one signed approval
MAX_APPROVAL_REASON_CHARS: Final = 200
MAX_APPROVAL_LIFETIME_S: Final = 24 * 3600  # of one approval, of a window, and of a ticket
MAX_APPROVAL_WAIT_S: Final = 300  # how long a call may be held for approvers
MAX_CARRIED_APPROVALS: Final = 32  # with one call
MAX_CARRIED_APPROVALS_BYTES: Final = 16 * 1024
MAX_TICKET_CONTENT_BYTES: Final = 64 * 1024  # of a request that approvers are shown; a larger one is not
MAX_OPEN_TICKETS: Final = 10_000  # at one control plane
MAX_NODE_TICKETS: Final = 256  # open, of one node
MAX_CALLER_TICKETS: Final = 64  # open, of one caller at one node
MAX_TICKET_NOTES: Final = 64  # approvals and denials kept of one ticket
MAX_LISTED_TICKETS: Final = 500
MAX_COLLECTED_TICKETS: Final = 512  # in one question of a node
MAX_HELD_CALLS: Final = 256  # that wait for approvers at one node; more are refused with their ticket at once
MAX_CALLER_HELD_CALLS: Final = 64  # of them, of one caller
MAX_SPENT_APPROVALS: Final = 100_000  # remembered for MAX_APPROVAL_LIFETIME_S; full means refuse
MAX_APPROVAL_WINDOWS: Final = 4_096  # that a node holds approvals of
APPROVAL_RPC_TIMEOUT_S: Final = 3.0  # for one answer of the control plane about a ticket
APPROVAL_POLL_S: Final = 0.25  # between questions while calls are held
APPROVAL_RETRY_S: Final = 1.0  # after the control plane did not answer, before it is asked again
TICKET_HISTORY_S: Final = 30 * 24 * 3600  # how long ended tickets are listed

# control plane
MAX_PROPOSAL_BYTES: Final = MAX_BUNDLE_ARCHIVE_BYTES + MAX_METADATA_BYTES
MAX_OPEN_PROPOSALS: Final = 100
MAX_NODES: Final = 10_000
MAX_ANNOUNCEMENT_BYTES: Final = 64 * 1024
REPORT_PERIOD_S: Final = 2.0
MAX_CONCURRENT_UPLOADS: Final = 2  # proposals being received at one moment
MAX_LISTED_PROPOSALS: Final = 500
MAX_PROPOSAL_TITLE_BYTES: Final = 200
MAX_WATCHERS: Final = 10_000
MAX_NODE_STATUS_BYTES: Final = 64 * 1024
MAX_NODE_HISTORY: Final = 100  # changes kept per node
MAX_AUDIT_PAGE: Final = 1_000

# shadow runs
MAX_SHADOW_RUN_S: Final = 7 * 24 * 3600
MAX_SHADOW_ORDER_BYTES: Final = 16 * 1024  # signed, as it travels
MAX_SHADOW_DIFFERENCES: Final = 1_000  # kinds of differing calls that one node counts apart
MAX_CALLER_SHADOW_DIFFERENCES: Final = 200  # of them, of one caller: it chooses what it calls
MAX_SHADOW_TEXT_BYTES: Final = 256  # of a method's name that is told; a caller may make up longer ones
MAX_SHADOW_REPORT_BYTES: Final = 512 * 1024  # of one node; what does not fit is counted
MAX_SHADOW_STARTS: Final = 100  # of one node in one run, whose reports are kept
MAX_SHADOW_RUN_BYTES: Final = 32 * 1024 * 1024  # of all reports of a run in one answer, shared evenly
SHADOW_REPORT_PERIOD_S: Final = 5.0

# execution analytics and alerts
ANALYTICS_MINUTES_KEPT_S: Final = 3 * 24 * 3600  # sums per minute
ANALYTICS_HOURS_KEPT_S: Final = 92 * 24 * 3600
ANALYTICS_DAYS_KEPT_S: Final = 800 * 24 * 3600
ANALYTICS_FINE_S: Final = 6 * 3600  # a longer time is summed up in whole hours
MAX_ANALYTICS_KEYS_PER_NODE: Final = (
    4_096  # callers, services and methods of one node; more count as "(other)"
)
MAX_ANALYTICS_COUNT: Final = 2**50  # of one counter: what nodes record of bytes and times is their word
MAX_ANALYTICS_ROWS: Final = 1_000  # groups in one answer
MAX_ALERT_RULES: Final = 200
MAX_ALERT_CHANNELS: Final = 8  # that one rule names
MIN_ALERT_WINDOW_S: Final = 60
MAX_ALERT_WINDOW_S: Final = 24 * 3600
ALERT_PERIOD_S: Final = 5.0  # between looks at every rule
ALERT_REPEAT_S: Final = 3600  # a firing alert that nobody acknowledged is told again
ALERT_QUIET_S: Final = 60  # an alert is told of at most this often, however it flaps
ALERT_EVENT_HOLD_S: Final = 3600  # an event fires until it was not heard of for so long
ALERTS_KEPT_S: Final = 30 * 24 * 3600  # resolved ones, and what was delivered
MAX_ALERTS: Final = 10_000  # in the store
MAX_ALERT_EVENTS: Final = 1_000  # waiting to be written down
MAX_ALERT_DETAIL_CHARS: Final = 1_000
MAX_WEBHOOKS: Final = 32
WEBHOOK_TIMEOUT_S: Final = 10.0  # for one attempt
WEBHOOK_ATTEMPTS: Final = 8  # with growing pauses, about half an hour in all; then it counts as failed
WEBHOOKS_AT_ONCE: Final = 4  # messages on their way to one receiver
WEBHOOK_PAUSE_S: Final = 600  # the longest between two attempts
MAX_ALERTS_PER_EVENT: Final = 2_000  # of MAX_ALERTS, for one kind of event
MAX_ALERT_DELIVERIES: Final = 20_000  # that wait; more fail at once
ALERT_SIGNATURE_AGE_S: Final = 300  # a receiver refuses an older signature
MIN_RECOMMEND_CALLS: Final = 100  # observed before 'egm policy recommend' drafts anything, unless told
RARE_EDGE_CALLS: Final = 5  # an edge seen less often is marked for the reviewer

# execution records and lineage
MAX_RECORD_BYTES: Final = 128 * 1024
MAX_RECORD_NAME_BYTES: Final = 2048  # a SPIFFE ID
MAX_RECORD_TEXT_BYTES: Final = 512  # method, service, traceparent and other text
MAX_RECORD_POLICIES: Final = 64  # determining policies listed in one record
MAX_RECORD_OBLIGATIONS: Final = 32
MAX_SEALED_PAYLOAD_BYTES: Final = 96 * 1024  # encrypted payload in one record
MAX_AUDITED_PAYLOAD_BYTES: Final = (
    64 * 1024
)  # a payload that is sealed; a larger one cannot be, see docs/policy.md
MAX_AUDITORS: Final = 8  # to whom one payload is sealed
MAX_LEDGER_NAME_BYTES: Final = 255
MAX_LEDGERS_PER_NODE: Final = 64  # ledgers of one node that the index follows
MAX_SHIP_BATCH_RECORDS: Final = 1_024
MAX_SHIP_BATCH_BYTES: Final = 1024 * 1024
MAX_RECENT_RECORDS: Final = 4_096  # of a node's ledger, kept in memory for shipping
MAX_RECENT_RECORD_BYTES: Final = 4 * 1024 * 1024
SHIP_WINDOW_RECORDS: Final = 4_096  # sent and not yet acknowledged
SHIP_ACK_TIMEOUT_S: Final = 30.0  # without an acknowledgement while records are under way
MAX_SHIP_STREAMS: Final = 20_000  # open at one control plane
MAX_SHIP_STREAMS_PER_NODE: Final = 4  # a reconnect may overlap the stream that it replaces
MAX_EXECUTIONS_PAGE: Final = 1_000
MAX_TREE_ENTRIES: Final = 10_000
PRUNE_BATCH_RECORDS: Final = 256  # forgotten by the index in one transaction
PRUNE_PERIOD_S: Final = 600.0
MAX_TREE_BYTES: Final = 16 * 1024 * 1024  # of records in one answer, for a list too

# conditional controls: @rate and @budget
MAX_RATE_COUNT: Final = 999_999_999  # calls in one window of a @rate
MAX_METERS: Final = 50_000  # rates, and as many budgets, that a node tells apart; more callers share one
METER_FILE_RETRY_S: Final = 0.5  # after the disk failed: until it is asked again
METER_FILE_GROWTH_BYTES: Final = 4 * 1024 * 1024  # appended to the file of budgets before it is written anew

# ledger
MAX_NOTE_BYTES: Final = 64 * 1024
MAX_NOTE_SIGNATURES: Final = 100
MAX_NOTE_NAME_CHARS: Final = 255
MAX_LEDGER_RECORD_BYTES: Final = 1024 * 1024
MAX_LEDGER_QUEUE_RECORDS: Final = 16_384  # appended and not yet durable; full means wait or refuse
MAX_LEDGER_QUEUE_BYTES: Final = 64 * 1024 * 1024
MAX_LEDGER_TILE_BACKLOG: Final = 2_048  # full tiles not yet written; full holds the writer back
LEDGER_SEGMENT_RECORDS: Final = 65_536  # records in one segment file: one full tile of level 1
LEDGER_LINGER_MS: Final = 50  # a record that nobody waits for is on disk this much later at the latest
LEDGER_LINGER_RECORDS: Final = 1_024  # or when so many are queued
LEDGER_GATHER_MS: Final = 3  # how long a call that waits for the disk waits for others first
LEDGER_GATHER_CALLS: Final = 4  # and how many must be open for that
LEDGER_SYNC_TIMEOUT_S: Final = 10.0  # a disk that takes longer counts as failed for the calls that wait
LEDGER_OUTCOME_ROOM_RECORDS: Final = (
    4_096  # of the queue, for outcomes alone: what was begun is written to its end
)
LEDGER_CHECKPOINT_RECORDS: Final = 16_384  # at most so many durable records without a checkpoint
LEDGER_CHECKPOINT_PERIOD_S: Final = 1.0
ARCHIVE_PERIOD_S: Final = 60.0  # between attempts of a node to archive its ledger
ARCHIVE_KEPT_RECORDS: Final = 1_000_000  # that a node keeps on its own disk, unless configured
ARCHIVE_CONNECT_TIMEOUT_S: Final = 5.0
ARCHIVE_REQUEST_TIMEOUT_S: Final = 60.0  # for one request with its retries
ARCHIVE_RETRIES: Final = 3  # of one request; after that the next attempt of the archiver goes on
ARCHIVE_RANGE_BYTES: Final = 1024 * 1024  # read at once from an archived segment

# evidence files
MAX_EVIDENCE_BYTES: Final = 256 * 1024 * 1024
MAX_EVIDENCE_RECORDS: Final = 10_000
MAX_EVIDENCE_NODES: Final = 1_000
MAX_EVIDENCE_POLICIES: Final = 16
MAX_EVIDENCE_ANCHORS: Final = 64
MAX_EVIDENCE_ENDORSEMENTS: Final = 1_000  # of keys that signed permits, besides one of each node
MAX_KEPT_ENDORSEMENTS: Final = (
    10_000  # endorsements of its key that a node keeps for evidence: a year of hours
)
MAX_EVIDENCE_CREDENTIALS: Final = 10_000  # trust credentials that the permits in one file name
KEPT_CREDENTIALS_FILE_BYTES: Final = 8 * 1024 * 1024  # of those kept for evidence; then the next file begins
MAX_KEPT_CREDENTIALS_BYTES: Final = 4 * 1024**3  # a node's own: most of a year of calls in every minute
MAX_KEPT_PEER_CREDENTIALS_BYTES: Final = 1024**3  # of other nodes, which keep their own, too

# assessment
MAX_PROBE_NONCE_BYTES: Final = 256  # that the reserved method sends back
MAX_ASSESSED_LEDGER_BYTES: Final = 512 * 1024 * 1024  # of one ledger that the assessor reads and copies
MAX_ASSESSED_LEASE_S: Final = 24 * 3600  # lease and grace together, beyond which fail-closed is a word
MAX_ASSESSED_RECORDS: Final = (
    2_000  # of ordinary calls to one service, the newest, that an assessment looks at
)
MAX_ASSESSMENT_BYTES: Final = 64 * 1024 * 1024  # of one JSON report
MAX_ASSESSMENTS_SHOWN: Final = 10_000  # of one history, the newest

# attestation
MIN_ATTESTATION_TTL_S: Final = 3
MAX_ATTESTATION_TTL_S: Final = 3600
MAX_ATTESTATION_LAG_S: Final = 24 * 3600  # how long a node may enforce an older policy than its witness
MAX_WITNESSES: Final = 32  # in one roster
MAX_LOG_WITNESSES: Final = 8  # third parties that cosign checkpoints alone
MAX_EVIDENCE_STATEMENT_BYTES: Final = 16 * 1024  # what a node says of itself, signed
MAX_CREDENTIAL_BYTES: Final = 32 * 1024  # that, with the cosignatures
MAX_CREDENTIALS: Final = 4_096  # of other nodes, verified and kept
MAX_WITNESSED_NODES: Final = 10_000  # that one witness remembers
MAX_EARLIER_BOOTS: Final = 16  # of one node, that a witness remembers
MAX_CONSISTENCY_HASHES: Final = 64  # in one consistency proof
MAX_REFERENCE_VALUES: Final = 1_024  # accepted measurements in one bundle
MAX_MEASURED_FILES: Final = 20_000  # of the installed distribution
MAX_TPM_QUOTE_BYTES: Final = 512  # of what a TPM signs (TPMS_ATTEST)
MAX_TPM_SIGNATURE_BYTES: Final = 520  # RSA of 4096 bits, with its scheme and size
MAX_TPM_KEYS: Final = 4  # attestation keys that policy accepts of one node
TPM_TIMEOUT_S: Final = 5.0  # for one command of tpm2-tools
NONCE_LIFETIME_MS: Final = 15_000  # from a challenge to its evidence
WITNESS_TIMEOUT_S: Final = 5.0  # for one answer of a witness
MAX_CREDENTIAL_FETCHES: Final = 16  # trust credentials that a node asks other nodes for at a time
CREDENTIAL_FETCH_TIMEOUT_S: Final = 1.5  # for one answer: a call may be waiting for it
MAX_ADDRESS_CHARS: Final = 255  # of where a node says that it answers

# detection and response
MIN_DETECTION_WINDOW_S: Final = 10
MAX_DETECTION_WINDOW_S: Final = 3600
MAX_DETECTION_WARMUP_S: Final = 30 * 24 * 3600
MIN_RESPONSE_TTL_S: Final = 60  # of what is done about an incident; `cut` lasts so long
MAX_RESPONSES_PER_HOUR: Final = 1_000  # that policy may allow the responder
MAX_RESPONSE_RULES: Final = 100
MAX_PROTECTED: Final = 1_000  # members that are never restricted automatically
MAX_INCIDENT_NODES: Final = 16  # nodes whose records an incident tells apart
MAX_INCIDENT_EVIDENCE: Final = 50  # records that one incident names
MAX_INCIDENT_TEXT_CHARS: Final = 400
MAX_INCIDENTS_PAGE: Final = 500
MAX_OPEN_INCIDENTS: Final = 10_000  # more are counted, not opened
INCIDENT_GROUP_S: Final = 3600  # a finding later than this after the last opens another incident
MAX_PROFILED_CALLERS: Final = 2_000  # whose behaviour is remembered; the longest silent is forgotten
MAX_PROFILED_EDGES: Final = 4_000  # caller, service and method
MAX_PROFILED_NODES_PER_CALLER: Final = 32
MAX_DISTINCT_IN_WINDOW: Final = 256  # methods of one caller that are told apart
MAX_TRACKED_DEPTHS: Final = 50_000  # executions whose place in their chain is remembered
MAX_FINDINGS_PER_STEP: Final = 1_000  # more are counted, not kept
MAX_FINDINGS_PER_NODE: Final = 250  # of them, that rest on the records of one node first
MAX_OPEN_INCIDENTS_PER_NODE: Final = 1_000  # of them, that rest on one node's records alone
DETECTION_BATCH_RECORDS: Final = 2_000  # looked at in one step
MAX_FRESH_RECORDS: Final = (
    20_000  # kept as events between their arrival and detection; else they are read again
)
DETECTION_PERIOD_S: Final = 1.0
DETECTION_SNAPSHOT_S: Final = 30.0  # what was learned is written down so often
DETECTION_LEASE_S: Final = 15  # how long one control plane detects for all that share its database
MAX_DETECTION_STATE_BYTES: Final = 32 * 1024 * 1024  # of what was learned, compressed
MAX_REPLAYED_EXECUTIONS: Final = 200_000  # in one replay against a bundle
MAX_REPLAY_EXAMPLES: Final = 3  # executions that one group of a replay names
MAX_REPLAY_GROUPS: Final = 1_000
