"""Permits for attempts: genuine ones with the probe node's own key, and ones that must be refused, each in one way.

The assessor owns the probe node and acts as its operator could at worst: it mints what its sidecar never would.
"""

import hashlib
import secrets
from dataclasses import dataclass, replace
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from control_plane.assess.edge.calls import METHOD, Metadata
from control_plane.assess.edge.probe_node import ProbeNode
from trust.attestation.credential import CREDENTIAL_KEY, credential_sha256
from trust.edge.clock import SystemClock
from trust.edge.endorsements import EndorsementFiles
from trust.edge.ids import ExecutionIds
from trust.edge.node_key_file import KEY_FILE, load_or_make_key
from trust.node_key import ENDORSEMENT_KEY, endorsement_digest, make_endorsement
from trust.permit import PERMIT_KEY, PermitClaims, certificate_sha256, mint, permit_sha256
from trust.spiffe import SpiffeId

LIFETIME_S: Final = 20
CREDENTIAL_FILE: Final = "credential.json"
ENDORSEMENTS: Final = "endorsements"
_LONG_AGO_S: Final = 120


@dataclass(frozen=True, slots=True)
class Shown:
    """A permit as it is shown: the metadata of a call, and what it says."""

    token: str
    claims: PermitClaims
    metadata: Metadata

    @property
    def sha256(self) -> bytes:
        """The digest that identifies it."""
        return permit_sha256(self.token)


class Mint:
    """Mints permits of one probe node."""

    def __init__(self, node: ProbeNode, *, policy_version: int, policy_sha256: str) -> None:
        """Read its key, certificates and trust credential.

        Args:
            node: running, and attested where the policy names witnesses.
            policy_version: in force.
            policy_sha256: hex, of the base bundle in force.

        Raises:
            MeshError: it has no certificate.
        """
        self._node, self._ids, self._clock = node, ExecutionIds(), SystemClock()
        self._key = load_or_make_key(node.data_dir / KEY_FILE)
        own = make_endorsement(node.svid(node.node), self._key.public_key(), self._clock.now_ms())
        self._endorsement = own
        self.endorsements = node.home / "kept" / ENDORSEMENTS  # where evidence finds what vouches for the key
        EndorsementFiles(self.endorsements).keep(own, (node.data_dir / "identity" / "ca.pem").read_bytes())
        self._policy = policy_version, bytes.fromhex(policy_sha256)

    def credential(self) -> bytes:
        """Return its newest trust credential; empty when there is none."""
        path = self._node.data_dir / CREDENTIAL_FILE
        return path.read_bytes() if path.is_file() else b""

    def claims(
        self,
        audience: str,
        request: bytes,
        parent: Shown | None = None,
        *,
        method: str = METHOD,
        caller: SpiffeId | None = None,
    ) -> PermitClaims:
        """Return what a genuine permit for this call says now. `caller`: a workload of the probe node."""
        who = self._node.workload if caller is None else caller
        now_s, execution = self._clock.now_ms() // 1000, self._ids.new()
        credential = self.credential()
        return PermitClaims(
            issuer=str(self._node.node),
            subject=str(who),
            audience=audience,
            issued_s=now_s,
            expires_s=now_s + LIFETIME_S,
            permit_id=secrets.token_bytes(16),
            root_id=execution if parent is None else parent.claims.root_id,
            execution_id=execution,
            method=method,
            policy_version=self._policy[0],
            policy_digest=self._policy[1],
            certificate_sha256=certificate_sha256(self._node.svid(who).chain_pem),
            request_sha256=hashlib.sha256(request).digest(),
            parent_sha256=None if parent is None else parent.sha256,
            credential_sha256=credential_sha256(credential) if credential else None,
        )

    def show(self, claims: PermitClaims, *, forged: bool = False, attested: bool = True) -> Shown:
        """Sign claims.

        Args:
            claims: what the permit says.
            forged: sign with a key that nobody endorsed.
            attested: name and send the trust credential.
        """
        if not attested:
            claims = replace(claims, credential_sha256=None)
        key = Ed25519PrivateKey.generate() if forged else self._key
        token = mint(claims, key.sign, endorsement_digest(self._endorsement))
        metadata: list[tuple[str, str | bytes]] = [(PERMIT_KEY, token), (ENDORSEMENT_KEY, self._endorsement)]
        credential = self.credential()
        if credential and attested:
            metadata.append((CREDENTIAL_KEY, credential))
        return Shown(token, claims, tuple(metadata))

    def expired(self, claims: PermitClaims) -> PermitClaims:
        """Return claims whose time is over."""
        begun_s = claims.issued_s - _LONG_AGO_S
        old = ExecutionIds(now_ms=lambda: begun_s * 1000).new()
        return replace(
            claims, issued_s=begun_s, expires_s=begun_s + LIFETIME_S, execution_id=old, root_id=old
        )
