"""Trust domains: made whole or not at all; a ceremony finishes only with its quorum."""

from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Root

from control_plane.edge.domain import Ceremony, create_development, describe_root, open_domain
from tests.support.tuf_world import public, sign_raw, signer, twin
from trust.authoring import Holders, next_root
from trust.edge.keyfiles import load_signer, passphrase_source
from trust.errors import EvidenceError, InputError, MeshError, Reason


def test_development_domain_is_complete_private_and_usable(tmp_path: Path) -> None:
    """Every key opens with the passphrase beside it; nothing private is readable by others."""
    domain = create_development(tmp_path / "d", trust_domain="acme.test")
    root = domain.root().signed
    assert describe_root(root)["trust_domain"] == "acme.test"
    assert describe_root(root)["development"] is True
    for path in (tmp_path / "d").rglob("*"):
        if path.name in {"passphrase", "ca.key.pem"} or (path.suffixes == [".pem"] and path.name != "ca.pem"):
            assert path.stat().st_mode & 0o077 == 0, path
    approver = domain.key_file("approver-1")
    made = load_signer(str(approver), passphrase_source(approver))
    assert made.public_key.keyid in root.roles["targets"].keyids
    online = domain.online_signers()
    assert root.roles["timestamp"].keyids == [online.timestamp.public_key.keyid]
    assert open_domain(tmp_path / "d") == domain
    assert not [p for p in tmp_path.iterdir() if p.name != "d"]


def test_development_domain_is_never_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure leaves nothing behind, and an existing directory is left alone."""

    def fail(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("control_plane.edge.domain.create_ca", fail)
    with pytest.raises(OSError, match="No space"):
        create_development(tmp_path / "d")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine").write_text("x")
    with pytest.raises(InputError) as caught:
        create_development(tmp_path / "d")
    assert caught.value.reason is Reason.CONFLICT


@pytest.mark.parametrize("options", [{"approvers": 1}, {"root_keys": 0}, {"threshold": 0}])
def test_threshold_that_cannot_be_met_is_refused(options: dict[str, int], tmp_path: Path) -> None:
    """A domain nobody can govern is not made."""
    with pytest.raises(InputError):
        create_development(tmp_path / "d", **options)  # type: ignore[arg-type]


def test_directory_that_is_no_domain_says_how_to_make_one(tmp_path: Path) -> None:
    """Opening the wrong directory is a frequent mistake."""
    with pytest.raises(InputError, match="egm init"):
        open_domain(tmp_path)
    (tmp_path / "domain.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        open_domain(tmp_path)


def test_ceremony_finishes_with_the_quorum_and_not_before(tmp_path: Path) -> None:
    """Holders sign the file in turn or copies of it; below the threshold there is no trust anchor."""
    roots = [signer(f"root-{i}") for i in (1, 2, 3)]
    approvers = [signer(name) for name in ("alice", "bob")]
    ceremony = Ceremony.start(
        tmp_path / "d", root=Holders(public(roots), 2), approvers=Holders(public(approvers), 2)
    )
    domain = ceremony.domain
    unsigned = domain.unsigned_root_path.read_bytes()
    with pytest.raises(InputError, match="finish the ceremony"):
        domain.root()
    ceremony.merge(sign_raw(Metadata[Root].from_bytes(unsigned), [roots[0]]))
    with pytest.raises(EvidenceError) as caught:
        ceremony.finish()
    assert caught.value.reason is Reason.QUORUM_NOT_MET
    assert not domain.root_path.exists()
    again = Ceremony.open(tmp_path / "d")
    assert again.quorum.explain().startswith("1 of 2")
    again.merge(sign_raw(Metadata[Root].from_bytes(unsigned), [roots[2]]))
    done = again.finish()
    assert done.complete and done.root().signed.version == 1 and not done.development
    assert not list((tmp_path / "d" / "keys").glob("*.pem"))
    with pytest.raises(InputError) as conflict:
        Ceremony.open(tmp_path / "d")
    assert conflict.value.reason is Reason.CONFLICT


def test_ceremony_refuses_copies_of_another_root_and_strangers(tmp_path: Path) -> None:
    """A swapped file does not collect signatures for the real one."""
    roots = [signer(f"root-{i}") for i in (1, 2)]
    ceremony = Ceremony.start(
        tmp_path / "d", root=Holders(public(roots), 2), approvers=Holders(public(roots), 2)
    )
    other = Metadata[Root].from_bytes(ceremony.domain.unsigned_root_path.read_bytes())
    other.signed.roles["targets"].threshold = 1
    with pytest.raises(EvidenceError) as caught:
        ceremony.merge(sign_raw(other, roots))
    assert caught.value.reason is Reason.SIGNATURE_INVALID
    same = Metadata[Root].from_bytes(ceremony.domain.unsigned_root_path.read_bytes())
    with pytest.raises(EvidenceError) as caught:
        ceremony.merge(sign_raw(same, [signer("mallory")]))
    assert caught.value.reason is Reason.NOT_AUTHORIZED
    assert not ceremony.quorum.signed


def test_ceremony_with_unsafe_holders_writes_nothing(tmp_path: Path) -> None:
    """One key under two ids, thresholds of one and namesakes are refused before any file exists."""
    a, b = signer("a"), signer("b")
    good = Holders(public([a, b]), 2)
    for root, approvers in (
        (Holders(public([a, twin(a)]), 2), good),
        (good, Holders(public([b]), 1)),
        (Holders(public([signer("x"), signer("x")]), 2), good),
    ):
        with pytest.raises(MeshError):
            Ceremony.start(tmp_path / "d", root=root, approvers=approvers)
        assert not (tmp_path / "d").exists()


def test_trust_anchor_moves_only_along_the_quorum(tmp_path: Path) -> None:
    """adopt_root checks the old and the new holders."""
    domain = create_development(tmp_path / "d")
    metadata = next_root(domain.root(), now_ms=2 * 10**12, role="root", threshold=3)
    with pytest.raises(EvidenceError):
        domain.adopt_root(metadata.to_bytes())
    for name in ("root-1", "root-2", "root-3"):
        path = domain.key_file(name)
        metadata.sign(load_signer(str(path), passphrase_source(path)), append=True)
    assert domain.adopt_root(metadata.to_bytes()).signed.version == 2
    assert domain.root().signed.roles["root"].threshold == 3
