"""A real S3 server process (moto's) on a port of its own, with one bucket; killed and started again at will."""

import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from obstore.store import S3Store

from control_plane.lab.ports import free_port

BUCKET = "ledgers"


class S3Server:
    """One server. Objects live in its memory: a restart loses them."""

    def __init__(self, directory: Path) -> None:
        self._log = directory / "s3.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._port = free_port(set())  # none of the kernel's: it must be free again after a stop

    @property
    def endpoint(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start, on the same port each time, and make the bucket."""
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-W",
                    "ignore",
                    "-m",
                    "moto.server",
                    "-H",
                    "127.0.0.1",
                    "-p",
                    str(self._port),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # moto needs boto3, which other processes of tests do without
                env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            )
        for _ in range(3000):
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", self._log.read_text()):
                self._port = int(found[1])
                break
            assert process.poll() is None, self._log.read_text()
            time.sleep(0.01)
        self._process = process
        with urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/{BUCKET}", method="PUT")):
            pass

    def stop(self) -> None:
        """Kill it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def get(self, name: str) -> bytes:
        """Return an object, as somebody with access to the bucket can."""
        return bytes(self._bucket.get(name).bytes())

    def put(self, name: str, data: bytes) -> None:
        """Replace an object."""
        self._bucket.put(name, data)

    def delete(self, name: str) -> None:
        """Remove an object."""
        self._bucket.delete(name)

    def names(self, prefix: str) -> list[str]:
        """Return the objects below a prefix."""
        return [str(one["path"]) for page in self._bucket.list(prefix) for one in page]

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find it, as every S3 tool reads it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }

    @property
    def _bucket(self) -> S3Store:
        return S3Store(
            BUCKET,
            config={"endpoint": self.endpoint, "access_key_id": "key", "secret_access_key": "secret"},
            client_options={"allow_http": True},
        )
