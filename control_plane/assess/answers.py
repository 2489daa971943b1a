"""What the answer to an attempt means: whether a control held, failed, or cannot be told. Pure, so that it is tested.

An attempt that should have been refused holds only when it was refused for the right reason by something that is
alive: a closed port refuses everything and proves nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from control_plane.assess.model import Basis, Check, Outcome

UNREACHED: Final = "UNREACHED"  # no answer from anything: connection refused, timed out, handshake failed
# Policy looked at the call and said no. A policy that failed to evaluate (POLICY_ERROR) has not: it is no restriction.
POLICY_REFUSALS: Final = frozenset({"NO_POLICY_PERMITS", "POLICY_DENIED"})
DENIALS: Final = frozenset({"REVOKED", "NODE_QUARANTINED"})  # of a caller that a response has hit: not policy
CALLER_REFUSALS: Final = frozenset(
    {"CALLER_UNIDENTIFIED", "CALLER_AMBIGUOUS", "CALLER_CERTIFICATE_EXPIRED", "CALLER_TOKEN_INVALID"}
)
ATTESTATION_REFUSALS: Final = frozenset(
    {"ATTESTATION_MISSING", "ATTESTATION_UNKNOWN", "ATTESTATION_INVALID", "ATTESTATION_EXPIRED"}
)
OWN_CREDENTIALS: Final = frozenset(
    {"UNAUTHENTICATED", "PERMISSION_DENIED"}
)  # codes, where the mesh says nothing
_OVER: Final = frozenset({"SEALED", "EXPIRED", "NONE"})
STALE_REFUSALS: Final = frozenset({"POLICY_STALE", "POLICY_EXPIRED"})

# What each attempt with a permit must be answered with.
PERMIT_ATTEMPTS: Final[Mapping[str, frozenset[str]]] = {
    "permit-missing-refused": frozenset({"PERMIT_MISSING"}),
    "permit-forged-refused": frozenset({"PERMIT_INVALID"}),
    "permit-replayed-refused": frozenset({"PERMIT_REPLAYED"}),
    "permit-misdirected-refused": frozenset({"PERMIT_MISMATCH"}),
    "permit-stolen-refused": frozenset({"PERMIT_MISMATCH"}),
    "permit-expired-refused": frozenset({"PERMIT_EXPIRED"}),
    "unattested-refused": ATTESTATION_REFUSALS,
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What answered one call.

    Args:
        code: gRPC status name; `UNREACHED` when nothing answered.
        reason: of the mesh (docs/reasons.md); "" when it names none.
        detail: as told.
        replied: the sidecar answered the reserved method, so the call was let through.
        decision_id: of the refusal.
        policy_version: under which it was decided; "" unknown.
        level: in force there; "" unknown.
    """

    code: str
    reason: str = ""
    detail: str = ""
    replied: bool = False
    decision_id: str = ""
    policy_version: str = ""
    level: str = ""

    @property
    def alive(self) -> bool:
        """Whether a sidecar answered, in whatever way."""
        return self.replied or bool(self.reason)

    @property
    def decided(self) -> bool:
        """Whether policy decided the call, either way: a node that refuses everything for another reason did not."""
        return self.replied or self.reason in POLICY_REFUSALS

    def __str__(self) -> str:
        """In words."""
        if self.replied:
            return "the call was let through"
        return f"{self.reason or self.code}" + (
            f": {self.detail[:160]}" if self.detail and not self.reason else ""
        )

    def evidence(self, prefix: str = "") -> dict[str, str]:
        """Return what can be looked up."""
        found = {
            "reason": self.reason or self.code,
            "decision": self.decision_id,
            "policy_version": self.policy_version,
            "level": self.level,
        }
        return {f"{prefix}{name}": value for name, value in found.items() if value}


def _check(  # noqa: PLR0917 (in the order of a sentence)
    name: str, service: str, outcome: Outcome, tried: str, answered: str, evidence: Mapping[str, str]
) -> Check:
    return Check(name, service, outcome, Basis.PROBED, tried, answered, evidence)


