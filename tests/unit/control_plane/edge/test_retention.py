"""Shortening the index beside everything else that a control plane does."""

import asyncio
from typing import Any, cast

import pytest

from control_plane.edge.retention import Retention
from trust import limits
from trust.errors import EvidenceError, MeshError, Reason, StateError


@pytest.mark.parametrize(
    "error",
    [
        StateError(Reason.SOURCE_UNAVAILABLE, "the store is away"),
        EvidenceError(Reason.RECORD_MALFORMED, "a record is damaged in the store"),
    ],
    ids=["store-away", "record-damaged"],
)
async def test_what_cannot_be_shortened_now_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, error: MeshError
) -> None:
    """A task that ends takes the control plane with it."""
    monkeypatch.setattr(limits, "PRUNE_PERIOD_S", 0)
    again = asyncio.Event()
    retention = Retention(cast(Any, None), cast(Any, None), days=1)
    tries = 0

    async def once() -> int:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise error
        again.set()
        return 0

    monkeypatch.setattr(retention, "once", once)
    running = asyncio.create_task(retention.run())
    done, _ = await asyncio.wait(
        {running, asyncio.create_task(again.wait())}, return_when=asyncio.FIRST_COMPLETED
    )
    assert running not in done
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
