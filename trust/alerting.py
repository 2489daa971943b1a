"""Alert rules of the signed policy: what is measured, when it is too much or too little, and who is told.

A rule names channels, never addresses: what a channel's address is, only the control plane's own configuration says, so
that no bundle can make a control plane call somewhere.
"""

import enum
import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Annotated, Final, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from trust import limits
from trust.errors import EvidenceError
from trust.record_rules import REASON
from trust.spiffe import SpiffeId, check_name, check_trust_domain

T = TypeVar("T")
MQTT_CHANNEL: Final = "mqtt"
WEBHOOK_PREFIX: Final = "webhook:"
SIGNATURE_HEADER: Final = "Egm-Signature"
DELIVERY_HEADER: Final = "Egm-Delivery"
_SIGNATURE: Final = re.compile(r"t=([0-9]{1,12}),v1=([0-9a-f]{64})\Z")


@enum.unique
class Condition(enum.StrEnum):
    """What a rule watches."""

    CALLS = "calls"
    REFUSALS = "refusals"
    WOULD_DENY = "would_deny"
    ERRORS = "errors"
    ERROR_PERCENT = "error_percent"
    P95_MS = "p95_ms"
    NO_CALLS = "no_calls"
    NODE_SILENT = "node_silent"
    EVENT = "event"


THRESHOLDS: Final = frozenset(
    {
        Condition.CALLS,
        Condition.REFUSALS,
        Condition.WOULD_DENY,
        Condition.ERRORS,
        Condition.ERROR_PERCENT,
        Condition.P95_MS,
    }
)
ABSENCES: Final = frozenset({Condition.NO_CALLS, Condition.NODE_SILENT})
_WITH_REASON: Final = frozenset({Condition.REFUSALS, Condition.WOULD_DENY})
_FILTERS: Final = ("caller", "service", "method", "reason")


@enum.unique
class EventKind(enum.StrEnum):
    """What the mesh itself tells of."""

    NODE_ALARM = "node_alarm"  # an alarm in a node's status
    APPROVAL_REQUESTED = "approval_requested"  # a call waits for approvers
    INCIDENT_OPENED = "incident_opened"  # a detector or a threat rule found something


@enum.unique
class Severity(enum.StrEnum):
    """How much it matters; told on, decides nothing here."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


def _channel(text: str) -> str:
    if text != MQTT_CHANNEL:
        kind, found, name = text.partition(":")
        if not found or kind + found != WEBHOOK_PREFIX:
            raise ValueError(f"{text[:80]!r} is no channel; write mqtt, or webhook:NAME")
        _name(name)
    return text


def _name(text: str) -> str:
    try:
        return check_name(text)
    except EvidenceError as error:
        raise ValueError(error.detail) from None


def _caller(text: str) -> str:
    if not text.startswith("spiffe://"):
        return _name(text)
    try:
        return str(SpiffeId.parse(text))
    except EvidenceError as error:
        raise ValueError(error.detail) from None


def _reason(text: str) -> str:
    if not REASON.match(text):
        raise ValueError(f"{text[:64]!r} is not a reason such as POLICY_DENIED (docs/reasons.md)")
    return text


class AlertRule(BaseModel):
    """One rule. A threshold fires while what is measured over the last `window_s` is above `above`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    when: Condition = Field(strict=False)
    # calls, refusals, would-be refusals, errors: how many in the window; percent; milliseconds
    above: float | None = Field(default=None, ge=0, le=1e12)
    window_s: int = Field(default=300, ge=limits.MIN_ALERT_WINDOW_S, le=limits.MAX_ALERT_WINDOW_S)
    # how long it must hold before it fires
    for_s: int = Field(default=0, ge=0, le=limits.MAX_ALERT_WINDOW_S)
    caller: Annotated[str, AfterValidator(_caller)] | None = None  # workload name or SPIFFE ID
    service: Annotated[str, AfterValidator(_name)] | None = None
    method: str | None = Field(default=None, max_length=limits.MAX_RECORD_TEXT_BYTES)
    reason: Annotated[str, AfterValidator(_reason)] | None = None
    node: Annotated[str, AfterValidator(_name)] | None = None
    events: tuple[Annotated[EventKind, Field(strict=False)], ...] = Field(default=(), strict=False)
    severity: Severity = Field(default=Severity.WARNING, strict=False)
    to: tuple[Annotated[str, AfterValidator(_channel)], ...] = Field(
        default=(), strict=False, max_length=limits.MAX_ALERT_CHANNELS
    )

    @model_validator(mode="after")
    def _says_one_thing(self) -> "AlertRule":
        if (self.above is not None) is not (self.when in THRESHOLDS):
            raise ValueError(
                f"{self.when} needs `above`" if self.when in THRESHOLDS else f"{self.when} has no `above`"
            )
        measured = self.when in THRESHOLDS or self.when is Condition.NO_CALLS
        if not measured and any(getattr(self, name) is not None for name in _FILTERS):
            raise ValueError(f"{self.when} cannot be narrowed by caller, service, method or reason")
        if self.reason is not None and self.when not in _WITH_REASON:
            raise ValueError("`reason` narrows refusals and would_deny alone")
        if self.node is not None and self.when not in {Condition.NODE_SILENT, Condition.EVENT}:
            raise ValueError("`node` narrows node_silent and event alone")
        if bool(self.events) is not (self.when is Condition.EVENT):
            raise ValueError("`events` names the kinds of `when: event`, and is for that alone")
        return self

    def caller_id(self, trust_domain: str) -> str:
        """Return the caller's SPIFFE ID; empty for any."""
        if not self.caller or self.caller.startswith("spiffe://"):
            return self.caller or ""
        return f"spiffe://{trust_domain}/workload/{self.caller}"


