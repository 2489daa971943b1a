"""What attestation keeps on disk, each written before it is used.

DIR/witness/NAME.json          what this witness saw of node NAME last (trust.attestation.memory)
DIR/attestation-counter.json   the counter and the time of this node's last statement
DIR/credential.json            this node's newest trust credential
"""

import threading
from pathlib import Path
from typing import Final

from trust import limits
from trust.attestation.memory import Memory, read_memory, write_memory
from trust.compact import number_claim, parse_object, write_object
from trust.edge.files import write_atomic
from trust.errors import CapacityError, InputError, MeshError, Reason, StateError

WITNESS_DIRECTORY: Final = "witness"
COUNTER_FILE: Final = "attestation-counter.json"
CREDENTIAL_FILE: Final = "credential.json"


class WitnessStore:
    """A folder with one file per node. Reads and writes block for milliseconds: call them in a thread, or in several.

    A node that cancels its question leaves a thread behind that still writes. Were the next one to compare meanwhile,
    both would replace the same memory, and the witness would remember another history than the one it signed.
    """

    def __init__(self, directory: Path) -> None:
        """Use `directory`; it is made when it is first needed."""
        self._directory = directory
        self._swapping = threading.Lock()

    def read(self, node: str) -> Memory:
        """Return what was seen of `node` (a checked name); an empty memory when it was never seen.

        Raises:
            EvidenceError: WITNESS_UNAVAILABLE, if it is damaged; StateError: if it cannot be read.
        """
        try:
            return read_memory(self._path(node).read_bytes())
        except FileNotFoundError:
            return Memory()
        except OSError as error:
            raise _unavailable(error) from None

    def swap(self, node: str, before: Memory, after: Memory) -> None:
        """Replace `before` by `after`, durably; nothing happens when something else is there by now.

        Raises:
            StateError: CONFLICT, if another memory is there; WITNESS_UNAVAILABLE, if the disk fails.
            CapacityError: LIMIT_EXCEEDED, for one node more than MAX_WITNESSED_NODES.
        """
        with self._swapping:
            self._swap(node, before, after)

    def _swap(self, node: str, before: Memory, after: Memory) -> None:
        path = self._path(node)
        if self.read(node) != before:
            raise StateError(
                Reason.CONFLICT, f"another statement of {node} was witnessed meanwhile; ask again"
            )
        try:
            if before.revision == 0:
                count = sum(1 for _ in self._directory.glob("*.json"))
                if count >= limits.MAX_WITNESSED_NODES:
                    raise CapacityError(
                        Reason.LIMIT_EXCEEDED, f"this witness remembers {count} nodes and takes no more"
                    )
            write_atomic(path, write_memory(after), mode=0o600)
        except OSError as error:
            raise _unavailable(error) from None

    def _path(self, node: str) -> Path:
        return self._directory / f"{node}.json"


class Counter:
    """Counts this node's statements across restarts, and keeps their times from going back."""

    def __init__(self, path: Path) -> None:
        """Read the last one.

        Raises:
            InputError: CONFLICT, if the file is damaged: a counter that starts again is what witnesses refuse.
        """
        self._path = path
        self._counter, self._issued_s = 0, 0
        try:
            value = parse_object(path.read_bytes())
            self._counter = number_claim(value["counter"], "counter")
            self._issued_s = number_claim(value["issued_s"], "issued_s")
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError):
            raise InputError(
                Reason.CONFLICT,
                f"{path} is damaged: this node cannot tell which statements it has signed; restore the file, or enrol "
                "the node under a new name",
            ) from None

    def next(self, now_s: int) -> tuple[int, int]:
        """Return counter and time (Unix seconds) of the next statement, durable before it is returned.

        Raises:
            StateError: WITNESS_UNAVAILABLE, if the disk fails: nothing may be signed.
        """
        counter, issued_s = self._counter + 1, max(self._issued_s, now_s)
        try:
            write_atomic(self._path, write_object({"counter": counter, "issued_s": issued_s}), mode=0o600)
        except OSError as error:
            raise _unavailable(error) from None
        self._counter, self._issued_s = counter, issued_s
        return counter, issued_s


def _unavailable(error: OSError) -> MeshError:
    return StateError(Reason.WITNESS_UNAVAILABLE, f"the disk of attestation fails: {error.strerror or error}")


__all__ = [
    "COUNTER_FILE",
    "CREDENTIAL_FILE",
    "WITNESS_DIRECTORY",
    "Counter",
    "WitnessStore",
]
