"""Which records show an attack as such: rules that need no learning, but that of who calls from where.

Nobody is accused of what was done to him: a call to a revoked service is not its caller's doing, and a permit that was
forged is the doing of whoever presented it, whom his certificate names.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

from control_plane.core import reasons
from control_plane.core.findings import Decided, Evidence, Finding, window_of
from control_plane.core.profiles import Profiles
from control_plane.core.shares import Shares
from trust import limits
from trust.detection import DetectionSettings
from trust.errors import InputError, Reason
from trust.record import Side

MIN_PROBED: Final = 5  # methods that were refused
MIN_UNIDENTIFIED: Final = 5
MIN_REVOKED: Final = 3
MIN_WITHOUT_PERMIT: Final = 3  # a node that has not heard of a raised level yet makes one or two
MIN_UNATTESTED: Final = 5
_MAX_COUNTED: Final = 10_000  # (rule, subject) in one window
_PROOF_DIGITS: Final = 12
_MAX_EVIDENCE: Final = 8  # records of one finding


@dataclass(slots=True)
class _Count:
    """What one rule has seen of one subject in one window."""

    window_ms: int
    seen: set[str] = field(default_factory=set)
    calls: int = 0
    evidence: list[Evidence] = field(default_factory=list)
    told: bool = False
    by_node: dict[str, "_Count"] = field(default_factory=dict)  # what each node's records show alone

    def take(self, event: Decided) -> None:
        """Count one event."""
        self.calls += 1
        if len(self.seen) < limits.MAX_DISTINCT_IN_WINDOW:
            self.seen.add(f"{event.service} {event.method}")
        if len(self.evidence) < _MAX_EVIDENCE:
            self.evidence.append(event.evidence)

    def number(self, *, kinds: bool) -> int:
        """Return how many calls, or kinds of calls, it has."""
        return len(self.seen) if kinds else self.calls

    def of_node(self, node: str) -> "_Count | None":
        """Return the share of one node; None when there are too many to tell apart."""
        share = self.by_node.get(node)
        if share is None and len(self.by_node) < limits.MAX_INCIDENT_NODES:
            share = self.by_node[node] = _Count(self.window_ms)
        return share

    def to_json(self) -> list[Any]:
        """Return it as JSON values."""
        return [
            self.window_ms,
            self.calls,
            self.told,
            sorted(self.seen),
            [one.to_json() for one in self.evidence],
            [[node, *one.to_json()[:-1]] for node, one in self.by_node.items()],
        ]

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> Self:
        """Read what `to_json` wrote, or that without its last part. Raises ValueError or TypeError."""
        window_ms, calls, told, seen, evidence, *by_node = value
        return cls(
            int(window_ms),
            {str(one) for one in seen},
            int(calls),
            [Evidence.from_json(one) for one in evidence],
            bool(told),
            {str(node): cls.from_json(share) for each in by_node for node, *share in each},
        )


class Threats:
    """The threat rules. Holds counts of open windows; `profiles` says who called from where before."""

    def __init__(
        self,
        settings: DetectionSettings,
        profiles: Profiles,
        *,
        denied: Callable[[str], bool],
        trust_domain: str = "",
    ) -> None:
        """Judge by `settings`.

        Args:
            settings: of the policy in force.
            profiles: who calls from which nodes; learned here.
            denied: whether a member (SPIFFE ID) is revoked or quarantined now.
            trust_domain: of this mesh, to name nodes by.
        """
        self._trust_domain = trust_domain
        self._settings, self._profiles, self._denied = settings, profiles, denied
        self._counts: dict[tuple[str, str], _Count] = {}
        self._shares: Shares[tuple[str, str]] = Shares()

    def see(self, event: Decided, *, now_ms: int) -> Iterator[Finding]:
        """Yield what an event shows together with those before it in its window.

        Args:
            event: in about the order of time.
            now_ms: Unix ms; a record that claims to be from the future counts as of now.
        """
        if event.at_ms > now_ms:
            event = replace(event, at_ms=now_ms)
        refusal, caller = event.refusal, event.caller
        if not refusal:
            if event.side is Side.OUTBOUND and caller:
                yield from self._from_node(event, event.at_ms)
            return
        what = f"{event.method} on {event.service}"
        found: tuple[str, str, int, str] | None = None
        if refusal in reasons.UNIDENTIFIED:
            subject = f"callers without identity at {event.evidence.node}"
            found = "EGM-T005", subject, MIN_UNIDENTIFIED, f"last {refusal}, {what}"
        elif not caller:
            return
        elif refusal in reasons.REPLAYED:
            found = "EGM-T002", caller, 1, f"presented a spent permit for {what}"
        elif refusal in reasons.FORGED:
            found = "EGM-T004", caller, 1, f"{refusal}: presented it for {what}"
        elif refusal in reasons.WITHOUT_PERMIT:
            found = "EGM-T009", caller, MIN_WITHOUT_PERMIT, f"called {what} without a permit"
        elif refusal in reasons.UNATTESTED:
            subject = f"the node that calls for {caller}"
            found = "EGM-T010", subject, MIN_UNATTESTED, f"last {refusal}, {what}"
        elif refusal in reasons.REVOKED and self._denied(caller):
            found = "EGM-T006", caller, MIN_REVOKED, f"still calls {what}"
        elif refusal in reasons.FOR_THE_CALLER:
            found = "EGM-T003", caller, MIN_PROBED, f"was refused, last {what}"
        if found is not None:
            rule, subject, enough, text = found
            kinds = rule == "EGM-T003"
            yield from self._count(rule, subject, event, enough=enough, text=text, kinds=kinds)

    def foreign(self, event: Decided, *, now_ms: int) -> Iterator[Finding]:
        """Yield that a node recorded a call of or to somebody for whom it does not speak.

        It said so over its own certificate, so this is about the node; nothing is held against whom it names.
        """
        node = event.evidence.node
        subject, text = f"spiffe://{self._trust_domain}/node/{node}", f"{node} {event.foreign}"
        event = replace(event, at_ms=min(event.at_ms, now_ms))
        yield from self._count("EGM-T011", subject, event, enough=1, text=text)

    def tick(self, *, now_ms: int) -> None:
        """Forget the counts of windows that are over."""
        oldest = window_of(now_ms, self._settings.window_s) - self._settings.window_s * 1000
        for key in [key for key, one in self._counts.items() if one.window_ms < oldest]:
            del self._counts[key]
            self._shares.drop(key)

    def to_json(self) -> list[Any]:
        """Return the counts of open windows as JSON values."""
        return [[*key, self._shares.owner(key), *one.to_json()] for key, one in self._counts.items()]

    def restore(self, value: Any) -> None:
        """Take up what `to_json` wrote.

        Raises:
            InputError: INPUT_INVALID: another version wrote it, or it is damaged.
        """
        try:
            for rule, subject, node, *count in value:
                key = (str(rule), str(subject))
                self._counts[key] = _Count.from_json(count)
                self._shares.touch(key, str(node))
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(Reason.INPUT_INVALID, f"counts cannot be read: {error}") from None

    def _count(
        self, rule: str, subject: str, event: Decided, *, enough: int, text: str, kinds: bool = False
    ) -> Iterator[Finding]:
        """Count an event for a rule; yield a finding once per window, when it is enough.

        It is yielded again for each further node whose own records are enough: what one node makes up must not stand
        in the way of what others saw, nor count as more than that one node's word.

        Args:
            rule: its id.
            subject: whom it is about.
            event: that counts.
            enough: so many make a finding.
            text: about the event.
            kinds: kinds of calls are counted, not calls.
        """
        at_ms = event.at_ms
        window = window_of(at_ms, self._settings.window_s)
        key, node = (rule, subject), event.evidence.node
        count = self._counts.get(key)
        if count is None or count.window_ms < window:
            if count is None and len(self._counts) >= _MAX_COUNTED:
                del self._counts[self._shares.victim()]
            count = self._counts[key] = _Count(window)
        self._shares.touch(key, node)
        count.take(event)
        share = count.of_node(node)
        new = False  # whether this node's records have become enough by themselves
        if share is not None:
            share.take(event)
            new = not share.told and share.number(kinds=kinds) >= enough
            share.told = share.told or new
        first = not count.told and count.number(kinds=kinds) >= enough
        if not first and not (new and share is not None):
            return
        shown = count if first or share is None else share
        number = shown.number(kinds=kinds)
        times = f"{number} kinds of calls" if kinds else f"{number} times" if number > 1 else "once"
        full = f"{text} ({times} in {self._settings.window_s} s)"
        count.told = True
        yield Finding(
            rule,
            subject,
            count.window_ms,
            at_ms,
            full,
            tuple(shown.evidence),
            alone=(node,) if new else (),
            part="" if first else node,
        )

    def _from_node(self, event: Decided, at_ms: int) -> Iterator[Finding]:
        """Notice an identity that appears at a node where it never was, while it is in use elsewhere."""
        node = event.evidence.node
        caller = self._profiles.caller(event.caller, at_ms, node)
        known = caller.nodes
        if node not in known and known and at_ms - caller.first_ms >= self._settings.warmup_s * 1000:
            usual, last_ms = max(known.items(), key=lambda item: item[1])
            if abs(at_ms - last_ms) <= 2 * self._settings.window_s * 1000:
                window = window_of(at_ms, self._settings.window_s)
                text = f"calls from {node}, where it never was, while {usual} calls for it, too"
                yield Finding("EGM-T001", event.caller, window, at_ms, text, (event.evidence,), alone=(node,))
        caller.note_node(node, at_ms)


def proven(proof_id: str, node: str, why: str, *, at_ms: int) -> Finding:
    """Return the finding of a misbehaviour proof that was accepted; `node` is a SPIFFE ID or empty.

    What stands for its window follows from the proof, so that it is found once, whoever accepts it and when.
    """
    evidence = Evidence(node.rpartition("/")[2], note=f"misbehaviour proof {proof_id}")
    window = int(proof_id[:_PROOF_DIGITS], 16)
    return Finding("EGM-T007", node or f"proof {proof_id[:16]}", window, at_ms, why, (evidence,))


def tampered(node: str, alarm: str, *, window_s: int, at_ms: int) -> Finding | None:
    """Return the finding of a node's alarm; None when it speaks of something else than policy that does not verify."""
    if "policy" not in alarm or not any(reason in alarm for reason in reasons.TAMPERED):
        return None
    evidence = Evidence(node, note="alarm of the node (egm node show)")
    text = alarm[: limits.MAX_INCIDENT_TEXT_CHARS]
    return Finding("EGM-T008", f"policy at {node}", window_of(at_ms, window_s), at_ms, text, (evidence,))
