"""Which certificates may identify a member of the mesh, decided from bytes alone.

An X.509-SVID has exactly one URI SAN, a SPIFFE ID with a path, is not a CA, and may sign handshakes (X.509-
SVID specification, sections 2 to 5). Chains are checked up to given anchors; nothing here reads a clock.
"""

import datetime
import functools
import hashlib
import itertools
from collections.abc import Sequence
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID

from trust import limits
from trust.errors import EvidenceError, MeshError, Reason, StateError
from trust.identity import Svid
from trust.spiffe import SpiffeId, check_trust_domain

_PEM_MARK: Final = b"-----BEGIN "
_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
MIN_RSA_BITS: Final = 2048
_KNOWN_PEERS: Final = 4_096  # certificates whose names are remembered; a mesh has one per member
_UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    CryptographyDeprecationWarning,  # where warnings are errors: what is refused below, or by a later release
)


def _invalid(detail: str) -> EvidenceError:
    return EvidenceError(Reason.IDENTITY_INVALID, detail)


def control_plane_dns(trust_domain: str) -> str:
    """Return the DNS SAN that every control plane of the domain shares."""
    return f"control-plane.{trust_domain}"


def load_certificate(der_or_pem: bytes | x509.Certificate) -> x509.Certificate:
    """Parse one certificate; of a PEM chain, the first (the leaf).

    Raises:
        EvidenceError: IDENTITY_INVALID, if the bytes are no certificate or too many.
    """
    if isinstance(der_or_pem, x509.Certificate):
        return der_or_pem
    if len(der_or_pem) > limits.MAX_CERTIFICATE_CHAIN_BYTES:
        raise _invalid(f"certificate larger than {limits.MAX_CERTIFICATE_CHAIN_BYTES} bytes")
    load = x509.load_pem_x509_certificate if _PEM_MARK in der_or_pem else x509.load_der_x509_certificate
    try:
        return _readable(load(der_or_pem))
    except _UNREADABLE:
        raise _invalid("not a readable X.509 certificate") from None


def _readable(certificate: x509.Certificate) -> x509.Certificate:
    """Parse now what pyca/cryptography would parse (and refuse) at first use."""
    _ = certificate.extensions, certificate.issuer, certificate.subject, certificate.public_key()
    _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc, certificate.version
    if certificate.serial_number <= 0:
        raise ValueError("RFC 5280 demands a positive serial number")
    return certificate


def load_chain(pem: bytes) -> list[x509.Certificate]:
    """Parse a PEM file of certificates, in order; at least one.

    Raises:
        EvidenceError: IDENTITY_INVALID.
    """
    if len(pem) > limits.MAX_CERTIFICATE_CHAIN_BYTES:
        raise _invalid(f"certificate chain larger than {limits.MAX_CERTIFICATE_CHAIN_BYTES} bytes")
    try:
        return [_readable(certificate) for certificate in x509.load_pem_x509_certificates(pem)]
    except _UNREADABLE:
        raise _invalid("no readable PEM certificate") from None


def to_pem(certificates: Sequence[x509.Certificate]) -> bytes:
    """Return the certificates as one PEM file, in order."""
    return b"".join(cert.public_bytes(serialization.Encoding.PEM) for cert in certificates)


