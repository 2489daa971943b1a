"""Where records of one execution are read from: the control plane's index, ledgers on disk, an evidence file.

None of them is believed here. What a reader may conclude from a record is for `egm ledger verify` and
`egm evidence verify` to say.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from control_plane.edge.evidence_find import find_records
from egm.v1 import record_pb2
from trust import limits
from trust.edge.ledger import Place, Reader, places_of
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


def from_ledgers(
    ledgers: Mapping[str, Path], execution_id: bytes, *, archives: Sequence[Place] = ()
) -> list[Record]:
    """Return the records of one execution in ledger directories, and in what was archived out of them.

    Args:
        ledgers: what to call it (in errors) -> directory.
        execution_id: 16 bytes.
        archives: where older parts are, besides what each ledger has written down.

    Raises:
        InputError: NOT_FOUND, if a directory has no ledger, or a part that must be read is nowhere.
        EvidenceError: RECORD_MALFORMED, DIGEST_MISMATCH or PROOF_INVALID, for a damaged ledger.
        StateError: SOURCE_UNAVAILABLE, if an archive is needed and does not answer.
    """
    readers: dict[str, Reader] = {}
    for name, directory in ledgers.items():
        if not (directory / "checkpoint").is_file():
            raise InputError(
                Reason.NOT_FOUND,
                f"{name}: {directory} holds no ledger (no file 'checkpoint'); give NODE_DATA/ledger",
            )
        readers[name] = Reader(directory, archives=[*places_of(directory), *archives])
    found = find_records([execution_id], readers)
    return [record for by_index in found.values() for _, record in by_index.values()]


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
