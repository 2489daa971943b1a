"""When a node asks its witnesses again, and what it then says: renewed at a third of its life, tried again with pauses.

The edge asks (`sidecar.edge.attestation`); here is every choice that it makes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from trust import limits
from trust.attestation.measurement import Measurement, ReferenceValues
from trust.attestation.roster import Roster
from trust.attestation.statement import Enforced, Statement
from trust.backoff import Backoff
from trust.errors import Reason, StateError
from trust.spiffe import SpiffeId
from trust.verified import BASE_ROLE, VerifiedPolicy

RETRY: Final = Backoff(min_ms=200, max_ms=5_000)
_SPREAD: Final = 0.4  # of a third of the life: nodes that started together do not ask together for ever
_IDLE_MS: Final = 500  # without a roster: how often to look for one


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a witness asks: a nonce, and from which size of the ledger it wants to be shown the growth."""

    witness: str
    nonce: bytes
    size: int
    now_ms: int  # the witness's clock, Unix ms


class Schedule:
    """When the next round is due, on the monotonic clock."""

    def __init__(self, *, retry: Backoff = RETRY) -> None:
        """Be due at once."""
        self._retry = retry
        self._failures = 0
        self._due_ms = 0
        self._roster = ""
        self._references: ReferenceValues | None = None

    def wake_at_ms(
        self, roster: Roster | None, *, monotonic_ms: int, references: ReferenceValues | None = None
    ) -> int:
        """Return when to look again; at once when the roster has changed, or what it accepts of nodes.

        A policy that pins a node's TPM ends the credential that has no quote: the next one is asked for at once.
        """
        if roster is None:
            self._roster = ""
            return monotonic_ms + _IDLE_MS
        same = references is self._references or references == self._references
        if roster.digest != self._roster or not same:
            self._roster, self._due_ms, self._failures = roster.digest, monotonic_ms, 0
        self._references = references
        return self._due_ms

    def succeeded(self, roster: Roster, *, monotonic_ms: int, jitter: float) -> None:
        """A round gave a credential; `jitter` is a random number, 0.0 <= jitter < 1.0."""
        self._failures = 0
        third = roster.ttl_ms / 3
        self._due_ms = monotonic_ms + int(third * (1 - _SPREAD * jitter))

    def failed(self, roster: Roster, *, monotonic_ms: int, jitter: float) -> None:
        """A round did not; the pauses grow, and never beyond a third of the life."""
        self._failures += 1
        delay = min(self._retry.delay_ms(self._failures, jitter), roster.ttl_ms // 3)
        self._due_ms = monotonic_ms + delay

    @property
    def failures(self) -> int:
        """Rounds in a row that gave no credential."""
        return self._failures


def struck_out(roster: Roster) -> dict[str, str]:
    """Return why witnesses are not even asked: NAME -> reason, as a person reads it."""
    return dict.fromkeys(sorted(roster.struck), "its word does not count: it is revoked or quarantined")


def round_timeout_ms(roster: Roster) -> int:
    """Return how long to wait for one answer: an unreachable witness must not use up the life of a credential."""
    return min(int(limits.WITNESS_TIMEOUT_S * 1000), roster.ttl_ms // 4)


def check_reached(roster: Roster, challenges: Sequence[Challenge], why: Mapping[str, str]) -> None:
    """Refuse to go on with fewer witnesses than the quorum.

    Raises:
        StateError: NODE_NOT_ATTESTED, naming who did not answer and why.
    """
    if len(challenges) < roster.needed:
        raise StateError(
            Reason.NODE_NOT_ATTESTED,
            f"{len(challenges)} of {len(roster.counting)} witnesses answered, {roster.needed} are needed: {told(why)}",
        )


def check_vouched(roster: Roster, lines: int, why: Mapping[str, str]) -> None:
    """Refuse a round in which fewer witnesses than the quorum vouched.

    Raises:
        StateError: NODE_NOT_ATTESTED, naming who did not and why.
    """
    if lines < roster.needed:
        raise StateError(
            Reason.NODE_NOT_ATTESTED,
            f"{lines} of {len(roster.counting)} witnesses vouched, {roster.needed} are needed: {told(why)}",
        )


def check_clock(challenges: Sequence[Challenge], *, now_ms: int, needed: int = 0) -> None:
    """Refuse to sign while most witnesses say that it is another time: what is signed now must not be from ahead.

    A statement that no quorum can vouch for is not signed either. The times of statements never go back, so one
    from ahead that two nodes with wrong clocks made together would keep its node out until that time has come.

    Args:
        challenges: what the witnesses answered.
        now_ms: this node's clock, Unix ms.
        needed: how many witnesses make the quorum.

    Raises:
        StateError: CLOCK_WRONG.
    """
    off = sorted(now_ms - one.now_ms for one in challenges)
    if not off:
        return
    agree = sum(abs(one) <= limits.MAX_CLOCK_SKEW_MS + limits.NONCE_LIFETIME_MS for one in off)
    if agree < needed:
        raise StateError(
            Reason.CLOCK_WRONG,
            f"this node's clock agrees with those of {agree} of {len(off)} witnesses, {needed} are needed; "
            "synchronise all of them with NTP",
        )
    median = off[len(off) // 2]
    if abs(median) > limits.MAX_CLOCK_SKEW_MS:
        raise StateError(
            Reason.CLOCK_WRONG,
            f"this node's clock differs from its witnesses' by {median / 1000:.1f} s; synchronise it with NTP",
        )


def told(why: Mapping[str, str]) -> str:
    """Return who did not and why, in one line."""
    return "; ".join(f"{name}: {reason}" for name, reason in sorted(why.items())) or "no reason was given"


def statement_of(
    node: SpiffeId,
    public_key: bytes,
    challenges: Sequence[Challenge],
    policy: VerifiedPolicy,
    measurement: Measurement,
    *,
    boot: bytes,
    counter: int,
    issued_s: int,
    level: int,
    checkpoint: bytes,
) -> Statement:
    """Return what this node says of itself, for all witnesses that asked at once."""
    return Statement(
        node=node,
        public_key=public_key,
        issued_s=issued_s,
        nonces=tuple(sorted({one.nonce for one in challenges})),
        boot=boot,
        counter=counter,
        measurement=measurement,
        policy=Enforced(policy.base.version, bytes.fromhex(policy.base.sha256)),
        level=level,
        checkpoint=checkpoint,
        namespaces=tuple(
            (name, Enforced(target.version, bytes.fromhex(target.sha256)))
            for name, target in sorted(policy.namespaces.items())
        ),
    )


class Bundles:
    """Since when this node enforces what it enforces: what a witness compares others with."""

    def __init__(self) -> None:
        """Start without a policy."""
        self._since: dict[str, tuple[Enforced, int]] = {}

    def seen(self, policy: VerifiedPolicy, *, monotonic_ms: int) -> dict[str, tuple[Enforced, int]]:
        """Return every bundle in force by role, with the monotonic time at which this was first asked of it."""
        targets = {BASE_ROLE: policy.base, **policy.namespaces}
        now = {
            role: Enforced(target.version, bytes.fromhex(target.sha256)) for role, target in targets.items()
        }
        self._since = {
            role: known
            if (known := self._since.get(role)) is not None and known[0] == enforced
            else (enforced, monotonic_ms)
            for role, enforced in now.items()
        }
        return self._since
