"""What every call through a listener goes through: who asks, may it go on, where to, how did it end."""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeVar, cast

import grpc
import grpc.aio

from sidecar.core.call import Attempt, Decision, Direction, Permitted, RefusedError
from sidecar.core.gate import Gate, Observer
from sidecar.edge import metadata as md
from sidecar.edge.case import Case
from sidecar.edge.identify import Identifier
from sidecar.edge.notary import Notary
from sidecar.edge.refusals import (
    UPSTREAM_BROKE_OFF_TEXT,
    UPSTREAM_UNAVAILABLE_TEXT,
    Context,
    fail,
    refuse,
)
from sidecar.edge.upstream import Upstream, broke_off, never_sent
from sidecar.edge.upstream_call import EOF, UpstreamCall
from trust import limits
from trust.edge.grpc_errors import STATUS_OF
from trust.errors import CapacityError, InputError, MeshError, Reason, StateError
from trust.policy.types import METHOD_ALONE_ANNOTATION
from trust.ports import Clock

_T = TypeVar("_T")
# (service, method, caller's metadata) -> where it goes; raises MeshError when there is nowhere.
Route = Callable[[str, str, Sequence[md.Pair]], Upstream]

OPENING_MISSING_TEXT: Final = (
    "the stream sent no message in time, and its permit must bind the opening one: send the first message without "
    "waiting for the service, or have the approvers sign "
    f"{METHOD_ALONE_ANNOTATION} on every policy that permits this method to the caller"
)
OPENING_UNKEPT_TEXT: Final = (
    'the stream sent no message in time, and policy asks to keep the opening one (@audit("payload")) or has approvers '
    "sign it (@require_approval): send the first message without waiting for the service"
)
_SHARE_OF_DEADLINE: Final = 0.8
_BEFORE_END_S: Final = 0.002
_TURNS_BEFORE_END: Final = 3  # the loop must look at its sockets, however late the timer fired
_TOO_LARGE_HERE: Final = ("client: received message larger than max", "client: sent message larger than max")


async def no_cancellation_follows() -> None:
    """Wait a moment after the end of a call's requests: cancelled here, if that was a cancelled call in truth.

    grpc.aio reports a cancelled call as the end of its requests first, and cancels the handler a moment later. Going on
    at once would tell the upstream that an aborted upload was complete (measured: 2 in 3).
    """
    await asyncio.sleep(_BEFORE_END_S)
    for _ in range(_TURNS_BEFORE_END):
        await asyncio.sleep(0)


@dataclass(frozen=True, slots=True)
class Door:
    """One listener's parts. `service` is the logical name it stands for."""

    direction: Direction
    service: str
    gate: Gate
    identifier: Identifier
    route: Route
    clock: Clock
    observer: Observer | None = None
    max_message_bytes: int = limits.MAX_MESSAGE_BYTES
    notary: Notary | None = None
    hand_over: bool = False  # sign calls for the local service
    opening_timeout_s: float = limits.OPENING_MESSAGE_TIMEOUT_S