AlertRules = Annotated[
    dict[Annotated[str, AfterValidator(_name)], AlertRule], Field(max_length=limits.MAX_ALERT_RULES)
]


def doubts(
    rules: Mapping[str, AlertRule], *, services: Mapping[str, tuple[str, ...]], levels: Mapping[str, int]
) -> list[tuple[str, str, str]]:
    """Return (rule, what, what to do) for every rule that can never fire, or that nobody hears of.

    Args:
        rules: by name.
        services: the services of the policy, with their gRPC services and methods (empty: not listed).
        levels: the level of each service.
    """
    found = []
    for name, rule in sorted(rules.items()):
        if rule.service is not None and rule.service not in services:
            found.append((name, f"there is no service {rule.service!r}", "add it under services:"))
        elif rule.method is not None and _unknown_method(rule, services):
            found.append(
                (name, f"no service has a method {rule.method!r}", "correct it, or add it to grpc_services")
            )
        concerned = _concerned(rule, levels)
        if rule.when is Condition.REFUSALS and concerned and max(concerned) < 3:
            what = "nothing is refused below level 3, so it never fires"
            found.append((name, what, "write when: would_deny, or raise the level"))
        if rule.when is Condition.WOULD_DENY and concerned and min(concerned) > 3:
            what = "from level 4 on calls are refused instead, so it never fires"
            found.append((name, what, "write when: refusals"))
        if concerned and max(concerned) < 1 and rule.when not in {Condition.NODE_SILENT, Condition.EVENT}:
            found.append((name, "level 0 records nothing, so nothing is measured", "raise the level to 1"))
        if rule.when is Condition.ERROR_PERCENT and (rule.above or 0) >= 100:
            found.append((name, "there are never more than 100 percent errors", "lower `above`"))
        if not rule.to:
            found.append(
                (
                    name,
                    "it names no channel: only 'egm alerts list' shows it",
                    "add to: [webhook:NAME] or [mqtt]",
                )
            )
    return found


def _concerned(rule: AlertRule, of_service: Mapping[str, T]) -> list[T]:
    if rule.service is not None and rule.service in of_service:
        return [of_service[rule.service]]
    return list(of_service.values())


def _unknown_method(rule: AlertRule, services: Mapping[str, tuple[str, ...]]) -> bool:
    concerned = _concerned(rule, services)
    if any(not listed for listed in concerned):
        return False  # a service that lists nothing may have any
    whole = (rule.method or "").partition("/")[0]
    return not any(rule.method in listed or whole in listed for listed in concerned)


def topic(trust_domain: str) -> str:
    """Return the MQTT topic of alerts, `egm/v1/<trust domain>/alerts`. Raises as `trust.announce.topic`."""
    return f"egm/v1/{check_trust_domain(trust_domain)}/alerts"


def sign(secret: bytes, body: bytes, *, now_s: int) -> str:
    """Return the value of SIGNATURE_HEADER: HMAC-SHA256 over "<Unix seconds>.<body>"."""
    digest = hmac.new(secret, b"%d.%s" % (now_s, body), hashlib.sha256).hexdigest()
    return f"t={now_s},v1={digest}"


def verify(secret: bytes, body: bytes, header: str, *, now_s: int) -> bool:
    """Whether `header` signs `body` with `secret`, not longer ago than ALERT_SIGNATURE_AGE_S. For receivers.

    Args:
        secret: shared with the control plane.
        body: exactly the bytes received.
        header: the value of SIGNATURE_HEADER.
        now_s: Unix seconds.
    """
    found = _SIGNATURE.match(header)
    if found is None or abs(now_s - int(found[1])) > limits.ALERT_SIGNATURE_AGE_S:
        return False
    return hmac.compare_digest(sign(secret, body, now_s=int(found[1])), header)
