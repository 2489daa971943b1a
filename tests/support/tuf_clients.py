"""Two ways to run our client against a repository on loopback: as plain TUF, and whole."""

import json
from pathlib import Path

from tests.support.tuf_conformance_client import HttpSource, main
from trust.edge.tuf_client import PolicyClient
from trust.errors import MeshError, Reason


class Plain:
    """The suite's view: exit codes, and the files in the metadata directory."""

    def __init__(self, directory: Path, url: str, root: bytes) -> None:
        self.metadata, self.downloads = directory / "metadata", directory / "downloads"
        self.metadata.mkdir()
        self.downloads.mkdir()
        anchor = directory / "anchor.json"
        anchor.write_bytes(root)
        self.url = url
        assert self.run("init", str(anchor)) == 0

    def run(self, *command: str) -> int:
        where = ["--metadata-dir", str(self.metadata), "--metadata-url", f"{self.url}/metadata"]
        return main([*where, *command])

    def refresh(self) -> bool:
        return self.run("refresh") == 0

    def download(self, name: str) -> bytes | None:
        """Return the file, None when refused."""
        options = ["--target-base-url", f"{self.url}/targets", "--target-dir", str(self.downloads)]
        if self.run("--target-name", name, *options, "download") != 0:
            return None
        newest = max(self.downloads.iterdir(), key=lambda file: file.stat().st_mtime_ns)
        return newest.read_bytes()

    def version(self, role: str) -> int:
        version = json.loads((self.metadata / f"{role}.json").read_bytes())["signed"]["version"]
        assert isinstance(version, int)
        return version


def refresh_policy(directory: Path, url: str, root: bytes) -> Reason | dict[str, int]:
    """Return the versions in force after a refresh, or why it was refused."""
    try:
        client = PolicyClient(directory / "policy", root)
        return dict(client.refresh(HttpSource(f"{url}/metadata", f"{url}/targets")).versions)
    except MeshError as error:
        return error.reason
