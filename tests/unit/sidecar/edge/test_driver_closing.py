"""What a sidecar closes when one of its parts cannot be opened."""

from types import SimpleNamespace
from typing import Any

import pytest

from sidecar.edge import driver
from sidecar.edge.driver import Sidecar
from sidecar.edge.provenance import Provenance
from trust.errors import InputError, Reason


class Part:
    """Something that is open, and notes when it is closed."""

    def __init__(self, name: str, closed: list[str]) -> None:
        self.name, self._closed = name, closed
        self.notary = SimpleNamespace(duties=SimpleNamespace(add=lambda _duty: None))

    async def close(self) -> None:
        """Note."""
        self._closed.append(self.name)


async def test_a_damaged_file_found_at_start_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger is signed to its end and let go; it was left open when what comes after it could not be read."""
    closed: list[str] = []

    async def opened(*_: object, **__: object) -> Part:
        return Part("ledger", closed)

    def damaged(*_: object) -> None:
        raise InputError(Reason.CONFLICT, "damaged")

    monkeypatch.setattr(driver, "Channels", lambda *_, **__: Part("channels", closed))
    monkeypatch.setattr(Provenance, "open", opened)
    monkeypatch.setattr(driver, "opened_budgets", lambda *_: Part("budgets", closed))
    monkeypatch.setattr(driver, "MeterDuty", lambda _budgets: None)
    monkeypatch.setattr(driver, "approval_duty", damaged)
    sidecar: Any = Sidecar.__new__(Sidecar)
    anything = SimpleNamespace(state=None, boot_id="", alarms=None, callee=None, meters=None, data_dir=None)
    for name in ("identity", "config", "pipeline", "view", "callees", "clock", "trust", "_kept"):
        setattr(sidecar, name, anything)
    with pytest.raises(InputError):
        await sidecar._serve([], None)
    assert closed == ["budgets", "ledger", "channels"]