def refused_as(
    name: str,
    service: str,
    tried: str,
    answer: Answer,
    right: frozenset[str],
    *,
    other_is_failure: bool = False,
) -> Check:
    """Judge an attempt that must be refused for one of the reasons `right`.

    `other_is_failure`: another refusal of the mesh shows that the control in question was not even consulted.
    """
    evidence = answer.evidence()
    if answer.reason in right:
        return _check(name, service, Outcome.HELD, tried, f"refused: {answer}", evidence)
    if answer.replied:
        return _check(name, service, Outcome.FAILED, tried, f"{tried}: it was let through", evidence)
    if answer.alive and other_is_failure:
        why = f"{tried}: refused with {answer.reason} instead of {' or '.join(sorted(right))}"
        return _check(name, service, Outcome.FAILED, tried, why, evidence)
    return _check(
        name, service, Outcome.UNKNOWN, tried, f"{tried}: the answer tells nothing ({answer})", evidence
    )


def stranger(service: str, answer: Answer) -> Check:
    """A caller that no policy names must be refused before anything executes; at level 5 already for its permit."""
    tried = "called as a workload that no policy names"
    return refused_as("stranger-refused", service, tried, answer, POLICY_REFUSALS | {"PERMIT_MISSING"})


def stranger_with_permit(service: str, answer: Answer) -> Check | None:
    """Where permits are asked for, a stranger whose permit is genuine must be refused by policy all the same.

    Without this a mesh whose policy permits everything to everybody would pass for one that authorises: its callees
    refuse a stranger only for the permit that is missing. None: the answer is not policy's, so it adds nothing.
    """
    tried = "called with a genuine permit, as a workload that no policy names"
    if answer.replied or answer.reason in POLICY_REFUSALS:
        return refused_as("stranger-refused", service, tried, answer, POLICY_REFUSALS)
    return None


def refuses_strangers(answer: Answer) -> bool:
    """Whether a stranger's call of the reserved method was refused before anything could execute."""
    return answer.reason in POLICY_REFUSALS | {"PERMIT_MISSING"}


def decoyed(service: str, caller: str, control: Answer, attempts: Sequence[tuple[str, Answer]]) -> Check:
    """Calls that nothing tells from ordinary ones must be refused like those of the reserved method.

    Args:
        service: called.
        caller: whose name says nothing of an assessment.
        control: what a stranger's call of the reserved method was answered with.
        attempts: methods that look like any other, and the answers.
    """
    name, tried = (
        "decoy-refused",
        "called as somebody, and methods, that look like any other and no policy names",
    )
    evidence = {"caller": caller, **{method: str(answer)[:160] for method, answer in attempts}}
    if control.replied:
        return _check(name, service, Outcome.FAILED, tried, "strangers are let through as it is", evidence)
    if not attempts:
        why = f"not tried: needs a probe node, and a stranger that is refused first ({control})"
        return _check(name, service, Outcome.UNKNOWN, tried, why, evidence)
    for method, answer in attempts:
        if answer.reason in POLICY_REFUSALS or (answer.reason == "PERMIT_MISSING" == control.reason):
            continue
        if answer.alive or answer.code == UNREACHED:
            why = f"{method}: the answer tells nothing ({answer})"
            return _check(name, service, Outcome.UNKNOWN, tried, why, evidence)
        why = f"{method} came through to the service ({answer}), though the reserved method was refused"
        return _check(name, service, Outcome.FAILED, tried, why, evidence)
    return _check(name, service, Outcome.HELD, tried, f"refused: {attempts[0][1].reason}", evidence)


def with_permit(name: str, service: str, tried: str, answer: Answer) -> Check:
    """Judge an attempt with a permit that is not good; a refusal by policy shows that the permit was not looked at."""
    return refused_as(name, service, tried, answer, PERMIT_ATTEMPTS[name], other_is_failure=True)


def genuine_permit(service: str, answer: Answer, digest: str) -> Check:
    """A permit of an attested node must pass, so that refusing all others means something."""
    name, tried = "permit-genuine-recognised", "called with the permit of an attested probe node"
    evidence = {**answer.evidence(), "permit_sha256": digest}
    if answer.reason in POLICY_REFUSALS | DENIALS or answer.replied:
        if answer.level and int(answer.level) < 5:
            why = f"{tried}: level {answer.level} is in force there, which asks for no permit"
            return _check(name, service, Outcome.FAILED, tried, why, evidence)
        return _check(
            name, service, Outcome.HELD, tried, f"the permit passed; then policy decided: {answer}", evidence
        )
    return _check(name, service, Outcome.UNKNOWN, tried, f"{tried}: it did not pass ({answer})", evidence)


