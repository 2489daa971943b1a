"""What is denied now, by whom and until when: emergency directives, the quorum's revocations, quarantined nodes.

Everything here only denies, or restricts: asks more of the calls of a workload than policy does (`Subject.restricts`).
A directive counts while the policy in force knows its key; it ends by itself, or when the quorum ends it
(`ended_revocations`) or makes it permanent (`revocations`). A quarantine ends when the quorum settles its proofs
(`released_proofs`).
"""

import enum
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from trust import limits
from trust.attestation.roster import Roster
from trust.attestation.struck import struck
from trust.errors import CapacityError, EvidenceError, Reason
from trust.mesh import MeshSettings, PermanentRevocation
from trust.revocation import Kind, SignedDirective, Subject, open_directive
from trust.spiffe import SpiffeId

_FOREVER_MS: Final = 2**62
_PER_KEY: Final = limits.MAX_REVOCATIONS_PER_KEY


@enum.unique
class By(enum.StrEnum):
    """Who denies."""

    EMERGENCY = "emergency"
    QUORUM = "quorum"
    PROOF = "proof"


@dataclass(frozen=True, slots=True)
class Denial:
    """One thing that is denied. `until_ms` is Unix ms, None without an end; `id` names directive or proof."""

    subject: Subject
    by: By
    reason: Reason
    why: str  # safe to show a caller
    id: str = ""
    key_name: str = ""
    until_ms: int | None = None
    since_ms: int = 0  # when it took effect here, Unix ms


@dataclass(frozen=True, slots=True)
class Rules:
    """What the signed policy in force says about denying."""

    trust_domain: str
    keys: Mapping[str, bytes] = field(default_factory=dict)
    max_ttl_s: int = 0
    permanent: tuple[PermanentRevocation, ...] = ()
    ended: frozenset[str] = frozenset()
    released: frozenset[str] = frozenset()

    @classmethod
    def of(cls, mesh: MeshSettings) -> Self:
        """Return the rules of a mesh.json."""
        return cls(
            mesh.trust_domain,
            {name: bytes.fromhex(public) for name, public in mesh.emergency_keys.items()},
            mesh.revocation_max_ttl_s,
            mesh.revocations,
            frozenset(mesh.ended_revocations),
            frozenset(mesh.released_proofs),
        )


@dataclass(frozen=True, slots=True)
class Changed:
    """Something is denied, or no longer: decide every open stream again. Comes before all others."""

    gained: tuple[Denial, ...]
    lost: tuple[Denial, ...]


@dataclass(frozen=True, slots=True)
class Persist:
    """Write these durably; they are already in effect, and told: who hears of them verifies them alone."""

    directives: tuple[bytes, ...]
    proofs: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Spread:
    """Tell others: this is new here."""

    directive: bytes = b""
    proof: bytes = b""


Effect = Changed | Persist | Spread


@dataclass(frozen=True, slots=True)
class Proven:
    """A verified misbehaviour proof: `node` is the accused's SPIFFE ID, empty when no node can be quarantined."""

    id: str
    node: str
    why: str
    data: bytes

    @classmethod
    def read(cls, data: bytes, node: str, why: str) -> Self:
        """Return a proof that was verified before it was written down, whose digest names it.

        Raises:
            EvidenceError: IDENTITY_INVALID, if `node` is neither empty nor a SPIFFE ID.
        """
        if node:
            SpiffeId.parse(node)
        return cls(hashlib.sha256(data).hexdigest(), node, why, data)


@dataclass(frozen=True, slots=True)
class _Held:
    signed: SignedDirective
    ends_mono_ms: int
    since_ms: int

    @property
    def until_s(self) -> int:
        return self.signed.directive.until_s


