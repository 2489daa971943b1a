"""The first steps of opening a ledger: one process at a time, and how a new one begins."""

import fcntl
import os
from pathlib import Path

from trust.checkpoint import Checkpoint, sign_checkpoint
from trust.edge.files import write_atomic
from trust.edge.ledger import layout
from trust.errors import Reason, StateError
from trust.merkle import EMPTY_ROOT
from trust.note import Sign, Verifier


def take_lock(directory: Path) -> int:
    """Return a descriptor that holds the directory until it is closed.

    Raises:
        StateError: CONFLICT, if another process holds it.
    """
    descriptor = os.open(directory / layout.LOCK, os.O_RDWR | os.O_CREAT, layout.FILE_MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StateError(
            Reason.CONFLICT, f"{directory} is open in another process; stop that one first"
        ) from None
    return descriptor


def create(directory: Path, log: Verifier, signer: Sign, head_file: Path | None) -> None:
    """Begin a new ledger with a checkpoint of nothing: one without checkpoint has lost it."""
    used = (directory / layout.CHECKPOINT).exists() or bool(layout.list_segments(directory))
    if used or (head_file is not None and head_file.exists()):
        return
    write_atomic(directory / layout.KEY, log.encode().encode() + b"\n", mode=layout.FILE_MODE)
    note = sign_checkpoint(Checkpoint(log.name, 0, EMPTY_ROOT), signer, public_key=log.public_key)
    write_atomic(directory / layout.CHECKPOINT, note, mode=layout.FILE_MODE)
