"""The control plane's part of level 2, put together: detection, responses, and what operators ask of incidents."""

import re
from collections.abc import Callable, Coroutine
from typing import Any, Final

import grpc.aio
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.config import ControlPlaneConfig
from control_plane.core.incidents import ID_DIGITS, Incident, State, resolved
from control_plane.core.responses import Response
from control_plane.edge.callers import current_caller
from control_plane.edge.detection import Detection
from control_plane.edge.fleet import Reports
from control_plane.edge.responder import Responder
from control_plane.edge.store import audit, incidents
from control_plane.edge.store.database import Database
from egm.v1 import incidents_pb2, incidents_pb2_grpc
from trust import limits
from trust.alerting import EventKind
from trust.denials import Denials
from trust.detection import RULES, Severity
from trust.edge.denial_keeper import DenialKeeper
from trust.errors import InputError, Reason
from trust.mesh import MeshSettings
from trust.ports import Clock

Context = grpc.aio.ServicerContext[Any, Any]
DEFAULT_PAGE: Final = 100
_ID: Final = re.compile(rf"[0-9a-f]{{1,{ID_DIGITS}}}\Z")
_CURSOR: Final = re.compile(rf"([0-9]{{1,18}})-([0-9a-f]{{{ID_DIGITS}}})\Z")


