"""What nodes recorded of executions, as the control plane passes it on: read again, byte for byte, here."""

from egm.v1 import record_pb2
from trust.errors import InputError, Reason
from trust.lineage import Seen
from trust.record import Intent, Outcome, parse_record


def seen_of(entry: record_pb2.ExecutionEntry) -> Seen:
    """Read what a node recorded; the control plane is not trusted to have passed on records of that node.

    Raises:
        EvidenceError: RECORD_MALFORMED.
        InputError: RECORD_MALFORMED, if an intent and an outcome were mixed up.
    """
    intent = parse_record(entry.intent)
    outcome = parse_record(entry.outcome) if entry.outcome else None
    if not isinstance(intent, Intent) or not (outcome is None or isinstance(outcome, Outcome)):
        raise InputError(Reason.RECORD_MALFORMED, "the control plane mixed up intents and outcomes")
    return Seen(intent, outcome, entry.ledger, entry.intent_index, entry.outcome_index if outcome else None)
