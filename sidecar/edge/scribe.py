"""What is written down of an execution: its intent, with what was decided, and its outcome."""

import functools
from collections.abc import Callable
from typing import Final

from sidecar.core.bundle_state import InForce
from sidecar.core.call import Decision, Direction
from sidecar.edge.case import Case
from trust.ports import Clock
from trust.record import Ending, Intent, Outcome, Side

_SIDE: Final = {Direction.OUTBOUND: Side.OUTBOUND, Direction.INBOUND: Side.INBOUND}
digest: Final = functools.lru_cache(64)(bytes.fromhex)  # of a policy: the same for every call


class Scribe:
    """Makes the records of one node."""

    def __init__(
        self,
        *,
        node: str,
        boot_id: str,
        clock: Clock,
        in_force: Callable[[], InForce | None],
        callee: Callable[[str], str],
    ) -> None:
        """Take the parts; see `sidecar.edge.notary.Notary`."""
        self._node, self._boot_id, self._clock = node, boot_id, clock
        self._in_force, self._callee = in_force, callee

    def intent(self, case: Case, decision: Decision) -> Intent:
        """Return the record of what was decided."""
        attempt = case.attempt
        held = self._in_force()
        parent = case.parent
        return Intent(
            execution_id=case.execution_id,
            root_id=case.root_id,
            parent_id=b"" if parent is None else parent.claims.execution_id,
            parent_permit_sha256=_parent_permit(case),
            link=case.link,
            side=_SIDE[attempt.direction],
            caller=attempt.principal or "",
            authn="" if attempt.authn is None else attempt.authn.value,
            service=attempt.service,
            callee=self._callee(attempt.service),
            method=attempt.method,
            request_sha256=case.request_sha256,
            policy_version=decision.policy_version,
            policy_sha256=b"" if held is None else digest(held.policy.base.sha256),
            policies=decision.policies,
            allowed=decision.allowed,
            reason=decision.reason.value,
            would_deny=str(decision.would_deny or case.would_deny or ""),
            level=decision.level,
            permit_sha256=case.permit_sha256,
            permit=case.permit_token,
            node=self._node,
            boot_id=self._boot_id,
            wall_ms=self._clock.now_ms(),
            monotonic_ms=self._clock.monotonic_ms(),
            traceparent=case.traceparent,
            decision_id=decision.id,
            obligations=case.obligations,
            sealed_request=case.sealed_request,
        )

    def outcome(self, case: Case, status: str, seconds: float) -> Outcome:
        """Return the record of how a call ended, and how long it took."""
        return Outcome(
            execution_id=case.execution_id,
            side=_SIDE[case.attempt.direction],
            ending=Ending.COMPLETED if case.cut is None else Ending.CUT,
            node=self._node,
            boot_id=self._boot_id,
            wall_ms=self._clock.now_ms(),
            monotonic_ms=self._clock.monotonic_ms(),
            status=status,
            reason="" if case.cut is None else case.cut.value,
            response_sha256=case.response_sha256,
            request_messages=case.request_messages,
            request_bytes=case.request_bytes,
            response_messages=case.response_messages,
            response_bytes=case.response_bytes,
            duration_us=int(seconds * 1_000_000),
            sealed_response=case.sealed_response,
        )


def _parent_permit(case: Case) -> bytes:
    if case.parent is not None:
        return case.parent.sha256
    if case.permit is not None and case.permit.claims.parent_sha256 is not None:
        return case.permit.claims.parent_sha256
    return b""
