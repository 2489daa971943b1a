"""Detects in the execution stream, behind a cursor: reads what nodes have shipped, finds, writes down, then responds.

One control plane at a time detects for all that share a database. What was learned is written down together with the
place up to which it was learned from, so that a restart goes on there; findings have ids of their own, so that what is
looked at twice is found once. Nothing is done about an incident before it is written down that it will be.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.core.detection import Detector
from control_plane.core.findings import Event, Finding
from control_plane.core.fresh import FreshEvents
from control_plane.core.incidents import Change, Incident
from control_plane.core.responses import Fate, Response, directive_of, plan, withdrawn
from control_plane.core.threats import proven, tampered
from control_plane.edge.fleet import Reports
from control_plane.edge.responder import Responder
from control_plane.edge.store import audit, incidents
from control_plane.edge.store import detection as stored
from control_plane.edge.store.database import Database
from egm.v1 import operator_pb2
from trust import limits
from trust.denials import Denials
from trust.detection import Action, DetectionSettings
from trust.errors import InputError, MeshError, StateError
from trust.mesh import MeshSettings
from trust.ports import Clock

logger = logging.getLogger(__name__)

_YIELD: Final = 0.5  # share of the time that looking took, which is left to others before it goes on
_CLAIM_EVERY_MS: Final = limits.DETECTION_LEASE_S * 1000 // 3
_DAY_MS: Final = 24 * 3_600_000
_ALARMS_EVERY_MS: Final = 30_000
WHO: Final = "detection"  # in the audit trail

Opened = Callable[[Incident], None]


class Detection:
    """The detectors of one control plane, and what it does about what they find. One event loop."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        owner: str,
        *,
        trust_domain: str,
        mesh: Callable[[], MeshSettings | None],
        denials: Denials,
        reports: Reports,
        responder: Responder | None = None,
        opened: Opened = lambda _incident: None,
        kept_days: int | None = None,
    ) -> None:
        """Take the parts.

        Args:
            database: of the index, which it also writes to.
            clock: wall and monotonic time.
            owner: unique per run of a control plane.
            trust_domain: of the mesh.
            mesh: settings of the published policy.
            denials: what is denied now.
            reports: of nodes; their alarms are looked at.
            responder: signs directives; None: nothing is done that takes one.
            opened: told of every incident that is opened; must return at once.
            kept_days: resolved incidents are forgotten after so many days; None keeps all.
        """
        self._database, self._clock, self._owner = database, clock, owner
        self._trust_domain, self._denials, self._reports = trust_domain, denials, reports
        self._responder, self._opened, self._kept_days = responder, opened, kept_days
        self._mesh = mesh
        self.fresh = FreshEvents()  # whoever takes records puts here what they say
        self._detector: Detector | None = None
        self._positions: dict[int, int] = {}
        self._saved: dict[int, int] = {}
        self._saved_ms = self._claimed_ms = self._alarms_ms = self._forgot_ms = 0
        self._denied: frozenset[str] = frozenset()
        self._looking = asyncio.Lock()
        self._turn = 0  # which node's records come first
        self._to_do = True  # responses of an earlier run may wait
        self._closed = False
        self.problem = ""  # why it does not detect now

    @property
    def settings(self) -> DetectionSettings:
        """Those of the policy in force."""
        mesh = self._mesh()
        return DetectionSettings() if mesh is None or mesh.detection is None else mesh.detection

    @property
    def problems(self) -> list[str]:
        """What keeps it from detecting, or from doing what policy asks."""
        found = [self.problem] if self.problem else []
        settings = self.settings
        if settings.respond and settings.restricting():
            if self._responder is None:
                found.append("policy asks for responses to incidents, but no responder_key is configured")
            elif why := self._responder.problem(self._mesh()):
                found.append(why)
        return found

    async def run(self) -> None:
        """Look again and again, until cancelled. A store that fails is tried again later."""
        while True:
            began = time.monotonic()
            try:
                more = await self.step()
            except StateError as error:
                self.forget()
                self.problem = f"detection waits for the store: {error.detail}"
                logger.warning("%s", self.problem)
                more = False
            except Exception as error:
                # whatever fails here must not end the control plane, which renews the lease of every node
                self.forget()
                self.problem = f"detection fails: {type(error).__name__}: {error}"
                logger.exception("detection fails, and begins again from what was last written down")
                more = False
            spent = time.monotonic() - began
            await asyncio.sleep(spent * _YIELD if more else limits.DETECTION_PERIOD_S)

    def forget(self) -> None:
        """Forget what is only in memory: it is read again, as it was last written down."""
        self._detector = None
        self.fresh.wanted = False

    async def close(self) -> None:
        """Write down what was learned, and let another control plane go on."""
        async with self._looking:
            if self._detector is None:
                return
            with contextlib.suppress(StateError):  # the store is away: another one waits for the lease to end
                await self._write((), save=True)
                async with self._database.write() as connection:
                    await stored.release(connection, self._owner)
            self.forget()
            self._closed = True

    async def step(self) -> bool:
        """Look at some records; return whether more wait.

        Raises:
            StateError: the store failed; call `forget`, then try again.
        """
        async with self._looking:
            return not self._closed and await self._step(self._clock.now_ms())

    async def _step(self, now_ms: int) -> bool:
        if self._detector is None and not await self._begin(now_ms):
            return False
        detector = self._detector
        if detector is None:
            return False
        async with self._database.read() as connection:
            fresh = await stored.fresh(connection, self._positions, turn=self._turn, here=self.fresh)
        self._turn += 1
        self._denied = _denied(self._denials, fresh.events)
        settings = self.settings

        def look() -> list[Finding]:
            detector.govern(settings)
            return detector.see(fresh.events, now_ms=now_ms, behind=fresh.more)

        found = await asyncio.to_thread(look)
        found += detector.note(await self._elsewhere(now_ms))
        self._positions |= fresh.positions
        save = abs(now_ms - self._saved_ms) >= limits.DETECTION_SNAPSHOT_S * 1000
        moved = self._positions != self._saved
        if found or (save and moved) or abs(now_ms - self._claimed_ms) >= _CLAIM_EVERY_MS:
            await self._write(found, save=save and moved)
        if self._to_do:
            await self.respond()
        await self._tidy(now_ms)
        return fresh.more

    async def _begin(self, now_ms: int) -> bool:
        """Become the one that detects, with what was learned so far."""
        async with self._database.write() as connection:
            if not await stored.claim(connection, self._owner, now_ms=now_ms):
                self.problem = ""
                return False
        async with self._database.read() as connection:  # nobody else writes it as long as the right lasts
            try:
                state, positions = await stored.load(connection)
                detector = await asyncio.to_thread(self._new_detector, state)
            except InputError as error:
                logger.error("%s; learning begins anew", error.detail)
                positions = await stored.positions(connection)
                detector = self._new_detector(None)
        self._positions, self._saved = dict(positions), dict(positions)
        self._claimed_ms = self._saved_ms = now_ms
        self._detector, self._to_do, self.problem = detector, True, ""
        self.fresh.wanted = True
        return True

    def _new_detector(self, state: Any) -> Detector:
        return Detector(self.settings, state, denied=self._is_denied, trust_domain=self._trust_domain)

    def _is_denied(self, member: str) -> bool:
        return member in self._denied

    async def _elsewhere(self, now_ms: int) -> list[Finding]:
        """Return findings that no record shows: proofs of misbehaviour, and alarms of nodes."""
        window_s = self.settings.window_s
        found = [
            proven(one.id, one.node, one.why, at_ms=since_ms) for one, since_ms in self._denials.proven_since
        ]
        if abs(now_ms - self._alarms_ms) < _ALARMS_EVERY_MS:
            return found
        self._alarms_ms = now_ms
        for record in await self._reports.records():
            if now_ms - record.last_seen_ms > limits.MAX_DETECTION_WINDOW_S * 1000:
                continue
            for alarm in operator_pb2.NodeStatus.FromString(record.status).alarms:
                one = tampered(record.node, alarm, window_s=window_s, at_ms=now_ms)
                found += [] if one is None else [one]
        return found

    async def _write(self, found: Iterable[Finding], *, save: bool) -> None:
        """Write findings down with what is to be done about them, under the right to detect."""
        detector, now_ms = self._detector, self._clock.now_ms()
        if detector is None:
            return
        packed = await asyncio.to_thread(lambda: stored.pack(detector.state())) if save else b""
        told: list[Incident] = []
        async with self._database.write() as connection:
            if not await stored.claim(connection, self._owner, now_ms=now_ms):
                self.forget()  # another one took over meanwhile, and finds the same
                return
            for finding in found:
                incident = await self._fold(connection, finding, now_ms)
                told += [] if incident is None else [incident]
            if save:
                await stored.save(connection, packed, self._positions, self._saved)
        self._claimed_ms = now_ms
        if save:
            self._saved, self._saved_ms = dict(self._positions), now_ms
        for incident in told:
            logger.warning(
                "incident %s: %s %s: %s", incident.id, incident.rule, incident.subject, incident.text
            )
            self._opened(incident)

    async def _fold(self, connection: AsyncConnection, finding: Finding, now_ms: int) -> Incident | None:
        """Write one finding down, and what is to be done; return the incident if somebody should hear of it."""
        taken = await incidents.take(connection, finding)
        if taken is None:
            return None
        incident, change = taken
        if change is not Change.GREW:
            await audit.record(
                connection, at_ms=now_ms, who=WHO, action="incident", detail=f"{change} {_named(incident)}"
            )
        responses = plan(
            self.settings,
            incident,
            finding,
            held=await incidents.responses_of(connection, incident.id),
            used=await incidents.issued_in_last_hour(connection, now_ms),
            used_alone=await incidents.issued_alone_in_last_hour(connection, incident.only_node, now_ms),
            trust_domain=self._trust_domain,
            now_ms=now_ms,
        )
        await incidents.add_responses(connection, responses)
        self._to_do = self._to_do or any(one.fate is Fate.PLANNED for one in responses)
        past = now_ms - finding.at_ms > limits.INCIDENT_GROUP_S * 1000
        return None if change is Change.GREW or past else incident

    async def respond(self) -> int:
        """Do what is written down as planned; return how much was done.

        Raises:
            StateError: the store failed; what is still planned is done later.
        """
        async with self._database.read() as connection:
            waiting = await incidents.planned(connection)
        for one in waiting:
            settled = await self._do(one.response, one.incident)
            async with self._database.write() as connection:
                mine = await incidents.settle(
                    connection, one.row, settled.fate, why=settled.why, directive=settled.directive
                )
                if mine:
                    detail = f"{settled.action} {settled.value} {settled.fate}: {_named(one.incident)}"
                    await audit.record(
                        connection,
                        at_ms=self._clock.now_ms(),
                        who=WHO,
                        action="respond",
                        detail=detail.strip(),
                    )
        self._to_do = len(waiting) > 0
        return len(waiting)

    async def _do(self, response: Response, incident: Incident) -> Response:
        if response.action is Action.ALERT:
            self._opened(incident)
            return replace(response, fate=Fate.DONE)
        changed = withdrawn(self.settings, response, incident, trust_domain=self._trust_domain)
        if changed is not None:
            return replace(response, fate=changed[0], why=changed[1])
        if self._responder is None:
            why = "no responder_key is configured at this control plane"
            return replace(response, fate=Fate.FAILED, why=why)
        try:
            directive = directive_of(response, incident, self._trust_domain)
            issued = await self._responder.issue(directive, self._mesh())
        except MeshError as error:
            logger.error("incident %s: %s failed: %s", incident.id, response.action, error)
            return replace(response, fate=Fate.FAILED, why=error.detail)
        return replace(response, fate=Fate.DONE, directive=issued)

    async def _tidy(self, now_ms: int) -> None:
        """Forget resolved incidents that are as old as what the index forgets."""
        if self._kept_days is None or abs(now_ms - self._forgot_ms) < limits.PRUNE_PERIOD_S * 1000:
            return
        async with self._database.write() as connection:
            gone = await incidents.forget(connection, before_ms=now_ms - self._kept_days * _DAY_MS)
        if not gone:
            self._forgot_ms = now_ms


def _denied(denials: Denials, events: Iterable[Event]) -> frozenset[str]:
    """Return which callers of these events are denied now."""
    if not denials.any:
        return frozenset()
    callers = {event.caller for event in events}
    return frozenset(
        one
        for one in callers
        if denials.check(workloads=(one,), nodes=(one,), keys=(), method="") is not None
    )


def _named(incident: Incident) -> str:
    return f"{incident.id} {incident.rule} {incident.subject}"
