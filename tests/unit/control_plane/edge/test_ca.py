"""What the embedded CA issues, and what it refuses."""

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from control_plane.edge.ca import (
    CertificateAuthority,
    create_ca,
    ensure_directory,
    issue_to_directory,
    rotate_ca,
)
from tests.support.identity import TRUST_DOMAIN, ShiftedClock, make_ca, member
from trust import limits
from trust.edge.leaf_keys import make_csr, new_key
from trust.errors import InputError, MeshError, Reason
from trust.spiffe import SpiffeId
from trust.x509 import check_leaf, dns_names_of, load_certificate, spiffe_id_of, validity, verify_chain

ALICE = member("workload", "alice")


@pytest.fixture
def ca(tmp_path: Path) -> CertificateAuthority:
    """A fresh CA."""
    return make_ca(tmp_path / "ca")


def now() -> int:
    return ShiftedClock().now_ms()


def test_an_issued_certificate_is_a_complete_svid(ca: CertificateAuthority) -> None:
    """One URI SAN, its DNS SAN, both purposes, a short life that began a little earlier."""
    now_ms = now()
    chain_pem, not_after_ms = ca.issue(make_csr(new_key()), ALICE, ttl_s=3600, now_ms=now_ms)
    leaf = load_certificate(chain_pem)
    check_leaf(leaf)
    verify_chain([leaf], ca.anchors, now_ms=now_ms)
    assert spiffe_id_of(leaf) == ALICE
    assert dns_names_of(leaf) == ["alice.workload.mesh.test"]
    not_before_ms, until_ms = validity(leaf)
    assert until_ms == not_after_ms
    assert now_ms - not_before_ms >= limits.MAX_CLOCK_SKEW_MS
    assert not_after_ms - now_ms <= 3600_000


def test_control_planes_share_a_dns_name_and_others_never_get_it(ca: CertificateAuthority) -> None:
    """Who could present `control-plane.TD` could collect join tokens."""
    chain, _ = ca.issue(make_csr(new_key()), member("control-plane", "x"), ttl_s=60, now_ms=now())
    assert dns_names_of(chain) == ["x.control-plane.mesh.test", "control-plane.mesh.test"]
    for kind in ("workload", "node", "operator"):
        chain, _ = ca.issue(make_csr(new_key()), member(kind, "control-plane"), ttl_s=60, now_ms=now())
        assert "control-plane.mesh.test" not in dns_names_of(chain)


