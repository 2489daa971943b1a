"""Whether what must come first came first, and what was used was valid then (time)."""

from collections.abc import Mapping, Sequence

from trust import limits
from trust.errors import Reason
from trust.evidence_case import Case
from trust.evidence_report import Section
from trust.levels import GOVERNED
from trust.record import Intent, Outcome


def check_time(case: Case) -> None:
    """Time: what must come first comes first, and decisions fall into the validity of the policy."""
    skew = limits.MAX_CLOCK_SKEW_MS
    starts: dict[str, dict[int, Intent]] = {}
    for number, content in enumerate(case.evidence.contents):
        where = f"contents[{number}]"
        intent = case.records.get((content.node, content.intent))
        if not isinstance(intent, Intent):
            continue
        starts.setdefault(content.execution, {})[content.side] = intent
        outcome = case.records.get((content.node, -1 if content.outcome is None else content.outcome))
        if isinstance(outcome, Outcome):
            same_boot = intent.boot_id == outcome.boot_id
            late = (
                outcome.monotonic_ms < intent.monotonic_ms
                if same_boot
                else outcome.wall_ms + skew < intent.wall_ms
            )
            if late or (content.outcome or 0) <= content.intent:
                case.wrong(Section.TIME, where, "its outcome is earlier than its intent")
        _check_policy_time(case, where, intent)
    for execution, sides in starts.items():
        _check_sides(case, execution, sides)


def _check_sides(case: Case, execution: str, sides: Mapping[int, Intent]) -> None:
    walls: Sequence[int] = [intent.wall_ms for _, intent in sorted(sides.items())]  # the caller's side first
    if len(walls) == 2 and walls[1] + limits.MAX_CLOCK_SKEW_MS < walls[0]:
        case.wrong(Section.TIME, f"execution {execution}", "the callee decided before the caller asked")


def _check_policy_time(case: Case, where: str, intent: Intent) -> None:
    held = case.policies.get(intent.policy_sha256)
    if held is None:
        return
    name, policy = held
    if intent.wall_ms >= policy.expires_ms:
        if intent.allowed and intent.level >= GOVERNED:
            case.wrong(Section.TIME, where, f"allowed after {name} had expired", Reason.POLICY_EXPIRED)
    elif intent.wall_ms >= policy.lease_expires_ms:
        case.open(Section.TIME, where, f"whether it was within the grace of {name}, whose lease had ended")
