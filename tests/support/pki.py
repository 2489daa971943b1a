"""Certificates for tests, good and bad, made in memory: any URI and DNS names, any validity."""

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from trust.identity import Svid
from trust.spiffe import SpiffeId

HOUR_MS = 3_600_000


def now_ms() -> int:
    """Return the wall time: TLS libraries read it too."""
    return int(datetime.datetime.now(datetime.UTC).timestamp() * 1000)


def _at(ms: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(ms // 1000, datetime.UTC)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
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


class Authority:
    """A CA that signs whatever a test asks for."""

    def __init__(self, trust_domain: str = "mesh.local") -> None:
        """Make a key and a self-signed certificate."""
        self.trust_domain = trust_domain
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"test CA {trust_domain}")])
        now = now_ms()
        self._certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_at(now - HOUR_MS))
            .not_valid_after(_at(now + 24 * HOUR_MS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(ca=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.pem = self._certificate.public_bytes(serialization.Encoding.PEM)

    def svid(
        self,
        spiffe_id: SpiffeId,
        *,
        uris: Sequence[str] | None = None,
        not_before_ms: int | None = None,
        not_after_ms: int | None = None,
    ) -> Svid:
        """Issue a certificate; `uris` replaces the one URI name of a proper SVID."""
        key = ec.generate_private_key(ec.SECP256R1())
        before = now_ms() - HOUR_MS if not_before_ms is None else not_before_ms
        after = now_ms() + HOUR_MS if not_after_ms is None else not_after_ms
        names: list[x509.GeneralName] = [
            x509.UniformResourceIdentifier(uri) for uri in (uris if uris is not None else [str(spiffe_id)])
        ]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_at(before))
            .not_valid_after(_at(after))
            .add_extension(
                x509.SubjectAlternativeName([*names, x509.DNSName(spiffe_id.dns_name)]), critical=True
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        chain = certificate.public_bytes(serialization.Encoding.PEM)
        return Svid(spiffe_id, chain, _key_pem(key), before, after)


@dataclass
class StaticIdentity:
    """Implements `trust.identity.IdentitySource` with SVIDs that only a test replaces."""

    authority: Authority
    held: dict[SpiffeId, Svid] = field(default_factory=dict)
    watchers: list[Callable[[], None]] = field(default_factory=list)

    def svid(self, spiffe_id: SpiffeId) -> Svid:
        """Return what the test gave, or issue one."""
        if spiffe_id not in self.held:
            self.held[spiffe_id] = self.authority.svid(spiffe_id)
        return self.held[spiffe_id]

    def anchors_pem(self) -> bytes:
        """Return the authority's certificate."""
        return self.authority.pem

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Remember whom to tell."""
        self.watchers.append(changed)

    def replace(self, svid: Svid) -> None:
        """Rotate one SVID."""
        self.held[svid.spiffe_id] = svid
        for changed in self.watchers:
            changed()
