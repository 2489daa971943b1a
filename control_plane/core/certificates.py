"""What the embedded CA writes into a certificate, and which requests it accepts."""

import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from trust import limits
from trust.errors import EvidenceError, Reason
from trust.spiffe import SpiffeId, check_name
from trust.x509 import check_public_key, control_plane_dns, to_datetime

MEMBER_KINDS: Final = frozenset({"workload", "node", "control-plane", "operator"})
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def ca_certificate(
    key: ec.EllipticCurvePrivateKey, trust_domain: str, *, serial: int, now_ms: int
) -> x509.Certificate:
    """Return a self-signed CA certificate for `trust_domain`, which it names as `spiffe://<trust_domain>`."""
    # The name differs between the CAs of one domain, so that chain building never has to guess.
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "egm"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"egm CA {serial:x}"[:24]),
        ]
    )
    domain = x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(to_datetime(now_ms - limits.MAX_CLOCK_SKEW_MS))
        .not_valid_after(to_datetime(now_ms) + datetime.timedelta(seconds=limits.CA_TTL_S))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(x509.SubjectAlternativeName([domain]), critical=False)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )


def leaf_certificate(
    public_key: PublicKey,
    spiffe_id: SpiffeId,
    *,
    issuer: x509.Certificate,
    issuer_key: ec.EllipticCurvePrivateKey,
    serial: int,
    not_before_ms: int,
    not_after_ms: int,
) -> x509.Certificate:
    """Return an X.509-SVID: one URI SAN (the SPIFFE ID) and its DNS SAN, for both ends of a connection.

    A control plane also gets the DNS SAN that all control planes of the domain share.
    """
    names: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(str(spiffe_id)),
        x509.DNSName(spiffe_id.dns_name),
    ]
    if spiffe_id.kind == "control-plane":
        names.append(x509.DNSName(control_plane_dns(spiffe_id.trust_domain)))
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "egm")]))
        .issuer_name(issuer.subject)
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(to_datetime(not_before_ms))
        .not_valid_after(to_datetime(not_after_ms))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(purposes, critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(identifier, critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


def check_member(spiffe_id: SpiffeId, trust_domain: str) -> None:
    """Refuse a SPIFFE ID that is not `kind/NAME` of a known kind in `trust_domain`.

    Raises:
        EvidenceError: IDENTITY_INVALID.
    """
    if spiffe_id.trust_domain != trust_domain:
        raise EvidenceError(Reason.IDENTITY_INVALID, f"{spiffe_id} is not of trust domain {trust_domain}")
    if spiffe_id.kind not in MEMBER_KINDS:
        kinds = ", ".join(sorted(MEMBER_KINDS))
        raise EvidenceError(Reason.IDENTITY_INVALID, f"{spiffe_id}: its kind must be one of {kinds}")
    check_name(spiffe_id.name)


def proven_key(csr_der: bytes) -> PublicKey:
    """Return the public key of a certificate request (PKCS#10, DER) that its holder has signed.

    Raises:
        EvidenceError: IDENTITY_INVALID or KEY_UNSAFE.
    """
    if len(csr_der) > limits.MAX_CSR_BYTES:
        raise EvidenceError(
            Reason.IDENTITY_INVALID, f"certificate request larger than {limits.MAX_CSR_BYTES} bytes"
        )
    try:
        csr = x509.load_der_x509_csr(csr_der)
        proven = csr.is_signature_valid
        key = csr.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise EvidenceError(
            Reason.IDENTITY_INVALID, "certificate request is not readable PKCS#10 in DER"
        ) from None
    if not proven:
        raise EvidenceError(Reason.IDENTITY_INVALID, "certificate request is not signed by its own key")
    check_public_key(key)
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise EvidenceError(Reason.KEY_UNSAFE, "certificate request has a key of an unknown kind")
    return key