def _names(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None


def _uris(certificate: x509.Certificate) -> list[str]:
    names = _names(certificate)
    return [] if names is None else names.get_values_for_type(x509.UniformResourceIdentifier)


def dns_names_of(der_or_pem: bytes | x509.Certificate) -> list[str]:
    """Return the DNS SANs of a certificate, in order.

    Raises:
        EvidenceError: IDENTITY_INVALID, if it cannot be parsed.
    """
    names = _names(load_certificate(der_or_pem))
    return [] if names is None else names.get_values_for_type(x509.DNSName)


def spiffe_id_of(der_or_pem: bytes | x509.Certificate) -> SpiffeId:
    """Return the one SPIFFE ID that a certificate carries.

    Says nothing about who issued it: the caller has verified the chain (TLS did, or `check_svid`).

    Args:
        der_or_pem: one certificate, DER or PEM; of a PEM chain the leaf counts.

    Raises:
        EvidenceError: CALLER_AMBIGUOUS, unless there is exactly one URI SAN, a SPIFFE ID with a path.
            IDENTITY_INVALID, if the bytes are no certificate.
    """
    uris = _uris(load_certificate(der_or_pem))
    if len(uris) != 1:
        raise EvidenceError(
            Reason.CALLER_AMBIGUOUS, f"certificate has {len(uris)} URI names; exactly one is allowed"
        )
    try:
        return SpiffeId.parse(uris[0])
    except EvidenceError as error:
        raise EvidenceError(Reason.CALLER_AMBIGUOUS, f"the certificate's URI name: {error.detail}") from None


def trust_domain_of_ca(certificate: x509.Certificate) -> str:
    """Return the trust domain that a CA certificate signs for: its one URI SAN `spiffe://TD`.

    Raises:
        EvidenceError: IDENTITY_INVALID.
    """
    uris = _uris(certificate)
    if len(uris) != 1 or not uris[0].startswith("spiffe://"):
        raise _invalid("CA certificate must have exactly one URI name: spiffe://<trust domain>")
    return check_trust_domain(uris[0].removeprefix("spiffe://"))


def validity(certificate: bytes | x509.Certificate) -> tuple[int, int]:
    """Return (not_before, not_after) of a certificate, Unix milliseconds.

    Raises:
        EvidenceError: IDENTITY_INVALID, if it cannot be parsed.
    """
    cert = load_certificate(certificate)
    return _ms(cert.not_valid_before_utc), _ms(cert.not_valid_after_utc)


def _ms(moment: datetime.datetime) -> int:
    return (moment - _EPOCH) // datetime.timedelta(milliseconds=1)


def to_datetime(ms: int) -> datetime.datetime:
    """Return Unix milliseconds as an aware datetime, cut to the second (the precision of X.509)."""
    return _EPOCH + datetime.timedelta(seconds=ms // 1000)


def check_public_key(key: CertificatePublicKeyTypes) -> None:
    """Accept P-256, P-384 and RSA from 2048 bits: what every TLS stack in the mesh can use.

    Raises:
        EvidenceError: KEY_UNSAFE.
    """
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in {"secp256r1", "secp384r1"}:
        return
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= MIN_RSA_BITS:
        return
    raise EvidenceError(
        Reason.KEY_UNSAFE, f"key must be EC P-256, EC P-384 or RSA of {MIN_RSA_BITS} bits or more"
    )


def check_valid_at(certificate: x509.Certificate, *, now_ms: int) -> None:
    """Refuse a certificate outside its time; `MAX_CLOCK_SKEW_MS` early is forgiven, late is not.

    Raises:
        StateError: IDENTITY_UNAVAILABLE, for one that is not valid at `now_ms`.
    """
    not_before_ms, not_after_ms = validity(certificate)
    if now_ms >= not_after_ms:
        raise StateError(
            Reason.IDENTITY_UNAVAILABLE, f"certificate expired at {to_datetime(not_after_ms):%FT%TZ}"
        )
    if now_ms + limits.MAX_CLOCK_SKEW_MS < not_before_ms:
        raise StateError(
            Reason.IDENTITY_UNAVAILABLE,
            f"certificate is not valid before {to_datetime(not_before_ms):%FT%TZ}; check the clock",
        )


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return constraints.ca and usage.key_cert_sign


def check_leaf(certificate: x509.Certificate) -> None:
    """Refuse a certificate that is not shaped like an X.509-SVID leaf for both ends of a TLS connection.

    Raises:
        EvidenceError: IDENTITY_INVALID or KEY_UNSAFE; CALLER_AMBIGUOUS from `spiffe_id_of`.
    """
    spiffe_id_of(certificate)
    check_public_key(certificate.public_key())
    extensions = certificate.extensions
    try:
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise _invalid("a leaf certificate must not be a CA")
    except x509.ExtensionNotFound:
        pass  # absent means: not a CA
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        raise _invalid("leaf certificate has no key usage") from None
    if not usage.digital_signature or usage.key_cert_sign or usage.crl_sign:
        raise _invalid("leaf key usage must be digitalSignature, without keyCertSign and cRLSign")
    try:
        purposes = set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return  # optional in the specification; absent means any purpose
    if not purposes >= {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}:
        raise _invalid("leaf extended key usage must hold serverAuth and clientAuth")


def check_anchors(pem: bytes, *, trust_domain: str | None = None) -> list[x509.Certificate]:
    """Parse a trust bundle: CA certificates only; with `trust_domain`, of that domain where they name one.

    Raises:
        EvidenceError: IDENTITY_INVALID.
    """
    anchors = load_chain(pem)
    for anchor in anchors:
        if not _is_ca(anchor):
            raise _invalid("trust bundle holds a certificate that is not a CA")
        if trust_domain is not None and _uris(anchor) and trust_domain_of_ca(anchor) != trust_domain:
            raise _invalid(f"trust bundle holds a CA of another trust domain than {trust_domain}")
    return anchors


def verify_chain(
    chain: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate], *, now_ms: int
) -> None:
    """Verify that `chain` (leaf first) leads to one of `anchors`, every certificate valid at `now_ms`.

    Raises:
        EvidenceError: IDENTITY_INVALID, if it does not lead there.
        StateError: IDENTITY_UNAVAILABLE, if a certificate is outside its time.
    """
    if not 1 <= len(chain) <= limits.MAX_CERTIFICATE_CHAIN:
        raise _invalid(f"a chain has 1 to {limits.MAX_CERTIFICATE_CHAIN} certificates, not {len(chain)}")
    for child, parent in itertools.pairwise(chain):
        if not _is_ca(parent) or not _issued(child, parent):
            raise _invalid("certificate chain is broken: a certificate was not issued by the next one")
    for certificate in chain:
        check_valid_at(certificate, now_ms=now_ms)
    last = chain[-1]
    issuers = [anchor for anchor in anchors if anchor == last or (_is_ca(anchor) and _issued(last, anchor))]
    if not issuers or (len(chain) == 1 and last in anchors):
        raise _invalid("certificate was not issued by a CA that is trusted here")
    # An expired anchor vouches for nothing, but a second one for the same name may still be good.
    for anchor in issuers:
        not_before_ms, not_after_ms = validity(anchor)
        if not_before_ms - limits.MAX_CLOCK_SKEW_MS <= now_ms < not_after_ms:
            return
    raise StateError(Reason.IDENTITY_UNAVAILABLE, "the CA that issued the certificate is outside its time")


def _issued(child: x509.Certificate, parent: x509.Certificate) -> bool:
    try:
        child.verify_directly_issued_by(parent)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return True


def check_svid(
    chain_pem: bytes, key_pem: bytes, anchors_pem: bytes, *, expected: SpiffeId, now_ms: int
) -> Svid:
    """Return the SVID that these bytes make, after checking all of it.

    Args:
        chain_pem: leaf first.
        key_pem: PKCS#8 private key of the leaf, unencrypted.
        anchors_pem: CA certificates that are trusted.
        expected: the identity it must carry.

    Raises:
        EvidenceError: IDENTITY_INVALID, CALLER_AMBIGUOUS or KEY_UNSAFE, saying what is wrong.
        StateError: IDENTITY_UNAVAILABLE, if it is outside its time.
    """
    svid = read_svid(chain_pem, key_pem)
    if svid.spiffe_id != expected:
        raise _invalid(f"certificate is for {svid.spiffe_id}, not for {expected}")
    chain = load_chain(chain_pem)
    if expected.dns_name not in dns_names_of(chain[0]):
        raise _invalid(
            f"certificate of {expected} lacks the DNS name {expected.dns_name}; gRPC clients need it to "
            "recognise the server (in SPIRE: spire-server entry update ... -dns NAME)"
        )
    verify_chain(chain, check_anchors(anchors_pem), now_ms=now_ms)
    return svid


def read_svid(chain_pem: bytes, key_pem: bytes) -> Svid:
    """Return the SVID that these bytes make: shape and key are checked, issuer and time are not.

    Raises:
        EvidenceError: IDENTITY_INVALID, CALLER_AMBIGUOUS or KEY_UNSAFE.
    """
    leaf = load_chain(chain_pem)[0]
    check_leaf(leaf)
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError):
        raise _invalid("private key is not an unencrypted PKCS#8 PEM key") from None
    if _spki(key.public_key()) != _spki(leaf.public_key()):
        raise _invalid("private key does not belong to the certificate")
    not_before_ms, not_after_ms = validity(leaf)
    return Svid(spiffe_id_of(leaf), chain_pem, key_pem, not_before_ms, not_after_ms)


