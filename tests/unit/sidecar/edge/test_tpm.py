"""A TPM that gives no quote says why, and what to do; nothing that programs print is believed."""

from pathlib import Path

import pytest

from sidecar.config_tpm import Tpm
from sidecar.edge.tpm import ToolsTpm
from trust import limits
from trust.errors import Reason, StateError

CONFIG = Tpm(ak_handle="0x81010002")


def refusal(tpm: ToolsTpm) -> str:
    with pytest.raises(StateError) as error:
        tpm.quote(bytes(32), (0, 7))
    assert error.value.reason is Reason.MEASUREMENT_REFUSED
    return error.value.detail


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH on which a test decides what there is."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def test_without_tpm2_tools_it_says_what_to_install(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs are no dependency of the distribution."""
    monkeypatch.setenv("PATH", str(path))
    assert "apt-get install tpm2-tools" in refusal(ToolsTpm(CONFIG))


def test_program_that_fails_is_quoted_with_device_and_key(path: Path) -> None:
    """As for a handle that holds nothing, or a device that the user must not open."""
    program(path, "tpm2_quote", "echo 'ERROR: no such handle' >&2; exit 1")
    told = refusal(ToolsTpm(CONFIG))
    assert "/dev/tpmrm0" in told
    assert "0x81010002: ERROR: no such handle" in told


def test_program_that_hangs_is_ended(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TPM that never answers must not hold the round."""
    monkeypatch.setattr(limits, "TPM_TIMEOUT_S", 0.1)
    program(path, "tpm2_quote", "exec sleep 60")
    assert "did not end within 0.1 s" in refusal(ToolsTpm(CONFIG))


def test_program_that_writes_nothing_or_nonsense_is_refused(path: Path) -> None:
    """A quote is verified here, before it is sent."""
    program(path, "tpm2_quote", "exit 0")
    assert "cannot be read" in refusal(ToolsTpm(CONFIG))
    write = 'while [ $# -gt 1 ]; do case "$1" in -m|-s|-o) printf %s > "$2";; esac; shift; done'
    program(path, "tpm2_quote", write % "x")
    assert "is its SHA-256 bank allocated" in refusal(ToolsTpm(CONFIG))
    program(path, "tpm2_quote", write % ("0" * 64))
    program(path, "tpm2_readpublic", write % "x")
    assert "the key at 0x81010002" in refusal(ToolsTpm(CONFIG))
