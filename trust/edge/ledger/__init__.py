"""One node's append-only log on disk: durable appends, recovery, proofs, verification."""

from trust.edge.ledger.archive import archive
from trust.edge.ledger.archived import places_of, read_archived
from trust.edge.ledger.archiver import Archiver
from trust.edge.ledger.batch import Pending
from trust.edge.ledger.ledger import Ledger
from trust.edge.ledger.place import Folder, Place, open_place
from trust.edge.ledger.reader import Reader
from trust.edge.ledger.verify import Finding, Verification, verify

__all__ = [
    "Archiver",
    "Finding",
    "Folder",
    "Ledger",
    "Pending",
    "Place",
    "Reader",
    "Verification",
    "archive",
    "open_place",
    "places_of",
    "read_archived",
    "verify",
]