def unidentified(name: str, service: str, tried: str, attempts: Sequence[Answer], control: Answer) -> Check:
    """Judge calls without an acceptable identity: the listener must be alive, and must not have decided them.

    Args:
        name: of the check.
        service: called.
        tried: in words.
        attempts: the answers to calls without identity.
        control: the answer to the same call with a genuine certificate.
    """
    evidence = {f"attempt_{n}": str(answer)[:200] for n, answer in enumerate(attempts, 1)}
    evidence["control"] = str(control)[:200]
    for answer in attempts:
        if answer.replied:
            return _check(name, service, Outcome.FAILED, tried, f"{tried}: it was let through", evidence)
        if answer.code != UNREACHED and answer.reason not in CALLER_REFUSALS:
            why = f"{tried}: it was answered with {answer}, so somebody without identity got as far as a decision"
            return _check(name, service, Outcome.FAILED, tried, why, evidence)
    if not control.alive:
        why = f"{tried}: refused, but a genuine caller got no answer either ({control})"
        return _check(name, service, Outcome.UNKNOWN, tried, why, evidence)
    return _check(name, service, Outcome.HELD, tried, "no connection, or refused as unidentified", evidence)


@dataclass(frozen=True, slots=True)
class Decided:
    """One decision of one node on one request."""

    node: str
    request: str  # caller, method
    allowed: bool
    reason: str
    policies: tuple[str, ...]
    policy_version: int
    level: int
    lease: str = "FRESH"


def deterministic(
    service: str, decided: Sequence[Decided], repeats: int, carrying: Sequence[str] = ()
) -> Check:
    """The same request must get the same answer from every node (`carrying`), every time."""
    name = "decisions-agree"
    nodes = sorted({one.node for one in decided})
    tried = (
        f"had {len(nodes)} nodes decide {len({one.request for one in decided})} requests {repeats} times each"
    )
    evidence = {"nodes": ", ".join(nodes), "decisions": str(len(decided))}
    if lapsed := [one for one in decided if one.lease in _OVER]:
        evidence["not_compared"] = f"{len(lapsed)}, made when the lease was over"
        decided = [one for one in decided if one.lease not in _OVER]
    answers: dict[str, set[tuple[object, ...]]] = {}
    for one in decided:
        answers.setdefault(one.request, set()).add(
            (one.allowed, one.reason, one.policies, one.policy_version)
        )
    split = sorted(request for request, found in answers.items() if len(found) > 1)
    if split:
        first = split[0]
        shown = "; ".join(
            sorted(
                {
                    f"{o.node}: {o.reason} under version {o.policy_version}"
                    for o in decided
                    if o.request == first
                }
            )
        )
        return _check(
            name, service, Outcome.FAILED, tried, f"{first} got different answers: {shown}", evidence
        )
    if missing := sorted(set(carrying) - {one.node for one in decided}):
        why = f"nothing to compare from {', '.join(missing)}: no decision, or none under a lease"
        return _check(name, service, Outcome.UNKNOWN, tried, why, evidence)
    if len(decided) < 2 or repeats < 2:
        return _check(name, service, Outcome.UNKNOWN, tried, "too few decisions to compare", evidence)
    return _check(name, service, Outcome.HELD, tried, "one answer to each request", evidence)


def explained(service: str, decided: Sequence[Decided], nodes: Sequence[str]) -> Check:
    """Every node that carries the service must answer, with reason and policy version."""
    name, tried = "decisions-explained", "asked every node that carries the service for a decision"
    silent = sorted(set(nodes) - {one.node for one in decided})
    bare = sorted({one.node for one in decided if not one.reason or one.policy_version == 0})
    evidence = {
        "nodes": ", ".join(nodes),
        "policy_versions": ", ".join(sorted({str(o.policy_version) for o in decided})),
    }
    if not decided or silent:
        return _check(
            name,
            service,
            Outcome.UNKNOWN,
            tried,
            f"no decision from {', '.join(silent) or 'any node'}",
            evidence,
        )
    if bare:
        why = f"{', '.join(bare)} decided without a reason or without policy"
        return _check(name, service, Outcome.FAILED, tried, why, evidence)
    return _check(name, service, Outcome.HELD, tried, "each with reason, level and policy version", evidence)


