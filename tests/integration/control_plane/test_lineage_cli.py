"""`egm lineage` as a person runs it, against a control plane that three nodes shipped their ledgers to."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from control_plane.edge.ca import CertificateAuthority, issue_to_directory
from control_plane.edge.mesh_file import MeshFile
from egm.v1 import record_pb2 as pb
from egm.v1 import record_pb2_grpc as rpc
from tests.support import record_tree as world
from tests.support.cli import Outcome, egm
from tests.support.control_plane import TRUST_DOMAIN, Domain, running
from tests.support.records import START_MS, execution_id, text
from trust.record import build_record
from trust.spiffe import SpiffeId


@contextlib.asynccontextmanager
async def mesh(domain: Domain) -> AsyncIterator[Path]:
    """Run a control plane that has the records of three nodes; give a mesh directory that names it."""
    directory = domain.home / "mesh"
    operator = SpiffeId.of(TRUST_DOMAIN, "operator", "olga")
    issue_to_directory(CertificateAuthority.open(domain.directory / "ca"), operator, directory / "operator")
    async with running(domain) as plane:
        for node, records in world.LEDGERS.items():
            request = pb.ShipRequest(node=node, ledger="l1", records=list(map(build_record, records)))
            async with plane.channel("node", node) as channel:
                acks = [a.next_index async for a in rpc.RecordsStub(channel).Ship(iter([request]))]
            assert acks == [len(records)]
        root = str(domain.directory / "root.json")
        MeshFile(trust_domain=TRUST_DOMAIN, root=root, control_plane=plane.listen).save(directory)
        yield directory


async def lineage(directory: Path, *arguments: str) -> Outcome:
    """Run one verb beside the control plane."""
    return await asyncio.to_thread(egm, "lineage", *arguments, mesh=directory)


def identifier(number: int) -> str:
    """Return the id of one execution of the world."""
    return text(execution_id(number))


async def test_the_tree_over_three_nodes_in_every_form(domain: Domain) -> None:
    """Text for people, JSON for programs, DOT and Mermaid for pictures; any member names the tree."""
    async with mesh(domain) as directory:
        shown = await lineage(directory, "tree", identifier(1))
        assert shown.code == 0, shown.stderr
        lines = shown.stdout.splitlines()
        assert lines[0] == "alice → shop  shop.Shop/Order  ALLOWED  OK  9.0 ms  [root, both sides]"
        assert lines[4].startswith("│  └─ payments → ledger  shop.Ledger/Book  ALLOWED  OPEN  [verified")
        assert "POLICY_DENIED by b" in lines[6]
        assert "unverified" in lines[8]
        from_below = await lineage(directory, "tree", identifier(3), "--json")
        assert from_below.data == (await lineage(directory, "tree", identifier(1), "--json")).data
        assert [(h["id"], h["mark"], h["depth"]) for h in from_below.data["hops"]] == [
            (identifier(1), "root", 0),
            (identifier(2), "verified", 1),
            (identifier(3), "verified", 2),
            (identifier(4), "verified", 1),
            (identifier(5), "unverified", 0),
        ]
        assert from_below.data["nodes"] == ["a", "b", "c"]
        dot = await lineage(directory, "tree", identifier(1), "--format", "dot")
        assert dot.stdout.startswith("digraph lineage {")
        assert f'"{identifier(1)}" -> "{identifier(2)}";' in dot.stdout
        mermaid = await lineage(directory, "tree", identifier(1), "--format", "mermaid")
        assert mermaid.stdout.startswith("flowchart LR")
        assert "  n0 --> n1" in mermaid.stdout


async def test_show_has_everything_that_both_sides_recorded(domain: Domain) -> None:
    """With the place of each record in its node's ledger, so that it can be proved there."""
    async with mesh(domain) as directory:
        shown = await lineage(directory, "show", identifier(2))
        assert shown.code == 0, shown.stderr
        for words in ("OUTBOUND at node b", "INBOUND at node c", "verified, both sides", "alice-pays"):
            assert words in shown.stdout
        data = (await lineage(directory, "show", identifier(2), "--json")).data
        sides = [
            (s["node"], s["side"], s["ledger_index"], s["outcome"]["ledger_index"]) for s in data["sides"]
        ]
        assert sides == [("b", "OUTBOUND", 1, 3), ("c", "INBOUND", 0, 2)]
        assert data["hop"]["witnesses"] == "both sides"
        assert data["sides"][0]["parent_link"] == "VERIFIED"
        open_one = await lineage(directory, "show", identifier(3))
        assert "no outcome recorded yet" in open_one.stdout


@pytest.mark.parametrize(
    ("filters", "numbers"),
    [
        (["--caller", "shop"], [4, 2, 2]),
        (["--caller", "spiffe://mesh.test/workload/batch"], [5]),
        (["--service", "ledger"], [5, 3]),
        (["--method", "/shop.Shop/Order"], [1, 1]),
        (["--decision", "denied"], [4]),
        (["--decision", "would-deny"], []),
        (["--reason", "policy_denied"], [4]),
        (["--node", "a"], [1]),
        (["--since", "2026-09-21T14:13:20.004Z"], [5, 4]),
        (["--until", "2026-09-21T14:13:20.002Z"], [1, 1]),
        (["--since", "1s"], []),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
async def test_list_filters(domain: Domain, filters: list[str], numbers: list[int]) -> None:
    """Every filter, newest first."""
    assert START_MS == 1_790_000_000_000  # 2026-09-21T14:13:20Z
    async with mesh(domain) as directory:
        found = await lineage(directory, "list", *filters, "--json")
        assert found.code == 0, found.stderr
        assert [e["id"] for e in found.data["executions"]] == [identifier(n) for n in numbers]


async def test_list_pages_and_tells_how_to_go_on(domain: Domain) -> None:
    """The cursor that a page prints continues it."""
    async with mesh(domain) as directory:
        first = await lineage(directory, "list", "--limit", "5", "--json")
        rest = await lineage(directory, "list", "--cursor", first.data["next_cursor"], "--json")
        both = first.data["executions"] + rest.data["executions"]
        assert rest.data["next_cursor"] is None
        assert len(both) == len({(e["id"], e["node"]) for e in both}) == 7
        shown = await lineage(directory, "list", "--limit", "5")
        assert "more: --cursor" in shown.stdout
        assert identifier(5) in shown.stdout


async def test_mistakes_are_explained(domain: Domain) -> None:
    """What is wrong, and what to do next; never a traceback."""
    async with mesh(domain) as directory:
        for arguments, words in (
            (["show", "5"], "egm lineage list"),
            (["show", identifier(99)], "NOT_FOUND"),
            (["tree", identifier(99)], "NOT_FOUND"),
            (["list", "--since", "yesterday"], "10m"),
            (["list", "--reason", "BECAUSE"], "docs/reasons.md"),
            (["list", "--cursor", "x"], "not a cursor"),
            (["list", "--caller", "no such name"], "not a name"),
        ):
            wrong = await lineage(directory, *arguments)
            assert wrong.code == 2, (arguments, wrong)
            assert words in wrong.stderr, (arguments, wrong.stderr)
            assert "Traceback" not in wrong.stderr
    away = await lineage(directory, "list")
    assert away.code == 3
