"""The client under test of the TUF conformance suite: its command line protocol over our client's path.

    python -m tests.support.tuf_conformance_client --metadata-dir DIR init ROOT
    ... --metadata-dir DIR --metadata-url URL refresh
    ... --metadata-dir DIR --metadata-url URL --target-name T --target-base-url URL --target-dir DIR download

What runs is what `PolicyClient` runs: python-tuf's Updater with our fetcher, our limits and the trust anchor given
again each time. What `PolicyClient` adds (linter, floor, all or nothing) is left out, because it refuses nearly
every repository of the suite (a threshold of one): `tests/integration/test_tuf_conformance.py` has the differences.
"""

import argparse
import hashlib
import http.client
import sys
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path

from tuf.api import exceptions as tuf_errors
from tuf.ngclient import Updater

from trust.edge import tuf_client
from trust.edge.clock import SystemClock
from trust.errors import MeshError, Reason, StateError

ANCHOR = "trusted_root"
_CHUNK_BYTES = 64 * 1024
_TIMEOUT_S = 5


class HttpSource:
    """A `FileSource` over plain HTTP: "metadata/x" and "targets/x" below two base URLs."""

    def __init__(self, metadata_url: str, targets_url: str = "") -> None:
        self._bases = {"metadata": metadata_url, "targets": targets_url}

    def fetch(self, path: str) -> Iterator[bytes]:
        """Yield one file in chunks."""
        kind, _, name = path.partition("/")
        url = urllib.parse.urlsplit(f"{self._bases[kind].rstrip('/')}/{name}")
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=_TIMEOUT_S)
        try:
            connection.request("GET", url.path)
            response = connection.getresponse()
            if response.status in {403, 404}:
                raise FileNotFoundError(path)
            if response.status != 200:
                raise StateError(Reason.SOURCE_UNAVAILABLE, f"{path}: HTTP status {response.status}")
            while chunk := response.read(_CHUNK_BYTES):
                yield chunk
        except http.client.HTTPException as error:
            raise StateError(Reason.SOURCE_UNAVAILABLE, f"{path}: {error}") from error
        finally:
            connection.close()


def _updater(arguments: argparse.Namespace) -> Updater:
    source = HttpSource(arguments.metadata_url, arguments.target_base_url or "")
    directory = Path(arguments.metadata_dir)
    return Updater(
        str(directory),
        "metadata/",
        target_base_url="targets/",
        fetcher=tuf_client._Fetcher(source, SystemClock(), None),
        config=tuf_client._CONFIG,
        bootstrap=(directory / ANCHOR).read_bytes(),
    )


def _download(updater: Updater, name: str, directory: Path) -> None:
    info = updater.get_targetinfo(name)
    if info is None:
        raise tuf_errors.RepositoryError(f"no role lists {name}")
    file = directory / hashlib.sha256(name.encode()).hexdigest()
    if updater.find_cached_target(info, str(file)) is None:
        updater.download_target(info, str(file))


def main(argv: Sequence[str]) -> int:
    """Run one command; 0 is success, 1 any refusal."""
    parser = argparse.ArgumentParser(prog="tuf_conformance_client")
    parser.add_argument("--metadata-dir", required=True)
    for name in ("metadata-url", "target-name", "target-base-url", "target-dir"):
        parser.add_argument(f"--{name}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("root")
    commands.add_parser("refresh")
    commands.add_parser("download")
    arguments = parser.parse_args(argv)
    directory = Path(arguments.metadata_dir)
    try:
        if arguments.command == "init":
            data = Path(arguments.root).read_bytes()
            (directory / ANCHOR).write_bytes(data)
            (directory / "root.json").write_bytes(data)
            return 0
        updater = _updater(arguments)
        updater.refresh()
        if arguments.command == "download":
            _download(updater, arguments.target_name, Path(arguments.target_dir))
    except (MeshError, tuf_errors.RepositoryError, tuf_errors.DownloadError, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