def forbidden(
    service: str, decided: Sequence[Decided], carrying: Sequence[str] = (), telling: Sequence[str] = ()
) -> Check:
    """A stranger must be refused by policy, at every node (`carrying`), for at least one method that policy governs.

    `telling`: the methods that count. The reserved one alone does not where policy knows methods of the service: a
    policy that permits all of those to everybody does not name it either.
    """
    name, tried = "forbidden-refused", "asked the nodes to decide calls of a stranger"
    if telling:
        decided = [one for one in decided if one.request.rpartition(" ")[2] in telling]
    refusing = [one for one in decided if not one.allowed and one.reason in POLICY_REFUSALS]
    evidence = {"refused": str(len(refusing)), "asked": str(len(decided))}
    if not decided:
        return _check(name, service, Outcome.UNKNOWN, tried, "no node decided", evidence)
    permissive = {one.node for one in decided if one.allowed} - {one.node for one in refusing}
    if permissive:
        why = f"{', '.join(sorted(permissive))} lets a stranger call every method that was asked for"
        return _check(name, service, Outcome.FAILED, tried, why, evidence)
    untold = ({one.node for one in decided} | set(carrying)) - {one.node for one in refusing}
    if untold:
        why = f"{', '.join(sorted(untold))} gave no decision by policy"
        return _check(name, service, Outcome.UNKNOWN, tried, why, evidence)
    shown = refusing[0]
    evidence |= {
        "example": shown.request,
        "reason": shown.reason,
        "policy_version": str(shown.policy_version),
    }
    return _check(name, service, Outcome.HELD, tried, f"refused: {shown.reason}", evidence)


def stale(service: str, before: Answer, after: Answer, lease: str, how: str) -> Check:
    """When the lease and its grace are over, everything must be refused for that reason."""
    name, tried = "stale-refused", f"called through a probe node whose lease had ended ({how})"
    evidence = {**before.evidence("before_"), **after.evidence("after_"), "lease": lease}
    if not before.decided:
        why = f"the probe node did not decide before ({before})"
        return _check(name, service, Outcome.UNKNOWN, tried, why, evidence)
    if lease != "SEALED":
        return _check(
            name, service, Outcome.UNKNOWN, tried, f"the probe node's lease is {lease}, not SEALED", evidence
        )
    if after.reason in STALE_REFUSALS:
        return _check(name, service, Outcome.HELD, tried, f"refused: {after.reason}", evidence)
    if after.replied:
        return _check(name, service, Outcome.FAILED, tried, f"{tried}: it was let through", evidence)
    if after.alive:
        why = f"{tried}: refused with {after.reason}, as if the policy were still in force"
        return _check(name, service, Outcome.FAILED, tried, why, evidence)
    return _check(name, service, Outcome.UNKNOWN, tried, f"the answer tells nothing ({after})", evidence)


def cut_off(service: str, before: Answer, during: Answer, lease: str) -> Check:
    """Without control plane and broker, but within the lease, a node must decide as before."""
    name, tried = (
        "cut-off-decides",
        "cut a probe node off from control plane and broker, and called through it",
    )
    evidence = {**before.evidence("before_"), **during.evidence("during_"), "lease": lease}
    if not before.decided or lease not in {"FRESH", "STALE"}:
        why = f"the probe node was not in a state to be cut off (lease {lease}, {before})"
        return _check(name, service, Outcome.UNKNOWN, tried, why, evidence)
    if (during.replied, during.reason) == (before.replied, before.reason):
        return _check(name, service, Outcome.HELD, tried, f"decided as before: {during}", evidence)
    why = f"{tried}: {during} instead of {before}"
    return _check(name, service, Outcome.FAILED, tried, why, evidence)
