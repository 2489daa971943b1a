"""What nodes keep of trust credentials: found again by digest, bounded, whatever a crash left."""

import asyncio
from pathlib import Path

import pytest

from tests.support.attestation import AttestedNode, credential_of, holders, roster_of
from tests.support.eventually import eventually
from trust import limits
from trust.attestation.credential import Credential, credential_sha256, open_credential
from trust.edge.credential_files import CredentialFiles, KeptCredentials, find_credentials

NOW_S = 1_800_000_000
WITNESSES = holders("w1", "w2")
ROSTER = roster_of(WITNESSES)


def lines(*names: str) -> dict[bytes, bytes]:
    """Stand-ins: what is kept is found by its digest, whatever it is."""
    return {credential_sha256(name.encode()): name.encode() for name in names}


def wanted(*names: str, at_s: int = NOW_S) -> dict[bytes, int]:
    return dict.fromkeys(lines(*names), at_s * 1000)


def credential() -> Credential:
    return open_credential(credential_of(AttestedNode().evidence(), WITNESSES), ROSTER)


def test_a_credential_is_noted_once_and_found_by_its_digest(tmp_path: Path) -> None:
    """Every permit names it; one line is written."""
    files, one = CredentialFiles(tmp_path / "c", max_bytes=10**9), credential()
    files.note(one)
    files.note(one)
    assert not (tmp_path / "c").exists()
    files.write(files.take(), NOW_S)
    files.note(one)
    assert files.take() == {}
    assert find_credentials([tmp_path / "c"], {one.sha256: NOW_S * 1000}) == {one.sha256: one.data}
    (path,) = (tmp_path / "c").iterdir()
    assert path.read_bytes() == one.data + b"\n"
    assert path.stat().st_mode & 0o077 == 0


def test_what_a_failing_disk_did_not_take_is_written_later(tmp_path: Path) -> None:
    """A full disk costs nothing but time."""
    (tmp_path / "file").write_bytes(b"")
    files = CredentialFiles(tmp_path / "file" / "c", max_bytes=10**9)
    noted = lines("one")
    with pytest.raises(OSError):
        files.write(noted, NOW_S)
    for sha256, data in noted.items():
        files.keep(sha256, data)
    assert files.take() == noted


def test_half_a_line_of_a_crash_spoils_no_other(tmp_path: Path) -> None:
    """What comes after it begins a line of its own."""
    files = CredentialFiles(tmp_path, max_bytes=10**9)
    files.write(lines("one", "two"), NOW_S)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-2])
    CredentialFiles(tmp_path, max_bytes=10**9).write(lines("three"), NOW_S + 1)
    assert find_credentials([tmp_path], wanted("one", "two", "three")) == lines("one", "three")


def test_files_are_bounded_and_the_oldest_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk is not filled by what was proven long ago; a clock that is set back changes no order."""
    monkeypatch.setattr(limits, "KEPT_CREDENTIALS_FILE_BYTES", 10)
    files = CredentialFiles(tmp_path, max_bytes=40)
    names = [f"credential-{number}" for number in range(8)]
    for number, name in enumerate(names):
        files.write(lines(name), NOW_S - number)
    found = find_credentials([tmp_path], wanted(*names))
    assert found == lines(*names[-len(found) :])
    assert 1 < len(found) < len(names)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 40 + 10 + len("credential-0\n")


def test_credentials_of_others_do_not_crowd_out_a_nodes_own(tmp_path: Path) -> None:
    """Whoever calls often fills the folder of the others alone."""
    kept = KeptCredentials(tmp_path, lambda: NOW_S * 1000)
    kept.own.write(lines("own"), NOW_S)
    kept.peers.write(lines("other"), NOW_S)
    assert find_credentials([tmp_path], wanted("own", "other")) == lines("own")
    assert find_credentials([tmp_path, tmp_path / "peers"], wanted("own", "other")) == lines("own", "other")


def test_a_credential_is_found_though_a_clock_was_far_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times say where to look first, and not where to stop."""
    monkeypatch.setattr(limits, "KEPT_CREDENTIALS_FILE_BYTES", 1)
    files = CredentialFiles(tmp_path, max_bytes=10**9)
    for number, name in enumerate(("one", "two", "three")):
        files.write(lines(name), NOW_S + number * 10**6)
    assert find_credentials([tmp_path], wanted("one", at_s=NOW_S + 10**8)) == lines("one")
    assert find_credentials([tmp_path, tmp_path / "none"], wanted("four")) == {}


def test_the_newest_of_a_running_node_is_found_before_it_is_kept(tmp_path: Path) -> None:
    """An export does not wait for the node to write."""
    (tmp_path / "credential.json").write_bytes(b"newest")
    newest = [tmp_path / "credential.json", tmp_path / "none"]
    assert find_credentials([], wanted("newest"), newest=newest) == lines("newest")


def test_memory_is_bounded_while_the_disk_is_away() -> None:
    """The newest are kept."""
    files = CredentialFiles(Path("unused"), max_bytes=1)
    for number in range(limits.MAX_CREDENTIALS + 5):
        files.keep(number.to_bytes(4, "big"), b"x")
    taken = files.take()
    assert len(taken) == limits.MAX_CREDENTIALS
    assert (0).to_bytes(4, "big") not in taken


async def test_what_is_noted_is_written_soon_and_a_failing_disk_is_tried_again(tmp_path: Path) -> None:
    """An export that finds the record finds the credential; nothing noted is lost while the process runs."""
    (tmp_path / "c").write_bytes(b"in the way")
    kept, one = KeptCredentials(tmp_path / "c", lambda: NOW_S * 1000), credential()
    kept.own.note(one)
    await kept.flush()
    (tmp_path / "c").unlink()
    task = asyncio.create_task(kept.run())
    try:
        await eventually(
            lambda: find_credentials([tmp_path / "c"], {one.sha256: NOW_S * 1000}), "it is written"
        )
    finally:
        task.cancel()


async def test_the_credential_of_the_last_run_is_kept_after_a_crash(tmp_path: Path) -> None:
    """It may have been named a moment before."""
    kept = KeptCredentials(tmp_path / "c", lambda: NOW_S * 1000)
    kept.restore(tmp_path / "credential.json")
    (tmp_path / "credential.json").write_bytes(b"newest")
    kept.restore(tmp_path / "credential.json")
    await kept.flush()
    assert find_credentials([tmp_path / "c"], wanted("newest")) == lines("newest")


async def test_the_last_write_waits_for_one_that_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that stops writes what is left, while what it wrote a moment before may still be on its way."""
    kept = KeptCredentials(tmp_path, lambda: NOW_S * 1000)
    goes_on, writing = asyncio.Event(), []

    async def write(_write: object, noted: dict[bytes, bytes], _now_s: int) -> None:
        writing.append(list(noted.values()))
        await goes_on.wait()

    monkeypatch.setattr(asyncio, "to_thread", write)
    kept.own.keep(b"1", b"one")
    first = asyncio.create_task(kept.flush())
    await eventually(lambda: writing, "it writes")
    kept.own.keep(b"2", b"two")
    second = asyncio.create_task(kept.flush())
    for _ in range(5):
        await asyncio.sleep(0)
    assert writing == [[b"one"]]
    goes_on.set()
    await asyncio.gather(first, second)
    assert writing == [[b"one"], [b"two"]]
