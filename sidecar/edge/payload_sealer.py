"""Keeps what `@audit("payload")` asks to keep: seals requests and responses to the auditors of the policy in force.

Sealing draws randomness and costs 0.3 ms of CPU for a small payload and one auditor, 0.2 ms more for each other auditor
and 0.3 ms more for 64 KiB (measured): what could hold the loop for about a millisecond goes to a thread.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, cast

from joserfc.jwe import GeneralJSONEncryption, encrypt_json
from joserfc.jwk import OKPKey

from sidecar.core.bundle_state import InForce
from sidecar.core.call import Attempt, Decision, Direction
from sidecar.core.obligations import MET, Kept, Obligations, asks_payload, explain, noted, why_unsealable
from trust import limits
from trust.auditor import AuditorKey
from trust.errors import Reason, StateError
from trust.levels import GOVERNED
from trust.mesh import MeshSettings
from trust.payload import Binding, Part, registry, write_sealed
from trust.permit_claims import NO_MESSAGE
from trust.policy.rules import AUDIT_PAYLOAD
from trust.record import Side

logger = logging.getLogger(__name__)

_SIDE: Final = {Direction.OUTBOUND: Side.OUTBOUND, Direction.INBOUND: Side.INBOUND}
_INLINE_AUDITORS: Final = 2
_INLINE_BYTES: Final = 16 * 1024


class Audited(Protocol):
    """What of an execution on its way through a door is read and written here; `sidecar.edge.case.Case` is one."""

    attempt: Attempt
    level: int
    execution_id: bytes
    request: bytes | None
    request_sha256: bytes
    audited: bool
    obligations: Obligations
    sealed_request: bytes
    sealed_response: bytes


@dataclass(frozen=True, slots=True)
class _Recipients:
    """The auditors of one policy, ready to seal to."""

    mesh: MeshSettings
    keys: tuple[tuple[str, OKPKey], ...]  # key id and key


class PayloadSealer:
    """Seals payloads of one node. Not thread-safe: owned by the event loop."""

    def __init__(
        self, node: str, in_force: Callable[[], InForce | None], alarm: Callable[[str], None]
    ) -> None:
        """Take the parts.

        Args:
            node: this node's name.
            in_force: the policy that decides; its auditors are sealed to.
            alarm: told when a payload is not kept at a level that goes on without.
        """
        self._node, self._in_force, self._alarm = node, in_force, alarm
        self._known: _Recipients | None = None

    async def meet(self, case: Audited, decision: Decision, *, now_ms: int) -> None:
        """Keep the request of an allowed call if a determining permit asks for it; a `sidecar.edge.duties.Duty`.

        Raises:
            StateError: OBLIGATION_UNMET, from level 4 on: nothing may be forwarded.
        """
        if not asks_payload(decision.obligations):
            return
        case.audited = True
        kept, sealed = await self._keep(case, Part.REQUEST, case.request)
        case.sealed_request, case.obligations = sealed, noted(case.obligations, AUDIT_PAYLOAD, kept.value)
        self._answer_for(case, kept, Part.REQUEST, case.request or b"")

    async def response(self, case: Audited, response: bytes) -> None:
        """Keep the response of a unary call whose payload is kept.

        Raises:
            StateError: OBLIGATION_UNMET, from level 4 on: the caller may not have it.
        """
        kept, case.sealed_response = await self._keep(case, Part.RESPONSE, response)
        self._answer_for(case, kept, Part.RESPONSE, response)

    async def _keep(self, case: Audited, part: Part, payload: bytes | None) -> tuple[Kept, bytes]:
        keys = self._recipients()
        ended = case.request_sha256 == NO_MESSAGE
        problem = why_unsealable(None if payload is None else len(payload), len(keys), ended=ended)
        if problem is not None or payload is None:
            return problem or Kept.UNSEEN, b""
        binding = Binding(case.execution_id, _SIDE[case.attempt.direction], part, self._node)
        try:
            if len(keys) > _INLINE_AUDITORS or len(payload) > _INLINE_BYTES:
                sealed = await asyncio.to_thread(seal, payload, binding, keys)
            else:
                sealed = seal(payload, binding, keys)
        except Exception:  # whatever a library raises: the payload is not kept, which is decided on below
            logger.exception("sealing a %s failed", part.value)
            return Kept.FAILED, b""
        if len(sealed) > limits.MAX_SEALED_PAYLOAD_BYTES:
            return Kept.TOO_LARGE, b""
        return Kept.SEALED, sealed

    def _answer_for(self, case: Audited, kept: Kept, part: Part, payload: bytes) -> None:
        if kept in MET:
            return
        if case.level >= GOVERNED:
            raise StateError(Reason.OBLIGATION_UNMET, explain(kept, part.value, len(payload)))
        self._alarm(f"payloads that policy asks to keep are not kept: {part.value} {kept.value}")

    def _recipients(self) -> tuple[tuple[str, OKPKey], ...]:
        held = self._in_force()
        if held is None:
            return ()
        mesh = held.engine.mesh
        known = self._known
        if known is None or known.mesh is not mesh:
            keys = tuple((key.id, _recipient(key)) for key in mesh.auditor_keys())
            known = self._known = _Recipients(mesh, keys)
        return known.keys


def auditor_recipients(auditors: tuple[AuditorKey, ...]) -> tuple[tuple[str, OKPKey], ...]:
    """Return what `seal` takes: the id and the key of each auditor."""
    return tuple((key.id, _recipient(key)) for key in auditors)


def seal(payload: bytes, binding: Binding, keys: tuple[tuple[str, OKPKey], ...]) -> bytes:
    """Return `payload` as only the holders of `keys` can read it; see `trust.payload`.

    Args:
        payload: at most `limits.MAX_AUDITED_PAYLOAD_BYTES`.
        binding: the record that it is for.
        keys: 1 to `limits.MAX_AUDITORS` of `auditor_recipients`.
    """
    message = GeneralJSONEncryption(dict(binding.header()), payload)
    for key_id, key in keys:
        message.add_recipient({"kid": key_id}, key)
    return write_sealed(cast("dict[str, object]", encrypt_json(message, None, registry=registry())))


def _recipient(key: AuditorKey) -> OKPKey:
    return OKPKey.import_key({"kty": "OKP", "crv": "X25519", "x": key.text})
