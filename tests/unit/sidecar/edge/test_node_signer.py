"""The node's key file and its endorsement through rotations, and the file that outlives a restart."""

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_public_key,
)

from sidecar.core.replay import ReplayCache
from sidecar.edge.node_signer import RENEW_MS, RETRY_MS, NodeSigner, load_or_make_key
from sidecar.edge.permit_floor import PermitFloor
from tests.support.identity import TRUST_DOMAIN, make_ca, make_svid, member
from tests.support.permits import NODE, NOW_MS, NodeCa
from tests.support.sidecar_core import ManualClock
from trust import limits
from trust.edge.clock import SystemClock
from trust.errors import InputError, MeshError, Reason, StateError
from trust.identity import Svid
from trust.node_key import NodeKey, endorsement_digest, verify_endorsement
from trust.spiffe import SpiffeId

CA = NodeCa()


class Identity:
    """Holds the one SVID that a test gives it, or none."""

    def __init__(self, svid: Svid | None) -> None:
        self.held = svid
        self.watchers: list[Callable[[], None]] = []

    def svid(self, spiffe_id: SpiffeId) -> Svid:
        if self.held is None or self.held.spiffe_id != spiffe_id:
            raise StateError(Reason.IDENTITY_UNAVAILABLE, "no certificate")
        return self.held

    def anchors_pem(self) -> bytes:
        return CA.pem

    def subscribe(self, changed: Callable[[], None]) -> None:
        self.watchers.append(changed)

    def rotate(self, svid: Svid | None) -> None:
        self.held = svid
        for changed in self.watchers:
            changed()


def signer(path: Path, identity: Identity, clock: ManualClock | None = None) -> NodeSigner:
    return NodeSigner(path / "node-key.pem", NODE, identity, clock or ManualClock(NOW_MS))


def verified(endorsement: bytes, now_ms: int = NOW_MS) -> NodeKey:
    return verify_endorsement(endorsement, CA.pem, "mesh.local", now_ms)


def test_the_key_is_made_once_and_survives_a_restart(tmp_path: Path) -> None:
    """A file of its own, readable by its owner only."""
    first = signer(tmp_path, Identity(CA.svid()))
    assert (tmp_path / "node-key.pem").stat().st_mode & 0o777 == 0o600
    second = signer(tmp_path, Identity(CA.svid()))
    assert first.public_key == second.public_key
    first.public_key.verify(second.sign(b"x"), b"x")


def test_the_endorsement_names_this_key_and_its_digest_is_the_key_id(tmp_path: Path) -> None:
    """What travels with a permit verifies at a peer; the bytes stay the same from call to call."""
    one = signer(tmp_path, Identity(CA.svid()))
    held = verified(one.endorsement())
    assert held.public_key == one.public_key
    assert (held.digest, held.node) == (one.key_id(), NODE)
    assert one.endorsement() is one.endorsement()


def test_a_rotated_certificate_endorses_the_same_key_anew(tmp_path: Path) -> None:
    """Rotation of the SVID changes the key id, not the key."""
    identity = Identity(CA.svid())
    one = signer(tmp_path, identity)
    before = one.key_id()
    identity.rotate(CA.svid(after_ms=NOW_MS + 9_000_000))
    assert one.key_id() != before
    held = verified(one.endorsement())
    assert held.public_key == one.public_key
    assert one.key_id() == endorsement_digest(one.endorsement())


def test_an_endorsement_is_renewed_long_before_it_ends(tmp_path: Path) -> None:
    """Also when the certificate lives for months and never rotates."""
    clock = ManualClock(NOW_MS)
    one = signer(tmp_path, Identity(CA.svid(after_ms=NOW_MS + 90 * 24 * 3_600_000)), clock)
    before = one.key_id()
    clock.pass_ms(RENEW_MS - 1)
    assert one.key_id() == before
    clock.pass_ms(1)
    assert one.key_id() != before
    assert verified(one.endorsement(), clock.wall).not_after_ms > clock.wall + RENEW_MS


def test_without_a_certificate_nothing_is_endorsed_and_that_heals(tmp_path: Path) -> None:
    """A node that has not enrolled mints no permits."""
    identity = Identity(None)
    one = signer(tmp_path, identity)
    for ask in (one.key_id, one.endorsement):
        with pytest.raises(StateError) as error:
            ask()
        assert error.value.reason is Reason.PERMIT_UNVERIFIABLE
    identity.rotate(CA.svid())
    assert verified(one.endorsement())


