"""What policy asks of approvers: how many of which group, how long a call waits, and what one approval covers.

    @require_approval("2 of ops")     two approvers of the group `ops` must sign this very request
    @approval_wait("30s")             hold the call so long; without it the call is refused with a ticket at once
    @approval_window("10m")           the approval covers every call of the same caller, method and service for so long

The three annotations of one permit become one obligation, so that a window of one permit never widens another:
("require_approval", "2 of ops, wait 30s, window 10m"). The groups and the keys of their members are signed settings
of the mesh (`approver_groups` in bundle.yaml and mesh.json).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from securesystemslib.signer import SSlibKey

from trust import limits
from trust.errors import EvidenceError, Reason
from trust.keys import check_distinct, check_public_key
from trust.spiffe import check_name

REQUIRE: Final = "require_approval"
WAIT: Final = "approval_wait"
WINDOW: Final = "approval_window"
ANNOTATIONS: Final = frozenset({REQUIRE, WAIT, WINDOW})

Groups = Mapping[str, Mapping[str, str]]  # group -> approver -> Ed25519 public key, 64 hexadecimal digits

_DURATION: Final = re.compile(r"([1-9][0-9]{0,5})([smhd])\Z", re.ASCII)
_SHORT: Final = re.compile(r"([1-9][0-9]?) of ([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)\Z", re.ASCII)
_FULL: Final = re.compile(
    r"(?P<short>[^,]+)(?:, wait (?P<wait>[0-9]+[smhd]))?(?:, window (?P<window>[0-9]+[smhd]))?\Z", re.ASCII
)
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True, slots=True)
class Requirement:
    """`needed` distinct approvers of `group`. A call waits `wait_s` for them; 0: not at all.

    `window_s`: how long one approval covers all calls of the same caller, method and service; 0: one call, its bytes.
    """

    needed: int
    group: str
    wait_s: int = 0
    window_s: int = 0

    @property
    def asked(self) -> str:
        """What approvers are asked, in its one spelling: "2 of ops" or "2 of ops, window 600s"."""
        window = f", window {self.window_s}s" if self.window_s else ""
        return f"{self.needed} of {self.group}{window}"


def obligation_of(annotations: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the obligation that the annotations of one permit make; None without `@require_approval`.

    What they say is not judged here: an obligation that does not parse is met by nobody.
    """
    value = annotations.get(REQUIRE)
    if value is None:
        return None
    wait, window = annotations.get(WAIT), annotations.get(WINDOW)
    parts = [
        value,
        *([] if wait is None else [f"wait {wait}"]),
        *([] if window is None else [f"window {window}"]),
    ]
    return REQUIRE, ", ".join(parts)


def parse_requirement(value: str) -> Requirement:
    """Return what the value of a `require_approval` obligation asks.

    Raises:
        EvidenceError: APPROVAL_INVALID, saying how to write it.
    """
    found = _FULL.match(value)
    short = None if found is None else _SHORT.match(found["short"])
    if found is None or short is None:
        raise _unreadable(f'{value[:80]!r} asks for no approval that this version knows; write "2 of GROUP"')
    return Requirement(
        int(short[1]),
        short[2],
        0 if found["wait"] is None else parse_duration(found["wait"], limits.MAX_APPROVAL_WAIT_S),
        0 if found["window"] is None else parse_duration(found["window"], limits.MAX_APPROVAL_LIFETIME_S),
    )


def is_requirement(obligation: tuple[str, str]) -> bool:
    """Whether an obligation is an approval that can be asked for here."""
    if obligation[0] != REQUIRE:
        return False
    try:
        parse_requirement(obligation[1])
    except EvidenceError:
        return False
    return True


