"""One node's append-only log on disk: durable appends, recovery, proofs, verification."""

from trust.edge.ledger.archive import archive
from trust.edge.ledger.batch import Pending
from trust.edge.ledger.ledger import Ledger
from trust.edge.ledger.reader import Reader
from trust.edge.ledger.verify import Finding, Verification, verify

__all__ = ["Finding", "Ledger", "Pending", "Reader", "Verification", "archive", "verify"]