class DetectionDesk:
    """Detection of one control plane, with what answers for it."""

    def __init__(
        self,
        config: ControlPlaneConfig,
        database: Database,
        clock: Clock,
        owner: str,
        *,
        keeper: DenialKeeper,
        reports: Reports,
        settings: Callable[[], MeshSettings | None],
        event: Callable[[EventKind, str, str], None],
    ) -> None:
        """Take the parts.

        Args:
            config: of this control plane.
            database: of the index.
            clock: wall and monotonic time.
            owner: unique per run of a control plane.
            keeper: what is denied; the responder's directives are handed in here.
            reports: of nodes.
            settings: the signed ones in force.
            event: told of every incident that is opened (kind, subject, detail); must return at once.

        Raises:
            InputError: KEY_UNREADABLE or KEY_UNSAFE, for a responder_key that cannot be used.
        """
        self.detection = Detection(
            database,
            clock,
            owner,
            trust_domain=config.trust_domain,
            mesh=settings,
            denials=keeper.denials,
            reports=reports,
            responder=Responder.open(config, keeper),
            opened=lambda incident: event(EventKind.INCIDENT_OPENED, *_told(incident)),
            kept_days=config.index_retention_days,
        )
        self._servicer = IncidentsServicer(database, clock, self.detection, keeper.denials)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve operators; who may ask was checked before (control_plane.core.roles)."""
        incidents_pb2_grpc.add_IncidentsServicer_to_server(self._servicer, server)

    def background(self) -> list[Coroutine[Any, Any, None]]:
        """Return what runs beside the server."""
        return [self.detection.run()]

    async def close(self) -> None:
        """Write down what was learned; another control plane may go on at once."""
        await self.detection.close()


class IncidentsServicer(incidents_pb2_grpc.IncidentsServicer):
    """egm.v1.Incidents."""

    def __init__(self, database: Database, clock: Clock, detection: Detection, denials: Denials) -> None:
        self._database, self._clock, self._detection, self._denials = database, clock, detection, denials

    async def ListIncidents(
        self, request: incidents_pb2.ListIncidentsRequest, context: Context
    ) -> incidents_pb2.ListIncidentsResponse:
        """Return one page; INPUT_INVALID."""
        wanted = _wanted(request)
        async with self._database.read() as connection:
            found = await incidents.page(connection, wanted)
        full = len(found) == wanted.limit
        return incidents_pb2.ListIncidentsResponse(
            incidents=map(to_wire, found),
            next_cursor=f"{found[-1].last_ms}-{found[-1].id}" if full else "",
            respond=self._detection.settings.respond,
            problem="; ".join(self._detection.problems),
        )

    async def GetIncident(
        self, request: incidents_pb2.GetIncidentRequest, context: Context
    ) -> incidents_pb2.GetIncidentResponse:
        """Return one incident with its evidence and what was done; NOT_FOUND, INPUT_INVALID."""
        async with self._database.read() as connection:
            incident = await _named(connection, request.id)
            responses = await incidents.responses_of(connection, incident.id)
        return incidents_pb2.GetIncidentResponse(
            incident=to_wire(incident),
            evidence=[
                incidents_pb2.IncidentEvidence(
                    node=one.node,
                    ledger=one.ledger,
                    index=max(one.index, 0),
                    execution_id=one.execution_id,
                    note=one.note,
                )
                for one in incident.evidence
            ],
            responses=[self._response(one) for one in responses],
        )

    async def ResolveIncident(
        self, request: incidents_pb2.ResolveIncidentRequest, context: Context
    ) -> incidents_pb2.Incident:
        """Close an incident; NOT_FOUND, CONFLICT, INPUT_INVALID. What was done about it stays in effect."""
        who, now_ms = str(current_caller()), self._clock.now_ms()
        async with self._database.write() as connection:
            incident = resolved(await _named(connection, request.id), who=who, why=request.why, now_ms=now_ms)
            await incidents.close(connection, incident)
            detail = f"{incident.id} {incident.rule} {incident.subject}: {incident.resolved_why}"
            await audit.record(connection, at_ms=now_ms, who=who, action="resolve-incident", detail=detail)
        return to_wire(incident)

    def _response(self, one: Response) -> incidents_pb2.IncidentResponse:
        return incidents_pb2.IncidentResponse(
            action=one.action.value,
            fate=one.fate.value,
            at_ms=one.at_ms,
            kind=one.kind,
            value=one.value,
            until_ms=one.until_ms,
            why=one.why,
            directive=one.directive,
            in_effect=bool(one.directive) and one.directive in self._denials.directives,
        )


def to_wire(one: Incident) -> incidents_pb2.Incident:
    """Return an incident as a message."""
    return incidents_pb2.Incident(
        id=one.id,
        rule=one.rule,
        title=one.info.title,
        severity=one.severity.value,
        subject=one.subject,
        state=one.state.value,
        opened_ms=one.opened_ms,
        last_ms=one.last_ms,
        findings=one.findings,
        text=one.text,
        nodes=one.nodes,
        resolved_by=one.resolved_by,
        resolved_why=one.resolved_why,
        resolved_ms=one.resolved_ms,
        advice=one.info.advice,
    )


def _told(one: Incident) -> tuple[str, str]:
    """Return subject and detail of the alert about an incident; the same subject again is the same alert."""
    return f"{one.rule} {one.subject}", f"incident {one.id}, {one.info.title}: {one.text}"


async def _named(connection: AsyncConnection, prefix: str) -> Incident:
    if not _ID.match(prefix):
        raise InputError(
            Reason.INPUT_INVALID, f"{prefix[:40]!r} is no incident id; 'egm incidents list' shows them"
        )
    found = await incidents.get(connection, prefix)
    if len(found) != 1:
        what = "several incidents begin" if found else "no incident begins"
        raise InputError(Reason.NOT_FOUND, f"{what} with {prefix}; see 'egm incidents list'")
    return found[0]


def _wanted(request: incidents_pb2.ListIncidentsRequest) -> incidents.Wanted:
    limit = request.limit or DEFAULT_PAGE
    if not 1 <= limit <= limits.MAX_INCIDENTS_PAGE:
        raise InputError(Reason.INPUT_INVALID, f"limit is 1 to {limits.MAX_INCIDENTS_PAGE}, not {limit}")
    if request.rule and request.rule not in RULES:
        raise InputError(
            Reason.INPUT_INVALID, f"no rule {request.rule[:40]!r}; there are: {', '.join(RULES)}"
        )
    if request.state and request.state not in set(State):
        raise InputError(
            Reason.INPUT_INVALID, f"no state {request.state[:40]!r}; there are: {', '.join(State)}"
        )
    if request.min_severity and request.min_severity not in set(Severity):
        raise InputError(
            Reason.INPUT_INVALID,
            f"no severity {request.min_severity[:40]!r}; there are: {', '.join(Severity)}",
        )
    if "\0" in request.subject or len(request.subject) > limits.MAX_RECORD_NAME_BYTES:
        raise InputError(Reason.INPUT_INVALID, "the subject holds a NUL character or is too long")
    cursor = _CURSOR.match(request.cursor) if request.cursor else None
    if request.cursor and cursor is None:
        raise InputError(Reason.INPUT_INVALID, "not a cursor of ours; leave it out to start from the newest")
    return incidents.Wanted(
        state=State(request.state) if request.state else None,
        rule=request.rule,
        subject=request.subject,
        min_rank=Severity(request.min_severity).rank if request.min_severity else 0,
        since_ms=max(0, request.since_ms),
        before=None if cursor is None else (int(cursor[1]), cursor[2]),
        limit=limit,
    )
