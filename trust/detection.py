"""What the approvers say about anomaly and threat detection: which rules are on, and what may be done about a finding.

`bundle.yaml` and `mesh.json` hold it under `detection`. The control plane detects and responds; what it may do is
bounded here, by the quorum, and it acts only with an emergency key that the same policy names.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from trust import limits
from trust.errors import EvidenceError
from trust.revocation import Kind, Subject
from trust.spiffe import check_name

_SEVERITY_OR_ABOVE: Final = "severity"


@enum.unique
class Severity(enum.StrEnum):
    """How much a finding matters; in this order."""

    INFO = "info"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 for the least."""
        return list(Severity).index(self)


@dataclass(frozen=True, slots=True)
class RuleInfo:
    """One rule: its stable id, what it notices and what a person should look at."""

    id: str
    title: str
    severity: Severity
    advice: str


def _rule(number: str, title: str, severity: Severity, advice: str) -> RuleInfo:
    return RuleInfo(f"EGM-{number}", title, severity, advice)


# Behaviour (B) is compared with what was learned; threats (T) need no learning. Ids are never renamed, never reused.
_ALL: Final = (
    _rule("B001", "call rate shifted", Severity.MEDIUM, "a loop, a retry storm, or data taken in bulk"),
    _rule(
        "B002",
        "latency shifted",
        Severity.LOW,
        "the callee is overloaded, or does something else than before",
    ),
    _rule(
        "B003",
        "first call of this kind",
        Severity.LOW,
        "a release that calls something new, or lateral movement",
    ),
    _rule(
        "B004",
        "burst of refusals",
        Severity.MEDIUM,
        "a caller that was not updated with the policy, or one that tries",
    ),
    _rule(
        "B005",
        "request size out of line",
        Severity.MEDIUM,
        "injected content, or data carried out in a request",
    ),
    _rule(
        "B006", "response size out of line", Severity.MEDIUM, "a query that returns far more than it used to"
    ),
    _rule(
        "B007",
        "calls fan out",
        Severity.MEDIUM,
        "a caller that suddenly uses many kinds of calls: mapping the mesh",
    ),
    _rule(
        "B008",
        "calls at an unusual hour",
        Severity.LOW,
        "a job that moved, or somebody who works when nobody looks",
    ),
    _rule(
        "B009",
        "chain of calls too deep",
        Severity.MEDIUM,
        "services or agents that call each other in a circle",
    ),
    _rule(
        "T001",
        "identity used from an unknown node",
        Severity.HIGH,
        "a stolen key or token used beside its owner",
    ),
    _rule(
        "T002",
        "permit replayed",
        Severity.HIGH,
        "a captured permit was presented again; find who sees the traffic",
    ),
    _rule(
        "T003",
        "many methods probed",
        Severity.HIGH,
        "a caller tries what it has no right to: compromised, or curious",
    ),
    _rule(
        "T004",
        "permit forged or diverted",
        Severity.CRITICAL,
        "a permit that no node minted, or minted for another call",
    ),
    _rule(
        "T005",
        "callers without an identity",
        Severity.MEDIUM,
        "somebody reaches the sidecar without being a member",
    ),
    _rule(
        "T006", "revoked and still calling", Severity.HIGH, "what was revoked is still in somebody's hands"
    ),
    _rule(
        "T007", "misbehaviour proven", Severity.CRITICAL, "a node signed two things that cannot both be true"
    ),
    _rule("T008", "policy tampered with", Severity.HIGH, "a node was offered policy that does not verify"),
    _rule(
        "T009", "call past the caller's sidecar", Severity.HIGH, "a call without a permit where one is due"
    ),
    _rule("T010", "unattested node calls", Severity.HIGH, "a node that no quorum vouches for mints permits"),
    _rule(
        "T011",
        "node speaks for others",
        Severity.HIGH,
        "a node records calls of or to a workload that it was not enrolled for: it lies, or joined without it",
    ),
)
RULES: Final[Mapping[str, RuleInfo]] = {rule.id: rule for rule in _ALL}


