"""A namespace of the simulated mesh: its own approvers, to whom the base delegates; and who would have more."""

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from securesystemslib.signer import CryptoSigner

from tests.sim.lies import resign
from tests.sim.policy_client import Files
from tests.sim.realm import LEASE_MS, signer
from tests.support.tuf_world import public, sign_raw
from trust.repository import Holders, next_namespace
from trust.verified import BASE_ROLE, target_path

if TYPE_CHECKING:
    import random

    from tests.sim.policy_house import PolicyHouse

SPACE = "store"  # has the service `stock`; `payments` is the base's


@dataclass(frozen=True)
class Stock:
    """What one bundle of the namespace says. `wide`: of what else it speaks, which it may not."""

    may: bool
    wide: str = ""
    serial: int = 0

    def archive(self) -> bytes:
        """Return the bytes that its approvers sign."""
        return json.dumps(self.__dict__, sort_keys=True).encode()


def stock_of(archive: bytes) -> Stock:
    """Return what a bundle of the namespace says."""
    return Stock(**json.loads(archive))


class NamespaceHouse:
    """What its approvers published, and the base's delegation to them."""

    def __init__(self, house: "PolicyHouse") -> None:
        self._house = house
        self._signers = tuple(signer(f"stock-approver-{index}") for index in range(3))
        self._before: tuple[CryptoSigner, ...] = ()  # who were its approvers until others came
        self.delegated = self.was_mixed = False
        self.said = Stock(may=True)
        self._old: list[bytes] = []  # metadata that was published

    @property
    def files(self) -> tuple[tuple[str, bytes, bytes], ...]:
        """What the control plane serves of it now."""
        return ((SPACE, self._house.state.roles[SPACE], self.said.archive()),) if self.delegated else ()

    def publish(self, said: Stock) -> None:
        """Two of its approvers sign its next version."""
        if self._house.up and self.delegated:
            self._publish({}, said)

    def publish_something(self, dice: "random.Random") -> None:
        """Publish the next version: alice may restock or not; now and then it speaks of what is not its own."""
        wide = dice.choice(("payments", "anything")) if dice.random() < 0.1 else ""
        serial = self._house.state.version_of(SPACE)
        self.publish(Stock(dice.random() < 0.6, wide, serial))

    def delegate(self, dice: "random.Random", *, anew: bool = True) -> None:
        """Delegate to its approvers: to others than before, if there were any; or end that."""
        house = self._house
        if not house.up:
            return
        if self.delegated and not anew:
            self.delegated = False
            house.resign_base({SPACE: None})
            house.world.observer.saw["delegation ended"] += 1
            return
        if house.state.version_of(SPACE):
            number = house.state.version_of(BASE_ROLE)
            self._before, self._signers = (
                self._signers,
                tuple(signer(f"stock-approver-{number}.{index}") for index in range(3)),
            )
            house.world.observer.saw["delegated to others"] += 1
        self.delegated = True
        self._publish(
            {SPACE: Holders(public(self._signers), 2)}, replace(self.said, serial=dice.getrandbits(16))
        )

    def mixed(self, dice: "random.Random") -> Files | None:
        """Return what whoever has the online keys can make of it: left out, an old version, or by keys of before."""
        house = self._house
        state, now_ms = house.state, house.world.now_ms
        metadata = state.role_metadata(SPACE)
        if not self.delegated or metadata is None:
            return None
        data: bytes | None = None
        archive = self.said.archive()
        kind = dice.choice(("left out", "old", "keys of before", "nobody's keys"))
        if kind == "old":
            data = dice.choice(self._old)
        elif kind != "left out":
            archive = Stock(may=True, serial=-5_000).archive()
            others = self._before if kind == "keys of before" else ()
            signers = others or tuple(signer(f"attacker stock {index}") for index in range(2))
            data = sign_raw(next_namespace(metadata, SPACE, archive, now_ms=now_ms), signers[:2])
        targets = state.roles[BASE_ROLE]
        timestamp, snapshot = resign(
            state, targets, now_ms + LEASE_MS, house.keys.online, roles={SPACE: data}
        )
        house.world.observer.lease_signed_ms[timestamp] = now_ms
        house.world.observer.saw["namespaces mixed"] += 1
        self.was_mixed = True
        spaces = () if data is None else ((SPACE, data, archive),)
        return Files(timestamp, snapshot, targets, house.archive, house.roots, spaces)

    def _publish(self, delegate: dict[str, Holders | None], said: Stock) -> None:
        house, now_ms = self._house, self._house.world.now_ms
        archive = said.archive()
        metadata = next_namespace(house.state.role_metadata(SPACE), SPACE, archive, now_ms=now_ms)
        signed = sign_raw(metadata, house.world.random.sample(self._signers, 2))
        self.said = said
        house.resign_base(delegate, {SPACE: signed}, {target_path(SPACE): archive})
        self._old.append(signed)
        house.world.observer.stocked(metadata.signed.version, archive, said.may, wide=bool(said.wide))
