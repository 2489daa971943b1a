"""What the true world knows of policy: what quorums signed, which root replaced whose keys, and what nodes came by."""

import hashlib
from collections import Counter
from typing import TYPE_CHECKING

from sidecar.core.bundle_state import InForce
from tests.sim.kernel import Violation
from tests.sim.namespace_house import SPACE
from tests.sim.realm import Settings
from trust.verified import VerifiedPolicy

if TYPE_CHECKING:
    from tests.sim.mesh import Mesh
    from tests.sim.node import Node


class PolicyWatch:
    """Invariants 1 and 3, as far as they are about metadata."""

    def __init__(self, world: "Mesh") -> None:
        self.world = world
        self.saw: Counter[str] = Counter()  # what happened at all
        self.heard: dict[tuple[str, str], int] = {}  # (node, directive) -> its end, true time
        self.legitimate: dict[str, bool] = {}  # SHA-256 of archives that two approvers signed: may alice pay
        self.withdrawn_ms: dict[int, int] = {}  # version without the right -> true time of its publication
        self.lease_signed_ms: dict[bytes, int] = {}  # timestamp.json -> true time
        self.newest_lease_ms: dict[str, int] = {}  # node -> when the newest lease that it took was signed
        self.ended_by: dict[
            str, int
        ] = {}  # SHA-256 of what stolen keys signed -> version of root that replaced them
        self.known_root: dict[str, dict[int, int]] = {}  # node -> root version it came by -> true time
        self.highest_root: dict[str, int] = {}
        self.highest_kept: dict[str, int] = {}
        self.stocks: dict[
            str, bool
        ] = {}  # SHA-256 of a namespace's archives that its quorum signed: may alice restock
        self.wide: set[str] = set()  # those of them that speak of more than that
        self.unstocked_ms: dict[int, int] = {}  # namespace version without the right -> true time
        self.delegated: dict[int, bool] = {}  # version of the base -> whether it delegates
        self.has_space: set[str] = set()  # nodes
        self.highest_space: dict[str, int] = {}

    def _fell(self, number: int, text: str) -> None:
        raise Violation(f"invariant {number}: {text}")

    def published(self, version: int, archive: bytes, settings: Settings, *, delegated: bool) -> None:
        """A quorum of approvers signed this, and it was published; it delegates the namespace, or does not."""
        self.delegated[version] = delegated
        self.legitimate[hashlib.sha256(archive).hexdigest()] = settings.may_pay
        if settings.may_pay:
            self.withdrawn_ms.clear()
        else:
            self.withdrawn_ms[version] = self.world.now_ms

    def stocked(self, version: int, archive: bytes, may: bool, *, wide: bool) -> None:
        """A quorum of the namespace's approvers signed this; `wide`: it speaks of what is not its own."""
        sha256 = hashlib.sha256(archive).hexdigest()
        self.stocks[sha256] = may
        if wide:
            self.wide.add(sha256)
            self.saw["namespace wants more"] += 1
        if may:
            self.unstocked_ms.clear()
        else:
            self.unstocked_ms[version] = self.world.now_ms

    def delegates(self, node: "Node", held: InForce) -> None:
        """A node enforces the base with this of the namespace, or without it."""
        if held.policy.base.sha256 in self.ended_by:
            return
        space, name = held.policy.namespaces.get(SPACE), node.name
        if space is None:
            if self.delegated[held.version] and name in self.has_space and name not in self.world.restored:
                self._fell(3, f"{name} lost the namespace, which version {held.version} delegates")
            return
        self.has_space.add(name)
        if space.sha256 not in self.stocks:
            self._fell(1, f"{name} enforces a namespace's bundle that no quorum of its approvers signed")
        if not self.delegated[held.version]:
            self._fell(1, f"{name} enforces a namespace that version {held.version} does not delegate")
        if space.sha256 in self.wide:
            self._fell(1, f"{name} enforces a namespace's bundle that speaks of what is not its own")
        self._never_back(node, "namespace version", space.version, self.highest_space)

    def _stock(self, node: "Node", held: InForce, what: str) -> list[int]:
        """Return when the right to restock was withdrawn by versions that a node has not got."""
        space = held.policy.namespaces.get(SPACE)
        if space is None:
            self._fell(1, f"{node.name} {what} of a namespace's service without its policy")
            return []
        if not self.stocks.get(space.sha256, False):
            self._fell(4, f"{node.name} {what} by a right that namespace version {space.version} withdrew")
        self.saw["restocked"] += 1
        return [at for version, at in self.unstocked_ms.items() if version > space.version]

    def stolen(self, sha256: str, *, ended_by: int) -> None:
        """A quorum's keys signed this in other hands; that version of root replaces them."""
        self.ended_by[sha256] = ended_by

    def knows_roots(self, node: "Node", roots: tuple[bytes, ...], *, kept: bool) -> None:
        """A node has gone through these roots, of which it may have kept nothing else."""
        genuine = self.world.policy.roots
        known = self.known_root.setdefault(node.name, {})
        new = 0
        for version, data in enumerate(roots, 2):
            if version - 2 >= len(genuine) or genuine[version - 2] != data:
                break
            new += version not in known
            known.setdefault(version, self.world.now_ms)
        self.saw["several roots at once"] += new > 1
        self.saw["root learned, policy refused"] += new > 0 and not kept

    def _over_since(self, node: "Node", sha256: str) -> int | None:
        """Return since when a node knows that the keys were replaced which signed this; None if it does not."""
        ended = self.ended_by.get(sha256)
        times = [at for root, at in self.known_root.get(node.name, {}).items() if ended and root >= ended]
        return min(times, default=None)

    def wiped(self, node: "Node", *, floor: bool) -> None:
        """A node lost its policy, and perhaps its floor: then its lease record is all that it knows."""
        self.saw["policy lost"] += 1
        if floor:
            self.saw["floor lost"] += 1
            self.known_root.pop(node.name, None)
            self.highest_kept.pop(node.name, None)
            self.has_space.discard(node.name)

    def restored(self, name: str) -> None:
        """A disk came back from a backup."""
        self.heard = {key: until for key, until in self.heard.items() if key[0] != name}
        self.known_root.pop(name, None)
        self.has_space.discard(name)

    def leased(self, node: "Node", policy: VerifiedPolicy, *, resumed: bool) -> None:
        """A node took a lease."""
        signed = self.lease_signed_ms.get(node.newest[1], 0)
        self.newest_lease_ms[node.name] = max(self.newest_lease_ms.get(node.name, 0), signed)
        sha256 = policy.base.sha256
        if sha256 in self.ended_by:
            self.saw["stolen quorum believed"] += 1
            if not resumed and self._over_since(node, sha256) is not None:
                self._fell(1, f"{node.name} takes a lease by keys that a root which it has seen replaced")

    def _signed(self, sha256: str) -> bool:
        return sha256 in self.legitimate or sha256 in self.ended_by

    def kept(self, node: "Node") -> None:
        """A node keeps a policy on its disk, for the next start."""
        self._never_back(node, "kept version", node.base[0], self.highest_kept)

    def _never_back(self, node: "Node", what: str, version: int, highest: dict[str, int]) -> None:
        if node.name not in self.world.restored:
            if version < highest.get(node.name, 0):
                self._fell(3, f"{node.name} went from {what} {highest[node.name]} to {version}")
            highest[node.name] = version
