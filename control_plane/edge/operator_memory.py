"""What an operator's terminal remembers between commands, so that no control plane can show it less, or something else.

The highest versions that it was shown (a floor), and the digest of each proposal that a person reviewed here.
"""

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, TypeVar

from control_plane.core.proposals import ID_DIGITS
from trust.edge.files import write_atomic
from trust.errors import EvidenceError, Reason, StateError
from trust.metadata import ONLINE_ROLES

FLOOR_FILE: Final = "operator-floor.json"
REVIEWED_FILE: Final = "reviewed.json"  # proposal id to the digest that `egm policy review` showed here
_LOCK_FILE: Final = ".operator.lock"
_MAX_REVIEWED: Final = 200
V = TypeVar("V", int, str)


class OperatorMemory:
    """Two small files beside mesh.json."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def check_floor(self, versions: Mapping[str, int], expected: frozenset[str]) -> None:
        """Refuse a control plane that shows less than it once showed here; then remember what it shows.

        Args:
            versions: what it shows.
            expected: policy roles that it may not hide once it has shown them.
        """
        file = self._directory / FLOOR_FILE
        floor = _read_record(file, int)
        for role, lowest in floor.items():
            shown = versions.get(role, 0 if role in expected else lowest)
            if role not in ONLINE_ROLES and shown < lowest:
                raise StateError(
                    Reason.POLICY_ROLLBACK,
                    f"the control plane shows {f'version {shown}' if shown else 'no version'} of {role}; "
                    f"it showed {lowest} before",
                )
        if floor != floor | dict(versions):
            with self._alone():
                raised = _raised(_read_record(file, int), versions)
                write_atomic(file, json.dumps(raised, sort_keys=True).encode())

    def note_reviewed(self, digest: str) -> None:
        """Note what was shown to the person at this terminal, for `check_reviewed`."""
        file = self._directory / REVIEWED_FILE
        with self._alone():
            record = {**_read_record(file, str), digest[:ID_DIGITS]: digest}
            kept = dict(list(record.items())[-_MAX_REVIEWED:])
            write_atomic(file, json.dumps(kept).encode())

    def check_reviewed(self, now: str, digest: str | None = None) -> None:
        """Refuse to sign anything but what was shown: an id is the start of a digest, and two may begin alike.

        Args:
            now: digest of what the control plane sends now.
            digest: what the person saw elsewhere; None: what `note_reviewed` noted here, if anything.

        Raises:
            EvidenceError: DIGEST_MISMATCH.
        """
        noted = _read_record(self._directory / REVIEWED_FILE, str).get(now[:ID_DIGITS])
        for seen in (digest, noted):
            if seen is not None and seen != now:
                raise EvidenceError(
                    Reason.DIGEST_MISMATCH,
                    f"what was reviewed has the digest {seen[:64]}, what would be signed {now}: "
                    "the control plane sent something else; do not sign it",
                )

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one command at a time read and replace: of two in two terminals neither may undo what the other noted."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with (self._directory / _LOCK_FILE).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _raised(floor: Mapping[str, int], versions: Mapping[str, int]) -> dict[str, int]:
    """Return the floor with what is shown now; another command may have been shown more of a policy meanwhile."""
    return dict(floor) | {
        role: version if role in ONLINE_ROLES else max(version, floor.get(role, 0))
        for role, version in versions.items()
    }


def _read_record(file: Path, kind: type[V]) -> dict[str, V]:
    """Return a file of ours that maps text to values of one kind; empty when there is none.

    Raises:
        StateError: POLICY_ROLLBACK, if it is damaged: it guards against being shown older policy.
    """
    try:
        record = json.loads(file.read_bytes())
        if not isinstance(record, dict) or not all(type(value) is kind for value in record.values()):
            raise ValueError("not such a record")
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        raise StateError(
            Reason.POLICY_ROLLBACK,
            f"{file} is damaged; restore it, or delete it if you trust the control plane",
        ) from None
    return record