@enum.unique
class Action(enum.StrEnum):
    """What may be done about an incident, from the gentlest to the harshest."""

    ALERT = "alert"
    THROTTLE = "throttle"  # at most `rate` calls of the workload
    REQUIRE_APPROVAL = "require_approval"  # each of its calls needs `approval`
    CUT = "cut"  # its open streams end, and it cannot call for MIN_REVOCATION_TTL_S
    QUARANTINE = "quarantine"  # it cannot call, nor be called, for `ttl_s`


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ResponseRule(_Strict):
    """Do this when an incident of that rule, or of that severity or above, is opened or goes on.

    `on` is a rule id ("EGM-T002") or "severity high". Only what the records of `min_nodes` nodes show, each
    without the others, is acted on: one node that lies can make up records.
    """

    on: str
    do: Annotated[tuple[Annotated[Action, Field(strict=False)], ...], Field(strict=False, min_length=1)]
    ttl_s: int = Field(default=3600, ge=limits.MIN_RESPONSE_TTL_S, le=limits.MAX_REVOCATION_TTL_S)
    rate: str = ""
    approval: str = ""
    min_nodes: int = Field(default=1, ge=1, le=limits.MAX_INCIDENT_NODES)

    @field_validator("on")
    @classmethod
    def _on(cls, value: str) -> str:
        if value not in RULES and _severity(value) is None:
            known = ", ".join(Severity)
            raise ValueError(
                f"{value[:40]!r} is no rule; write an id such as EGM-T002, or severity and one of {known}"
            )
        return value

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> "ResponseRule":
        if len(set(self.do)) != len(self.do):
            raise ValueError("an action is listed twice")
        for action, given, kind, name in (
            (Action.THROTTLE, self.rate, Kind.THROTTLE, "rate"),
            (Action.REQUIRE_APPROVAL, self.approval, Kind.APPROVAL, "approval"),
        ):
            if (action in self.do) is not bool(given):
                raise ValueError(f"{name} is for {action.value}, and {action.value} needs {name}")
            if given:
                try:
                    Subject(kind, f"x {given}")
                except EvidenceError:
                    example = "10/m" if kind is Kind.THROTTLE else "1 of ops"
                    raise ValueError(
                        f"{name}: {given[:40]!r} cannot be read; write for example {example!r}"
                    ) from None
        return self

    def covers(self, rule: RuleInfo) -> bool:
        """Whether an incident of `rule` falls under it."""
        severity = _severity(self.on)
        return self.on == rule.id if severity is None else rule.severity.rank >= severity.rank


class DetectionSettings(_Strict):
    """How the control plane detects, and how it may respond. Everything has a default: detect, respond to nothing."""

    respond: bool = False  # False: say in the incident what would have been done
    off: tuple[str, ...] = Field(default=(), strict=False)  # rule ids
    window_s: int = Field(default=300, ge=limits.MIN_DETECTION_WINDOW_S, le=limits.MAX_DETECTION_WINDOW_S)
    warmup_s: int = Field(default=24 * 3600, ge=0, le=limits.MAX_DETECTION_WARMUP_S)  # of each caller
    threshold: float = Field(default=6.0, ge=3.0, le=50.0, strict=False)  # standard deviations
    max_directives_per_hour: int = Field(default=10, ge=1, le=limits.MAX_RESPONSES_PER_HOUR)
    # workloads and nodes that are never restricted or quarantined automatically
    protected: tuple[str, ...] = Field(default=(), strict=False, max_length=limits.MAX_PROTECTED)
    responses: tuple[ResponseRule, ...] = Field(
        default=(), strict=False, max_length=limits.MAX_RESPONSE_RULES
    )

    @field_validator("off")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            if one not in RULES:
                raise ValueError(f"{one[:40]!r} is no rule; docs/detection.md lists them")
        return tuple(sorted(set(value)))

    @field_validator("protected")
    @classmethod
    def _names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            try:
                check_name(one)
            except EvidenceError as error:
                raise ValueError(error.detail) from None
        return tuple(sorted(set(value)))

    def restricting(self) -> bool:
        """Whether a response asks for more than an alert."""
        return any(set(rule.do) - {Action.ALERT} for rule in self.responses)


def _severity(text: str) -> Severity | None:
    word, _, name = text.partition(" ")
    if word != _SEVERITY_OR_ABOVE or name not in set(Severity):
        return None
    return Severity(name)
