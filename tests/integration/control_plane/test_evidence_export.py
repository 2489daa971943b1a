"""Evidence taken from a running mesh, and from ledgers whose older part was archived."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from control_plane.edge.evidence_export import export_evidence, missing_policies
from control_plane.edge.evidence_find import Position
from control_plane.edge.evidence_remote import Remote
from control_plane.edge.mesh_file import MeshFile
from tests.support import second_verifier
from tests.support.cli import egm
from tests.support.control_plane import TRUST_DOMAIN
from tests.support.evidence import Made, executed, make
from tests.support.s3 import BUCKET, S3Server
from tests.support.sidecar_mesh import Mesh
from trust.edge.ledger.archived import note_archived
from trust.evidence_verify import Section, Verdict, verify_evidence
from trust.execution import id_text
from trust.record import Side


class Asked:
    """What a running mesh answered."""

    def __init__(self) -> None:
        self.positions: list[Position] = []
        self.missing_file: bytes | None = b"not asked"
        self.told: dict[str, object] = {}
        self.unreachable: dict[str, object] = {}
        self.files: dict[str, bytes] = {}

    async def ask(self, mesh: Mesh) -> None:
        """Wait until the records are indexed, then export as an auditor would: ledgers here, the rest over the wire."""
        ledgers = {node: mesh.home / node / "data" / "ledger" for node in ("a", "b")}
        wanted: list[bytes] = []
        async with mesh.cp.channel() as channel:
            remote = Remote(channel)
            self.missing_file = await remote.file("metadata/99.targets.json")
            for _ in range(100):
                wanted = sorted(set(executed(ledgers["a"])) & set(executed(ledgers["b"])))
                self.positions = await remote.positions([*wanted, bytes(16)])
                if len(self.positions) == 4 and all(p.outcome is not None for p in self.positions):
                    break
                await asyncio.sleep(0.1)
        folder = mesh.home / "auditor"
        folder.mkdir()
        credentials = mesh.home / "issued" / "operator" / "olga"
        entry = MeshFile(
            trust_domain=TRUST_DOMAIN,
            root=str(mesh.domain.directory / "root.json"),
            control_plane=mesh.cp.listen,
            operator=str(credentials),
        )
        entry.save(folder)
        options = [word for node, path in ledgers.items() for word in ("--ledger", f"{node}={path}")]
        arguments = ("evidence", "export", *map(id_text, wanted), "--mesh", folder, "--json", *options)
        done = await asyncio.to_thread(egm, *arguments, "-o", folder / "case.json")
        assert done.code == 0, done.stderr
        self.told = done.data
        entry.model_copy(update={"control_plane": "127.0.0.1:1"}).save(folder)
        done = await asyncio.to_thread(egm, *arguments, "-o", folder / "alone.json")
        assert done.code == 0, done.stderr
        self.unreachable = done.data
        self.files = {name: (folder / name).read_bytes() for name in ("case.json", "alone.json")}


@pytest.fixture(scope="module")
def asked() -> Asked:
    return Asked()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, asked: Asked) -> Made:
    """Two executions under two policies; the mesh was asked while it ran."""
    return make(tmp_path_factory.mktemp("export"), asked.ask)


def test_a_running_mesh_says_where_records_are_and_what_policies_were(made: Made, asked: Asked) -> None:
    """Ledgers here, index and repository over the wire: a file that both verifiers accept."""
    assert {(p.node, p.side) for p in asked.positions} == {("a", Side.OUTBOUND), ("b", Side.INBOUND)}
    assert asked.missing_file is None
    assert asked.told["policies"] == 2
    assert asked.told["notes"] == []
    data = asked.files["case.json"]
    assert verify_evidence(data, made.root, made.ca).verdict() is Verdict.ESTABLISHED
    second_verifier.check(data, made.root, made.ca)


def test_a_control_plane_that_does_not_answer_is_told_and_costs_only_what_it_alone_has(
    made: Made, asked: Asked
) -> None:
    """The ledgers are searched; the policy that no node has any more is missing, and named."""
    notes = "\n".join(map(str, asked.unreachable["notes"]))  # type: ignore[call-overload]
    assert "the ledgers were searched" in notes
    assert "policy version 1" in notes
    report = verify_evidence(asked.files["alone.json"], made.root, made.ca)
    assert report.verdict(Section.INTEGRITY) is Verdict.ESTABLISHED
    assert report.verdict(Section.AUTHORITY) is Verdict.UNKNOWN


def test_without_the_repository_the_past_policy_is_named_as_missing(made: Made) -> None:
    """Nodes keep the newest policy alone."""
    data, evidence = export_evidence(made.executions, made.ledgers)
    assert [version for version, _ in missing_policies(evidence)] == [1]
    report = verify_evidence(data, made.root, made.ca)
    assert [f.section for f in report.findings if f.reason is not None] == []
    assert report.verdict(Section.AUTHORITY) is Verdict.UNKNOWN


def test_archived_parts_of_a_ledger_are_read_where_they_were_moved(made: Made, tmp_path: Path) -> None:
    """Without the archive the export says what to name; with it the file is the same."""
    home, moved, file = tmp_path / "a", tmp_path / "archive", tmp_path / "case.json"
    shutil.copytree(made.home / "a" / "data", home)
    moved.mkdir()
    for folder in ("records", "tile"):
        (home / "ledger" / folder).rename(moved / folder)
    common = ("evidence", "export", *map(id_text, made.executions), "-o", file, "--json")
    common += ("--ledger", f"a={home / 'ledger'}", "--ledger", f"b={made.ledgers['b']}")
    common += ("--repository", made.repository)
    done = egm(*common)
    assert done.code == 2
    assert "--archive" in done.stdout
    done = egm(*common, "--archive", f"a={moved}")
    assert done.code == 0, done.stdout
    assert file.read_bytes() == made.data
    done = egm(*common, "--archive", f"c={moved}")
    assert (done.code, json.loads(done.stdout)["error"]) == (2, "INPUT_INVALID")


def test_archived_parts_of_a_ledger_are_read_from_an_s3_bucket(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records and tiles in a real S3 server: named by hand, or written down in the ledger; gone, the export says so."""
    home, file = tmp_path / "a", tmp_path / "case.json"
    shutil.copytree(made.home / "a" / "data", home)
    server = S3Server(tmp_path)
    server.start()
    try:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        for folder in ("records", "tile"):
            for path in (home / "ledger" / folder).rglob("*"):
                if path.is_file():
                    server.put(f"old/a/{path.relative_to(home / 'ledger')}", path.read_bytes())
            shutil.rmtree(home / "ledger" / folder)
        common = ("evidence", "export", *map(id_text, made.executions), "-o", file, "--json")
        common += ("--ledger", f"a={home / 'ledger'}", "--ledger", f"b={made.ledgers['b']}")
        common += ("--repository", made.repository)
        assert egm(*common).code == 2
        done = egm(*common, "--archive", f"a=s3://{BUCKET}/old/a")
        assert done.code == 0, done.stdout
        assert file.read_bytes() == made.data
        note_archived(home / "ledger", 0, f"s3://{BUCKET}/old/a")  # as the archiver does
        file.unlink()
        done = egm(*common)
        assert done.code == 0, done.stdout
        assert file.read_bytes() == made.data
        server.put(next(iter(server.names("old/a/records"))), b"not a segment")
        file.unlink()
        assert egm(*common).code != 0
        assert not file.exists()
    finally:
        server.stop()


