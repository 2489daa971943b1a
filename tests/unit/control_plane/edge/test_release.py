"""What an approver is shown is what they sign, whatever the control plane says: attacks by a lying control plane."""

import asyncio
import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Targets

from control_plane.edge.mesh_file import MeshFile
from control_plane.edge.operator_client import OperatorClient, ProposalContent
from control_plane.edge.operator_memory import FLOOR_FILE, REVIEWED_FILE, OperatorMemory
from control_plane.edge.release import Release, Reviewed
from egm.v1 import operator_pb2
from tests.support.control_plane import archive
from tests.support.folders import folder, namespace_folder
from tests.support.tuf_world import DictSource, World, public, sign_raw, signer
from trust.authoring import Holders, digest_of
from trust.edge.distribution_client import GrpcFileSource
from trust.errors import MeshError, Reason
from trust.policy.source import build
from trust.verified import BASE_ROLE, BASE_TARGET


class Source(DictSource):
    """Files over the wire, as the control plane chooses to show them."""

    def close(self) -> None:
        """Nothing is open."""


class LyingClient:
    """Answers with whatever the test prepared, and keeps the signatures that approvers hand in."""

    def __init__(self) -> None:
        self.content: ProposalContent | None = None
        self.signatures: list[tuple[str, str]] = []

    async def proposal(self, _proposal_id: str) -> ProposalContent:
        """Return what the attacker wants to show."""
        assert self.content is not None
        return self.content

    async def add_signature(self, _proposal_id: str, key_id: str, signature: str) -> operator_pb2.Proposal:
        """Keep the signature."""
        self.signatures.append((key_id, signature))
        return operator_pb2.Proposal()


class Terminal:
    """An approver's terminal in front of a control plane that the test controls."""

    def __init__(self, world: World, directory: Path, *, root: bytes | None = None) -> None:
        (directory / "root.json").write_bytes(world.root if root is None else root)
        mesh = MeshFile(
            trust_domain="mesh.local", root=str(directory / "root.json"), control_plane="127.0.0.1:1"
        )
        self.world, self.client, self.shown = world, LyingClient(), dict(world.files)
        self.directory = directory
        self.release = Release(mesh, directory, cast(OperatorClient, self.client))
        self.release._source = lambda: cast(GrpcFileSource, Source(self.shown))  # type: ignore[method-assign]

    def offer(self, role: str, metadata: Metadata[Any], files: Mapping[str, bytes] | None = None) -> str:
        """Let the control plane offer `metadata` as a proposal for `role`; return its honest id."""
        proposal = operator_pb2.Proposal(role=role, version=metadata.signed.version, title="Fix a typo")
        self.client.content = ProposalContent(proposal, metadata.to_bytes(), b"", files or {})
        return digest_of(metadata)[:16]

    def review(self, proposal_id: str) -> Reviewed:
        """Run `egm policy review`."""
        return asyncio.run(self.release.review(proposal_id))

    def sign(self, reviewed: Reviewed, key: CryptoSigner, **options: Any) -> None:
        """Run the end of `egm policy sign`."""
        asyncio.run(self.release.sign(reviewed, key, **options))


def bundle(version: int) -> bytes:
    """Return a base bundle that nodes of the test's trust domain accept."""
    return archive(version, trust_domain="mesh.local")


@pytest.fixture
def world() -> World:
    """A domain with one published base bundle."""
    made = World()
    made.release(bundle(1))
    return made


@pytest.fixture
def terminal(world: World, tmp_path: Path) -> Terminal:
    """A terminal that trusts the first root."""
    return Terminal(world, tmp_path)


def refused(reason: Reason, action: Any, *arguments: Any, **options: Any) -> str:
    """Expect a refusal; return its text."""
    with pytest.raises(MeshError) as caught:
        action(*arguments, **options)
    assert caught.value.reason is reason, caught.value
    return caught.value.detail


def test_an_honest_proposal_is_reviewed_and_signed(terminal: Terminal) -> None:
    """The main road still works, and the expiry is always among what is shown."""
    metadata = terminal.world.proposal(bundle(2))
    reviewed = terminal.review(terminal.offer(BASE_ROLE, metadata, {BASE_TARGET: bundle(2)}))
    assert [change.what for change in reviewed.holders] == ["expires"]
    terminal.release.remember(reviewed)
    terminal.sign(reviewed, terminal.world.approvers[0], digest=reviewed.digest)
    assert terminal.client.signatures[0][0] == terminal.world.approvers[0].public_key.keyid


