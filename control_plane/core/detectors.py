"""Which executions are unlike what was usual for their caller: (profiles, event, now) -> findings. Learns as it looks.

An execution that both sidecars recorded counts once: allowed ones as the callee's sidecar recorded them, or the
caller's where the callee's records none; refused ones where they were refused. Refused calls teach nothing about what
is usual.
"""

import math
from collections.abc import Iterator
from typing import Final

from control_plane.core.findings import Decided, Ended, Event, Evidence, Finding, window_of
from control_plane.core.profiles import Baseline, CallerProfile, EdgeProfile, Profiles, hour_of
from control_plane.core.reasons import FOR_THE_CALLER
from trust import limits
from trust.detection import DetectionSettings
from trust.record import Side

MIN_RATE_CALLS: Final = 30  # in a window, before a rate can be too high
MIN_LATENCY_CALLS: Final = 10  # before their mean says anything
MIN_REFUSALS: Final = 10
MIN_FANOUT: Final = 8
MIN_DAYS: Final = 7  # of calls, before an hour can be unusual
MIN_CALLS: Final = 50  # of a caller, before one kind of call can be new
MIN_DEPTH: Final = 5
LOOP_DEPTH: Final = 32  # nobody chains calls so deep on purpose
MIN_SIZE_BYTES: Final = 4_096  # a smaller message is never too large
_RATIO: Final = 2.0  # below twice the usual nothing is a shift, however steady it was
_SIZE_RATIO: Final = 4.0
_FEW_RATIO: Final = 4.0
# How small a deviation is taken for real: of square roots of counts (Poisson counts have 0.5), and of logarithms.
_COUNT_FLOOR: Final = 0.6
_LATENCY_FLOOR: Final = 0.15
_SIZE_FLOOR: Final = 0.25
_DEPTH_FLOOR: Final = 0.5
_SIDECAR_SILENT_MS: Final = 24 * 3_600_000  # after which the callee's sidecar counts as gone


