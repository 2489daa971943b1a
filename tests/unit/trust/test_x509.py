"""Certificates checked from bytes."""

import datetime
import warnings
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from control_plane.core.certificates import ca_certificate, leaf_certificate
from tests.support.identity import TRUST_DOMAIN, make_ca, make_svid, member
from trust.edge.leaf_keys import key_to_pem, new_key
from trust.errors import EvidenceError, MeshError, Reason
from trust.x509 import (
    check_anchors,
    check_leaf,
    check_peer,
    check_public_key,
    check_svid,
    load_certificate,
    load_chain,
    read_svid,
    spiffe_id_of,
    to_pem,
    validity,
    verify_chain,
)

NOW_MS = 1_800_000_000_000
HOUR_MS = 3600_000
ALICE, BOB = member("workload", "alice"), member("workload", "bob")


def self_made(
    uris: list[str],
    *,
    ca: bool = False,
    sign_certs: bool = False,
    digital_signature: bool = True,
    purposes: list[x509.ObjectIdentifier] | None = None,
) -> x509.Certificate:
    """Return a self-signed certificate with exactly these properties."""
    key, day = new_key(), datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(day)
        .not_valid_after(day + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature, False, False, False, False, sign_certs, False, False, False),
            critical=True,
        )
    )
    if uris:
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if purposes is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    return builder.sign(key, hashes.SHA256())


@pytest.mark.parametrize(
    "uris",
    [
        [],
        [str(ALICE), str(BOB)],
        [str(ALICE), str(ALICE)],
        [str(ALICE), "https://example.org/"],
        ["https://example.org/"],
        ["spiffe://mesh.test"],  # a trust domain, not a member
        ["spiffe://mesh.test/workload/../node/a"],
        ["spiffe://MESH.test/workload/alice"],
        ["SPIFFE://mesh.test/workload/alice"],
        ["spiffe://mesh.test/workload/al%69ce"],
    ],
)
def test_anything_but_one_canonical_spiffe_id_identifies_nobody(uris: list[str]) -> None:
    """Taking the first of many, or normalising, would let a certificate speak for two."""
    with pytest.raises(EvidenceError) as refused:
        spiffe_id_of(self_made(uris))
    assert refused.value.reason is Reason.CALLER_AMBIGUOUS


def test_the_id_is_read_from_der_from_pem_and_from_the_leaf_of_a_chain(tmp_path: Path) -> None:
    """All encodings that TLS stacks hand out."""
    ca = make_ca(tmp_path)
    svid = make_svid(ca, ALICE)
    der = load_chain(svid.chain_pem)[0].public_bytes(serialization.Encoding.DER)
    for form in (svid.chain_pem, der, svid.chain_pem + ca.anchors_pem()):
        assert spiffe_id_of(form) == ALICE


@pytest.mark.parametrize(
    "broken",
    [
        self_made([str(ALICE)], ca=True, sign_certs=True),
        self_made([str(ALICE)], sign_certs=True),
        self_made([str(ALICE)], digital_signature=False),
        self_made([str(ALICE)], purposes=[ExtendedKeyUsageOID.CODE_SIGNING]),
        self_made([str(ALICE)], purposes=[ExtendedKeyUsageOID.CLIENT_AUTH]),
    ],
)
def test_a_leaf_that_may_sign_certificates_or_not_handshakes_is_refused(broken: x509.Certificate) -> None:
    """A CA must not pass for a workload, nor a code signing certificate for either."""
    with pytest.raises(EvidenceError) as refused:
        check_leaf(broken)
    assert refused.value.reason is Reason.IDENTITY_INVALID


def test_weak_and_unusual_keys_are_refused() -> None:
    """Small RSA, odd curves and Ed25519 (which TLS stacks here cannot use)."""
    weak: list[Any] = [
        rsa.generate_private_key(65537, 1024),
        ec.generate_private_key(ec.SECP192R1()),
        ec.generate_private_key(ec.SECP256K1()),
        ed25519.Ed25519PrivateKey.generate(),
    ]
    for key in weak:
        with pytest.raises(EvidenceError) as refused:
            check_public_key(key.public_key())
        assert refused.value.reason is Reason.KEY_UNSAFE


class Pki:
    """A CA and a leaf with chosen times."""

    def __init__(self, *, ca_from_ms: int = NOW_MS - HOUR_MS) -> None:
        self.key = new_key()
        self.ca = ca_certificate(self.key, TRUST_DOMAIN, serial=1, now_ms=ca_from_ms)
        self.anchors_pem = to_pem([self.ca])

    def leaf(
        self, *, from_ms: int = NOW_MS - 1000, until_ms: int = NOW_MS + HOUR_MS
    ) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        key = new_key()
        leaf = leaf_certificate(
            key.public_key(),
            ALICE,
            issuer=self.ca,
            issuer_key=self.key,
            serial=2,
            not_before_ms=from_ms,
            not_after_ms=until_ms,
        )
        return leaf, key


def test_a_complete_svid_passes_and_says_its_times() -> None:
    """The reference case of everything refused below."""
    pki = Pki()
    leaf, key = pki.leaf()
    svid = check_svid(to_pem([leaf]), key_to_pem(key), pki.anchors_pem, expected=ALICE, now_ms=NOW_MS)
    assert (svid.spiffe_id, svid.not_after_ms) == (ALICE, NOW_MS + HOUR_MS)
    assert validity(leaf) == (NOW_MS - 1000, NOW_MS + HOUR_MS)


