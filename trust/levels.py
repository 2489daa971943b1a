"""The levels that a service can be governed at, by the names of docs/levels.md; each does what those below it do."""

from typing import Final

OBSERVABLE: Final = 1  # recorded; nothing is refused
REACTIVE: Final = 2  # blocks nothing by policy, but what incident response takes away is gone
POLICY_AWARE: Final = 3  # what a policy speaks of is decided by it
GOVERNED: Final = 4  # nothing without a policy that permits it; the level that `would_deny` speaks of
CRYPTOGRAPHIC: Final = 5  # decides as level 4, and adds permits, attestation and a durable record