def test_names_in_the_request_are_ignored(ca: CertificateAuthority) -> None:
    """A request that claims to be an operator, a CA and everybody gets exactly what it was granted."""
    key = new_key()
    forged = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "operator")]))
        .add_extension(
            x509.SubjectAlternativeName(
                [
                    x509.UniformResourceIdentifier("spiffe://mesh.test/operator/root"),
                    x509.DNSName("control-plane.mesh.test"),
                ]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )
    chain, _ = ca.issue(forged, ALICE, ttl_s=60, now_ms=now())
    leaf = load_certificate(chain)
    check_leaf(leaf)
    assert spiffe_id_of(leaf) == ALICE
    assert dns_names_of(leaf) == [ALICE.dns_name]
    assert "operator" not in leaf.subject.rfc4514_string()


def test_a_request_that_its_key_did_not_sign_is_refused(ca: CertificateAuthority) -> None:
    """Without proof of possession somebody could have another's key certified under a new name."""
    csr = bytearray(make_csr(new_key()))
    csr[-1] ^= 1
    for bad in (bytes(csr), b"", b"junk", b"\x30" * 100, b"x" * (limits.MAX_CSR_BYTES + 1)):
        with pytest.raises(MeshError) as refused:
            ca.issue(bad, ALICE, ttl_s=60, now_ms=now())
        assert refused.value.reason is Reason.IDENTITY_INVALID


def test_a_weak_key_is_not_certified(ca: CertificateAuthority) -> None:
    """The CA does not lend its name to a curve that TLS stacks refuse."""
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(ec.generate_private_key(ec.SECP256K1()), hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )
    with pytest.raises(MeshError) as refused:
        ca.issue(csr, ALICE, ttl_s=60, now_ms=now())
    assert refused.value.reason is Reason.KEY_UNSAFE


@pytest.mark.parametrize(
    "spiffe_id",
    [
        SpiffeId("other.test", "workload/alice"),
        SpiffeId(TRUST_DOMAIN, "admin/alice"),
        SpiffeId(TRUST_DOMAIN, "workload/a/b"),
        SpiffeId(TRUST_DOMAIN, "workload"),
        SpiffeId(TRUST_DOMAIN, "workload/UPPER"),
    ],
)
def test_names_outside_the_mesh_are_not_issued(ca: CertificateAuthority, spiffe_id: SpiffeId) -> None:
    """Another domain, an unknown kind, or no plain name."""
    with pytest.raises(MeshError) as refused:
        ca.issue(make_csr(new_key()), spiffe_id, ttl_s=60, now_ms=now())
    assert refused.value.reason is Reason.IDENTITY_INVALID


def test_no_certificate_outlives_the_ca_and_an_expired_ca_issues_none(ca: CertificateAuthority) -> None:
    """The end of the CA is the end of all."""
    late = ca.not_after_ms - 10_000
    _, not_after_ms = ca.issue(make_csr(new_key()), ALICE, ttl_s=3600, now_ms=late)
    assert not_after_ms == ca.not_after_ms
    with pytest.raises(MeshError) as refused:
        ca.issue(make_csr(new_key()), ALICE, ttl_s=3600, now_ms=ca.not_after_ms)
    assert refused.value.reason is Reason.IDENTITY_UNAVAILABLE
    for ttl_s in (0, -1, limits.MAX_SVID_TTL_S + 1):
        with pytest.raises(MeshError):
            ca.issue(make_csr(new_key()), ALICE, ttl_s=ttl_s, now_ms=now())


def test_an_existing_ca_is_never_overwritten(tmp_path: Path) -> None:
    """A second `init` must not cut off every member."""
    make_ca(tmp_path)
    before = (tmp_path / "ca.key.pem").read_bytes()
    with pytest.raises(InputError) as refused:
        create_ca(tmp_path, TRUST_DOMAIN)
    assert refused.value.reason is Reason.CONFLICT
    assert (tmp_path / "ca.key.pem").read_bytes() == before


def test_a_readable_missing_or_foreign_key_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """Opening says which file is wrong."""
    with pytest.raises(InputError, match="egm init"):
        CertificateAuthority.open(tmp_path / "nothing")
    make_ca(tmp_path)
    key = tmp_path / "ca.key.pem"
    assert key.stat().st_mode & 0o777 == 0o600
    key.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        CertificateAuthority.open(tmp_path)
    make_ca(tmp_path / "other")
    for name in ("ca.key.pem", "passphrase"):
        (tmp_path / name).write_bytes((tmp_path / "other" / name).read_bytes())
    key.chmod(0o600)
    with pytest.raises(InputError, match="belongs to no certificate"):
        CertificateAuthority.open(tmp_path)
    key.write_bytes(b"junk")
    with pytest.raises(InputError, match="backup"):
        CertificateAuthority.open(tmp_path)


def test_a_running_ca_follows_a_rotation_on_disk(ca: CertificateAuthority, tmp_path: Path) -> None:
    """The control plane need not restart between the steps."""
    first = ca.certificate
    rotate_ca(tmp_path / "ca", "prepare")
    chain, _ = ca.issue(make_csr(new_key()), ALICE, ttl_s=60, now_ms=now())
    assert ca.anchors_pem().count(b"BEGIN CERT") == 2
    verify_chain([load_certificate(chain)], [first], now_ms=now())  # still the old key
    rotate_ca(tmp_path / "ca", "activate", force=True)
    chain, _ = ca.issue(make_csr(new_key()), ALICE, ttl_s=60, now_ms=now())
    assert ca.certificate != first
    assert ca.anchors[0] == ca.certificate  # newest first
    verify_chain([load_certificate(chain)], [ca.certificate], now_ms=now())


@pytest.mark.parametrize(
    "damaged",
    [b"", b"[]", b'{"prepared_ms": "soon"}', b'{"prepared_ms": null}'],
    ids=["empty", "list", "text", "null"],
)
def test_a_damaged_note_of_a_rotation_is_named_with_what_to_do(
    ca: CertificateAuthority, tmp_path: Path, damaged: bytes
) -> None:
    """An operator in the middle of a rotation must not meet an internal error."""
    rotate_ca(tmp_path / "ca", "prepare")
    (tmp_path / "ca" / "ca.json").write_bytes(damaged)
    with pytest.raises(InputError, match="damaged: restore it") as refused:
        CertificateAuthority.open(tmp_path / "ca").rotation()
    assert refused.value.reason is Reason.INPUT_INVALID


def test_ensure_directory_issues_repairs_and_otherwise_leaves_alone(
    ca: CertificateAuthority, tmp_path: Path
) -> None:
    """Missing, torn by a crash, half-way to expiry, or of another name: a new pair; else nothing."""
    me, clock, directory = member("control-plane", "cp"), ShiftedClock(), tmp_path / "id"
    assert ensure_directory(ca, me, directory, clock=clock)
    assert not ensure_directory(ca, me, directory, clock=clock)
    issue_to_directory(ca, me, tmp_path / "elsewhere")
    (directory / "svid.key.pem").write_bytes((tmp_path / "elsewhere" / "svid.key.pem").read_bytes())
    assert ensure_directory(ca, me, directory, clock=clock)
    clock.shift_ms = 13 * 3600 * 1000
    assert ensure_directory(ca, me, directory, clock=clock)
    assert ensure_directory(ca, member("control-plane", "other"), directory, clock=clock)
    assert (directory / "svid.key.pem").stat().st_mode & 0o777 == 0o600


def test_ensure_directory_brings_the_trust_bundle_up_to_date(
    ca: CertificateAuthority, tmp_path: Path
) -> None:
    """A rotation reaches the control plane's own anchors without a new certificate."""
    me, directory = member("control-plane", "cp"), tmp_path / "id"
    ensure_directory(ca, me, directory)
    rotate_ca(tmp_path / "ca", "prepare")
    assert not ensure_directory(ca, me, directory)
    assert (directory / "ca.pem").read_bytes() == ca.anchors_pem()