class Execution:
    """One call through a door, from open to close: decided once, forwarded only with a `Permitted`, recorded once."""

    __slots__ = (
        "_door",
        "_handle",
        "_metered",
        "_started",
        "attempt",
        "case",
        "context",
        "max_message_bytes",
        "metadata",
        "permitted",
        "status",
    )

    def __init__(self, door: Door, method: str, context: Context) -> None:
        self._door = door
        self._started = time.perf_counter()
        self.max_message_bytes = door.max_message_bytes
        sent = cast("Sequence[md.Pair]", context.invocation_metadata() or ())
        identifier = door.identifier
        caller = identifier.identify(context, sent, now_ms=door.clock.now_ms())
        self.metadata, visible = md.from_caller(sent, identifier.consumes)
        self.attempt = Attempt(
            door.direction,
            door.service,
            method,
            caller.principal,
            caller.authn,
            caller.unidentified,
            visible,
            caller.key_sha256,
        )
        self.context = context
        self.permitted: Permitted | None = None
        self.status = "CANCELLED"  # unless something better becomes known
        self._handle: object = None
        self._metered: Permitted | None = None  # took of limits, and is not forwarded yet
        self.case: Case | None = None
        if door.notary is not None:
            self.case = door.notary.arrived(self.attempt, sent, caller.certificate_sha256)
        if self.case is not None:
            self.case.hand_over = door.hand_over
        if door.observer is not None:
            self._handle, forwarded = door.observer.begin(self.attempt, self.metadata)
            self.metadata = tuple(forwarded)

    async def opening(self) -> Any:
        """Return the opening message of a stream if it must be known before the call goes on; EOF if there is none.

        Otherwise None: its permit binds the method alone, or there is none, and no policy asks to keep the message.

        Raises:
            grpc.aio.AbortError: the stream was refused (its permit, or no message in time) and has ended.
        """
        door, case, notary = self._door, self.case, self._door.notary
        if case is not None and notary is not None:
            try:
                binds = await self._attested(
                    case, notary, lambda: notary.present(case, now_ms=door.clock.now_ms())
                )
            except MeshError as error:
                await self._refused(door.gate.decline(self.attempt, error))
            if door.direction is Direction.OUTBOUND:
                binds = door.gate.holds_opening(self.attempt, now_ms=door.clock.now_ms())
            if binds:
                return await self._opening_in_time(OPENING_MISSING_TEXT)
        if door.gate.needs_request(self.attempt):
            return await self._opening_in_time(OPENING_UNKEPT_TEXT)
        return None

    async def _opening_in_time(self, missing: str) -> Any:
        try:
            async with asyncio.timeout(self._patience_s()):
                message: Any = await self.context.read()
                if message is EOF:
                    await no_cancellation_follows()
                return message
        except TimeoutError:
            error = StateError(Reason.OPENING_MISSING, missing)
            await self._refused(self._door.gate.decline(self.attempt, error))

    def _patience_s(self) -> float:
        """Return how long the opening message is waited for: less than the deadline, which would hide the reason."""
        remaining = self.context.time_remaining()
        patience = self._door.opening_timeout_s
        return patience if remaining is None else min(patience, remaining * _SHARE_OF_DEADLINE)

    async def authorize(self, request: bytes | None, *, ended: bool = False) -> Permitted:
        """Return the right to forward; ends the call when there is none.

        Args:
            request: the (first) request; None when it is decided without one.
            ended: the caller has said that it sends none.

        Raises:
            grpc.aio.AbortError: the call was refused and has ended.
        """
        door = self._door
        if request is not None and len(request) > self.max_message_bytes:
            await self.too_large(len(request))
        case, notary = self.case, door.notary
        try:
            if case is not None and notary is not None:
                try:
                    await self._attested(
                        case,
                        notary,
                        lambda: notary.admit(case, request, ended=ended, now_ms=door.clock.now_ms()),
                    )
                except MeshError as error:
                    raise RefusedError(door.gate.decline(self.attempt, error)) from None
                if case.permit is not None:
                    self.attempt = self.attempt.vouched(case.permit)
            now_ms = door.clock.now_ms()
            permitted = door.gate.authorize(self.attempt, request, now_ms=now_ms)
            if permitted.taken:
                self._metered = permitted
            if case is not None and notary is not None:
                if permitted.decision.obligations:
                    case.remaining_s = self.context.time_remaining()
                try:
                    self.metadata += await notary.opened(case, permitted.decision, now_ms=now_ms)
                except MeshError as error:
                    raise RefusedError(door.gate.decline(self.attempt, error)) from None
                # Sealing and the disk take time, in which policy may change or a revocation arrive; approvers take
                # so much that who was vouched for, and what policy says of the hour, may have ended as well.
                withdrawn = door.gate.withdrawn(
                    permitted, request, now_ms=door.clock.now_ms(), held=case.held
                )
                if withdrawn is not None:
                    raise RefusedError(withdrawn)
        except RefusedError as refused:
            await self._refused(refused.decision)
        if door.observer is not None:
            door.observer.decided(self._handle, permitted.decision)
        self.permitted = permitted
        return permitted

    @staticmethod
    async def _attested(case: Case, notary: Notary, step: Callable[[], _T]) -> _T:
        """Return what the notary answers; asked again when the credential that it lacks could be fetched.

        Raises:
            MeshError: as `step`.
        """
        try:
            return step()
        except MeshError as error:
            if error.reason is not Reason.ATTESTATION_UNKNOWN or not await notary.attest(case):
                raise
        return step()

    def crossing(self, initial: Sequence[md.Pair]) -> tuple[md.Pair, ...]:
        """Return the first metadata of an answer as the caller gets to see it; sidecars add to it, and take off."""
        case, notary = self.case, self._door.notary
        shown = md.from_upstream(initial) if initial else ()
        return shown if case is None or notary is None else shown + notary.answered(case, initial)

    async def _refused(self, decision: Decision) -> NoReturn:
        door = self._door
        if door.observer is not None:
            door.observer.decided(self._handle, decision)
        if self.case is not None and self.case.opened:
            self.case.cut = decision.reason
        elif self.case is not None and door.notary is not None:
            with contextlib.suppress(MeshError):  # it is refused either way; the notary has told a person
                door.notary.refused(self.case, decision)
        self.status = STATUS_OF[decision.reason].name
        await refuse(self.context, self.attempt, decision)

    async def dial(self, path: bytes) -> UpstreamCall:
        """Return the call to the upstream, not yet started; ends the caller's call when there is none to make."""
        attempt, metadata = self.attempt, self.metadata
        for key, value in metadata:
            if not md.sendable(value):
                detail = (
                    f"the metadata value of {key[:100]!r} has bytes that gRPC does not carry; use a -bin key"
                )
                await self.failed(InputError(Reason.INPUT_INVALID, detail))
        remaining = self.context.time_remaining()
        if remaining is not None and remaining <= 0:
            self.status = "DEADLINE_EXCEEDED"
            await self.context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        try:
            call = self._door.route(attempt.service, attempt.method, metadata).call(path, remaining)
        except MeshError as error:
            await self.failed(error)
        self._metered = None
        return call

    def exchanged(self, request: bytes, response: bytes | None) -> None:
        """Note the messages of a unary call, for its outcome."""
        case = self.case
        if case is None:
            return
        case.request_messages, case.request_bytes = 1, len(request)
        if response is not None:
            case.response_messages, case.response_bytes = 1, len(response)
            case.response_sha256 = hashlib.sha256(response).digest()

    async def keep(self, response: bytes) -> None:
        """Keep the response of a unary call for the auditors, where policy asks for it; ends the call if it cannot be.

        From level 4 on the caller does not get what cannot be kept, though the service has executed the call.
        """
        case, notary = self.case, self._door.notary
        if case is None or notary is None or not case.audited:
            return
        try:
            await notary.sealer.response(case, response)
        except MeshError as error:
            await self.failed(error)

    async def relay(self, call: UpstreamCall) -> None:
        """End the call the way the upstream ended it, verbatim; or say that its connection failed.

        Returns when the upstream ended with OK: then the handler ends the call by returning.
        """
        code, details, trailing = await call.status()
        crossing = md.from_upstream(trailing) if trailing else ()
        if code is grpc.StatusCode.OK:
            if crossing:
                self.context.set_trailing_metadata(cast("Any", crossing))
            if details:
                self.context.set_details(details)
            self.status = "OK"
            return
        if broke_off(code, details, has_trailers=bool(trailing)):
            never = never_sent(details, connected=call.connected())
            text = UPSTREAM_UNAVAILABLE_TEXT if never else UPSTREAM_BROKE_OFF_TEXT
            if never:
                self._metered = self.permitted  # what it took is given back
            await self.failed(StateError(Reason.UPSTREAM_UNAVAILABLE, text))
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and any(
            text in details.lower() for text in _TOO_LARGE_HERE
        ):
            await self.too_large(None)
        self.status = code.name
        await self.context.abort(code, details, cast("Any", crossing))

    async def too_large(self, size: int | None) -> NoReturn:
        """End the call because a message exceeds the limit of this sidecar; `size` in bytes, if known."""
        what = "a message" if size is None else f"a message of {size} bytes"
        limit = self.max_message_bytes
        await self.failed(
            CapacityError(Reason.MESSAGE_TOO_LARGE, f"{what} exceeds the limit of {limit} bytes; split it")
        )

    async def failed(self, error: MeshError) -> NoReturn:
        """End the call with a failure of the proxy itself."""
        if self.case is not None:
            self.case.cut = error.reason
        self.status = STATUS_OF[error.reason].name
        decision = None if self.permitted is None else self.permitted.decision
        await fail(self.context, self.attempt, decision, error)

    async def withdrawn(self, decision: Decision) -> NoReturn:
        """End an open stream whose right is gone."""
        if self.case is not None:
            self.case.cut = decision.reason
        self.status = STATUS_OF[decision.reason].name
        await refuse(self.context, self.attempt, decision)

    def close(self) -> None:
        """Record how the call ended. Call exactly once."""
        door = self._door
        seconds = time.perf_counter() - self._started
        if self._metered is not None:
            door.gate.unforwarded(self._metered)
        if self.permitted is not None:
            door.gate.forwarded(self.permitted, self.status, seconds)
        if self.case is not None and door.notary is not None:
            door.notary.closed(self.case, self.status, seconds)
        if door.observer is not None:
            door.observer.end(self._handle, self.status)
