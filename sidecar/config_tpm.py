"""What a sidecar can be told of its machine's TPM: `tpm` of its configuration."""

import re
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, field_validator

from trust.attestation.tpm_wire import PCRS

_TPM_DEVICE: Final = re.compile(r"(?:/|(?:device|tabrmd|swtpm|mssim):)[A-Za-z0-9_./:=,@-]+\Z")
_TPM_HANDLE: Final = re.compile(r"0x81[0-9a-f]{6}\Z")  # TPM_HT_PERSISTENT


class Tpm(BaseModel):
    """The TPM 2.0 of this machine, asked with tpm2-tools for the quotes that the signed policy wants of this node."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str = Field(
        default="/dev/tpmrm0",
        description="The device of the kernel's resource manager, or a TCTI: device:, tabrmd:, swtpm:, mssim:.",
    )
    ak_handle: str = Field(description="Persistent handle of the attestation key, 0x81000000 and up.")
    pcrs: tuple[int, ...] = Field(
        default=(0, 2, 4, 7),
        min_length=1,
        description="PCRs (SHA-256 bank) that `egm sidecar measure` proposes; quoted are those that the policy names.",
    )

    @field_validator("device")
    @classmethod
    def _device(cls, value: str) -> str:
        # TCTIs are loaded by name, and some start programs: only those that talk to a TPM
        if _TPM_DEVICE.match(value) is None:
            raise ValueError(f"{value[:80]!r}: use the path of a device (/dev/tpmrm0) or a TCTI (tabrmd:...)")
        return value

    @field_validator("ak_handle", mode="before")
    @classmethod
    def _handle(cls, value: object) -> object:
        text = f"0x{value:08x}" if isinstance(value, int) else value  # YAML reads 0x81010002 as a number
        if not isinstance(text, str) or _TPM_HANDLE.match(text.lower()) is None:
            raise ValueError(
                "give a persistent handle, 0x81000000 to 0x81ffffff (tpm2_evictcontrol makes one)"
            )
        return text.lower()

    @field_validator("pcrs")
    @classmethod
    def _pcrs(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not all(0 <= index < PCRS for index in value):
            raise ValueError(f"PCRs are 0 to {PCRS - 1}")
        return tuple(sorted(set(value)))