def _spki(key: object) -> bytes:
    public_bytes = getattr(key, "public_bytes", None)
    if public_bytes is None:
        raise _invalid("unsupported kind of key")
    encoded = public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return bytes(encoded)


def public_key_sha256(certificate: bytes | x509.Certificate) -> bytes:
    """Return the SHA-256 of a certificate's DER SubjectPublicKeyInfo: how a revocation names its key.

    Raises:
        EvidenceError: IDENTITY_INVALID.
    """
    return hashlib.sha256(_spki(load_certificate(certificate).public_key())).digest()


def check_peer(certificate_pem: bytes, *, trust_domain: str, now_ms: int) -> SpiffeId:
    """Return who the peer of an established mTLS connection is, or why nobody.

    TLS verified the chain when the connection opened; identity, domain and time are checked for every call.

    Raises:
        EvidenceError: CALLER_AMBIGUOUS, CALLER_CERTIFICATE_EXPIRED, or CALLER_UNIDENTIFIED (another domain).
    """
    spiffe_id, not_after_ms = _member(certificate_pem)
    if spiffe_id.trust_domain != trust_domain:
        raise EvidenceError(
            Reason.CALLER_UNIDENTIFIED, f"{spiffe_id} is not of this trust domain ({trust_domain})"
        )
    if now_ms >= not_after_ms:
        raise EvidenceError(Reason.CALLER_CERTIFICATE_EXPIRED, f"the certificate of {spiffe_id} has expired")
    return spiffe_id


@functools.lru_cache(_KNOWN_PEERS)
def _member(certificate_pem: bytes) -> tuple[SpiffeId, int]:
    """Return whom a certificate names and when it ends (Unix ms): the same for the same bytes, so read once."""
    try:
        certificate = load_certificate(certificate_pem)
    except MeshError:
        raise EvidenceError(Reason.CALLER_UNIDENTIFIED, "the peer's certificate is unreadable") from None
    return spiffe_id_of(certificate), validity(certificate)[1]
