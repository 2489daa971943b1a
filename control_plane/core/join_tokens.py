"""Join tokens: what one token lets its bearer become, once; and the port that remembers them.

Text: `egm-join.v1.<base64url of 32 random bytes>`. Only its SHA-256 is ever stored.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from trust import limits
from trust.errors import InputError, Reason, StateError
from trust.spiffe import SpiffeId, check_name

TEXT_PREFIX: Final = "egm-join.v1."
RANDOM_BYTES: Final = 32
_TOKEN: Final = re.compile(r"egm-join\.v1\.[A-Za-z0-9_-]{43}\Z")


@dataclass(frozen=True, slots=True)
class Grant:
    """Which identities a node may hold: its own, and those of the workloads it serves."""

    node: str
    workloads: tuple[str, ...]  # sorted, distinct

    def allows(self, spiffe_id: SpiffeId, *, trust_domain: str) -> bool:
        """Whether the holder may have a certificate for `spiffe_id`."""
        if spiffe_id.trust_domain != trust_domain:
            return False
        if spiffe_id.kind == "node":
            return spiffe_id.name == self.node
        return spiffe_id.kind == "workload" and spiffe_id.name in self.workloads


class TokenStore(Protocol):
    """Remembers tokens by their SHA-256 (hex) and what each enrolled node was granted."""

    async def create(self, token_sha256: str, grant: Grant, *, expires_ms: int, now_ms: int) -> None:
        """Remember a token that may be consumed once, before `expires_ms` (Unix)."""
        ...

    async def consume(self, token_sha256: str, now_ms: int) -> Grant:
        """Spend a token, atomically: of two callers with one token at most one succeeds.

        From then on `grant_of(grant.node)` returns this grant; it replaces an earlier one of that node.

        Raises:
            StateError: JOIN_TOKEN_INVALID (`invalid_token()`), the same for unknown, spent and expired tokens.
        """
        ...

    async def grant_of(self, node: str) -> Grant | None:
        """Return what the node `node` was granted when it enrolled; None if it never did or was removed."""
        ...


def make_grant(node: str, workloads: Iterable[str]) -> Grant:
    """Return a grant whose names are names, within `MAX_WORKLOADS_PER_NODE`.

    Raises:
        EvidenceError: IDENTITY_INVALID, for a bad name.
        InputError: INPUT_INVALID, for too many workloads.
    """
    names = tuple(sorted({check_name(name) for name in workloads}))
    if len(names) > limits.MAX_WORKLOADS_PER_NODE:
        raise InputError(
            Reason.INPUT_INVALID,
            f"{len(names)} workloads; a node serves at most {limits.MAX_WORKLOADS_PER_NODE}: use several nodes",
        )
    return Grant(check_name(node), names)


def token_digest(token: str) -> str:
    """Return the SHA-256 (hex) under which `token` is stored.

    Raises:
        StateError: JOIN_TOKEN_INVALID, if it does not look like a join token.
    """
    if not _TOKEN.match(token):
        raise invalid_token()
    return hashlib.sha256(token.encode()).hexdigest()


def invalid_token() -> StateError:
    """Return the one answer to unknown, spent, expired and malformed tokens: no hint which it was."""
    return StateError(
        Reason.JOIN_TOKEN_INVALID,
        "the join token is unknown, expired or already used; ask an operator for a new one: egm node token NAME",
    )


def check_ttl(ttl_s: int) -> int:
    """Return the lifetime of a token to be made: `ttl_s`, or the default for 0.

    Raises:
        InputError: INPUT_INVALID, when it is out of bounds.
    """
    if ttl_s == 0:
        return limits.JOIN_TOKEN_TTL_S
    if not 1 <= ttl_s <= limits.MAX_JOIN_TOKEN_TTL_S:
        raise InputError(
            Reason.INPUT_INVALID, f"a token lives 1 to {limits.MAX_JOIN_TOKEN_TTL_S} s, not {ttl_s}"
        )
    return ttl_s