def test_the_old_endorsement_is_used_while_it_lasts_when_no_new_one_can_be_made(tmp_path: Path) -> None:
    """A control plane that is away does not stop calls before the certificate ends."""
    clock, identity = ManualClock(NOW_MS), Identity(CA.svid(after_ms=NOW_MS + 60_000))
    one = signer(tmp_path, identity, clock)
    before = one.key_id()
    identity.rotate(None)
    assert one.key_id() == before
    clock.pass_ms(RETRY_MS)
    assert one.key_id() == before
    clock.pass_ms(60_000 - RETRY_MS)
    with pytest.raises(StateError):
        one.key_id()


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """With the command that mends it."""
    signer(tmp_path, Identity(None))
    (tmp_path / "node-key.pem").chmod(0o640)
    with pytest.raises(InputError, match="chmod 600"):
        signer(tmp_path, Identity(None))


def test_a_key_file_with_anything_else_in_it_is_refused_and_kept(tmp_path: Path) -> None:
    """Damaged, empty, of another kind or encrypted: never silently replaced."""
    key = Ed25519PrivateKey.generate()
    other = ec.generate_private_key(ec.SECP256R1())
    encrypted = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    from trust.edge.leaf_keys import key_to_pem

    path = tmp_path / "key.pem"
    for data in (b"", b"-----BEGIN PRIVATE KEY-----\n", encrypted, key_to_pem(other)):
        path.write_bytes(data)
        path.chmod(0o600)
        with pytest.raises(InputError) as error:
            load_or_make_key(path)
        assert error.value.reason is Reason.KEY_UNREADABLE
        assert str(path) in error.value.detail
        assert path.read_bytes() == data


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """Not a traceback."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="file/node-key"):
        load_or_make_key(tmp_path / "file" / "node-key.pem")


def test_the_floor_of_permits_survives_a_restart(tmp_path: Path) -> None:
    """A permit dated ahead is refused by the process after, through a real file."""
    clock = ManualClock(NOW_MS)
    floor = PermitFloor(tmp_path / "permit-floor", clock)
    assert floor.boot_ms == NOW_MS
    ahead_ms = NOW_MS + limits.MAX_CLOCK_SKEW_MS
    clock.pass_ms(1_000)

    def spend(cache: ReplayCache) -> None:
        cache.spend("a", iat_ms=ahead_ms, exp_ms=ahead_ms + 30_000, now_ms=clock.wall)

    spend(ReplayCache(boot_ms=floor.boot_ms, remember=floor.remember))
    clock.pass_ms(500)
    again = PermitFloor(tmp_path / "permit-floor", clock)
    with pytest.raises(MeshError) as error:
        spend(ReplayCache(boot_ms=again.boot_ms, remember=again.remember))
    assert error.value.reason is Reason.PERMIT_UNVERIFIABLE


@pytest.mark.parametrize("data", [b"", b"x", b"-5\n", b"1.5\n", b"9" * 40, b"99999999999999999\n", b"\xff"])
def test_a_damaged_floor_counts_as_the_latest_it_can_have_been(tmp_path: Path, data: bytes) -> None:
    """Some seconds of refusals instead of a replay, and instead of a node shut for years."""
    (tmp_path / "permit-floor").write_bytes(data)
    floor = PermitFloor(tmp_path / "permit-floor", ManualClock(NOW_MS))
    assert floor.boot_ms == NOW_MS + 2 * limits.MAX_CLOCK_SKEW_MS


def test_a_floor_that_is_no_file_counts_as_damaged(tmp_path: Path) -> None:
    """Whatever keeps it from being read."""
    (tmp_path / "permit-floor").mkdir()
    assert PermitFloor(tmp_path / "permit-floor", ManualClock(NOW_MS)).boot_ms > NOW_MS


def test_a_certificate_of_the_embedded_ca_endorses(tmp_path: Path) -> None:
    """The certificates that nodes really get have the shape that an endorsement asks for."""
    ca, clock = make_ca(tmp_path / "ca"), SystemClock()
    svid = make_svid(ca, member("node", "n1"))
    identity = Identity(svid)
    one = NodeSigner(tmp_path / "node-key.pem", svid.spiffe_id, identity, clock)
    held = verify_endorsement(one.endorsement(), ca.anchors_pem(), TRUST_DOMAIN, clock.now_ms())
    assert (held.node, held.public_key) == (svid.spiffe_id, one.public_key)


def test_the_public_half_lies_beside_the_key_for_the_services_of_the_node(tmp_path: Path) -> None:
    """Readable by all, writable by the owner; put right when it is not that of the key."""
    made = signer(tmp_path, Identity(None))
    file = tmp_path / "node-key.pub"
    assert load_pem_public_key(file.read_bytes()) == made.public_key
    assert file.stat().st_mode & 0o777 == 0o644
    before = file.stat().st_mtime_ns
    signer(tmp_path, Identity(None))
    assert file.stat().st_mtime_ns == before
    file.write_bytes(b"another")
    signer(tmp_path, Identity(None))
    assert load_pem_public_key(file.read_bytes()) == made.public_key
