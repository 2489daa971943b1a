"""A real Mosquitto in a temporary directory: anonymous clients read, one user publishes, killed at will."""

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from control_plane.lab.ports import free_port

_PUBLISHER = "control-plane"


def require() -> Path:
    """Return the mosquitto program; skip the test without it, or fail it when CI=true."""
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        message = "Mosquitto is not installed (Debian: apt-get install mosquitto)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return Path(found)


class Mosquitto:
    """One broker process. `tls` names certificate, key and CA files: then clients need a certificate."""

    def __init__(self, directory: Path, *, tls: tuple[Path, Path, Path] | None = None) -> None:
        self._program = require()
        self._directory = directory
        self._tls = tls
        self._password = secrets.token_hex(8)
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """For listeners."""
        return f"{'mqtts' if self._tls else 'mqtt'}://localhost:{self._port}"

    @property
    def publisher_url(self) -> str:
        """For the announcer: with a password, as an operator would write it."""
        return self.url.replace("://", f"://{_PUBLISHER}:{self._password}@")

    async def start(self) -> str:
        """Start, on the same port as before if there was one; return `url`."""
        for _ in range(5):
            # Mosquitto cannot tell which one it chose. Not one of the kernel's: while the broker is stopped, that could
            # become the near end of somebody's connection.
            port = self._port or free_port(set())
            process = self._launch(port)
            if await self._answers(process, port):
                self._process, self._port = process, port
                return self.url
            process.kill()
            process.wait()
        raise AssertionError(f"mosquitto does not start: {(self._directory / 'log').read_text()[-2000:]}")

    async def stop(self) -> None:
        """Kill the process (SIGKILL): nothing is flushed, retained messages are lost."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(process.wait)

    def _launch(self, port: int) -> subprocess.Popen[bytes]:
        (self._directory / "passwords").write_text("")
        (self._directory / "passwords").chmod(0o600)
        subprocess.run(
            [
                str(shutil.which("mosquitto_passwd") or "/usr/bin/mosquitto_passwd"),
                "-b",
                str(self._directory / "passwords"),
                _PUBLISHER,
                self._password,
            ],
            check=True,
            capture_output=True,
        )
        (self._directory / "acl").write_text(
            f"topic read egm/v1/+/policy\n\nuser {_PUBLISHER}\ntopic readwrite egm/v1/+/policy\n"
        )
        lines = [
            f"listener {port} 127.0.0.1",
            "allow_anonymous true",
            "user root",  # only looked at when started as root: do not drop to a user who cannot read our files
            f"password_file {self._directory / 'passwords'}",
            f"acl_file {self._directory / 'acl'}",
            "persistence false",
            "log_dest stderr",
        ]
        if self._tls is not None:
            certificate, key, ca = self._tls
            lines += [f"certfile {certificate}", f"keyfile {key}", f"cafile {ca}", "require_certificate true"]
        (self._directory / "mosquitto.conf").write_text("\n".join(lines) + "\n")
        with (self._directory / "log").open("ab") as log:
            return subprocess.Popen(
                [str(self._program), "-c", str(self._directory / "mosquitto.conf")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def _answers(self, process: subprocess.Popen[bytes], port: int) -> bool:
        for _ in range(500):
            if process.poll() is not None:
                return False
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.01)
                continue
            writer.close()
            await writer.wait_closed()
            return True
        return False
