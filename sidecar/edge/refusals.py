"""How the proxy's own answers look on the wire: google.rpc.Status with an ErrorInfo, told apart from an upstream's.

Only `Decision.detail` and fixed text reach a caller, never an exception's.
"""

from typing import Any, Final, NoReturn, cast

import grpc
import grpc.aio

from sidecar.core.call import Attempt, Decision
from trust.edge.grpc_errors import status_of
from trust.errors import MeshError, Reason

Context = grpc.aio.ServicerContext[bytes, bytes]

MAX_TEXT_CHARS: Final = 1_000

UPSTREAM_UNAVAILABLE_TEXT: Final = (
    "what this sidecar forwards to (its service, or the service's sidecar) cannot be reached; "
    "is it running, is its address right?"
)
UPSTREAM_BROKE_OFF_TEXT: Final = "the connection to the service behind this sidecar broke during the call"
INTERNAL_TEXT: Final = "the sidecar failed to handle this call; its log says why"


async def refuse(context: Context, attempt: Attempt, decision: Decision) -> NoReturn:
    """End the call with the decision that refused it; the caller learns the reason and whom to ask. Never returns."""
    what = f"{decision.reason}: {decision.detail}" if decision.detail else f"{decision.reason}"
    message = (
        f"egm: {what[:MAX_TEXT_CHARS]} (decision {decision.id}, policy version {decision.policy_version})"
    )
    await _end(context, decision.reason, message, _about(attempt, decision), decision.retry_ms)


async def fail(context: Context, attempt: Attempt, decision: Decision | None, error: MeshError) -> NoReturn:
    """End the call with a failure of the proxy itself (not of the upstream, not a refusal). Never returns."""
    message = f"egm: {error.reason}: {error.detail[:MAX_TEXT_CHARS]}"
    await _end(context, error.reason, message, _about(attempt, decision))


async def fail_internal(context: Context) -> NoReturn:
    """End the call with INTERNAL and fixed text. Never returns."""
    await _end(context, Reason.INTERNAL, f"egm: {Reason.INTERNAL}: {INTERNAL_TEXT}", {})


def _about(attempt: Attempt, decision: Decision | None) -> dict[str, str]:
    about = {"service": attempt.service, "method": attempt.method[:MAX_TEXT_CHARS]}
    if decision is not None:
        about["decision_id"] = decision.id
        about["policy_version"] = str(decision.policy_version)
        about["level"] = str(decision.level)
        about |= dict(decision.about)
    return about


async def _end(
    context: Context, reason: Reason, message: str, about: dict[str, str], retry_ms: int = 0
) -> NoReturn:
    code, text, trailing = status_of(reason, message, about, retry_ms=retry_ms)
    await context.abort(code, text, cast("Any", trailing))
    raise AssertionError("abort returned")
