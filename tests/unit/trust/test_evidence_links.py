"""The ledger in an evidence file continues the one that the witnesses of its node saw, by two verifiers."""

from collections.abc import Sequence

import pytest

from tests.support import second_verifier
from tests.support.attestation import AttestedNode, Tree, credential_of, holders, settings_of
from tests.support.evidence_world import EvidenceWorld, bundle, digest
from tests.support.permits import NOW_S
from trust.attestation.credential import credential_sha256
from trust.evidence import FORMAT, THIRD_FORMAT, LinkPart
from trust.evidence_verify import Report, Section, Verdict, verify_evidence
from trust.record import build_record

WITNESSES = holders("w1", "w2", "w3")
WORLD = EvidenceWorld(base=bundle(settings_of(WITNESSES)))
# Node a's ledger begins with other executions, of which the file has none.
BEFORE = [digest(bytes([number])) for number in range(6)]


def credential(entries: Sequence[bytes], node: AttestedNode | None = None) -> bytes:
    """What two witnesses vouched for: node a with this ledger."""
    attested = node or AttestedNode("a", private=WORLD.a.private)
    attested.tree = Tree(entries)
    return credential_of(attested.evidence(issued_s=NOW_S), WITNESSES[:2], time_s=NOW_S)


class File:
    """An evidence file in which node a's ledger has `entries` before the call."""

    def __init__(self, entries: Sequence[bytes], data: bytes) -> None:
        """Record the call whose permit names the credential `data`."""
        self.data = data
        self.sides = WORLD.sides(WORLD.permit(credential_sha256=credential_sha256(data)))
        self.entries = list(entries)
        self.tree = Tree([*entries, *(digest(build_record(one)) for one in self.sides["a"])])

    def link(self, size: int, tree: Tree | None = None) -> LinkPart:
        """Return a consistency proof from `size` on."""
        return LinkPart("a", size, (tree or self.tree).proof(size))

    def bytes(self, *links: LinkPart, sides: Sequence[str] = ("a", "b")) -> bytes:
        """Return the file."""
        return WORLD.file(
            {name: self.sides[name] for name in sides},
            credentials=[self.data],
            endorsements=() if "a" in sides else (WORLD.a.endorsement,),
            links=links,
            before={"a": self.entries},
        )


def judged(file: bytes) -> Report:
    """Return the report; both verifiers agree on whether to accept."""
    report = verify_evidence(file, WORLD.tuf.root, WORLD.ca.pem)
    try:
        second_verifier.check(file, WORLD.tuf.root, WORLD.ca.pem)
        accepted = True
    except second_verifier.Refused:
        accepted = False
    assert accepted is (report.verdict() is Verdict.ESTABLISHED), report.findings
    return report


def found(report: Report) -> set[tuple[Section, Verdict]]:
    """The sections that are not established."""
    verdicts = {section: report.verdict(section) for section in Section}
    return {(section, verdict) for section, verdict in verdicts.items() if verdict is not Verdict.ESTABLISHED}


@pytest.mark.parametrize("seen", range(1, 7))
def test_a_ledger_that_grew_after_it_was_witnessed_is_established(seen: int) -> None:
    """The usual file, with the witnessed head at every place, powers of two among them."""
    file = File(BEFORE, credential(BEFORE[:seen]))
    assert judged(file.bytes(file.link(seen))).verdict() is Verdict.ESTABLISHED


def test_an_empty_ledger_needs_no_proof() -> None:
    """Every tree continues it."""
    assert judged(File(BEFORE, credential([])).bytes()).verdict() is Verdict.ESTABLISHED


def test_without_the_proof_it_is_open_whether_it_is_one_ledger() -> None:
    """So it is in a file of the earlier format, and in one that was relabelled."""
    file = File(BEFORE, credential(BEFORE[:3])).bytes()
    assert found(judged(file)) == {(Section.INTEGRITY, Verdict.UNKNOWN)}
    earlier = file.replace(b'"links":[],', b"").replace(FORMAT.encode(), THIRD_FORMAT.encode())
    assert found(judged(earlier)) == {(Section.INTEGRITY, Verdict.UNKNOWN)}


@pytest.mark.parametrize("seen", range(1, 7))
def test_another_history_than_the_witnesses_saw_contradicts_the_integrity(seen: int) -> None:
    """A node that shows its witnesses one ledger and evidence of another."""
    other = [b"another", *BEFORE[1:]]
    file = File(BEFORE, credential(other[:seen]))
    for tree in (file.tree, Tree([*other, *file.tree.leaves[6:]])):
        report = judged(file.bytes(file.link(seen, tree)))
        assert found(report) == {(Section.INTEGRITY, Verdict.CONTRADICTED)}
        assert "does not continue" in report.findings[0].what


def test_two_roots_of_one_size_contradict_without_any_proof() -> None:
    """The plainest lie."""
    file = File([], credential([b"1", b"2"]))
    assert found(judged(file.bytes())) == {(Section.INTEGRITY, Verdict.CONTRADICTED)}


def test_a_witnessed_ledger_that_is_longer_than_that_in_the_file_is_open() -> None:
    """Records were cut off, or the file is older than the credential."""
    file = File([], credential(BEFORE))
    assert found(judged(file.bytes())) == {(Section.INTEGRITY, Verdict.UNKNOWN)}


def test_a_link_that_nothing_needs_is_out_of_place() -> None:
    """One file has one encoding."""
    file = File(BEFORE, credential(BEFORE[:3]))
    extra = LinkPart("b", 1, (bytes(32),))
    for links in ([file.link(3), file.link(4)], [file.link(3), extra]):
        assert (Section.INTEGRITY, Verdict.CONTRADICTED) in found(judged(file.bytes(*links)))


def test_a_file_without_the_ledger_of_the_node_needs_no_link() -> None:
    """The callee's side alone: nothing of the caller's ledger is claimed."""
    file = File(BEFORE, credential(BEFORE[:3]))
    assert judged(file.bytes(sides=("b",))).verdict() is Verdict.ESTABLISHED
