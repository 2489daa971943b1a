"""An installation in which everything holds, as the assessor sees it, and one broken control at a time.

Every breakage is an answer or a fact as a broken installation would give it; the assessor's own rules must turn it into
the verdict. The table names the characteristics that each must deny.

Broken on a real mesh (tests/integration/assess): a dead node, a damaged ledger, a signed level below 5 (which denies
what the level lacks), policy that permits everything, detection rules and responses switched off, a replica without a
sidecar, a node that mesh.json hides, a service open to the network. Here alone is what a real mesh cannot be made to do
without another program in a member's place (a sidecar that takes forged, replayed, stolen or expired permits, a client
or verifier that believes anything: tests/unit/control_plane/assess/test_edge_judgements.py puts one in its place), and
what costs a restart of the control plane (no index, no responder key, no dashboard).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from control_plane.assess import answers, reactions
from control_plane.assess import bypass as past
from control_plane.assess.answers import UNREACHED, Answer, Decided
from control_plane.assess.bypass import OTHERWISE, Bypass
from control_plane.assess.catalogue import load_catalogue
from control_plane.assess.model import MESH, Basis, Check, Outcome, ServiceGrade, grade
from control_plane.assess.observations import Facts, NodeFacts, PolicyFacts, ServiceFacts, observe
from control_plane.assess.reactions import Raised, Reactions, Watched

SERVICE = "shop"
NOW_MS = 1_800_000_000_000
NODES = ("shop", "front")
LET_IN = Answer("OK", replied=True)
GONE = Answer(UNREACHED)


def refused(reason: str, level: int = 5) -> Answer:
    """Return a refusal by a sidecar."""
    return Answer(
        "PERMISSION_DENIED", reason, reason, decision_id="b-1", policy_version="3", level=str(level)
    )


NOT_PERMITTED = refused("NO_POLICY_PERMITS")


def node(name: str) -> NodeFacts:
    return NodeFacts(
        name,
        state="READY",
        reported_s_ago=1.0,
        policy_version=3,
        policy_digest="d1",
        lease="FRESH",
        levels={SERVICE: 5},
        standing="ATTESTED",
        vouched_until_ms=NOW_MS + 10_000,
        vouched_by=("shop", "front"),
        version="0.1.0",
    )


def decided() -> tuple[Decided, ...]:
    return tuple(
        Decided(name, f"stranger {method}", False, "NO_POLICY_PERMITS", (), 3, 5)
        for name in NODES
        for method in ("egm.v1.Probe/Ping", "shop.v1.Cart/EgmProbe")
        for _ in range(2)
    )


def permits() -> dict[str, Answer]:
    """Return the answer to each attempt with a permit."""
    return {name: refused(sorted(right)[0]) for name, right in answers.PERMIT_ATTEMPTS.items()}


def held(name: str, subject: str = SERVICE) -> Check:
    return Check(name, subject, Outcome.HELD, Basis.PROBED, "tried", "held")


# Judged where they are made, next to the disk or the wire; their breakages are in the integration tests.
BY_THE_EDGE = (
    "probe-recorded",
    "outcome-recorded",
    "counters-moving",
    "caller-attributed",
    "lineage-linked",
    "evidence-verifies",
    "ledger-intact",
    "ledger-cosigned",
    "ledger-durable",
    "ledger-tampering-noticed",
    "records-agree",
)
MESH_BY_THE_EDGE = (
    "tampered-policy-refused",
    "short-quorum-refused",
    "rollback-refused",
    "unsigned-refused",
    "credential-verifies",
)


@dataclass(frozen=True)
class World:
    """What the assessor sees of one service."""

    facts: Facts = field(
        default_factory=lambda: Facts(
            NOW_MS,
            PolicyFacts(
                version=3,
                digest="d1",
                threshold=2,
                approvers=3,
                duties={},
                witnesses=("back", "front", "shop"),
                quorum=2,
            ),
            {name: node(name) for name in NODES},
            {SERVICE: ServiceFacts(SERVICE, ("shop",), NODES, 5, {"p1": "a condition"})},
            3,
        )
    )
    stranger: Answer = NOT_PERMITTED
    anonymous: tuple[Answer, ...] = (GONE, GONE)
    impostor: Answer = GONE
    decided: tuple[Decided, ...] = field(default_factory=decided)
    genuine: Answer = NOT_PERMITTED
    permits: dict[str, Answer] = field(default_factory=permits)
    before: Answer = NOT_PERMITTED
    during: Answer = NOT_PERMITTED
    during_lease: str = "FRESH"
    after: Answer = field(default_factory=lambda: refused("POLICY_STALE"))
    after_lease: str = "SEALED"
    decoys: tuple[tuple[str, Answer], ...] = (("shop.v1.Cart/ListDraftQuotePartialNotes", NOT_PERMITTED),)
    bypass: tuple[Bypass, ...] = (
        Bypass("127.0.0.1:9", True, Answer("UNIMPLEMENTED")),
        Bypass("10.0.0.1:9", False, GONE),
    )
    unknown_upstreams: tuple[str, ...] = ()
    telling: tuple[str, ...] = ("shop.v1.Cart/EgmProbe",)
    reactions: Reactions = field(
        default_factory=lambda: Reactions(
            asked=True,
            calls={SERVICE: 4},
            dashboard=(SERVICE,),
            watched=Watched(12, 12, 0, 12, 1.5),
            incidents=(
                Raised("i1", "EGM-B004", "egm-probe-1-noisy", "open"),
                Raised("i2", "EGM-T003", "egm-probe-1-noisy", "open"),
            ),
            alerts=(Raised("a1", "event:incident_opened", "egm-probe-1-noisy", "firing"),),
            respond=True,
            responses=("severity high: alert", "EGM-T003: throttle"),
            levels={SERVICE: 5},
            reviewed={SERVICE: {"unchanged": 12, "not-by-policy": 3}},
        )
    )
    edge: dict[str, Outcome] = field(default_factory=dict)  # of checks that the edge judges; default: held

    def checks(self) -> list[Check]:
        """Return everything that the assessor concludes."""
        every = list(self.decided)
        found = [
            *observe(self.facts),
            *reactions.judge(self.reactions, [SERVICE]),
            answers.stranger(SERVICE, self.stranger),
            answers.decoyed(SERVICE, "somebody", self.stranger, self.decoys),
            answers.unidentified("unauthenticated-refused", SERVICE, "tried", self.anonymous, self.stranger),
            answers.unidentified("impostor-refused", SERVICE, "tried", (self.impostor,), self.stranger),
            answers.deterministic(SERVICE, every, 2, NODES),
            answers.explained(SERVICE, every, NODES),
            answers.forbidden(SERVICE, every, NODES, self.telling),
            answers.genuine_permit(SERVICE, self.genuine, "aa"),
            *filter(None, [answers.stranger_with_permit(SERVICE, self.genuine)]),
            *(answers.with_permit(name, SERVICE, "tried", answer) for name, answer in self.permits.items()),
            answers.cut_off(SERVICE, self.before, self.during, self.during_lease),
            answers.stale(SERVICE, self.before, self.after, self.after_lease, "moved"),
            past.judge(SERVICE, self.bypass, self.unknown_upstreams),
        ]
        for name in BY_THE_EDGE:
            basis = Basis(load_catalogue().checks[name].basis)
            found.append(replace(held(name), outcome=self.edge.get(name, Outcome.HELD), basis=basis))
        for name in MESH_BY_THE_EDGE:
            found.append(replace(held(name, MESH), outcome=self.edge.get(name, Outcome.HELD)))
        return found

    def grade(self) -> ServiceGrade:
        """Return the grade."""
        return grade(load_catalogue(), SERVICE, self.checks(), signed_level=5)


GOOD = World()


def with_facts(**changes: Any) -> World:
    return replace(GOOD, facts=replace(GOOD.facts, **changes))


def with_policy(**changes: Any) -> World:
    return with_facts(policy=replace(GOOD.facts.policy, **changes))


def with_node(name: str, **changes: Any) -> World:
    return with_facts(nodes={**GOOD.facts.nodes, name: replace(GOOD.facts.nodes[name], **changes)})


def with_permit(name: str, answer: Answer) -> World:
    return replace(GOOD, permits={**GOOD.permits, name: answer})


def with_reactions(**changes: Any) -> World:
    return replace(GOOD, reactions=replace(GOOD.reactions, **changes))


def failed(*names: str) -> World:
    return replace(GOOD, edge=dict.fromkeys(names, Outcome.FAILED))


def one_decision(**changes: Any) -> World:
    return replace(GOOD, decided=(*GOOD.decided[:-1], replace(GOOD.decided[-1], **changes)))


def _alerted() -> tuple[Raised, ...]:
    return tuple(replace(one, actions=("alert done",)) for one in GOOD.reactions.incidents)


def unconditional() -> World:
    """Level 3, and no policy has a condition."""
    facts = GOOD.facts
    services = {SERVICE: replace(facts.services[SERVICE], conditions={}, signed_level=3)}
    nodes = {name: replace(one, levels={SERVICE: 3}) for name, one in facts.nodes.items()}
    return with_facts(services=services, nodes=nodes)


@dataclass(frozen=True)
class Breakage:
    """One broken control. `denies`: characteristics that must not be met; `at_most`: the best grade that is left."""

    name: str
    world: Callable[[], World]
    denies: tuple[str, ...]
    at_most: int


BREAKAGES = (
    Breakage(
        "records do not reach the index", lambda: failed("probe-recorded"), ("EGMM-L1-01", "EGMM-L0-03"), 0
    ),
    Breakage("a node is silent", lambda: with_node("shop", reported_s_ago=60.0), ("EGMM-L1-02",), 0),
    Breakage("a node never reported", lambda: with_node("shop", reported_s_ago=None), ("EGMM-L1-02",), 0),
    Breakage("a node does not answer", lambda: with_node("shop", unreachable="gone"), ("EGMM-L1-02",), 0),
    Breakage("counters stand still", lambda: failed("counters-moving"), ("EGMM-L1-03",), 0),
    Breakage("an incident raises no alert", lambda: with_reactions(alerts=()), ("EGMM-L1-04",), 0),
    Breakage(
        "a rule tells a channel that is not there",
        lambda: with_reactions(alert_problems=("x",)),
        ("EGMM-L1-04",),
        0,
    ),
    Breakage("analytics count nothing", lambda: with_reactions(calls={}), ("EGMM-L1-05",), 0),
    Breakage("analytics do not answer", lambda: with_reactions(calls=None), ("EGMM-L1-05",), 0),
    Breakage("the dashboard lacks the service", lambda: with_reactions(dashboard=()), ("EGMM-L1-06",), 0),
    Breakage(
        "no behavioural rule fires",
        lambda: with_reactions(incidents=GOOD.reactions.incidents[1:]),
        ("EGMM-L2-01",),
        1,
    ),
    Breakage(
        "detection has stopped",
        lambda: with_reactions(detection_problem="x"),
        ("EGMM-L2-01", "EGMM-L2-02", "EGMM-L2-03"),
        1,
    ),
    Breakage(
        "behavioural rules are switched off",
        lambda: with_reactions(rules_off=("EGM-B001",)),
        ("EGMM-L2-02",),
        1,
    ),
    Breakage("nothing is known of a caller", lambda: with_reactions(watched=None), ("EGMM-L2-02",), 1),
    Breakage(
        "attacks go unnoticed",
        lambda: with_reactions(incidents=GOOD.reactions.incidents[:1]),
        ("EGMM-L2-03",),
        1,
    ),
    Breakage(
        "review contradicts the records",
        lambda: with_reactions(reviewed={SERVICE: {"newly-denied": 1}}),
        ("EGMM-L2-04",),
        1,
    ),
    Breakage("there is nothing to review", lambda: with_reactions(reviewed={}), ("EGMM-L2-04",), 1),
    Breakage("records say too little", lambda: failed("outcome-recorded"), ("EGMM-L2-05",), 1),
    Breakage(
        "responses do not bite at this service",
        lambda: with_reactions(levels={SERVICE: 1}),
        ("EGMM-L2-06",),
        1,
    ),
    Breakage("nothing responds", lambda: with_reactions(responses=()), ("EGMM-L2-06",), 1),
    Breakage("responses are switched off", lambda: with_reactions(respond=False), ("EGMM-L2-06",), 1),
    Breakage(
        "responses do no more than alert",
        lambda: with_reactions(responses=("severity high: alert",), incidents=_alerted()),
        ("EGMM-L2-06",),
        1,
    ),
    Breakage(
        "the responder has no key",
        lambda: with_reactions(detection_problem="no responder_key is configured"),
        ("EGMM-L2-06",),
        1,
    ),
    Breakage(
        "threat rules are switched off", lambda: with_reactions(rules_off=("EGM-T001",)), ("EGMM-L2-03",), 1
    ),
    Breakage(
        "a node that carries it cannot be asked",
        lambda: with_node("front", unreachable="gone"),
        ("EGMM-L3-01", "EGMM-L3-04", "EGMM-L3-06"),
        2,
    ),
    Breakage(
        "everything but the reserved method is permitted to everybody",
        lambda: replace(
            GOOD,
            decided=tuple(
                d if "Probe/Ping" in d.request else replace(d, allowed=True, reason="ALLOWED")
                for d in GOOD.decided
            ),
        ),
        ("EGMM-L3-02", "EGMM-L3-06"),
        2,
    ),
    Breakage(
        "policies only fail to evaluate",
        lambda: replace(GOOD, decided=tuple(replace(d, reason="POLICY_ERROR") for d in GOOD.decided)),
        ("EGMM-L3-02",),
        2,
    ),
    Breakage(
        "one node gives no decision",
        lambda: replace(GOOD, decided=tuple(d for d in GOOD.decided if d.node == "shop")),
        ("EGMM-L3-02", "EGMM-L4-03"),
        2,
    ),
    Breakage("a stranger with a permit is let in", lambda: replace(GOOD, genuine=LET_IN), ("EGMM-L4-01",), 3),
    Breakage(
        "a caller without certificate is refused for the lease alone",
        lambda: replace(GOOD, anonymous=(Answer("UNAVAILABLE", "POLICY_STALE"), GONE)),
        ("EGMM-L4-02",),
        3,
    ),
    Breakage(
        "the node that is cut off never decided",
        lambda: replace(GOOD, before=refused("NODE_NOT_ATTESTED"), during=refused("NODE_NOT_ATTESTED")),
        ("EGMM-L4-06", "EGMM-L4-07"),
        3,
    ),
    Breakage(
        "the service answers other machines in a way of its own",
        lambda: replace(GOOD, bypass=(Bypass("10.0.0.1:9", False, Answer(OTHERWISE)),)),
        ("EGMM-L4-07", "EGMM-L5-06"),
        3,
    ),
    Breakage(
        "where one replica listens is not known",
        lambda: replace(GOOD, unknown_upstreams=("back",)),
        ("EGMM-L4-07", "EGMM-L5-06"),
        3,
    ),
    Breakage(
        "the policy does not verify",
        lambda: with_policy(problem="bad signature"),
        ("EGMM-L3-01", "EGMM-L3-03"),
        2,
    ),
    Breakage(
        "a node enforces another policy", lambda: with_node("front", policy_digest="d2"), ("EGMM-L3-01",), 2
    ),
    Breakage(
        "a stranger may do everything",
        lambda: replace(
            GOOD, decided=tuple(replace(d, allowed=True, reason="ALLOWED") for d in GOOD.decided)
        ),
        ("EGMM-L3-02", "EGMM-L3-06"),
        2,
    ),
    Breakage("one person publishes policy", lambda: with_policy(threshold=1), ("EGMM-L3-03",), 2),
    Breakage("unsigned policy is published", lambda: failed("unsigned-refused"), ("EGMM-L3-03",), 2),
    Breakage("a node is behind", lambda: with_node("front", policy_version=2), ("EGMM-L3-04",), 2),
    Breakage("nothing was published", lambda: with_facts(published_version=0), ("EGMM-L3-04",), 2),
    Breakage("no condition anywhere", unconditional, ("EGMM-L3-05",), 2),
    Breakage(
        "a node enforces less than was signed",
        lambda: with_node("shop", levels={SERVICE: 3}),
        ("EGMM-L3-04", "EGMM-L3-06", "EGMM-L5-06"),
        2,
    ),
    Breakage("a stranger is let in", lambda: replace(GOOD, stranger=LET_IN), ("EGMM-L4-01",), 3),
    Breakage(
        "only a quarantine stops the stranger",
        lambda: replace(GOOD, stranger=refused("REVOKED", 2)),
        ("EGMM-L4-01",),
        3,
    ),
    Breakage(
        "callers without certificate are let in",
        lambda: replace(GOOD, anonymous=(GONE, LET_IN)),
        ("EGMM-L4-02", "EGMM-L0-01"),
        3,
    ),
    Breakage(
        "callers without certificate are decided",
        lambda: replace(GOOD, anonymous=(NOT_PERMITTED, GONE)),
        ("EGMM-L4-02",),
        3,
    ),
    Breakage("a foreign CA is trusted", lambda: replace(GOOD, impostor=NOT_PERMITTED), ("EGMM-L4-02",), 3),
    Breakage("the listener is dead", lambda: replace(GOOD, stranger=GONE), ("EGMM-L4-01", "EGMM-L4-02"), 3),
    Breakage(
        "two nodes disagree",
        lambda: one_decision(reason="ALLOWED", allowed=True),
        ("EGMM-L4-03", "EGMM-L0-06"),
        3,
    ),
    Breakage("decisions lack a reason", lambda: one_decision(reason=""), ("EGMM-L4-04",), 3),
    Breakage(
        "a decision point does not answer",
        lambda: replace(GOOD, decided=tuple(d for d in GOOD.decided if d.node == "shop")),
        ("EGMM-L4-04",),
        3,
    ),
    Breakage("changed policy is accepted", lambda: failed("tampered-policy-refused"), ("EGMM-L4-05",), 3),
    Breakage("too few signatures are enough", lambda: failed("short-quorum-refused"), ("EGMM-L4-05",), 3),
    Breakage("older policy is accepted", lambda: failed("rollback-refused"), ("EGMM-L4-05",), 3),
    Breakage("calls go on under stale policy", lambda: replace(GOOD, after=LET_IN), ("EGMM-L4-06",), 3),
    Breakage("stale policy still decides", lambda: replace(GOOD, after=NOT_PERMITTED), ("EGMM-L4-06",), 3),
    Breakage("the lease never ends", lambda: replace(GOOD, after_lease="STALE"), ("EGMM-L4-06",), 3),
    Breakage(
        "the service is open to other machines",
        lambda: replace(GOOD, bypass=(Bypass("10.0.0.1:9", False, Answer("UNIMPLEMENTED")),)),
        ("EGMM-L4-07", "EGMM-L5-06"),
        3,
    ),
    Breakage("nobody knows where the service listens", lambda: replace(GOOD, bypass=()), ("EGMM-L4-07",), 3),
    Breakage(
        "governance out of reach stops everything",
        lambda: replace(GOOD, during=refused("POLICY_STALE")),
        ("EGMM-L4-07",),
        3,
    ),
    Breakage(
        "no permit is asked for",
        lambda: with_permit("permit-missing-refused", refused("NO_POLICY_PERMITS", 4)),
        ("EGMM-L5-01",),
        4,
    ),
    Breakage(
        "forged permits pass", lambda: with_permit("permit-forged-refused", NOT_PERMITTED), ("EGMM-L5-01",), 4
    ),
    Breakage(
        "permits can be replayed",
        lambda: with_permit("permit-replayed-refused", NOT_PERMITTED),
        ("EGMM-L5-01",),
        4,
    ),
    Breakage(
        "permits are good for every service",
        lambda: with_permit("permit-misdirected-refused", LET_IN),
        ("EGMM-L5-01",),
        4,
    ),
    Breakage(
        "permits never expire",
        lambda: with_permit("permit-expired-refused", NOT_PERMITTED),
        ("EGMM-L5-01",),
        4,
    ),
    Breakage(
        "every permit is refused",
        lambda: replace(GOOD, genuine=refused("PERMIT_INVALID")),
        ("EGMM-L5-01",),
        4,
    ),
    Breakage(
        "permits are not looked at",
        lambda: replace(GOOD, genuine=refused("NO_POLICY_PERMITS", 4)),
        ("EGMM-L5-01",),
        4,
    ),
    Breakage("evidence does not verify", lambda: failed("evidence-verifies"), ("EGMM-L5-02",), 4),
    Breakage("a ledger is damaged", lambda: failed("ledger-intact"), ("EGMM-L5-03",), 4),
    Breakage("changed ledgers verify", lambda: failed("ledger-tampering-noticed"), ("EGMM-L5-03",), 4),
    Breakage("executions are not linked", lambda: failed("lineage-linked"), ("EGMM-L5-04",), 4),
    Breakage("no witnesses are named", lambda: with_policy(witnesses=(), quorum=0), ("EGMM-L5-05",), 4),
    Breakage(
        "half of the witnesses are enough",
        lambda: with_policy(witnesses=("a", "b", "c", "d"), quorum=2),
        ("EGMM-L5-05",),
        4,
    ),
    Breakage("one witness is enough", lambda: with_policy(witnesses=("a",), quorum=1), ("EGMM-L5-05",), 4),
    Breakage(
        "nobody vouches for a node",
        lambda: with_node("shop", vouched_until_ms=0, vouched_by=()),
        ("EGMM-L5-05",),
        4,
    ),
    Breakage(
        "unattested nodes are believed",
        lambda: with_permit("unattested-refused", NOT_PERMITTED),
        ("EGMM-L5-06", "EGMM-L5-08"),
        4,
    ),
    Breakage("records name no permit", lambda: failed("caller-attributed"), ("EGMM-L5-07",), 4),
    Breakage(
        "permits can be stolen",
        lambda: with_permit("permit-stolen-refused", NOT_PERMITTED),
        ("EGMM-L5-07",),
        4,
    ),
    Breakage(
        "a sidecar knows the assessor and lets others through",
        lambda: replace(GOOD, decoys=(("shop.v1.Cart/ListDraftQuotePartialNotes", Answer("UNIMPLEMENTED")),)),
        ("EGMM-L4-01",),
        3,
    ),
    Breakage(
        "a proxy asks for a token of its own",
        lambda: replace(GOOD, bypass=(Bypass("10.0.0.1:9", False, Answer("UNAUTHENTICATED")),)),
        ("EGMM-L4-07", "EGMM-L5-06"),
        3,
    ),
    Breakage("ordinary calls execute without a permit", lambda: failed("records-agree"), ("EGMM-L4-01",), 3),
    Breakage("a lease of a week", lambda: with_policy(lease_s=7 * 86_400), ("EGMM-L4-06",), 3),
    Breakage(
        "one process is every witness",
        lambda: with_policy(addresses={"front": "10.0.0.1:1", "shop": "10.0.0.1:1"}),
        ("EGMM-L5-05",),
        4,
    ),
    Breakage(
        "an alert channel is dead", lambda: with_reactions(channels={"webhook:x": "gone"}), ("EGMM-L1-04",), 0
    ),
    Breakage(
        "a quarantine does not reach the service",
        lambda: with_reactions(quarantined="quarantine", reached={"shop on shop": "NO_POLICY_PERMITS"}),
        ("EGMM-L2-06",),
        1,
    ),
    Breakage("a ledger was written anew", lambda: failed("ledger-cosigned"), ("EGMM-L5-03",), 4),
    Breakage("a ledger is in memory", lambda: failed("ledger-durable"), ("EGMM-L5-03",), 4),
    Breakage("changed credentials verify", lambda: failed("credential-verifies"), ("EGMM-L5-08",), 4),
)
