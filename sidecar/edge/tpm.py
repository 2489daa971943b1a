"""Asks this machine's TPM 2.0 for quotes, through the programs of tpm2-tools.

Programs and not a binding: what is asked are two commands, and the one maintained binding must be compiled against
headers on every machine (docs/adr/0011-tpm-quotes.md). Nothing that they print is believed; a quote is verified here as
any witness verifies it before it is sent.
"""

import os
import secrets
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sidecar.config_tpm import Tpm
from trust import limits
from trust.attestation.tpm import Quote, TpmReference, key_text, verify_quote
from trust.attestation.tpm_wire import PublicKey, read_attestation_key
from trust.errors import Reason, StateError

_PCR_BYTES: Final = 32
_EXTRA_BYTES: Final = 32
_MAX_TOLD_CHARS: Final = 200
_MAX_FILE_BYTES: Final = 4096  # of what a program wrote


class ToolsTpm:
    """A `trust.attestation.tpm.Quoter`. Its methods block: call them in a thread."""

    def __init__(self, config: Tpm) -> None:
        """Use the TPM and key of `config`; nothing is started before it is asked."""
        self._config = config
        self._key: PublicKey | None = None

    def quote(self, extra: bytes, pcrs: Sequence[int]) -> Quote:
        """Return a fresh quote over `extra` (32 bytes) and PCRs of the SHA-256 bank. Some 50 ms; hardware takes longer.

        Raises:
            StateError: MEASUREMENT_REFUSED, if the TPM gives none, or none that verifies; says why.
        """
        selected = sorted(set(pcrs))
        with tempfile.TemporaryDirectory(prefix="egm-tpm-") as folder:
            at = Path(folder)
            message, signature, values = (at / name for name in ("message", "signature", "values"))
            self._run(
                "tpm2_quote",
                *("-Q", "-g", "sha256", "-F", "values", "-l", f"sha256:{','.join(map(str, selected))}"),
                *("-q", extra.hex(), "-m", str(message), "-s", str(signature), "-o", str(values)),
            )
            found = [_read(path) for path in (message, signature, values)]
        if len(found[2]) != len(selected) * _PCR_BYTES:
            raise _refused(
                f"it gave {len(found[2])} bytes for {len(selected)} PCRs: is its SHA-256 bank allocated (tpm2_pcrread)?"
            )
        digests = [found[2][i : i + _PCR_BYTES] for i in range(0, len(found[2]), _PCR_BYTES)]
        made = Quote(found[0], found[1], tuple(zip(selected, digests, strict=True)))
        try:
            verify_quote(made, [self.key()], extra)
        except ValueError as error:
            raise _refused(f"its quote does not verify: {error}") from None
        return made

    def key(self) -> PublicKey:
        """Return the public attestation key, read once.

        Raises:
            StateError: MEASUREMENT_REFUSED, if there is none at the handle, or it could sign a made-up quote.
        """
        if self._key is None:
            with tempfile.TemporaryDirectory(prefix="egm-tpm-") as folder:
                public = Path(folder) / "public"
                self._run("tpm2_readpublic", "-Q", "-f", "tss", "-o", str(public))
                data = _read(public)
            try:
                self._key = read_attestation_key(data)
            except ValueError as error:
                raise _refused(f"the key at {self._config.ak_handle}: {error}") from None
        return self._key

    def reference(self) -> TpmReference:
        """Return what to sign so that this machine, as it is now, is accepted: `tpm: {NODE: ...}`.

        Raises:
            StateError: MEASUREMENT_REFUSED.
        """
        made = self.quote(secrets.token_bytes(_EXTRA_BYTES), self._config.pcrs)
        return TpmReference(
            keys=(key_text(self.key()),), pcrs={str(index): (value.hex(),) for index, value in made.pcrs}
        )

    def _run(self, program: str, *arguments: str) -> None:
        device = self._config.device
        tcti = f"device:{device}" if device.startswith("/") else device
        command = [program, "-T", tcti, "-c", self._config.ak_handle, *arguments]
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TSS2_LOG": "all+error"}
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=limits.TPM_TIMEOUT_S,
                check=False,
                env=environment,
            )
        except FileNotFoundError:
            raise _refused(f"{program} is not installed (Debian: apt-get install tpm2-tools)") from None
        except OSError as error:
            raise _refused(f"{program} does not start: {error.strerror}") from None
        except subprocess.TimeoutExpired:
            raise _refused(f"{program} did not end within {limits.TPM_TIMEOUT_S:g} s") from None
        if done.returncode != 0:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            told = lines[0][:_MAX_TOLD_CHARS] if lines else f"exit {done.returncode}"
            raise _refused(f"{program} on {device}, key {self._config.ak_handle}: {told}")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE_BYTES)
    except OSError as error:
        raise _refused(f"its answer cannot be read: {error.strerror}") from None


def _refused(what: str) -> StateError:
    return StateError(Reason.MEASUREMENT_REFUSED, f"the TPM of this node: {what}")
