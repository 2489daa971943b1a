"""Archiving to a real S3 server: what was moved still proves, and no failure on the way loses a record."""

import asyncio
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from control_plane.cli.ledger import app
from tests.support.cli import egm
from tests.support.ledgers import LOG, fill, open_ledger, record
from tests.support.s3 import BUCKET, S3Server
from trust import limits
from trust.edge.ledger import Reader, archive, open_place, places_of, read_archived, verify
from trust.edge.ledger.layout import segment_name, segment_path
from trust.edge.ledger.place import Place
from trust.errors import EvidenceError, InputError, Reason, StateError

pytestmark = pytest.mark.xdist_group("s3")  # one server and one ledger of three segments for all of them
RECORDS = 2 * limits.LEDGER_SEGMENT_RECORDS + 70
SEGMENT = segment_name(0)
TO = f"s3://{BUCKET}/archive/a"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The server."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger of which one segment may go."""
    directory = tmp_path_factory.mktemp("filled") / "ledger"
    asyncio.run(fill(directory, RECORDS))
    return directory


@pytest.fixture
def ledger(filled: Path, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, and the environment that every S3 tool reads."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AWS_ALLOW_HTTP", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    shutil.copytree(filled, tmp_path / "ledger")
    return tmp_path / "ledger"


def ask(*arguments: object) -> tuple[int, Any]:
    """Run one verb of `egm ledger` with --json."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    return result.exit_code, json.loads(result.stdout)


class Shelf:
    """A place and, past it, what lies there: for whoever damages it."""

    def __init__(self, url: str, server: S3Server | None) -> None:
        self.place, self._server = open_place(url), server
        self._root = url.removeprefix(f"s3://{BUCKET}/")

    def get(self, name: str) -> bytes:
        """What is stored under a name."""
        stored = f"{self._root}/{name}"
        return Path(stored).read_bytes() if self._server is None else self._server.get(stored)

    def put(self, name: str, data: bytes) -> None:
        """Store something else."""
        stored = f"{self._root}/{name}"
        if self._server is None:
            Path(stored).write_bytes(data)
        else:
            self._server.put(stored, data)

    def delete(self, name: str) -> None:
        """Remove it."""
        stored = f"{self._root}/{name}"
        if self._server is None:
            Path(stored).unlink()
        else:
            self._server.delete(stored)


@pytest.fixture(params=["folder", pytest.param("bucket", marks=pytest.mark.lab)])
def shelf(request: pytest.FixtureRequest, ledger: Path, s3: S3Server, tmp_path: Path) -> Shelf:
    """Where this test archives to. What goes wrong there is the same in a bucket, which takes minutes: see `lab`."""
    if request.param == "bucket":
        return Shelf(f"{TO}/{request.function.__name__}", s3)
    return Shelf(str(tmp_path / "to"), None)


class Cut:
    """A place whose connection ends after some files; counts what is sent."""

    def __init__(self, place: Place, after: int = 10**9) -> None:
        self._place, self._left, self.sent = place, after, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._place, name)

    def put(self, name: str, source: Path) -> None:
        """Send, or fail."""
        if self.sent >= self._left:
            raise StateError(Reason.SOURCE_UNAVAILABLE, "the connection was cut")
        self.sent += 1
        self._place.put(name, source)


def nothing_is_lost(directory: Path) -> None:
    """Everything is where it was, and fits."""
    found = verify(directory, key=LOG)
    assert found.ok, found.findings
    assert read_archived(directory) == {}


async def test_what_was_moved_to_a_bucket_still_proves_and_verbs_find_it_there(
    ledger: Path, s3: S3Server
) -> None:
    """Records, proofs, verification and the running ledger: all read through; the status says what is where."""
    before = Reader(ledger)
    indices = (0, 300, 65_535, 65_536, RECORDS - 1)
    expected = [before.inclusion_proof(i) for i in indices]
    to = f"{TO}/moved"
    assert ask("archive", ledger, to) == (0, {"ok": True, "moved": [0], "to": to})
    assert not segment_path(ledger, 0).exists()
    assert not (ledger / "tile/0/000").exists()
    assert len(s3.get("archive/a/moved/tile/0/255")) == 8192
    reader = Reader(ledger, archives=places_of(ledger))
    assert [reader.inclusion_proof(i) for i in indices] == expected
    assert [reader.record(i) for i in indices] == [record(i) for i in indices]
    assert [frame.index for frame in reader.scan(65_530, upto=65_540)] == list(range(65_530, 65_540))
    code, data = ask("verify", ledger, "--key", LOG.encode())
    assert (code, data["ok"], data["records"]) == (0, True, RECORDS)
    assert ask("proof", ledger, 5)[1]["ok"]
    status = ask("status", ledger)[1]
    assert status["archives"] == [{"to": to, "segments": 1, "first": 0, "upto": 65_536}]
    assert (status["segments"], status["first"]) == (2, 65_536)
    again = open_ledger(ledger)  # the log goes on without its archive
    await again.write(b"more")
    await again.close()
    with pytest.raises(EvidenceError, match="is missing"):
        Reader(ledger).inclusion_proof(0)


def test_an_interrupted_upload_goes_on_where_it_ended(ledger: Path, shelf: Shelf) -> None:
    """Nothing goes here before all of it is there, and what is there is not sent again."""
    cut = Cut(shelf.place, after=100)
    with pytest.raises(StateError, match="SOURCE_UNAVAILABLE"):
        archive(ledger, cut)
    nothing_is_lost(ledger)
    rest = Cut(shelf.place)
    assert archive(ledger, rest) == [0]
    assert cut.sent + rest.sent == 513  # a segment, 256 tiles, 256 bundles
    assert verify(ledger, key=LOG, archives=places_of(ledger)).ok


@pytest.mark.parametrize("removed", [None, 0, 300, 512])
def test_a_crash_between_upload_and_removal_is_finished_by_the_next_attempt(
    ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: int | None
) -> None:
    """None: before it was written down; a number: after so many files were removed."""
    module = sys.modules["trust.edge.ledger.archive"]  # hidden behind the function of its name
    place = open_place(tmp_path / "to")
    real = Path.unlink
    calls = 0

    def unlink(path: Path, missing_ok: bool = False) -> None:
        nonlocal calls
        if calls == removed:
            raise KeyboardInterrupt
        calls += 1
        real(path, missing_ok=missing_ok)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as crashing:
        if removed is None:
            crashing.setattr(module, "note_archived", crash)
        else:
            crashing.setattr(Path, "unlink", unlink)
        with pytest.raises(KeyboardInterrupt):
            archive(ledger, place)
    assert segment_path(ledger, 0).exists()
    after = Cut(place)
    assert archive(ledger, after) == [0]
    assert after.sent == 0
    assert verify(ledger, key=LOG, archives=places_of(ledger)).ok


def test_an_object_that_was_changed_or_removed_is_named(ledger: Path, shelf: Shelf) -> None:
    """Whoever can write to the bucket cannot change what the ledger says."""
    to = shelf.place.url
    archive(ledger, shelf.place)
    kept: dict[str, bytes] = {}
    for name in ("tile/0/007", "tile/entries/255"):
        kept[name] = shelf.get(name)
        shelf.put(name, kept[name][:-1] + bytes([kept[name][-1] ^ 1]))
    shelf.delete("tile/0/009")
    named = {f.where: f.what for f in verify(ledger, key=LOG, archives=places_of(ledger)).findings}
    assert named.keys() == {f"{to}/tile/0/007", f"{to}/tile/entries/255", "tile/0/009"}
    assert "entry 65535 differs" in named[f"{to}/tile/entries/255"]
    with pytest.raises(EvidenceError, match="tile/0/009 is missing"):
        Reader(ledger, archives=places_of(ledger)).inclusion_proof(9 * 256)
    records = bytearray(shelf.get(SEGMENT))
    records[-3] ^= 1
    shelf.put(SEGMENT, bytes(records))
    with pytest.raises(EvidenceError, match="record 65535"):
        Reader(ledger, archives=places_of(ledger)).record(65_535)
    with pytest.raises(EvidenceError, match="does not match its checksum"):
        list(Reader(ledger, archives=places_of(ledger)).scan(65_500))
    shelf.delete(SEGMENT)
    (finding,) = (
        f for f in verify(ledger, key=LOG, archives=places_of(ledger)).findings if "record" in f.what
    )
    assert "record 0 is missing" in finding.what


def test_damage_at_the_destination_is_mended_before_anything_is_removed(ledger: Path, shelf: Shelf) -> None:
    """What an earlier attempt left there has the right length and other bytes: it is sent again."""
    place = shelf.place
    with pytest.raises(StateError):
        archive(ledger, Cut(place, after=400))
    for name in (SEGMENT, "tile/0/001"):
        data = bytearray(shelf.get(name))
        data[-1] ^= 1
        shelf.put(name, bytes(data))
    assert archive(ledger, place) == [0]
    assert verify(ledger, key=LOG, archives=places_of(ledger)).ok


async def test_two_ledgers_never_mix_in_one_prefix(ledger: Path, shelf: Shelf, tmp_path: Path) -> None:
    """A mistake in the configuration must not overwrite somebody's only copy."""
    archive(ledger, shelf.place)
    kept = shelf.get(SEGMENT)
    await fill(tmp_path / "other", RECORDS)
    with pytest.raises(StateError, match="holds another ledger"):
        archive(tmp_path / "other", shelf.place)
    nothing_is_lost(tmp_path / "other")
    assert shelf.get(SEGMENT) == kept


def test_a_store_that_is_down_or_refuses_loses_nothing_and_exits_3(
    ledger: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next attempt succeeds; until then the answer is "could not tell"."""
    missing = egm("ledger", "archive", ledger, "s3://no-such-bucket/x", "--json")
    assert (missing.code, "the bucket does not exist" in missing.stdout + missing.stderr) == (3, True)
    with monkeypatch.context() as down:
        down.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        done = egm("ledger", "archive", ledger, f"{TO}/down", "--json")
        assert done.code == 3
        assert "cannot be used" in done.stdout + done.stderr
        nothing_is_lost(ledger)
    assert archive(ledger, open_place(f"{TO}/down")) == [0]
    with monkeypatch.context() as down:
        down.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        for verb in (["verify", ledger], ["proof", ledger, 0]):
            assert egm("ledger", *verb).code == 3  # not "it is tampered with", nor "all of it fits"
    assert egm("ledger", "verify", ledger).code == 0


@pytest.mark.parametrize(
    ("where", "problem"),
    [
        ("s3://key:secret@bucket/x", "come from the environment"),
        ("s3://bucket/x?region=a", "come from the environment"),
        ("s3:///x", "come from the environment"),
        ("gs://bucket/x", "is not an archive"),
        ("file://host/x", "is not an archive"),
    ],
)
def test_other_urls_are_refused_with_what_to_write(where: str, problem: str) -> None:
    """A credential in a URL would be shown and logged."""
    with pytest.raises(InputError, match=problem):
        open_place(where)


@pytest.mark.parametrize(
    ("endpoint", "allowed"),
    [
        ("http://store.example:9000", False),
        ("http://127.0.0.1.example:9000", False),
        ("http://localhost:9000", True),
        ("http://[::1]:9000", True),
        ("https://store.example", True),
    ],
)
def test_records_do_not_cross_a_network_without_tls(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, allowed: bool
) -> None:
    """Unless the person says that the network is theirs."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    if allowed:
        assert open_place("s3://bucket/x/").url == "s3://bucket/x"
        return
    with pytest.raises(InputError, match="no TLS"):
        open_place("s3://bucket/x")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    assert open_place("s3://bucket").url == "s3://bucket"


def test_a_folder_is_a_url_too_and_a_damaged_note_is_refused(ledger: Path, tmp_path: Path) -> None:
    """One setting, whatever the place."""
    assert archive(ledger, open_place(f"file://{tmp_path}/to")) == [0]
    assert read_archived(ledger) == {0: f"{tmp_path}/to"}
    assert verify(ledger, key=LOG, archives=places_of(ledger)).ok
    for wrong in (b"x y\n", b"0\n", b"1 /to\n", b"\xff\n"):
        (ledger / "archived").write_bytes(wrong)
        with pytest.raises(StateError, match="line 1"):
            read_archived(ledger)