class Denials:
    """The denials in effect on one member. Not thread-safe: owned by the event loop."""

    def __init__(self, trust_domain: str) -> None:
        """Deny nothing; nothing can be verified before `govern`."""
        self._rules = Rules(trust_domain)
        self._waiting: tuple[bytes, ...] = ()  # from disk, until there is a policy to verify them by
        self._held: dict[tuple[str, Subject], _Held] = {}  # (key name, subject): the one that lasts longest
        self._proofs: dict[str, tuple[Proven, int]] = {}
        self._active: dict[tuple[Kind, str], Denial] = {}
        self._denying = False  # whether any of them denies, and does not only restrict
        self._restrictions: dict[str, tuple[tuple[str, str], ...]] = {}  # SPIFFE ID -> obligations
        self._next_end_mono_ms = _FOREVER_MS
        self.revision = 0  # goes up with every change of what is held

    # what others ask

    @property
    def any(self) -> bool:
        """Whether anything is denied at all."""
        return self._denying

    @property
    def active(self) -> tuple[Denial, ...]:
        """Everything that is denied or restricted now, in a stable order."""
        return tuple(self._active[key] for key in sorted(self._active))

    @property
    def directives(self) -> Mapping[str, bytes]:
        """The signed directives in effect, by id."""
        return {held.signed.directive.id: held.signed.data for held in self._held.values()}

    @property
    def proofs(self) -> Mapping[str, bytes]:
        """The proofs that were accepted here and are not settled, by id."""
        return {proof_id: proven.data for proof_id, (proven, _) in self._proofs.items()}

    @property
    def proven(self) -> tuple[Proven, ...]:
        """The proofs that are not settled."""
        return tuple(proven for proven, _ in self._proofs.values())

    @property
    def proven_since(self) -> tuple[tuple[Proven, int], ...]:
        """The same, each with when it was accepted here, Unix ms."""
        return tuple(self._proofs.values())

    def restrictions(self, principal: str, now_ms: int) -> tuple[tuple[str, str], ...]:
        """Return what calls by `principal` (SPIFFE ID) must meet beyond what policy asks: obligations, ascending.

        For example (("rate", "10/m"), ("require_approval", "1 of ops")). Called for every call.

        Args:
            principal: who calls.
            now_ms: when, Unix ms. It ends nothing: a directive ends by the monotonic clock (`tick`), so that a wall
                clock that is set forward frees nobody.
        """
        return self._restrictions.get(principal, ())

    def of_node(self, spiffe_id: str) -> Denial | None:
        """Return why a node (SPIFFE ID) is denied; None when it is not."""
        return self._active.get((Kind.NODE, spiffe_id))

    def struck(self, roster: Roster) -> frozenset[str]:
        """Return the witnesses of a roster whose word does not count: their node or their key is denied."""
        return (
            struck(roster, {one.subject for one in self._active.values()}) if self._denying else frozenset()
        )

    def check(
        self, *, workloads: Iterable[str], nodes: Iterable[str], keys: Iterable[bytes], method: str
    ) -> Denial | None:
        """Return the denial that one call falls under; None when there is none. Called for every call.

        Args:
            workloads: SPIFFE IDs of its caller and of who serves it.
            nodes: SPIFFE IDs of the node that decides and, if known, of the one that vouches for the caller.
            keys: SHA-256 of the public keys that vouch for the caller.
            method: "package.Service/Method".
        """
        active = self._active
        if not self._denying:
            return None
        for one in workloads:
            if found := active.get((Kind.WORKLOAD, one)):
                return found
        for one in nodes:
            if found := active.get((Kind.NODE, one)):
                return found
        for key in keys:
            if found := active.get((Kind.KEY, key.hex())):
                return found
        service = method.partition("/")[0]
        return active.get((Kind.METHOD, method)) or active.get((Kind.METHOD, f"{service}/*"))

    # events

    def restore(self, directives: Sequence[bytes]) -> None:
        """Take up what an earlier run persisted; it is verified, and in effect, with the first `govern`."""
        self._waiting = tuple(directives)

    def govern(self, rules: Rules, *, now_ms: int, monotonic_ms: int) -> list[Effect]:
        """Apply a policy that comes into force, in the same step: it may end denials, and make some permanent.

        Args:
            rules: of the policy.
            now_ms: Unix ms, never behind signed time (`BundleState.trusted_now_ms`).
            monotonic_ms: for what lasts.
        """
        before: list[tuple[bytes, _Held | None]] = [(one.signed.data, one) for one in self._held.values()]
        before += [(data, None) for data in self._waiting]
        self._rules, self._held, self._waiting = rules, {}, ()
        for data, held in before:
            try:
                self._hold(data, now_ms, monotonic_ms, held)
            except (EvidenceError, CapacityError):
                continue  # the quorum has withdrawn its key or ended it, or its time is over
        proofs = len(self._proofs)
        effects = self._rebuilt()
        gone = len(before) - len(self._held) + proofs - len(self._proofs)
        return [*effects, self._persist()] if gone else effects

    def offer(self, data: bytes, *, now_ms: int, monotonic_ms: int) -> list[Effect]:
        """Deny what a directive says, at once; no effects when it is known already.

        Raises:
            EvidenceError: REVOCATION_INVALID: not signed by an emergency key in force, or over.
            CapacityError: LIMIT_EXCEEDED: its key has signed too many.
        """
        if not self._hold(data, now_ms, monotonic_ms):
            return []
        return [*self._rebuilt(), Spread(directive=data), self._persist()]

    def accuse(self, proven: Proven, *, now_ms: int, persist: bool = True) -> list[Effect]:
        """Quarantine the node that a verified proof accuses; no effects when that changes nothing.

        Args:
            proven: what was verified.
            now_ms: Unix ms.
            persist: False while reading what an earlier run persisted.

        Raises:
            CapacityError: LIMIT_EXCEEDED: there is no room for more proofs.
        """
        if proven.id in self._proofs or proven.id in self._rules.released:
            return []
        if sum(one.node == proven.node for one, _ in self._proofs.values()) >= limits.MAX_PROOFS_PER_NODE:
            return []  # it is quarantined already, with proofs enough
        if len(self._proofs) >= limits.MAX_PROOFS:
            raise CapacityError(
                Reason.LIMIT_EXCEEDED, f"{limits.MAX_PROOFS} misbehaviour proofs are held already"
            )
        self._proofs[proven.id] = (proven, now_ms)
        effects = self._rebuilt()
        return [*effects, Spread(proof=proven.data), self._persist()] if persist else effects

    def tick(self, *, monotonic_ms: int) -> list[Effect]:
        """Let directives end whose time is over, by the monotonic clock. Cheap: call it often."""
        if monotonic_ms < self._next_end_mono_ms:
            return []
        self._held = {key: held for key, held in self._held.items() if monotonic_ms < held.ends_mono_ms}
        return [*self._rebuilt(), self._persist()]

    # inside

    def _hold(self, data: bytes, now_ms: int, monotonic_ms: int, known: _Held | None = None) -> bool:
        """Take one directive; False when an equal or longer one of its key is held."""
        rules = self._rules
        signed = open_directive(data, rules.keys, trust_domain=rules.trust_domain, max_ttl_s=rules.max_ttl_s)
        directive = signed.directive
        if directive.id in rules.ended:
            raise _refused("the quorum has ended it (ended_revocations)")
        # A directive from the future is believed (it denies), but not for longer than any may last.
        left_ms = min(directive.until_s * 1000 - now_ms, rules.max_ttl_s * 1000)
        ends_mono_ms = monotonic_ms + left_ms
        if (
            known is not None
        ):  # what was set by the monotonic clock is not set again by a wall clock that moved
            ends_mono_ms = known.ends_mono_ms
        if ends_mono_ms <= monotonic_ms:
            raise _refused(f"it ended {(monotonic_ms - ends_mono_ms) // 1000} s ago")
        key = (signed.key_name, directive.subject)
        held = self._held.get(key)
        if held is not None and held.until_s >= directive.until_s:
            return False
        if held is None and sum(name == signed.key_name for name, _ in self._held) >= _PER_KEY:
            raise CapacityError(
                Reason.LIMIT_EXCEEDED,
                f"emergency key {signed.key_name} has {_PER_KEY} revocations in effect; have the quorum make them "
                "permanent (revocations in bundle.yaml)",
            )
        since_ms = now_ms if known is None else known.since_ms
        self._held[key] = _Held(signed, ends_mono_ms, since_ms if held is None else held.since_ms)
        return True

    def _persist(self) -> Persist:
        directives = tuple(sorted(held.signed.data for held in self._held.values()))
        return Persist(directives, tuple(proven.data for proven, _ in self._proofs.values()))

    def _rebuilt(self) -> list[Effect]:
        """Make the index anew; return what changed."""
        self.revision += 1
        before, self._active = self._active, {}
        released = self._rules.released
        self._proofs = {name: one for name, one in self._proofs.items() if name not in released}
        for permanent in self._rules.permanent:
            verb = "restricted" if permanent.subject.restricts else "revoked"
            why = f"the approvers' quorum has {verb} {permanent.subject}: {permanent.reason}"
            self._deny(Denial(permanent.subject, By.QUORUM, Reason.REVOKED, why))
        for proven, since_ms in self._proofs.values():
            if proven.node:
                subject = Subject(Kind.NODE, SpiffeId.parse(proven.node).name)
                why = f"{subject} is quarantined: {proven.why}"
                self._deny(
                    Denial(subject, By.PROOF, Reason.NODE_QUARANTINED, why, proven.id, since_ms=since_ms)
                )
        for (name, subject), held in self._held.items():
            directive = held.signed.directive
            verb = "in effect" if subject.restricts else "revoked"
            why = f"{subject} is {verb}: {directive.reason}"
            self._deny(
                Denial(
                    subject,
                    By.EMERGENCY,
                    Reason.REVOKED,
                    why,
                    directive.id,
                    name,
                    directive.until_s * 1000,
                    held.since_ms,
                )
            )
        self._next_end_mono_ms = min((one.ends_mono_ms for one in self._held.values()), default=_FOREVER_MS)
        restricted: dict[str, set[tuple[str, str]]] = {}
        for one in self._active.values():
            if one.subject.restricts:
                principal = one.subject.spiffe_id(self._rules.trust_domain)
                restricted.setdefault(principal, set()).add(one.subject.obligation)
        self._restrictions = {principal: tuple(sorted(asked)) for principal, asked in restricted.items()}
        self._denying = any(not one.subject.restricts for one in self._active.values())
        gained = tuple(self._active[key] for key in self._active.keys() - before.keys())
        lost = tuple(before[key] for key in before.keys() - self._active.keys())
        return [Changed(gained, lost)] if gained or lost else []

    def _deny(self, denial: Denial) -> None:
        """Put one denial into the index; of several about one subject the first is shown."""
        subject = denial.subject
        value = subject.value
        if subject.kind in {Kind.WORKLOAD, Kind.NODE}:
            value = subject.spiffe_id(self._rules.trust_domain)
        self._active.setdefault((subject.kind, value), denial)


def _refused(what: str) -> EvidenceError:
    return EvidenceError(Reason.REVOCATION_INVALID, f"revocation not in effect: {what}")
