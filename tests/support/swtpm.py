"""A real TPM 2.0 in software (swtpm), for one test: on Unix sockets, with two attestation keys, gone afterwards."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ECDSA_KEY, RSASSA_KEY, UNRESTRICTED_KEY = "0x81010002", "0x81010003", "0x81010004"
_PROGRAMS = ("swtpm", "tpm2_quote", "tpm2_createak", "tpm2_createek")


def require() -> None:
    """Skip the test where swtpm or tpm2-tools are missing, or fail it when CI=true."""
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if not missing:
        return
    message = f"{', '.join(missing)}: not installed (Debian: swtpm tpm2-tools libtss2-tcti-swtpm0)"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


class SoftTpm:
    """One TPM; `device` is what a sidecar's configuration names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.device = f"swtpm:path={folder}/s"

    def tool(self, program: str, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[bytes]":
        """Run one of tpm2-tools in the folder of this TPM."""
        done = subprocess.run(
            [f"tpm2_{program}", "-T", self.device, *arguments],
            cwd=self.folder,
            capture_output=True,
            timeout=20,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"tpm2_{program}: {done.stderr.decode()}")
        return done

    def extend(self, index: int, what: bytes) -> None:
        """Extend a PCR by a digest of 32 bytes, as a boot does with what it loads."""
        self.tool("pcrextend", f"{index}:sha256={what.hex()}")

    def make_keys(self) -> None:
        """Make an attestation key of each kind, and a signing key that is none, at their handles."""
        self.tool("createek", "-c", "ek", "-G", "ecc")
        for kind, scheme, handle in (("ecc", "ecdsa", ECDSA_KEY), ("rsa", "rsassa", RSASSA_KEY)):
            self.tool("createak", *f"-C ek -c {kind} -G {kind} -g sha256 -s {scheme} -u {kind}.pub".split())
            self.tool("flushcontext", "-t")
            self.tool("evictcontrol", "-C", "o", "-c", kind, handle)
        self.tool("createprimary", "-C", "o", "-G", "ecc:ecdsa-sha256", "-c", "any", "-a", _UNRESTRICTED)
        self.tool("evictcontrol", "-C", "o", "-c", "any", UNRESTRICTED_KEY)
        self.tool("flushcontext", "-t")


_UNRESTRICTED = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign"


@contextmanager
def running() -> Iterator[SoftTpm]:
    """Run a TPM that was just switched on."""
    require()
    # a short path: those of pytest may be longer than a socket's may be
    with tempfile.TemporaryDirectory(prefix="egm-swtpm-") as name:
        folder = Path(name)
        (folder / "state").mkdir()
        sockets = [f"type=unixio,path={folder}/{end}" for end in ("s", "s.ctrl")]
        process = subprocess.Popen(
            [
                *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}/state"),
                *("--server", sockets[0], "--ctrl", sockets[1], "--flags", "not-need-init,startup-clear"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            tpm = SoftTpm(folder)
            while process.poll() is None and not ((folder / "s").exists() and (folder / "s.ctrl").exists()):
                time.sleep(0.01)
            tpm.make_keys()
            yield tpm
        finally:
            process.terminate()
            process.wait(timeout=10)
