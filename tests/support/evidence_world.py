"""Evidence files of nodes that record whatever a test wants: their keys, the CA and every TUF key are at hand."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from tests.support.control_plane import TRUST_DOMAIN
from tests.support.permits import ALICE, NOW_MS, PAY, PAYMENTS, NodeCa, claims
from tests.support.records import callee_side, intent, outcome
from tests.support.sidecar_mesh import policy_files
from tests.support.tuf_world import World
from trust.attestation.roster import AttestationSettings
from trust.evidence import Content, Evidence, LinkPart, NodePart, PolicyPart, RecordPart, build_evidence
from trust.execution import id_text
from trust.node_key import endorsement_digest, make_endorsement
from trust.past_policy import find_policy
from trust.permit import mint, permit_sha256
from trust.policy.source import build
from trust.record import Intent, Outcome, Record, build_record
from trust.spiffe import SpiffeId
from trust.x509 import load_certificate

DOMAIN = "mesh.local"


def bundle(
    settings: AttestationSettings | None = None,
    allow: tuple[str, ...] = ("alice",),
    revoked: tuple[tuple[str, str], ...] = (),
) -> bytes:
    """Return a base bundle at level 5 that names these witnesses, and revokes (kind, value) for good."""
    files = {
        path: data.replace(TRUST_DOMAIN.encode(), DOMAIN.encode())
        for path, data in policy_files(level=5, allow=allow).items()
    }
    if settings is not None:
        dumped = {"attestation": settings.model_dump(mode="json", exclude_none=True)}
        files["bundle.yaml"] += yaml.safe_dump(dumped).encode()
    if revoked:
        gone = [{"kind": kind, "value": value, "reason": "stolen"} for kind, value in revoked]
        files["bundle.yaml"] += yaml.safe_dump({"revocations": gone}).encode()
    return build(files)


BASE = bundle()


def digest(data: bytes) -> bytes:
    """SHA-256."""
    return hashlib.sha256(data).digest()


def tree_root(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962, section 2.1."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return digest(b"\1" + tree_root(leaves[:split]) + tree_root(leaves[split:]))


def proof_of(index: int, leaves: Sequence[bytes]) -> tuple[bytes, ...]:
    """RFC 6962, section 2.1.1."""
    if len(leaves) == 1:
        return ()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    if index < split:
        return (*proof_of(index, leaves[:split]), tree_root(leaves[split:]))
    return (*proof_of(index - split, leaves[split:]), tree_root(leaves[:split]))


@dataclass
class Node:
    """A node with its signing key and what vouches for it."""

    name: str
    ca: NodeCa
    private: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    endorsement: bytes = b""

    def __post_init__(self) -> None:
        """Endorse the key around NOW_MS."""
        self.endorsement = self.endorsement or self.endorse(NOW_MS - 60_000)

    @property
    def spiffe_id(self) -> SpiffeId:
        """The node's name in the mesh."""
        return SpiffeId.of(DOMAIN, "node", self.name)

    def endorse(self, now_ms: int, ca: NodeCa | None = None) -> bytes:
        """Return another endorsement of the same key."""
        return make_endorsement((ca or self.ca).svid(self.spiffe_id), self.private.public_key(), now_ms)

    def permit(self, *, endorsement: bytes | None = None, **changes: Any) -> str:
        """Mint a permit of alice on payments, under the node's own name unless `changes` say another."""
        kid = endorsement_digest(endorsement or self.endorsement)
        return mint(claims(**({"issuer": str(self.spiffe_id)} | changes)), self.private.sign, kid)

    def part(self, leaves: Sequence[bytes]) -> NodePart:
        """Return the node as a file has it, with a checkpoint over `leaves`."""
        origin, public = f"{DOMAIN}/node/{self.name}", b"\1" + self.private.public_key().public_bytes_raw()
        key_id = digest(origin.encode() + b"\n" + public)[:4]
        text = f"{origin}\n{len(leaves)}\n{base64.b64encode(tree_root(leaves)).decode()}\n"
        line = base64.b64encode(key_id + self.private.sign(text.encode())).decode()
        key = f"{origin}+{key_id.hex()}+{base64.b64encode(public).decode()}"
        return NodePart(self.name, key, f"{text}\n— {origin} {line}\n".encode(), self.endorsement)