def test_wrong_name_wrong_key_and_wrong_ca_are_told_apart() -> None:
    """Each mistake names itself."""
    pki, other = Pki(), Pki()
    leaf, key = pki.leaf()
    chain, key_pem = to_pem([leaf]), key_to_pem(key)
    cases = [
        (chain, key_pem, pki.anchors_pem, BOB, "not for spiffe://mesh.test/workload/bob"),
        (chain, key_to_pem(new_key()), pki.anchors_pem, ALICE, "does not belong"),
        (chain, b"junk", pki.anchors_pem, ALICE, "PKCS#8"),
        (chain, key_pem, other.anchors_pem, ALICE, "not issued by a CA that is trusted"),
        (b"junk", key_pem, pki.anchors_pem, ALICE, "no readable PEM"),
        (chain, key_pem, chain, ALICE, "not a CA"),
    ]
    for chain_pem, private, anchors, expected, text in cases:
        with pytest.raises(EvidenceError) as refused:
            check_svid(chain_pem, private, anchors, expected=expected, now_ms=NOW_MS)
        assert text in refused.value.detail


@pytest.mark.parametrize(
    ("from_ms", "until_ms", "passes"),
    [
        (NOW_MS + 5_000, NOW_MS + HOUR_MS, True),  # issued by a clock that is five seconds ahead
        (NOW_MS + 6_000, NOW_MS + HOUR_MS, False),
        (NOW_MS - HOUR_MS, NOW_MS + 1_000, True),
        (NOW_MS - HOUR_MS, NOW_MS, False),  # late is never forgiven
    ],
)
def test_a_small_clock_skew_is_forgiven_at_the_start_only(from_ms: int, until_ms: int, passes: bool) -> None:
    """A node whose clock is a little behind must still be able to use a fresh certificate."""
    pki = Pki()
    leaf, _ = pki.leaf(from_ms=from_ms, until_ms=until_ms)
    if passes:
        verify_chain([leaf], [pki.ca], now_ms=NOW_MS)
    else:
        with pytest.raises(MeshError) as refused:
            verify_chain([leaf], [pki.ca], now_ms=NOW_MS)
        assert refused.value.reason is Reason.IDENTITY_UNAVAILABLE


def test_an_expired_anchor_vouches_for_nothing() -> None:
    """A leaf that outlives its CA ends with it."""
    pki = Pki(ca_from_ms=NOW_MS - 6 * 365 * 24 * HOUR_MS)
    leaf, _ = pki.leaf()
    with pytest.raises(MeshError) as refused:
        verify_chain([leaf], [pki.ca], now_ms=NOW_MS)
    assert refused.value.reason is Reason.IDENTITY_UNAVAILABLE


def test_a_leaf_cannot_vouch_for_another_leaf() -> None:
    """A workload's key must not issue identities."""
    pki = Pki()
    middle, middle_key = pki.leaf()
    key = new_key()
    forged = leaf_certificate(
        key.public_key(),
        BOB,
        issuer=middle,
        issuer_key=middle_key,
        serial=3,
        not_before_ms=NOW_MS - 1000,
        not_after_ms=NOW_MS + HOUR_MS,
    )
    for chain in ([forged, middle], [forged, middle, pki.ca]):
        with pytest.raises(EvidenceError, match="chain is broken"):
            verify_chain(chain, [pki.ca], now_ms=NOW_MS)


def test_a_trusted_ca_certificate_itself_is_not_a_member() -> None:
    """A chain of just an anchor proves nobody."""
    pki = Pki()
    with pytest.raises(EvidenceError):
        verify_chain([pki.ca], [pki.ca], now_ms=NOW_MS)


def test_a_trust_bundle_of_another_domain_is_refused() -> None:
    """A control plane must not plant a foreign CA."""
    with pytest.raises(EvidenceError, match="another trust domain"):
        check_anchors(Pki().anchors_pem, trust_domain="other.test")


def test_a_peer_is_checked_for_domain_and_expiry_at_every_call() -> None:
    """TLS looked once; these answers change while a connection stays open."""
    pki = Pki()
    pem = to_pem([pki.leaf()[0]])
    assert check_peer(pem, trust_domain=TRUST_DOMAIN, now_ms=NOW_MS) == ALICE
    for domain, now_ms, reason in [
        ("other.test", NOW_MS, Reason.CALLER_UNIDENTIFIED),
        (TRUST_DOMAIN, NOW_MS + HOUR_MS, Reason.CALLER_CERTIFICATE_EXPIRED),
    ]:
        with pytest.raises(EvidenceError) as refused:
            check_peer(pem, trust_domain=domain, now_ms=now_ms)
        assert refused.value.reason is reason
    with pytest.raises(EvidenceError) as unreadable:
        check_peer(b"junk", trust_domain=TRUST_DOMAIN, now_ms=NOW_MS)
    assert unreadable.value.reason is Reason.CALLER_UNIDENTIFIED


def test_oversized_input_is_refused_before_it_is_parsed() -> None:
    """A megabyte of certificates is not worth reading."""
    with pytest.raises(EvidenceError, match="larger than"):
        load_chain(Pki().anchors_pem * 1000)
    with pytest.raises(EvidenceError):
        read_svid(b"x" * 2**20, b"")


@pytest.mark.parametrize("action", ["error", "ignore"])
def test_a_certificate_whose_serial_number_is_not_positive_is_refused(tmp_path: Path, action: Any) -> None:
    """RFC 5280; the library only warns, which a fuzzer of permits found: the answer must not depend on warnings."""
    certificate = load_certificate(make_svid(make_ca(tmp_path), ALICE).chain_pem)
    der, serial = certificate.public_bytes(serialization.Encoding.DER), certificate.serial_number
    spelled = serial.to_bytes(serial.bit_length() // 8 + 1)
    negative = der.replace(spelled, bytes([spelled[0] | 0x80]) + spelled[1:], 1)
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with pytest.raises(EvidenceError, match="IDENTITY_INVALID"):
            load_certificate(negative)
    assert load_certificate(der) == certificate
