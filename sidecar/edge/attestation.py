"""Keeps this node attested: asks the witnesses of the signed roster, and lets this node be a witness of others."""

import asyncio
import logging
import random
from typing import Final

import grpc.aio

from egm.v1 import attestation_pb2_grpc as rpc
from egm.v1 import operator_pb2
from sidecar.core.attester import Bundles, Schedule
from sidecar.core.bundle_state import InForce
from sidecar.core.endorsements import Endorsements
from sidecar.core.trust_state import Standing
from sidecar.edge.attestation_files import WITNESS_DIRECTORY, WitnessStore
from sidecar.edge.attestation_parts import Parts, accepted_builds
from sidecar.edge.attestation_round import Round
from sidecar.edge.witness_desk import WitnessDesk, WitnessServicer
from trust.attestation.roster import Roster
from trust.attestation.witness import Seen, View
from trust.errors import MeshError
from trust.levels import CRYPTOGRAPHIC

logger = logging.getLogger(__name__)

_ALARM: Final = "attestation"
_MAX_WHY_CHARS: Final = 300
_TICK_S: Final = (
    0.25  # how soon a lapse is noticed for streams and status; calls are decided by the clock itself
)


class Attestation:
    """Both halves for one node: attester and witness. Owned by the event loop."""

    def __init__(self, parts: Parts) -> None:
        """Read what must not be forgotten.

        Raises:
            InputError: CONFLICT, if the counter is damaged.
        """
        self._parts = parts
        config = parts.config
        self._node = parts.node
        self._bundles, self._schedule = Bundles(), Schedule()
        self._standing = Standing.NO_POLICY
        self._why: dict[str, str] = {}  # witness -> why it did not vouch in the last round
        self._error: MeshError | None = None
        endorsements = Endorsements(parts.identity.anchors_pem, config.trust_domain)
        parts.identity.subscribe(endorsements.forget_all)
        self.desk = WitnessDesk(
            self._node,
            parts.signer.public_key.public_bytes_raw(),
            parts.signer.sign,
            WitnessStore(config.data_dir / WITNESS_DIRECTORY),
            view=self._view,
            now_ms=parts.now_ms,
            clock=parts.clock,
            endorsements=endorsements,
            accused=parts.accused,
            witnessed=parts.witnessed,
        )
        self._round = Round(parts, self.desk)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve egm.v1.Witness."""
        servicer = WitnessServicer(self.desk, self._parts.config.trust_domain, self._parts.clock)
        rpc.add_WitnessServicer_to_server(servicer, server)

    def status(self) -> operator_pb2.Attestation:
        """Return how this node stands, in the protocol's form."""
        parts = self._parts
        trust, now_ms, monotonic_ms = parts.trust, parts.now_ms(), parts.clock.monotonic_ms()
        roster, credential = trust.roster, trust.own()
        view = operator_pb2.Attestation(
            standing=trust.standing(now_ms, monotonic_ms),
            remaining_ms=trust.remaining_ms(now_ms, monotonic_ms),
        )
        if roster is not None:
            view.quorum = roster.needed
            view.witnesses.extend(roster.witnesses)
            view.is_witness = roster.name_of(self.desk.key) == self._node.name
            view.not_vouched.update({name: reason[:_MAX_WHY_CHARS] for name, reason in self._why.items()})
        if credential is not None and view.remaining_ms > 0:  # nobody vouches any more by one that has ended
            view.vouched.extend(sorted(credential.attested_s))
            view.credential_sha256 = credential.sha256.hex()
        return view

    async def run(self) -> None:
        """Keep this node attested until cancelled."""
        parts, clock = self._parts, self._parts.clock
        while True:
            held, roster = parts.state.in_force, parts.trust.roster
            if held is not None:
                self._bundles.seen(held.policy, monotonic_ms=clock.monotonic_ms())
            due_ms = self._schedule.wake_at_ms(
                roster, monotonic_ms=clock.monotonic_ms(), references=accepted_builds(held)
            )
            if roster is not None and held is not None and clock.monotonic_ms() >= due_ms:
                await self._attempt(roster, held)
            self._notice()
            left_s = max(0.0, (due_ms - clock.monotonic_ms()) / 1000)
            await asyncio.sleep(min(_TICK_S, left_s) if left_s else 0.01)

    async def _attempt(self, roster: Roster, held: InForce) -> None:
        clock, jitter = self._parts.clock, random.random()  # noqa: S311  # spreads load, guards nothing
        why: dict[str, str] = {}
        try:
            await self._round.run(roster, held, why)
        except MeshError as error:
            if self._error is None or self._error.detail != error.detail:
                logger.warning("not attested in this round: %s", error)
            self._error = error
            self._schedule.failed(roster, monotonic_ms=clock.monotonic_ms(), jitter=jitter)
        else:
            if self._error is not None:
                logger.info("attested again")
            self._error = None
            self._schedule.succeeded(roster, monotonic_ms=clock.monotonic_ms(), jitter=jitter)
        self._why = why

    def _notice(self) -> None:
        """Raise or clear the alarm, and tell when the standing has turned."""
        parts, clock = self._parts, self._parts.clock
        standing = parts.trust.standing(parts.now_ms(), clock.monotonic_ms())
        if standing is Standing.NOT_ATTESTED and self._error is not None:
            held = parts.state.in_force
            strict = held is not None and CRYPTOGRAPHIC in held.engine.mesh.levels() | {parts.config.level}
            effect = "level 5 refuses every call" if strict else "calls go on below level 5"
            if parts.alarms.set(_ALARM, f"this node is not attested, {effect}: {self._error.detail}"):
                logger.error("alarm: not attested: %s", self._error)
        elif self._error is not None and self._schedule.failures > 1:
            parts.alarms.set(_ALARM, f"the trust credential is not renewed: {self._error.detail}")
        else:
            parts.alarms.clear(_ALARM)
        if standing is not self._standing:
            logger.info("attestation %s -> %s", self._standing, standing)
            self._standing = standing
            parts.turned()

    # the witness's view

    def _view(self) -> View | None:
        parts = self._parts
        held, roster = parts.state.in_force, parts.trust.roster
        if held is None or roster is None:
            return None
        engine = held.engine
        seen = self._bundles.seen(held.policy, monotonic_ms=parts.clock.monotonic_ms())
        return View(
            roster=roster,
            bundles={role: Seen(enforced, since_ms) for role, (enforced, since_ms) in seen.items()},
            level=engine.mesh.level,
            references=accepted_builds(held),
            anchors_pem=parts.identity.anchors_pem(),
            quarantined=parts.quarantined(),
        )
