"""Brings denials into effect on one member, writes them down, and tells who asked to be told. One event loop.

    FILE    {"format":1,"directives":[NOTE,...],"proofs":[{"data":PROOF,"node":ID,"why":TEXT},...]}

What is in the file was verified before it was written; directives are verified again under each policy.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from trust import limits
from trust.denials import Changed, Denial, Denials, Effect, Persist, Proven, Rules, Spread
from trust.edge.files import read_at_most, write_atomic
from trust.errors import EvidenceError, InputError, MeshError, Reason
from trust.gossip import Inventory
from trust.mesh import MeshSettings
from trust.misbehaviour import Anchors, Finding, verify_proof
from trust.revocation import Kind, read_directive

logger = logging.getLogger(__name__)

_FORMAT: Final = 1
_REFUSED_MS: Final = 30_000
_RETRY_MS: Final = 5_000  # after a write that failed
_DAMAGED: Final = (
    "is damaged, so it is not known what was revoked; restore it, or delete it if you are sure that nothing is "
    "revoked that the signed policy does not revoke"
)


class DenialKeeper:
    """The denials of one member with their file."""

    def __init__(
        self,
        path: Path,
        trust_domain: str,
        *,
        now_ms: Callable[[], int],
        monotonic_ms: Callable[[], int],
        anchors: Callable[[], Anchors],
        changed: Callable[[Changed], None] = lambda _changed: None,
        alarm: Callable[[str, str], None] = lambda _kind, _text: None,
        clear: Callable[[str], None] = lambda _kind: None,
        beside: bool = False,
    ) -> None:
        """Read what an earlier run wrote; it is in effect with the first `govern`.

        Args:
            path: the file.
            trust_domain: of the mesh.
            now_ms: wall time, never behind what signed statements prove (Unix ms).
            monotonic_ms: for what lasts.
            anchors: what proofs are verified by, now.
            changed: decides open streams again; called before anything is written.
            alarm: told what a person should see: kind and text.
            clear: told the kind of an alarm whose cause is gone.
            beside: write what a peer brought in a thread, once the loop has told others; it is in effect at once, and
                who brought it has it, too. What a person hands in is durable before they hear of it all the same.

        Raises:
            InputError: CONFIG_INVALID, if the file cannot be read: it is not known what was revoked.
        """
        self.denials = Denials(trust_domain)
        self._path, self._now_ms, self._monotonic_ms = path, now_ms, monotonic_ms
        self._anchors, self._changed, self._alarm, self._clear = anchors, changed, alarm, clear
        self._listeners: list[Callable[[Spread], None]] = []
        self._beside, self._taking = beside, False
        self._lock = threading.Lock()  # one write at a time
        self._handing = threading.Lock()  # around `_later` alone, never while the disk is waited for
        self._later: bytes | None = None  # what a thread is about to write
        self._writes = self._told = 0  # how many there were, and the last whose outcome is known here
        self._again_ms: int | None = None  # when a disk that failed is asked again
        self._refused: dict[
            bytes, int
        ] = {}  # digests of what did not verify: until when it is not looked at again
        self._emergency_keys: tuple[str, ...] = ()
        self._listed = -1
        self._directives: Mapping[str, bytes] = {}
        self._proofs: Mapping[str, bytes] = {}
        self._restore()  # nothing is decided yet that would have to be decided again

    # what others ask

    @property
    def emergency_keys(self) -> tuple[str, ...]:
        """Names of the keys whose directives count, by the policy in force."""
        return self._emergency_keys

    def inventory(self, timestamp_version: int = 0, timestamp_json: bytes = b"") -> Inventory:
        """Return what is held, for gossip."""
        denials = self.denials
        if self._listed != denials.revision:
            self._listed = denials.revision
            self._directives, self._proofs = denials.directives, denials.proofs
        return Inventory(timestamp_version, timestamp_json, self._directives, self._proofs)

    def denied_nodes(self) -> frozenset[str]:
        """Return the names of nodes that are revoked or quarantined."""
        return frozenset(one.subject.value for one in self.denials.active if one.subject.kind is Kind.NODE)

    def subscribe(self, listener: Callable[[Spread], None]) -> None:
        """Have `listener` called with every directive and proof that is new here."""
        self._listeners.append(listener)

    # events

    def govern(self, mesh: MeshSettings) -> None:
        """Apply the policy that comes into force. Call it in the same step, before any call is decided under it."""
        rules = Rules.of(mesh)
        self._refused.clear()
        self._emergency_keys = tuple(sorted(rules.keys))
        self._run(self.denials.govern(rules, now_ms=self._now_ms(), monotonic_ms=self._monotonic_ms()))

    def revoke(self, data: bytes) -> tuple[str, bool]:
        """Deny what a directive says; return its id, and whether it was news. It is durable on return.

        Raises:
            EvidenceError: REVOCATION_INVALID.
            CapacityError: LIMIT_EXCEEDED.
        """
        effects = self.denials.offer(data, now_ms=self._now_ms(), monotonic_ms=self._monotonic_ms())
        directive = read_directive(data)
        self._run(effects)
        if effects:
            logger.warning("revoked %s until %d: %s", directive.subject, directive.until_s, directive.reason)
        return directive.id, bool(effects)

    def accuse(self, data: bytes) -> tuple[Finding, bool]:
        """Verify a misbehaviour proof and quarantine whom it convicts; return what it shows, and whether it was news.

        Raises:
            EvidenceError: MISBEHAVIOUR_UNPROVEN.
            CapacityError: LIMIT_EXCEEDED.
        """
        finding = verify_proof(data, self._anchors())
        effects = self.denials.accuse(
            Proven(finding.id, finding.node, finding.summary, data), now_ms=self._now_ms()
        )
        self._run(effects)
        if effects:
            logger.error("misbehaviour proven: %s (proof %s)", finding.summary, finding.id)
            self._alarm(f"misbehaviour.{finding.id[:16]}", f"misbehaviour proven: {finding.summary}")
        return finding, bool(effects)

    def take(self, directives: Sequence[bytes], proofs: Sequence[bytes]) -> bool:
        """Take what a peer sent; what does not verify here is passed over. Return whether anything was news."""
        self._taking = self._beside
        try:
            return self._take(directives, proofs)
        finally:
            self._taking = False

    def _take(self, directives: Sequence[bytes], proofs: Sequence[bytes]) -> bool:
        """Look at each item that is new. A peer that sends what does not verify costs this member little each time."""
        if not directives and not proofs:
            return False
        held, now_ms = self.denials, self._monotonic_ms()
        known = {*held.directives.values(), *held.proofs.values()}
        news, refused = False, 0
        for index, data in enumerate((*directives, *proofs)):
            digest = hashlib.sha256(data).digest()
            if data in known or self._refused.get(digest, now_ms) > now_ms:
                continue
            if refused >= limits.MAX_GOSSIP_REFUSED:
                logger.debug("the rest of a message is passed over: %d of its items do not verify", refused)
                break
            try:
                news |= (self.revoke if index < len(directives) else self.accuse)(data)[1]
            except MeshError as error:
                logger.debug("passed over, of a peer: %s", error)
                refused += 1
                if isinstance(error, EvidenceError):  # another policy, or other certificates, may accept it
                    _make_room(self._refused)
                    self._refused[digest] = now_ms + _REFUSED_MS
        return news

    def tick(self) -> None:
        """Let what is over end, and write what a failing disk did not take. Cheap: call it several times a second."""
        now_ms = self._monotonic_ms()
        effects = self.denials.tick(monotonic_ms=now_ms)
        if effects:
            self._run(effects)
        if self._again_ms is not None and now_ms >= self._again_ms:
            # A restart would forget what was revoked, long after the disk has room again.
            self._again_ms, self._taking = None, self._beside
            held = self.denials
            try:
                self._persist(Persist(tuple(sorted(held.directives.values())), tuple(held.proofs.values())))
            finally:
                self._taking = False

    # inside

    def _run(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        if isinstance(effect, Changed):
            self._changed(effect)
            for gained in effect.gained:
                logger.info("denied: %s", gained.why)
            for lost in effect.lost:
                logger.info("no longer denied: %s", lost.subject)
        elif isinstance(effect, Persist):
            self._persist(effect)
        else:
            for listener in self._listeners:
                listener(effect)

    def _persist(self, effect: Persist) -> None:
        """Write in the loop on purpose: milliseconds, and who handed a directive in hears that it is durable."""
        known = {proven.data: proven for proven in self.denials.proven}
        record = {
            "format": _FORMAT,
            "directives": [data.decode() for data in effect.directives],
            "proofs": [
                {"data": data.decode(), "node": known[data].node, "why": known[data].why}
                for data in effect.proofs
            ],
        }
        data = json.dumps(record).encode()
        if self._taking:
            self._write_beside(data)
            return
        with self._lock:
            self._take_up()
            number, error = self._write(data)
        self._written(number, error)

    def _write_beside(self, data: bytes) -> None:
        """Have a thread write; of several contents only the newest is written."""
        with self._handing:
            waiting, self._later = self._later is not None, data
        if waiting:
            return
        loop = asyncio.get_running_loop()

        def work() -> None:
            with self._lock:
                newest = self._take_up()
                if newest is None:
                    return  # the loop has written something newer
                number, error = self._write(newest)
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(self._written, number, error)

        loop.run_in_executor(None, work)

    def _take_up(self) -> bytes | None:
        """Return what waits to be written, and let nothing wait."""
        with self._handing:
            newest, self._later = self._later, None
        return newest

    def _write(self, data: bytes) -> tuple[int, OSError | None]:
        """Write, one at a time; return which write this was, and why it failed."""
        self._writes += 1
        try:
            write_atomic(self._path, data, mode=0o600)
        except OSError as error:
            return self._writes, error
        return self._writes, None

    def _written(self, number: int, error: OSError | None) -> None:
        if number < self._told:
            return  # a later write has been told of: its alarm stands
        self._told = number
        if error is None:
            self._again_ms = None
            self._clear("denials")
            return
        self._again_ms = self._monotonic_ms() + _RETRY_MS
        # In effect without a record is safer than not in effect.
        text = f"revocations are in effect but cannot be written to {self._path}: {error.strerror or error}"
        self._alarm("denials", text)

    def _restore(self) -> None:
        try:
            data = read_at_most(self._path, limits.MAX_DENIALS_BYTES)
        except FileNotFoundError:
            return
        except OSError as error:
            raise InputError(Reason.CONFIG_INVALID, f"{self._path}: {error.strerror or error}") from None
        try:
            record = json.loads(data)
            if record["format"] != _FORMAT:
                raise ValueError("another format")
            self.denials.restore([text.encode() for text in record["directives"]])
            for one in record["proofs"]:
                raw = one["data"].encode()
                proven = Proven.read(raw, one["node"], one["why"])
                self.denials.accuse(proven, now_ms=self._now_ms(), persist=False)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, MeshError):
            raise InputError(Reason.CONFIG_INVALID, f"{self._path} {_DAMAGED}") from None


def _make_room(refused: dict[bytes, int]) -> None:
    """Let the oldest leave a dict that is full."""
    if len(refused) >= limits.MAX_REFUSED_ITEMS:
        del refused[next(iter(refused))]


def shown(denial: Denial) -> dict[str, object]:
    """Return a denial as `egm.v1.DenialEntry` has it."""
    return {
        "kind": denial.subject.kind.value,
        "value": denial.subject.value,
        "by": denial.by.value,
        "reason": denial.reason.value,
        "why": denial.why,
        "id": denial.id,
        "key_name": denial.key_name,
        "until_ms": denial.until_ms or 0,
        "since_ms": denial.since_ms,
    }