class Behaviour:
    """The behavioural rules. Holds open windows; everything learned is in `profiles`."""

    def __init__(self, settings: DetectionSettings, profiles: Profiles) -> None:
        """Judge by `settings`, learn into `profiles`."""
        self._settings, self._profiles = settings, profiles

    def see(self, event: Event, *, now_ms: int) -> Iterator[Finding]:
        """Yield what is unusual about an event, and learn from it.

        Args:
            event: in about the order of time; what is older than the window before the open one teaches no rates.
            now_ms: Unix ms; a record that claims to be from the future counts as of now.
        """
        at_ms = min(event.at_ms, now_ms)
        if not event.caller:
            return
        if isinstance(event, Decided):
            yield from self._decided(event, at_ms)
        elif self._counts(event, at_ms):
            yield from self._ended(event, at_ms)

    def tick(self, *, now_ms: int) -> Iterator[Finding]:
        """Close the windows that have been over for a window, and yield what that shows. Call it once per window."""
        current = window_of(now_ms, self._settings.window_s)
        for (caller, service, method), edge in self._profiles.edges.items():
            if edge.window_ms and edge.window_ms < current - self._span_ms:
                yield from self._close(edge, caller, f"{method} on {service}", ())
        for profile in self._profiles.callers.values():
            if profile.window_ms and profile.window_ms < current - self._span_ms:
                _close_caller(profile)

    @property
    def _span_ms(self) -> int:
        return self._settings.window_s * 1000

    def _counts(self, event: Event, at_ms: int) -> bool:
        """Whether this record is the one of two by which an allowed execution is counted."""
        if event.side is Side.INBOUND:
            self._profiles.note_inbound(event.service, at_ms, event.evidence.node)
            return True
        return at_ms - self._profiles.inbound.get(event.service, -_SIDECAR_SILENT_MS) >= _SIDECAR_SILENT_MS

    def _decided(self, event: Decided, at_ms: int) -> Iterator[Finding]:
        window = window_of(at_ms, self._settings.window_s)
        caller = self._profiles.caller(event.caller, at_ms, event.evidence.node)
        if window > caller.window_ms:
            _close_caller(caller)
            caller.window_ms = window
        if event.refusal:
            if event.refusal in FOR_THE_CALLER:
                yield from self._refused(caller, event, window, at_ms)
            if not event.allowed:
                return
        if event.side is Side.OUTBOUND:
            yield from self._depth(caller, event, window, at_ms)
        if not self._counts(event, at_ms):
            return
        known = (event.caller, event.service, event.method) in self._profiles.edges
        grown = self._grown(caller, at_ms)
        if not known and grown and caller.calls >= MIN_CALLS:
            text = f"called {event.method} on {event.service} for the first time, after {caller.calls} other calls"
            yield self._finding("EGM-B003", event, window, at_ms, text)
        yield from self._hour(caller, event, window, at_ms)
        edge = self._profiles.edge((event.caller, event.service, event.method), at_ms, event.evidence.node)
        yield from self._rate(edge, event, window, at_ms, grown=grown)
        yield from self._fanout(caller, event, window, at_ms, grown=grown)
        caller.calls += 1
        caller.first_ms = min(caller.first_ms, at_ms)
        caller.last_ms, edge.last_ms = max(caller.last_ms, at_ms), max(edge.last_ms, at_ms)

    def _ended(self, event: Ended, at_ms: int) -> Iterator[Finding]:
        caller = self._profiles.callers.get(event.caller)
        edge = self._profiles.edges.get((event.caller, event.service, event.method))
        if caller is None or edge is None:
            return
        window, grown = window_of(at_ms, self._settings.window_s), self._grown(caller, at_ms)
        for rule, what, baseline, size in (
            ("EGM-B005", "request", edge.request, event.request_bytes),
            ("EGM-B006", "response", edge.response, event.response_bytes),
        ):
            value = math.log1p(size)
            large = baseline.score(value, floor=_SIZE_FLOOR) >= self._settings.threshold
            usual = math.expm1(baseline.mean)
            if grown and baseline.ready and large and size >= max(MIN_SIZE_BYTES, _SIZE_RATIO * usual):
                text = f"a {what} of {size} bytes to {event.method} on {event.service}; usual are {usual:.0f}"
                yield self._finding(rule, event, window, at_ms, text)
            baseline.learn(value, floor=_SIZE_FLOOR)
        if event.status == "OK" and event.duration_us > 0 and edge.window_ms - self._span_ms <= window:
            edge.latency_sum += math.log(event.duration_us)
            edge.latency_count += 1

    def _rate(
        self, edge: EdgeProfile, event: Decided, window: int, at_ms: int, *, grown: bool
    ) -> Iterator[Finding]:
        if window > edge.window_ms:
            yield from self._close(
                edge, event.caller, f"{event.method} on {event.service}", (event.evidence,)
            )
            edge.window_ms = window
        elif window < edge.window_ms - self._span_ms:
            return  # shipped late: counted into the open window it would look like a burst
        edge.calls += 1
        baseline = edge.rate_baseline(at_ms)
        if not grown or not baseline.ready or edge.calls < MIN_RATE_CALLS:
            return
        usual = baseline.mean**2
        if edge.calls < _RATIO * usual:
            return
        if baseline.score(math.sqrt(edge.calls), floor=_COUNT_FLOOR) >= self._settings.threshold:
            text = (
                f"{edge.calls} calls of {event.method} on {event.service} in {self._settings.window_s} s; "
                f"usual are {usual:.0f}"
            )
            yield self._finding("EGM-B001", event, edge.window_ms, at_ms, text)

    def _close(
        self, edge: EdgeProfile, caller: str, what: str, evidence: tuple[Evidence, ...]
    ) -> Iterator[Finding]:
        """Learn from a window that is over; whether the calls took longer in it, or nearly ceased, shows only now."""
        if not edge.window_ms:
            return
        profile = self._profiles.callers.get(caller)
        window, over_ms = edge.window_ms, edge.window_ms + self._span_ms
        grown = profile is not None and self._grown(profile, window)
        if edge.latency_count >= MIN_LATENCY_CALLS:
            value = edge.latency_sum / edge.latency_count
            high = edge.latency.score(value, floor=_LATENCY_FLOOR) >= self._settings.threshold
            usual, now = math.exp(edge.latency.mean) / 1000, math.exp(value) / 1000
            if grown and edge.latency.ready and high and now >= _RATIO * usual:
                text = f"{what} took {now:.1f} ms (geometric mean); usual are {usual:.1f} ms"
                yield Finding("EGM-B002", caller, window, over_ms, text, evidence)
            edge.latency.learn(value, floor=_LATENCY_FLOOR)
            edge.latency_count, edge.latency_sum = (
                0,
                0.0,
            )  # fewer calls than that wait for those of later windows
        if edge.calls:
            root = math.sqrt(edge.calls)
            baseline = edge.rate_baseline(window)
            usual = baseline.mean**2
            few = usual >= MIN_RATE_CALLS and usual >= _FEW_RATIO * edge.calls
            if grown and baseline.ready and few and _fewer(baseline, edge.calls) >= self._settings.threshold:
                text = (
                    f"only {edge.calls} calls of {what} in {self._settings.window_s} s; usual are {usual:.0f}"
                )
                yield Finding("EGM-B001", caller, window, over_ms, text, evidence)
            edge.rate.learn(root, floor=_COUNT_FLOOR)
            hour = hour_of(window)
            own = edge.hourly.get(hour)
            if own is None:
                own = edge.hourly[hour] = type(edge.rate)()
            own.learn(root, floor=_COUNT_FLOOR)
        edge.calls, edge.window_ms = 0, 0

    def _refused(self, caller: CallerProfile, event: Decided, window: int, at_ms: int) -> Iterator[Finding]:
        if window < caller.window_ms:
            return
        caller.refused += 1
        if caller.refused < MIN_REFUSALS or caller.refused < _RATIO * caller.refusals.mean**2:
            return
        # without any refusal before, MIN_REFUSALS in one window are a burst
        off = caller.refusals.score(math.sqrt(caller.refused), floor=_COUNT_FLOOR)
        if not caller.refusals.ready or off >= self._settings.threshold:
            text = (
                f"{caller.refused} refusals in {self._settings.window_s} s, the last one {event.refusal} for "
                f"{event.method} on {event.service}"
            )
            yield self._finding("EGM-B004", event, window, at_ms, text)

    def _fanout(
        self, caller: CallerProfile, event: Decided, window: int, at_ms: int, *, grown: bool
    ) -> Iterator[Finding]:
        if window < caller.window_ms or len(caller.kinds) >= limits.MAX_DISTINCT_IN_WINDOW:
            return
        before = len(caller.kinds)
        caller.kinds.add((event.service, event.method))
        count = len(caller.kinds)
        if count == before or not grown or not caller.fanout.ready:
            return
        usual = caller.fanout.mean**2
        off = caller.fanout.score(math.sqrt(count), floor=_COUNT_FLOOR / 2)
        if count >= max(MIN_FANOUT, _RATIO * usual) and off >= self._settings.threshold:
            text = f"{count} kinds of calls in {self._settings.window_s} s; usual are {usual:.1f}"
            yield self._finding("EGM-B007", event, window, at_ms, text)

    def _hour(self, caller: CallerProfile, event: Decided, window: int, at_ms: int) -> Iterator[Finding]:
        hour = hour_of(at_ms)
        near = [caller.hours[(hour + step) % len(caller.hours)] for step in (-1, 0, 1)]
        fresh = at_ms // 3_600_000 > caller.last_hour
        if fresh and caller.days >= MIN_DAYS and not any(near):
            active = sum(bool(days) for days in caller.hours)
            text = f"called at {hour:02d} h UTC; on {caller.days} days before it called in {active} other hours only"
            yield self._finding("EGM-B008", event, window, at_ms, text)
        caller.note_hour(at_ms)

    def _depth(self, caller: CallerProfile, event: Decided, window: int, at_ms: int) -> Iterator[Finding]:
        """Only the caller's sidecar knows under which execution a call is made, and only by verified permits."""
        depth = self._profiles.depths.get(event.parent_id, 0) + 1 if event.parent_id else 1
        self._profiles.note_depth(event.evidence.execution_id, depth)
        unlike = (
            self._grown(caller, at_ms)
            and caller.depth.ready
            and depth >= MIN_DEPTH
            and caller.depth.score(depth, floor=_DEPTH_FLOOR) >= self._settings.threshold
        )
        if unlike or depth == LOOP_DEPTH:
            text = f"call {depth} of a chain, {event.method} on {event.service}; usual is {caller.depth.mean:.1f}"
            yield self._finding("EGM-B009", event, window, at_ms, text)
        caller.depth.learn(depth, floor=_DEPTH_FLOOR)

    def _grown(self, caller: CallerProfile, at_ms: int) -> bool:
        """Whether a caller is known long enough to say what is unlike it."""
        return at_ms - caller.first_ms >= self._settings.warmup_s * 1000

    @staticmethod
    def _finding(rule: str, event: Event, window: int, at_ms: int, text: str) -> Finding:
        return Finding(rule, event.caller, window, at_ms, text, (event.evidence,))


def _fewer(rate: Baseline, calls: int) -> float:
    """Return by how many standard deviations `calls` are fewer than usual, as logarithms.

    Nothing is less than no calls: as square roots, counts that vary by a third of their mean are never six deviations
    too low. One call is added, because half a call is as likely as none.
    """
    spread = (
        2 * max(rate.deviation, _COUNT_FLOOR) / rate.mean
    )  # of the logarithm of a count, from that of its root
    return math.log(rate.mean**2 / (calls + 1)) / spread


def _close_caller(caller: CallerProfile) -> None:
    if caller.refused:
        caller.refusals.learn(math.sqrt(caller.refused), floor=_COUNT_FLOOR)
    if caller.kinds:
        caller.fanout.learn(math.sqrt(len(caller.kinds)), floor=_COUNT_FLOOR / 2)
    caller.refused, caller.window_ms = 0, 0
    caller.kinds.clear()
