"""`egm ledger` on real directories: answers, exit codes, and what it says when something is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from control_plane.cli.ledger import app
from tests.support.cli import egm
from tests.support.ledgers import LOG, fill
from trust.errors import InputError
from trust.merkle import check_consistency, root_from_inclusion


def ask(*arguments: object) -> tuple[int, Any]:
    """Run one verb with --json."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    return result.exit_code, json.loads(result.stdout)


def decode(proof: list[str]) -> list[bytes]:
    """Hashes from hexadecimal."""
    return [bytes.fromhex(value) for value in proof]


async def test_verify_says_what_was_read_and_whose_key_it_was(tmp_path: Path) -> None:
    """Exit 0; without --key it says that the key is the ledger's own word."""
    await fill(tmp_path / "l", 300)
    code, data = ask("verify", tmp_path / "l")
    assert (code, data["ok"], data["records"], data["signer_known"]) == (0, True, 300, False)
    code, data = ask("verify", tmp_path / "l", "--key", LOG.encode())
    assert (code, data["signer_known"], data["signer"]) == (0, True, LOG.encode())
    code, data = ask("verify", tmp_path / "l", "--key", tmp_path / "l" / "key")
    assert (code, data["signer_known"]) == (0, True)


async def test_verify_names_the_damage_and_exits_1(tmp_path: Path) -> None:
    """As a person sees it, through the real command."""
    await fill(tmp_path / "l", 300)
    tile = tmp_path / "l" / "tile" / "0" / "000"
    tile.write_bytes(tile.read_bytes()[:-1] + b"?")
    done = egm("ledger", "verify", tmp_path / "l")
    assert done.code == 1
    assert "tile/0/000: it is not the tile of these records: entry 255 differs" in done.stdout
    code, data = ask("proof", tmp_path / "l", 254)
    assert (code, data["ok"]) == (1, False)


async def test_proofs_lead_to_the_roots_that_are_printed(tmp_path: Path) -> None:
    """What is printed is enough for somebody else's verifier."""
    await fill(tmp_path / "l", 700)
    code, data = ask("proof", tmp_path / "l", 77, "--size", 300)
    root = root_from_inclusion(bytes.fromhex(data["leaf_hash"]), 77, 300, decode(data["proof"]))
    assert (code, root.hex()) == (0, data["root"])
    code, later = ask("consistency", tmp_path / "l", 300, 700)
    check_consistency(300, root, 700, bytes.fromhex(later["root2"]), decode(later["proof"]))
    assert (code, later["root1"]) == (0, data["root"])


async def test_wrong_questions_say_what_to_ask(tmp_path: Path) -> None:
    """Exit 2 by the shared handler: sizes outside the tree, no ledger."""
    await fill(tmp_path / "l", 3)
    for question in (["proof", tmp_path / "l", 3], ["consistency", tmp_path / "l", 2, 4]):
        with pytest.raises(InputError, match="3"):
            ask(*question)
    with pytest.raises(InputError, match="NOT_FOUND"):
        ask("verify", tmp_path)
    assert egm("ledger", "verify", tmp_path, "--json").code == 2
    assert ask("archive", tmp_path / "l", tmp_path / "to") == (
        0,
        {"ok": True, "moved": [], "to": str(tmp_path / "to")},
    )


async def test_status_says_how_much_is_here_and_what_is_archived(tmp_path: Path) -> None:
    """Without a look at the archive, which may be far away."""
    await fill(tmp_path / "l", 300)
    code, data = ask("status", tmp_path / "l")
    assert (code, data["size"], data["segments"], data["archives"]) == (0, 300, 1, [])
    (tmp_path / "l" / "archived").write_text("0 s3://bucket/a\n")
    assert ask("status", tmp_path / "l")[1]["archives"] == []  # written down, and not removed yet
    segment = next((tmp_path / "l" / "records").iterdir())
    segment.rename(tmp_path / "away")
    shown = egm("ledger", "status", tmp_path / "l")
    assert "archived    records 0 to 65535: s3://bucket/a" in shown.stdout
