"""Our checkpoints, tiles and proofs, verified by the checksum-database packages of Go: code that is not ours."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.ledgers import LOG, fill
from trust.edge.ledger import Reader

CHECK = Path(__file__).parents[2] / "support" / "sumdb" / "check.go"
GOPATH = Path("/usr/share/gocode")  # where Debian puts Go libraries

pytestmark = pytest.mark.component("go")


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], tuple[int, str]]:
    """The program, built from source; skips without Go or the packages, and fails then when CI=true."""
    go = shutil.which("go")
    if go is None or not (GOPATH / "src/golang.org/x/mod/sumdb").is_dir():
        message = "Go or its library x/mod is not installed (Debian: apt-get install golang-go golang-golang-x-mod-dev)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    folder = tmp_path_factory.mktemp("sumdb")
    env = os.environ | {
        "GO111MODULE": "off",
        "GOPATH": str(GOPATH),
        "GOCACHE": str(folder / "cache"),
        "GOFLAGS": "",
    }
    subprocess.run([go, "build", "-o", str(folder / "check"), str(CHECK)], check=True, env=env)

    def run(question: dict[str, Any]) -> tuple[int, str]:
        done = subprocess.run(
            [str(folder / "check")], input=json.dumps(question), capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    return run


def question(directory: Path) -> dict[str, Any]:
    """Everything that is asked about a ledger: records and earlier sizes at every edge of a tile."""
    reader = Reader(directory)
    size = reader.size
    edges = {0, 1, 2, 255, 256, 257, 511, 65_535, 65_536, 65_537, size // 2, size - 1}
    return {
        "Directory": str(directory),
        "Key": LOG.encode(),
        "Records": [
            {
                "Index": index,
                "Sha256": reader.digest(index).hex(),
                "Proof": [h.hex() for h in reader.inclusion_proof(index)],
            }
            for index in sorted(edge for edge in edges if edge < size)
        ],
        "Consistency": [
            {
                "Size": earlier,
                "Root": reader.root(earlier).hex(),
                "Proof": [h.hex() for h in reader.consistency_proof(earlier)],
            }
            for earlier in sorted(edge for edge in edges if 0 < edge <= size)
        ],
    }


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 1000, 65_536, 65_893])
async def test_go_accepts_our_checkpoint_tiles_and_proofs(
    tmp_path: Path, check: Callable[[dict[str, Any]], tuple[int, str]], size: int
) -> None:
    """And makes the same proofs from our tiles itself."""
    await fill(tmp_path / "l", size)
    asked = question(tmp_path / "l")
    code, said = check(asked)
    assert (code, f"{LOG.name}: {size} records, {len(asked['Records'])} and" in said) == (0, True), said


@pytest.mark.parametrize("what", ["proof", "record", "root", "signature", "tile", "key"])
async def test_go_refuses_what_was_changed(
    tmp_path: Path, check: Callable[[dict[str, Any]], tuple[int, str]], what: str
) -> None:
    """The check itself must be able to fail."""
    directory = tmp_path / "l"
    await fill(directory, 700)
    asked = question(directory)
    if what == "proof":
        asked["Records"][3]["Proof"][0] = "00" * 32
    elif what == "record":
        asked["Records"][3]["Sha256"] = "00" * 32
    elif what == "root":
        asked["Consistency"][2]["Root"] = "00" * 32
    elif what == "key":
        asked["Key"] = LOG.encode()[:-4] + "AAA="
    else:
        file = directory / ("tile/0/001" if what == "tile" else "checkpoint")
        data = bytearray(file.read_bytes())
        data[-5] ^= 1
        file.write_bytes(bytes(data))
    assert check(asked)[0] == 1