def test_another_proposal_under_a_reviewed_id_is_refused(terminal: Terminal) -> None:
    """A control plane that answers `sign` with something else than `review` gets no signature."""
    reviewed_id = terminal.offer(BASE_ROLE, terminal.world.proposal(bundle(2)), {BASE_TARGET: bundle(2)})
    terminal.offer(BASE_ROLE, terminal.world.proposal(bundle(3)), {BASE_TARGET: bundle(3)})
    assert "do not sign" in refused(Reason.DIGEST_MISMATCH, terminal.review, reviewed_id)


def test_two_proposals_whose_ids_collide_are_told_apart(terminal: Terminal) -> None:
    """An id is 64 bits, so a proposer can make two that collide: the whole digest seen at review decides."""
    metadata = terminal.world.proposal(bundle(2))
    reviewed = terminal.review(terminal.offer(BASE_ROLE, metadata, {BASE_TARGET: bundle(2)}))
    other = reviewed.digest[:16] + "0" * 48
    (terminal.directory / REVIEWED_FILE).write_text(f'{{"{reviewed.digest[:16]}": "{other}"}}')
    refused(Reason.DIGEST_MISMATCH, terminal.sign, reviewed, terminal.world.approvers[0])
    (terminal.directory / REVIEWED_FILE).unlink()
    refused(Reason.DIGEST_MISMATCH, terminal.sign, reviewed, terminal.world.approvers[0], digest=other)
    assert terminal.client.signatures == []


def test_base_metadata_shown_as_a_namespaces_is_refused(terminal: Terminal) -> None:
    """Both are TUF targets: an approver of both could sign the base while shown an empty change of a namespace."""
    terminal.world.delegate("payments", Holders(public(terminal.world.approvers), 2))
    terminal.shown = dict(terminal.world.files)
    metadata = terminal.world.proposal(bundle(2))
    metadata.signed.version = 1  # what comes next for the namespace
    offered = terminal.offer("payments", metadata, {BASE_TARGET: bundle(2)})
    refused(Reason.METADATA_UNSAFE, terminal.review, offered)


def test_a_delegation_smuggled_in_beside_a_harmless_bundle_is_shown(terminal: Terminal) -> None:
    """Who may sign for a namespace is in no bundle: the review names every new key with its material."""
    mallory = [signer("approver-1"), signer("approver-2")]
    metadata = terminal.world.proposal(bundle(2), delegate={"payments": Holders(public(mallory), 2)})
    reviewed = terminal.review(terminal.offer(BASE_ROLE, metadata, {BASE_TARGET: bundle(2)}))
    shown = {change.what: change.after for change in reviewed.holders}
    assert shown["namespace payments: signatures needed"] == "2 of 2"
    for key in public(mallory):
        assert key.keyval["public"] in shown[f"namespace payments: key {key.keyid}"]


def test_a_key_replaced_under_its_old_id_and_name_is_shown(terminal: Terminal) -> None:
    """An id is a label: the same id with other material is another holder."""
    payers = [signer("pay-1"), signer("pay-2")]
    terminal.world.delegate("payments", Holders(public(payers), 2))
    terminal.shown = dict(terminal.world.files)
    metadata = copy.deepcopy(terminal.world.proposal(bundle(2)))
    assert metadata.signed.delegations is not None
    stolen = metadata.signed.delegations.keys[payers[0].public_key.keyid]
    stolen.keyval["public"] = signer("mallory").public_key.keyval["public"]
    reviewed = terminal.review(terminal.offer(BASE_ROLE, metadata, {BASE_TARGET: bundle(2)}))
    changed = [change for change in reviewed.holders if payers[0].public_key.keyid in change.what]
    assert len(changed) == 1
    assert changed[0].before != changed[0].after


def test_a_root_that_hands_the_approvers_role_over_is_shown(terminal: Terminal) -> None:
    """A root proposal has no bundle; its keys and thresholds are what a holder must see."""
    mallory = signer("mallory")
    metadata = terminal.world.rotate(
        signers=[], remove=[public(terminal.world.approvers)[0].keyid], add=[mallory.public_key]
    )
    reviewed = terminal.review(terminal.offer("root", metadata))
    whats = [change.what for change in reviewed.holders]
    assert f"role targets: key {mallory.public_key.keyid}" in whats
    assert f"role targets: key {terminal.world.approvers[0].public_key.keyid}" in whats


def test_a_root_that_makes_the_domain_a_development_one_is_refused_at_review(terminal: Terminal) -> None:
    """Development would let one signature be enough; no holder is asked to judge that by eye."""
    metadata = terminal.world.rotate(signers=[], threshold=2)
    metadata.signed.unrecognized_fields["x-egm-development"] = True
    refused(Reason.METADATA_UNSAFE, terminal.review, terminal.offer("root", metadata))


