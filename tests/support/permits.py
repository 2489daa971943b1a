"""A node with a signing key and an endorsement, and permits that are right in every claim."""

import base64
import dataclasses
import datetime
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from trust.errors import Reason, StateError
from trust.identity import Svid
from trust.node_key import NodeKey, endorsement_digest
from trust.permit import PermitClaims, mint
from trust.spiffe import SpiffeId

NODE = SpiffeId("mesh.local", "node/n1")
OTHER_NODE = SpiffeId("mesh.local", "node/n2")
ALICE = "spiffe://mesh.local/workload/alice"
PAYMENTS = "spiffe://mesh.local/workload/payments"
PAY = "shop.Payments/Pay"
NOW_MS = 1_800_000_000_250
NOW_S = NOW_MS // 1000
REQUEST = b"\x11" * 32
CERTIFICATE = b"\x22" * 32
ROOT = bytes.fromhex("0198f2f3eaaa7bbb8ccc0123456789ab")  # long ago
EXECUTION = bytes.fromhex("01a3185c50fa7bbb8ccc0123456789ac")  # drawn at NOW_MS


def b64(data: bytes) -> str:
    """Return base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass
class Signing:
    """A signing key with the `NodeKey` that relying parties hold of it."""

    node: SpiffeId = NODE
    not_after_ms: int = NOW_MS + 3_600_000
    private: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def kid(self) -> str:
        """The key id of its permits."""
        return endorsement_digest(self.private.public_key().public_bytes_raw())

    @property
    def public(self) -> NodeKey:
        """What `verify_endorsement` would return."""
        return NodeKey(self.node, self.private.public_key(), self.not_after_ms, self.kid)

    def key_of(self, kid: str) -> NodeKey:
        """Return our key for its id, refuse any other."""
        if kid != self.kid:
            raise StateError(Reason.PERMIT_UNVERIFIABLE, "unknown key")
        return self.public


def claims(**changes: Any) -> PermitClaims:
    """Return the claims of a root execution of alice on payments, now."""
    right = PermitClaims(
        issuer=str(NODE),
        subject=ALICE,
        audience=PAYMENTS,
        issued_s=NOW_S,
        expires_s=NOW_S + 30,
        permit_id=b"\x33" * 16,
        root_id=EXECUTION,
        execution_id=EXECUTION,
        method=PAY,
        policy_version=7,
        policy_digest=b"\x44" * 32,
        certificate_sha256=CERTIFICATE,
        request_sha256=REQUEST,
    )
    return dataclasses.replace(right, **changes)


def token(signing: Signing, **changes: Any) -> str:
    """Return a permit as its node mints it."""
    return mint(claims(**changes), signing.private.sign, signing.kid)


def payload_of(text: str) -> dict[str, Any]:
    """Return the claims of a token as JSON."""
    body = text.split(".")[1]
    decoded: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return decoded


def forge(signing: Signing, payload: Any, *, header: Any = None) -> str:
    """Return a token with any header and payload, signed with the node's key: what a forger who holds it can make."""
    head = {"alg": "EdDSA", "typ": "egm-permit+jwt", "kid": signing.kid} if header is None else header
    parts = [
        part if isinstance(part, bytes) else json.dumps(part, separators=(",", ":")).encode()
        for part in (head, payload)
    ]
    signed = ".".join(b64(part) for part in parts)
    return f"{signed}.{b64(signing.private.sign(signed.encode()))}"


class NodeCa:
    """A CA around NOW_MS that issues whatever a test asks for: proper SVIDs by default."""

    def __init__(self, trust_domain: str = "mesh.local", issuer: "NodeCa | None" = None) -> None:
        """Make a key and a certificate: self-signed, or an intermediate below `issuer`."""
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"CA {secrets.token_hex(4)}")])
        self._chain = b"" if issuer is None else issuer.chain_pem()
        builder = _builder(self.name, self.name if issuer is None else issuer.name, self.key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        builder = builder.add_extension(_usage(ca=True), critical=True)
        names = [x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        signed = builder.sign(self.key if issuer is None else issuer.key, hashes.SHA256())
        self.pem = signed.public_bytes(serialization.Encoding.PEM)
        self._below_root = issuer is not None

    def chain_pem(self) -> bytes:
        """Return what a leaf of this CA appends to itself: nothing of the root."""
        return self.pem + self._chain if self._below_root else b""

    def svid(
        self,
        spiffe_id: SpiffeId = NODE,
        *,
        key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
        uris: Sequence[str] | None = None,
        before_ms: int = NOW_MS - 3_600_000,
        after_ms: int = NOW_MS + 3_600_000,
        ca: bool = False,
    ) -> Svid:
        """Issue an SVID; options make it improper."""
        private = key or ec.generate_private_key(ec.SECP256R1())
        builder = _builder(x509.Name([]), self.name, private.public_key(), before_ms, after_ms)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(u) for u in uris or [str(spiffe_id)]]
        names.append(x509.DNSName(spiffe_id.dns_name))
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        builder = builder.add_extension(_usage(ca=ca), critical=True)
        chain = builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        pem = private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return Svid(spiffe_id, chain + self.chain_pem(), pem, before_ms, after_ms // 1000 * 1000)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
    before_ms: int = NOW_MS - 7_200_000,
    after_ms: int = NOW_MS + 7 * 24 * 3_600_000,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime.fromtimestamp(before_ms // 1000, datetime.UTC))
        .not_valid_after(datetime.datetime.fromtimestamp(after_ms // 1000, datetime.UTC))
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )
