"""What the sidecar remembers of its lease across restarts: one small file, replaced atomically."""

import json
from pathlib import Path
from typing import Final

from sidecar.core.bundle_state import Record
from trust.edge.files import write_atomic
from trust.errors import Reason, StateError

_FORMAT: Final = 1
_TIMES: Final = ("floor_ms", "lease_expires_ms", "fresh_until_ms")


def load_record(path: Path) -> Record:
    """Return what an earlier run wrote; an empty record when there was none.

    Raises:
        StateError: POLICY_ROLLBACK, when the file is there and damaged: a rollback cannot be excluded then.
    """
    try:
        data = json.loads(path.read_bytes())
        times = {name: data[name] for name in _TIMES}
        versions = data["versions"]
        if data["format"] != _FORMAT or not all(
            type(n) is int for n in (*times.values(), *versions.values())
        ):
            raise ValueError("not a record")
        return Record(versions=dict(versions), **times)
    except FileNotFoundError:
        return Record()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise StateError(
            Reason.POLICY_ROLLBACK,
            f"{path} is damaged, so a rollback cannot be excluded; restore it, or delete it if you are sure that "
            "nobody feeds this node an old policy",
        ) from None


def save_record(path: Path, record: Record) -> None:
    """Write durably.

    Raises:
        OSError: the old file is still there.
    """
    value: dict[str, object] = {name: getattr(record, name) for name in _TIMES}
    value |= {"format": _FORMAT, "versions": dict(record.versions)}
    write_atomic(path, json.dumps(value, sort_keys=True).encode(), mode=0o600)