def test_the_callee_alone_proves_that_it_was_permitted(made: Made) -> None:
    """It kept what vouched for the permits that it accepted; the caller's ledger belongs to somebody else."""
    data, evidence = export_evidence(made.executions, {"b": made.ledgers["b"]}, sources=made.sources)
    assert len(evidence.endorsements) == 2  # the caller's sidecar was started again in between
    assert evidence.credentials
    report = verify_evidence(data, made.root, made.ca)
    assert report.verdict() is Verdict.ESTABLISHED
    second_verifier.check(data, made.root, made.ca)


def test_endorsements_can_be_brought_from_elsewhere(made: Made, tmp_path: Path) -> None:
    """The callee's ledger without what it kept, and the folder of the caller's node."""
    home = tmp_path / "b"
    shutil.copytree(made.home / "b" / "data", home)
    shutil.rmtree(home / "endorsements" / "peers")
    shutil.rmtree(home / "credentials" / "peers")
    file, root, ca = (tmp_path / name for name in ("case.json", "root.json", "ca.pem"))
    root.write_bytes(made.root)
    ca.write_bytes(made.ca)
    common = ("evidence", "export", *map(id_text, made.executions), "-o", file)
    common += ("--ledger", f"b={home / 'ledger'}", "--repository", made.repository)
    assert egm(*common).code == 0
    check = ("evidence", "verify", file, "--root", root, "--ca", ca)
    told = egm(*check)
    assert told.code == 3
    assert "the endorsement" in told.stdout
    assert "the trust credential" in told.stdout
    assert egm(*common, "--endorsements", made.home / "a" / "data" / "endorsements").code == 0
    told = egm(*check)
    assert told.code == 0, told.stdout
    assert told.stdout.count("signed by its node") == 2
    assert f"attested   spiffe://{TRUST_DOMAIN}/node/a by a, b, 2 needed" in told.stdout
    second_verifier.check(file.read_bytes(), made.root, made.ca)