class EvidenceWorld:
    """Node a is the caller's, node b the callee's; one base policy is published."""

    def __init__(self, tuf: World | None = None, base: bytes = BASE) -> None:
        """Make keys and certificates, and publish `base`."""
        self.tuf, self.base = tuf or World(now_ms=NOW_MS - 1_000), base
        if tuf is None:
            self.tuf.release(base)
        self.ca = NodeCa()
        self.a, self.b = Node("a", self.ca), Node("b", self.ca)

    @property
    def policy_claims(self) -> dict[str, Any]:
        """What a permit says of the policy in force."""
        return {"policy_version": self.tuf.state.version_of("targets"), "policy_digest": digest(self.base)}

    def permit(self, **changes: Any) -> str:
        """Return a good permit of node a."""
        return self.a.permit(**(self.policy_claims | changes))

    def sides(self, token: str | None = None, **changes: Any) -> dict[str, list[Record]]:
        """Return what both nodes record of the call of `token`; `changes` are of both intents."""
        token = token or self.permit()
        said = claims()
        caller_side = intent(
            1,
            execution_id=said.execution_id,
            root_id=changes.pop("root_id", said.execution_id),
            caller=ALICE,
            callee=PAYMENTS,
            method=PAY,
            request_sha256=said.request_sha256,
            policy_version=self.tuf.state.version_of("targets"),
            policy_sha256=digest(self.base),
            wall_ms=NOW_MS,
            node="a",
        )
        permitted = {"permit": token.encode(), "permit_sha256": permit_sha256(token)} | changes
        callee = callee_side(caller_side, "b", **permitted)
        caller = callee_side(callee, "a", side=caller_side.side)
        return {"a": [caller, outcome(caller)], "b": [callee, outcome(callee)]}

    def policy(
        self, at_ms: int = NOW_MS, base: bytes | None = None, version: int | None = None
    ) -> PolicyPart:
        """Return a published policy with its chain."""
        number = self.tuf.state.version_of("targets") if version is None else version
        part = find_policy(self.tuf.files.get, number, digest(base or self.base), at_ms)
        assert part is not None
        return part

    def file(
        self,
        records: Mapping[str, Sequence[Record]],
        *,
        endorsements: Sequence[bytes] = (),
        credentials: Sequence[bytes] = (),
        policies: Sequence[PolicyPart] | None = None,
        links: Sequence[LinkPart] = (),
        before: Mapping[str, Sequence[bytes]] | None = None,
    ) -> bytes:
        """Return the evidence file of everything that the nodes recorded, after the entries `before`."""
        parts: list[RecordPart] = []
        nodes: list[NodePart] = []
        contents: dict[tuple[str, bytes, int], list[int | None]] = {}
        for node in (self.a, self.b):
            data = [build_record(record) for record in records.get(node.name, ())]
            earlier = (before or {}).get(node.name, ())
            leaves = [digest(b"\0" + entry) for entry in (*earlier, *map(digest, data))]
            if data:
                nodes.append(node.part(leaves))
            recorded = zip(records.get(node.name, ()), data, strict=True)
            for index, (record, one) in enumerate(recorded, start=len(earlier)):
                parts.append(RecordPart(node.name, index, one, proof_of(index, leaves)))
                place = contents.setdefault((node.name, record.execution_id, record.side), [None, None])
                place[isinstance(record, Outcome)] = index
        listed = [
            Content(
                id_text(execution), name, next(_sides(records[name], execution, side)), intent_at or 0, ended
            )
            for (name, execution, side), (intent_at, ended) in contents.items()
        ]
        chosen = [self.policy()] if policies is None else policies
        return build_evidence(
            Evidence(
                contents=tuple(sorted(listed, key=lambda c: c.order)),
                nodes=tuple(nodes),
                records=tuple(parts),
                policies=tuple(sorted(chosen, key=lambda p: p.metadata.roles["targets"])),
                anchors=(load_certificate(self.ca.pem).public_bytes(Encoding.DER),),
                endorsements=tuple(sorted(endorsements)),
                credentials=tuple(sorted(credentials)),
                links=tuple(links),
            )
        )


def _sides(records: Sequence[Record], execution: bytes, side: int) -> Any:
    return (
        r.side for r in records if isinstance(r, Intent) and (r.execution_id, r.side) == (execution, side)
    )
