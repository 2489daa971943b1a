"""The question a decision answers, and the answer."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from trust.errors import Reason
from trust.per_call import per_call
from trust.policy.controls import Control

# On a permit policy: the permits of streams that it allows need not bind the opening message.
BINDING: Final = "permit"
METHOD_ALONE: Final = "method"
METHOD_ALONE_ANNOTATION: Final = f'@{BINDING}("{METHOD_ALONE}")'


@enum.unique
class Authn(enum.StrEnum):
    """How a caller was identified; policies read it as `context.caller.authn`."""

    MTLS = "mtls"
    JWT_SVID = "jwt-svid"
    UNIX_SOCKET = "unix-socket"
    LOOPBACK = "loopback"  # development only
    NONE = "none"  # not identified: decided as spiffe://TD/anonymous, below level 4 only


@per_call()
class Call:
    """One execution to be decided. `request` is the message as received, never re-serialised."""

    principal: str  # SPIFFE ID
    method: str  # "package.Service/Method", no leading slash
    service: str  # logical name: Service::"name"
    authn: Authn
    node: str  # the deciding node's name
    level: int  # in force for the service on this node
    request: bytes | None = None  # None: not available (streams at open, or unknown method)
    metadata: Mapping[str, str] = field(default_factory=dict)  # the signed metadata_keys only


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the policies say. Immutable, so that it can be memoised."""

    allowed: bool
    reason: Reason  # ALLOWED, POLICY_DENIED, NO_POLICY_PERMITS, POLICY_ERROR, REQUEST_UNREPRESENTABLE, ...
    policies: tuple[str, ...]  # determining policy ids (@id), sorted
    errors: tuple[str, ...] = ()  # ids of policies that failed to evaluate; non-empty means denied
    obligations: tuple[tuple[str, str], ...] = ()  # (annotation, value) of determining policies, sorted
    detail: str = ""  # safe to show the caller
    controls: tuple[Control, ...] = ()  # limits of the determining permits, sorted
    method_alone: bool = False  # every determining permit lets a stream's token bind the method alone