def test_a_bundle_that_the_server_never_checked_is_refused_at_review(terminal: Terminal) -> None:
    """A control plane that skips its own checks cannot show a bundle whose difference would be incomplete."""
    foreign = archive(2, trust_domain="mesh.other")
    metadata = terminal.world.proposal(foreign)
    offered = terminal.offer(BASE_ROLE, metadata, {BASE_TARGET: foreign})
    refused(Reason.BUNDLE_MALFORMED, terminal.review, offered)


def test_a_forged_first_root_does_not_replace_a_later_trust_anchor(world: World, tmp_path: Path) -> None:
    """A terminal that trusts root 2 must not ask the control plane for root 1 and believe it."""
    rotated = world.rotate(role=BASE_ROLE, threshold=2).to_bytes()
    world.publish({"root": rotated})
    mallory = World()
    mallory.release(bundle(9))
    terminal = Terminal(world, tmp_path, root=rotated)
    terminal.shown = dict(mallory.files)
    with pytest.raises(MeshError):
        asyncio.run(terminal.release.in_force())
    terminal.shown = dict(world.files)
    assert asyncio.run(terminal.release.in_force()).root.signed.version == 2


def test_a_control_plane_that_hides_all_policy_is_refused(terminal: Terminal) -> None:
    """Showing nothing is showing less: the next proposal would be reviewed against nothing."""
    asyncio.run(terminal.release.in_force())
    terminal.shown = {"metadata/1.root.json": terminal.world.root}
    with pytest.raises(MeshError) as caught:
        asyncio.run(terminal.release.in_force())
    assert caught.value.reason is Reason.POLICY_ROLLBACK


def test_a_control_plane_that_hides_a_namespace_is_refused(terminal: Terminal) -> None:
    """A delegated namespace that was shown once must stay: its forbids are part of what is in force."""
    asyncio.run(terminal.release.in_force())
    OperatorMemory(terminal.directory).check_floor(
        {"targets": 1, "root": 1, "payments": 3}, frozenset({"targets"})
    )
    with pytest.raises(MeshError) as caught:
        OperatorMemory(terminal.directory).check_floor(
            {"targets": 2, "root": 1}, frozenset({"targets", "payments"})
        )
    assert caught.value.reason is Reason.POLICY_ROLLBACK
    OperatorMemory(terminal.directory).check_floor(
        {"targets": 2, "root": 1}, frozenset({"targets"})
    )  # its delegation ended


def test_a_damaged_floor_is_refused_with_the_way_out(terminal: Terminal) -> None:
    """A floor that cannot be read cannot exclude a rollback."""
    (terminal.directory / FLOOR_FILE).write_text("[")
    with pytest.raises(MeshError) as caught:
        asyncio.run(terminal.release.in_force())
    assert caught.value.reason is Reason.POLICY_ROLLBACK


def test_a_stranger_never_signs(terminal: Terminal) -> None:
    """A key that is not the role's is refused before a signature exists."""
    metadata: Metadata[Targets] = terminal.world.proposal(bundle(2))
    sign_raw(metadata, [])
    reviewed = terminal.review(terminal.offer(BASE_ROLE, metadata, {BASE_TARGET: bundle(2)}))
    refused(Reason.NOT_AUTHORIZED, terminal.sign, reviewed, signer("stranger"))
    assert terminal.client.signatures == []


def test_a_namespace_bundle_is_reviewed_together_with_the_base(world: World, tmp_path: Path) -> None:
    """The main road of a namespace, first and later versions, and a base version beside it."""
    base = build(folder())
    world.release(base)
    holders = [signer("pay-1"), signer("pay-2")]
    world.delegate("store", Holders(public(holders), 2))
    store = build(namespace_folder())
    terminal = Terminal(world, tmp_path)
    first = world.proposal(store, "store")
    reviewed = terminal.review(terminal.offer("store", first, {"store/bundle.tar.gz": store}))
    assert reviewed.bundle is not None and reviewed.base is not None and reviewed.previous is None
    terminal.sign(reviewed, holders[0])
    refused(Reason.NOT_AUTHORIZED, terminal.sign, reviewed, world.approvers[0])
    world.release(store, "store", holders)
    terminal.shown = dict(world.files)
    ending = world.proposal(None, delegate={"store": None})
    reviewed = terminal.review(terminal.offer(BASE_ROLE, ending))
    assert "namespace store: signatures needed" in [change.what for change in reviewed.holders]
