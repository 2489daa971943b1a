"""Where records of one execution are read from: the control plane's index, ledgers on disk, an evidence file.

None of them is believed here. What a reader may conclude from a record is for `egm ledger verify` and
`egm evidence verify` to say.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from egm.v1 import record_pb2
from trust import limits
from trust.edge.ledger import Reader
from trust.errors import InputError, Reason
from trust.evidence import parse_evidence
from trust.record import Record, parse_record


def from_entries(entries: Sequence[record_pb2.ExecutionEntry], execution_id: bytes) -> list[Record]:
    """Return the records of one execution that the control plane passed on.

    Raises:
        EvidenceError: RECORD_MALFORMED.
    """
    parts = [data for entry in entries for data in (entry.intent, entry.outcome) if data]
    return [record for record in map(parse_record, parts) if record.execution_id == execution_id]


def from_ledgers(ledgers: Mapping[str, Path], execution_id: bytes) -> list[Record]:
    """Return the records of one execution in ledger directories; reads each ledger from its begin.

    Args:
        ledgers: what to call it (in errors) -> directory.
        execution_id: 16 bytes.

    Raises:
        InputError: NOT_FOUND, if a directory has no ledger.
        EvidenceError: RECORD_MALFORMED or PROOF_INVALID, for a damaged ledger.
    """
    found: list[Record] = []
    for name, directory in ledgers.items():
        if not (directory / "checkpoint").is_file():
            raise InputError(
                Reason.NOT_FOUND,
                f"{name}: {directory} holds no ledger (no file 'checkpoint'); give NODE_DATA/ledger",
            )
        found += _matching(Reader(directory), execution_id)
    return found


def _matching(reader: Reader, execution_id: bytes) -> Iterator[Record]:
    for frame in reader.scan():
        if execution_id in frame.record:
            record = parse_record(frame.record)
            if record.execution_id == execution_id:
                yield record


def from_evidence(path: Path, execution_id: bytes) -> list[Record]:
    """Return the records of one execution in an evidence file.

    Raises:
        EvidenceError: PROOF_INVALID or RECORD_MALFORMED, if it is none. CapacityError: LIMIT_EXCEEDED.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:  # one byte more than allowed shows that it is too large
        evidence = parse_evidence(file.read(limits.MAX_EVIDENCE_BYTES + 1))
    records = (parse_record(part.record) for part in evidence.records)
    return [record for record in records if record.execution_id == execution_id]
