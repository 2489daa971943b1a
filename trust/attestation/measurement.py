"""What a node runs, as digests, and which of them the approvers accept.

A software measurement is a claim: the measured process computes it. It finds a node that runs another version or
configuration than it should; it does not stop one whose owner lies. Of a node whose TPM the approvers pinned, a quote
is asked as well (`trust.attestation.tpm`); `trust.attestation.accepted` decides on both.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trust import limits
from trust.attestation.tpm import TpmReference
from trust.compact import write_object
from trust.errors import EvidenceError, Reason
from trust.spiffe import check_name

SOFTWARE: Final = "software"
_SHA256: Final = re.compile(r"[0-9a-f]{64}\Z")
_MAX_VERSION_CHARS: Final = 64


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured. Digests are SHA-256, 32 bytes."""

    version: str  # of the distribution, as installed
    distribution: bytes  # over every installed file: `distribution_digest`
    configuration: bytes  # over the effective configuration: `configuration_digest`
    kind: str = SOFTWARE

    @property
    def sha256(self) -> bytes:
        """One digest over all of it: the subject of an evidence statement."""
        return hashlib.sha256(write_object(self.to_json())).digest()

    def to_json(self) -> dict[str, str]:
        """Return the measurement as JSON members, in their order."""
        return {
            "kind": self.kind,
            "version": self.version,
            "distribution": self.distribution.hex(),
            "configuration": self.configuration.hex(),
        }

    @classmethod
    def from_json(cls, value: object) -> "Measurement":
        """Return the measurement that `to_json` wrote, or raise ValueError."""
        if not isinstance(value, dict) or list(value) != ["kind", "version", "distribution", "configuration"]:
            raise ValueError("its measurement has not exactly kind, version, distribution and configuration")
        if value["kind"] != SOFTWARE:
            raise ValueError("its measurement is of a kind that this version does not know")
        version, digests = value["version"], (value["distribution"], value["configuration"])
        if not isinstance(version, str) or not 0 < len(version) <= _MAX_VERSION_CHARS:
            raise ValueError("its version is not a short text")
        if not all(isinstance(digest, str) and _SHA256.match(digest) for digest in digests):
            raise ValueError("its measurement has a digest that is not SHA-256 in lower-case hex")
        return cls(version, bytes.fromhex(digests[0]), bytes.fromhex(digests[1]))


class Measurer(Protocol):
    """Measures this node: from software alone, or with hardware that can prove it."""

    def measure(self) -> Measurement:
        """Return what runs here.

        Raises:
            StateError: MEASUREMENT_REFUSED, if it cannot be measured.
        """
        ...


def distribution_digest(files: Iterable[tuple[str, bytes]]) -> bytes:
    """Return the digest of installed files: SHA-256 over a sorted line `hex(SHA-256) path` for each.

    Args:
        files: (path inside the distribution, SHA-256 of the content).
    """
    lines = sorted(f"{digest.hex()} {path}\n" for path, digest in files)
    return hashlib.sha256("".join(lines).encode()).digest()


def configuration_digest(settings: Mapping[str, object]) -> bytes:
    """Return the digest of the effective configuration: SHA-256 of its JSON with sorted keys, ASCII, no spaces."""
    return hashlib.sha256(write_object(_sorted(settings))).digest()


def _sorted(value: Mapping[str, object]) -> dict[str, object]:
    return {
        key: _sorted(inner) if isinstance(inner, Mapping) else inner for key, inner in sorted(value.items())
    }


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class AcceptedDistribution(_Strict):
    """One accepted build."""

    version: str = Field(min_length=1, max_length=_MAX_VERSION_CHARS)
    sha256: str = Field(pattern=_SHA256.pattern.removesuffix(r"\Z") + "$")


class ReferenceValues(_Strict):
    """`reference_values.json` of the base bundle: accepted builds, and optionally configurations and TPMs."""

    format: int = Field(default=1, ge=1, le=1)
    distributions: tuple[AcceptedDistribution, ...] = Field(
        min_length=1, max_length=limits.MAX_REFERENCE_VALUES, strict=False
    )
    # node -> accepted digests; when there is any, every node needs one
    configurations: dict[str, tuple[str, ...]] = Field(default_factory=dict, strict=False)
    # node -> its TPM; a node that is named needs a quote with every statement, others need none
    tpm: dict[str, TpmReference] = Field(default_factory=dict, strict=False)

    @model_validator(mode="after")
    def _are_digests(self) -> "ReferenceValues":
        if sum(map(len, self.configurations.values())) > limits.MAX_REFERENCE_VALUES:
            raise ValueError(f"more than {limits.MAX_REFERENCE_VALUES} configurations")
        for node, digests in self.configurations.items():
            check_name(node)
            if not digests or not all(_SHA256.match(digest) for digest in digests):
                raise ValueError(f"configurations.{node}: give SHA-256 digests in lower-case hex")
        if sum(len(values) for one in self.tpm.values() for values in one.pcrs.values()) > (
            limits.MAX_REFERENCE_VALUES
        ):
            raise ValueError(f"more than {limits.MAX_REFERENCE_VALUES} values of PCRs")
        for node in self.tpm:
            check_name(node)
        return self

    def check(self, node: str, measurement: Measurement) -> None:
        """Accept what `node` measured by software.

        Raises:
            EvidenceError: MEASUREMENT_REFUSED, naming the part.
        """
        found = AcceptedDistribution(version=measurement.version, sha256=measurement.distribution.hex())
        if found not in self.distributions:
            raise EvidenceError(
                Reason.MEASUREMENT_REFUSED,
                f"node {node} runs version {found.version} with digest {found.sha256[:16]}…, which is not among the "
                "reference values of the policy",
            )
        if self.configurations and measurement.configuration.hex() not in self.configurations.get(node, ()):
            raise EvidenceError(
                Reason.MEASUREMENT_REFUSED,
                f"the configuration of node {node} ({measurement.configuration.hex()[:16]}…) is not among the "
                "reference values of the policy",
            )


def parse_reference_values(data: bytes) -> ReferenceValues:
    """Parse reference_values.json.

    Raises:
        EvidenceError: BUNDLE_MALFORMED, naming the first field that is wrong.
    """
    try:
        return ReferenceValues.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        detail = f"reference_values.json: {where}: {first['msg']}"
    except EvidenceError as error:
        detail = f"reference_values.json: {error.detail}"
    raise EvidenceError(Reason.BUNDLE_MALFORMED, detail)
