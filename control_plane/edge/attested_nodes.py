"""Which nodes are attested: the credentials that they report, verified here whatever they say of themselves."""

import asyncio
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

from egm.v1 import operator_pb2
from trust.attestation.credential import Credential, check_live, credential_sha256, open_credential
from trust.attestation.roster import Roster
from trust.edge.threads import to_thread_until_done
from trust.errors import MeshError
from trust.mesh import MeshSettings


@dataclass(frozen=True, slots=True)
class _Opened:
    """A credential of one node as it was opened once: under which roster, and what came of it."""

    sha256: bytes
    roster: str
    found: Credential | MeshError


class AttestedNodes:
    """Verifies under the roster of the published policy. Each credential once: it is remembered by node."""

    def __init__(
        self,
        mesh: Callable[[], MeshSettings | None],
        struck: Callable[[Roster], Set[str]] = lambda _roster: frozenset(),
    ) -> None:
        """Take where the signed settings in force come from, and whose word does not count.

        Args:
            mesh: the settings; None before there is a policy.
            struck: the witnesses of a roster that are revoked or convicted (`Denials.struck`).
        """
        self._mesh, self._struck = mesh, struck
        self._opened: dict[str, _Opened] = {}
        self._one = asyncio.Lock()

    async def judge(self, records: Sequence[operator_pb2.NodeRecord], *, now_ms: int) -> None:
        """Set `attested_until_ms`, `attested_by` and `attested_problem` of the records of all nodes."""
        mesh = self._mesh()
        roster = None if mesh is None else mesh.roster()
        if roster is None:
            return
        roster = roster.without(self._struck(roster))
        async with self._one:
            known = {record.node for record in records}
            self._opened = {node: opened for node, opened in self._opened.items() if node in known}
            await to_thread_until_done(self._judge, records, roster, now_ms)

    def _judge(self, records: Sequence[operator_pb2.NodeRecord], roster: Roster, now_ms: int) -> None:
        for record in records:
            data = record.status.credential
            if not data:
                record.attested_problem = "it has reported no trust credential"
                continue
            try:
                credential = self._open(record.node, data, roster)
                record.attested_until_ms = check_live(credential, roster, now_ms=now_ms)
            except MeshError as error:
                record.attested_problem = error.detail
                continue
            if (credential.node.trust_domain, credential.node.name) != (roster.trust_domain, record.node):
                record.attested_until_ms = 0
                record.attested_problem = f"the trust credential that it reported is of {credential.node}"
                continue
            record.attested_by.extend(sorted((*credential.attested_s, *credential.logged_s)))

    def _open(self, node: str, data: bytes, roster: Roster) -> Credential:
        sha256 = credential_sha256(data)
        known = self._opened.get(node)
        if known is None or (known.sha256, known.roster) != (sha256, roster.digest):
            found: Credential | MeshError
            try:
                found = open_credential(data, roster)
            except MeshError as error:
                found = error
            known = self._opened[node] = _Opened(sha256, roster.digest, found)
        if isinstance(known.found, MeshError):
            raise known.found
        return known.found
