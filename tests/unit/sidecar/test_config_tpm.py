"""`tpm` of a sidecar's configuration: where the TPM is, by which key it quotes."""

from pathlib import Path

import pytest

from sidecar.config_file import parse_config
from sidecar.config_tpm import Tpm
from tests.unit.sidecar.edge.test_measurer import CONFIG
from trust.errors import InputError


def parsed(tpm: str) -> Tpm:
    made = parse_config(f"{CONFIG}tpm: {tpm}\n", base=Path("/etc/egm"), env={}).tpm
    assert made is not None
    return made


def test_handle_may_be_written_as_a_number_or_as_text() -> None:
    """YAML reads 0x81010002 as a number."""
    for text in ("{ak_handle: 0x81010002}", '{ak_handle: "0x81010002"}', '{ak_handle: "0X8101000A"}'):
        assert parsed(text).ak_handle in {"0x81010002", "0x8101000a"}
    assert parsed("{ak_handle: 0x81010002}").device == "/dev/tpmrm0"
    assert parsed("{ak_handle: 0x81010002, pcrs: [7, 0, 7]}").pcrs == (0, 7)


@pytest.mark.parametrize(
    "tpm",
    [
        "{}",
        "{ak_handle: 7}",
        "{ak_handle: 0x80000001}",
        "{ak_handle: true}",
        '{ak_handle: "0x81010002; reboot"}',
        '{ak_handle: 0x81010002, device: "cmd:reboot"}',
        '{ak_handle: 0x81010002, device: "libevil.so:x"}',
        '{ak_handle: 0x81010002, device: "tpmrm0"}',
        '{ak_handle: 0x81010002, device: "/dev/tpm 0"}',
        "{ak_handle: 0x81010002, pcrs: []}",
        "{ak_handle: 0x81010002, pcrs: [24]}",
        "{ak_handle: 0x81010002, pcrs: [-1]}",
        "{ak_handle: 0x81010002, other: 1}",
    ],
    ids=range(13),
)
def test_what_no_tpm_answers_to_is_refused(tpm: str) -> None:
    """A TCTI that starts a program or loads another library is none."""
    with pytest.raises(InputError):
        parsed(tpm)