def requirements_of(obligations: Iterable[tuple[str, str]]) -> tuple[Requirement, ...]:
    """Return every approval that is asked for, once each, in a stable order.

    Raises:
        EvidenceError: APPROVAL_INVALID.
    """
    found = {parse_requirement(value) for name, value in obligations if name == REQUIRE}
    return tuple(sorted(found, key=lambda one: (one.group, one.needed, one.window_s, one.wait_s)))


def needs_of(requirements: Iterable[Requirement]) -> str:
    """Return all that is asked as one line: "1 of finance; 2 of ops"."""
    return "; ".join(sorted({one.asked for one in requirements}))


def requirements_in(needs: str) -> tuple[Requirement, ...]:
    """Return what the line `needs` of a ticket asks: the inverse of `needs_of`, without the waits.

    Raises:
        EvidenceError: APPROVAL_INVALID.
    """
    return requirements_of((REQUIRE, part) for part in needs.split("; "))


def window_s(requirements: Iterable[Requirement]) -> int:
    """Return how long an approval covers further calls: the shortest window, and 0 if any requirement has none."""
    return min((one.window_s for one in requirements), default=0)


def parse_duration(text: str, most_s: int) -> int:
    """Return the seconds of "90s", "30m", "12h" or "1d".

    Raises:
        EvidenceError: APPROVAL_INVALID, for anything else, or more than `most_s`.
    """
    found = _DURATION.match(text)
    if found is None:
        raise _unreadable(f"{text[:20]!r} is no duration; write 90s, 30m or 12h")
    seconds = int(found[1]) * _UNITS_S[found[2]]
    if seconds > most_s:
        raise _unreadable(f"{text} is longer than {most_s} s, the most there is")
    return seconds


def check_groups(groups: Groups) -> None:
    """Refuse groups by which one person could count twice.

    A name stands for one key in all groups, and a key for one name.

    Raises:
        EvidenceError: KEY_UNSAFE; IDENTITY_INVALID for a bad name; LIMIT_EXCEEDED.
    """
    if len(groups) > limits.MAX_APPROVER_GROUPS:
        raise EvidenceError(
            Reason.LIMIT_EXCEEDED, f"{len(groups)} approver groups; at most {limits.MAX_APPROVER_GROUPS}"
        )
    known: dict[str, str] = {}
    for group, members in groups.items():
        check_name(group)
        if not 0 < len(members) <= limits.MAX_GROUP_APPROVERS:
            raise EvidenceError(
                Reason.LIMIT_EXCEEDED,
                f"approver group {group} has {len(members)} members; 1 to {limits.MAX_GROUP_APPROVERS} are allowed",
            )
        for name, public in members.items():
            check_name(name)
            if known.setdefault(name, public) != public:
                raise EvidenceError(
                    Reason.KEY_UNSAFE,
                    f"approver {name} has two keys; a name stands for one key in every group",
                )
    keys = [SSlibKey(name, "ed25519", "ed25519", {"public": public}) for name, public in known.items()]
    for key in keys:
        key.unrecognized_fields["x-egm-name"] = key.keyid
        check_public_key(key)
    check_distinct(keys)


def members_of(groups: Groups, requirements: Iterable[Requirement]) -> dict[str, bytes]:
    """Return the approvers who may say something about such a call: name -> 32 bytes Ed25519."""
    return {
        name: bytes.fromhex(public)
        for one in requirements
        for name, public in groups.get(one.group, {}).items()
    }


def why_unmeetable(requirement: Requirement, groups: Groups) -> str:
    """Say why nobody can ever meet a requirement; empty when enough people could."""
    members = groups.get(requirement.group)
    if members is None:
        there = ", ".join(sorted(groups)) or "none"
        return f"there is no approver group {requirement.group!r} in the base bundle (there are: {there})"
    if len(members) < requirement.needed:
        return f"approver group {requirement.group!r} has {len(members)} members, fewer than {requirement.needed}"
    return ""


def _unreadable(what: str) -> EvidenceError:
    return EvidenceError(Reason.APPROVAL_INVALID, f"approval: {what}")
