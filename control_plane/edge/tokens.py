"""Join tokens and grants in the store (`control_plane.core.join_tokens.TokenStore`)."""

from control_plane.core.join_tokens import Grant, invalid_token
from control_plane.edge.store import fleet
from control_plane.edge.store.database import Database


class StoredTokens:
    """Tokens by hash; spending one is a single conditional update, so that it succeeds once across control planes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, token_sha256: str, grant: Grant, *, expires_ms: int, now_ms: int) -> None:
        """Remember a token that may be consumed once, before `expires_ms` (Unix)."""
        stored = fleet.StoredGrant(grant.node, grant.workloads)
        async with self._database.write() as connection:
            await fleet.add_token(connection, token_sha256, stored, expires_ms=expires_ms, now_ms=now_ms)

    async def consume(self, token_sha256: str, now_ms: int) -> Grant:
        """Spend a token and remember its grant.

        Raises:
            StateError: JOIN_TOKEN_INVALID.
        """
        async with self._database.write() as connection:
            stored = await fleet.use_token(connection, token_sha256, now_ms=now_ms)
        if stored is None:
            raise invalid_token()
        return Grant(stored.node, stored.workloads)

    async def grant_of(self, node: str) -> Grant | None:
        """Return what `node` was granted when it enrolled."""
        async with self._database.read() as connection:
            stored = await fleet.grant_of(connection, node)
        return None if stored is None else Grant(stored.node, stored.workloads)
