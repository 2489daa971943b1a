"""Executions by name, and which of them are still open after a look through a ledger."""

import uuid
from collections.abc import Iterator
from dataclasses import replace

from trust.errors import InputError, Reason
from trust.record import Intent, Outcome, Record, Side


class OpenExecutions:
    """Which intents await their outcome, from the records of one ledger in order.

    `oldest_index` is where a reader must start after a crash to find every intent left open: write it down from time
    to time. Memory grows with what is open, not with the ledger, nor with the payloads that are kept in records.
    """

    def __init__(self) -> None:
        self._open: dict[tuple[bytes, Side], tuple[int, Intent]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Intent]:
        """Return the open intents, oldest first."""
        return iter([intent for _, intent in self._open.values()])

    def note(self, index: int, record: Record) -> None:
        """Take the record at `index`. A refusal opens nothing; an outcome without its intent closes nothing."""
        key = (record.execution_id, record.side)
        if isinstance(record, Outcome):
            self._open.pop(key, None)
        elif record.allowed:
            if record.sealed_request:  # it is in the ledger; a stream may stay open for long
                record = replace(record, sealed_request=b"")
            self._open.setdefault(key, (index, record))

    def oldest_index(self, end: int) -> int:
        """Return the index of the oldest open intent; `end` (the ledger's size) when nothing is open."""
        return next((index for index, _ in self._open.values()), end)


def id_text(identifier: bytes) -> str:
    """Return an id as people write it: 01890a5d-ac96-774b-bcce-b302099a8057."""
    return str(uuid.UUID(bytes=identifier))


def parse_id(text: str) -> bytes:
    """Return the 16 bytes of an id in that form.

    Raises:
        InputError: INPUT_INVALID.
    """
    try:
        found = uuid.UUID(text)
    except ValueError:
        found = None
    if found is None or text.lower() != str(found):
        raise InputError(
            Reason.INPUT_INVALID,
            f"{text[:80]!r} is not an execution id such as 01890a5d-ac96-774b-bcce-b302099a8057; "
            "'egm lineage list' shows them",
        )
    return found.bytes
