"""Execution analytics: the questions that operators ask of the sums, and how long these are kept."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

import grpc.aio

from control_plane.core.analytics import By, Filter, Key, Totals, summary, windows
from control_plane.edge.store import analytics
from control_plane.edge.store.database import Database
from egm.v1 import analytics_pb2, analytics_pb2_grpc
from trust import limits
from trust.errors import InputError, Reason, StateError
from trust.ports import Clock

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
_MAX_INT64: Final = 2**63 - 1
_QUANTILES: Final = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99}


class ExecutionSums:
    """Reads the sums of one store, and forgets old ones; `store.intake` adds to them as records arrive."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock

    async def over(self, since_ms: int, until_ms: int) -> tuple[int, dict[Key, Totals]]:
        """Return the true start (Unix ms), and the sums of every key from there to `until_ms`.

        Raises:
            InputError: INPUT_INVALID, when there is no time between the two.
        """
        now_s = self._clock.now_ms() // 1000
        start_s, parts = windows(since_ms // 1000, -(-until_ms // 1000), now_s=now_s)
        async with self._database.read() as connection:
            return start_s * 1000, await analytics.totals(connection, parts)

    async def run(self) -> None:
        """Forget what is too old, again and again, until cancelled."""
        while True:
            try:
                async with self._database.write() as connection:
                    gone = await analytics.prune(connection, now_ms=self._clock.now_ms())
                if gone:
                    logger.info("%d sums are older than they are kept and were forgotten", gone)
            except StateError as error:
                logger.warning("old sums could not be forgotten, will try again: %s", error)
            await asyncio.sleep(limits.PRUNE_PERIOD_S)


class AnalyticsServicer(analytics_pb2_grpc.AnalyticsServicer):
    """egm.v1.Analytics."""

    def __init__(self, sums: ExecutionSums, clock: Clock) -> None:
        self._sums, self._clock = sums, clock

    async def Query(
        self, request: analytics_pb2.AnalyticsRequest, context: Context
    ) -> analytics_pb2.AnalyticsResponse:
        """Sum up a time, by group."""
        by, wanted, limit = _checked(request)
        until_ms = request.until_ms or self._clock.now_ms() + 1
        start_ms, found = await self._sums.over(request.since_ms, until_ms)
        groups = await asyncio.to_thread(summary, found, by, wanted)
        everything = Totals()
        for totals in groups.values():
            everything.merge(totals)
        ordered = sorted(groups.items(), key=lambda item: (-item[1].calls, item[0]))
        return analytics_pb2.AnalyticsResponse(
            since_ms=start_ms,
            until_ms=until_ms,
            groups=[_group(by, names, totals) for names, totals in ordered[:limit]],
            omitted=max(0, len(ordered) - limit),
            all=to_wire(everything),
        )


def _checked(request: analytics_pb2.AnalyticsRequest) -> tuple[By, Filter, int]:
    try:
        by = By(request.by or By.EDGE)
    except ValueError:
        raise InputError(
            Reason.INPUT_INVALID, f"cannot group by {request.by[:40]!r}; there are: {', '.join(By)}"
        ) from None
    if request.since_ms <= 0 or request.until_ms < 0:
        raise InputError(Reason.INPUT_INVALID, "since is missing, or a time is before 1970")
    limit = request.limit or limits.MAX_ANALYTICS_ROWS
    if not 1 <= limit <= limits.MAX_ANALYTICS_ROWS:
        raise InputError(Reason.INPUT_INVALID, f"limit is 1 to {limits.MAX_ANALYTICS_ROWS}, not {limit}")
    return by, Filter(request.caller, request.service, request.method), limit


def _group(by: By, names: tuple[str, str, str], totals: Totals) -> analytics_pb2.AnalyticsGroup:
    if by is By.NODE:
        return analytics_pb2.AnalyticsGroup(node=names[0], side=names[1], sums=to_wire(totals))
    return analytics_pb2.AnalyticsGroup(
        caller=names[0], service=names[1], method=names[2], sums=to_wire(totals)
    )


def to_wire(totals: Totals) -> analytics_pb2.AnalyticsSums:
    """Return sums as they are sent."""
    measured = totals.latency.total()
    return analytics_pb2.AnalyticsSums(
        calls=totals.calls,
        refused=_counts(totals.refused),
        would_deny=_counts(totals.would_deny),
        ended=_counts(totals.ended),
        request_bytes=min(totals.request_bytes, _MAX_INT64),  # nodes say how much it was
        response_bytes=min(totals.response_bytes, _MAX_INT64),
        mean_ms=totals.duration_us / measured / 1000 if measured else 0.0,
        **{name: totals.quantile_ms(share) for name, share in _QUANTILES.items()},
    )


def _counts(counted: Mapping[str, int]) -> dict[str, int]:
    return {name: count for name, count in counted.items() if count > 0}
