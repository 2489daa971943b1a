"""What `bundle.yaml` may say."""

import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from securesystemslib.signer import SSlibKey

from trust import limits
from trust.alerting import AlertRules
from trust.approval_rule import check_groups
from trust.attestation.roster import AttestationSettings, check_key_names
from trust.auditor import parse_auditor_key, parse_auditors
from trust.bundle import MAX_DESCRIPTION_CHARS, MAX_NAME_CHARS, RESERVED_NAMESPACES
from trust.detection import DetectionSettings
from trust.errors import EvidenceError
from trust.keys import check_public_key
from trust.mesh import DEFAULT_LEVEL, LEVELS_TEXT, SUPPORTED_LEVELS, LeaseSettings, PermanentRevocation
from trust.policy.schema import ANY_ACTION
from trust.spiffe import SpiffeId, check_name, check_trust_domain

_GRPC_NAME: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(/[A-Za-z_]\w*)?\Z", re.ASCII)
_GROUP: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}\Z")
_HEX64: Final = re.compile(r"[0-9a-f]{64}\Z")
_METADATA_KEY: Final = re.compile(r"[a-z0-9_.-]{1,64}\Z")


def _name(text: str) -> str:
    try:
        return check_name(text)
    except EvidenceError as error:
        raise ValueError(error.detail) from None


def _trust_domain(text: str) -> str:
    try:
        return check_trust_domain(text)
    except EvidenceError as error:
        raise ValueError(error.detail) from None


def _namespace(text: str) -> str:
    if text in RESERVED_NAMESPACES:
        raise ValueError(f"{text!r} is reserved; choose another name")
    return _name(text)


def _member(text: str) -> str:
    """A workload name, or a SPIFFE ID."""
    if not text.startswith("spiffe://"):
        return _name(text)
    try:
        return str(SpiffeId.parse(text))
    except EvidenceError as error:
        raise ValueError(error.detail) from None


def _grpc_name(text: str) -> str:
    if not _GRPC_NAME.match(text):
        raise ValueError(f"{text[:80]!r} is not a gRPC name; write package.Service or package.Service/Method")
    return text


def _group(text: str) -> str:
    if not _GROUP.match(text) or text == ANY_ACTION:
        raise ValueError(
            f"{text[:80]!r} cannot name a group; use 1 to 64 of A-Z a-z 0-9 _ -, not {ANY_ACTION!r}"
        )
    return text


def _level(value: int) -> int:
    if value not in SUPPORTED_LEVELS:
        raise ValueError(f"level {value} does not exist; use one of {LEVELS_TEXT}")
    return value


def _metadata_key(text: str) -> str:
    if not _METADATA_KEY.match(text) or text.endswith("-bin") or text.startswith(("grpc-", "egm-")):
        raise ValueError(
            f"{text[:80]!r} cannot be shown to policies; use a lower-case key that is not -bin, grpc-, egm-"
        )
    return text


def _public_key(text: str) -> str:
    """An Ed25519 public key, as 'egm keys new --purpose emergency' prints it."""
    if not _HEX64.match(text):
        raise ValueError(f"{text[:80]!r} is not an Ed25519 public key: write its 64 hexadecimal digits")
    try:
        check_public_key(SSlibKey("it", "ed25519", "ed25519", {"public": text}))
    except EvidenceError as error:
        raise ValueError(error.detail) from None
    return text


def _digest(text: str) -> str:
    if not _HEX64.match(text):
        raise ValueError(
            f"{text[:80]!r} is not an id: write its 64 hexadecimal digits, as 'egm revoke list' shows"
        )
    return text


def _auditors(value: dict[str, str]) -> dict[str, str]:
    """Names and keys one by one were accepted; now all together."""
    try:
        parse_auditors(value)
    except EvidenceError as error:
        raise ValueError(error.detail) from None
    return value


def _approver_groups(value: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Names and keys one by one were accepted; now all together."""
    try:
        check_groups(value)
    except EvidenceError as error:
        raise ValueError(error.detail) from None
    return value


def _auditor_key(text: str) -> str:
    try:
        return parse_auditor_key("x", text).text
    except EvidenceError as error:
        raise ValueError(error.detail.removeprefix("the key of auditor x ")) from None


Name = Annotated[str, AfterValidator(_name)]
Namespace = Annotated[str, AfterValidator(_namespace)]
TrustDomain = Annotated[str, AfterValidator(_trust_domain)]
Member = Annotated[str, AfterValidator(_member)]
GrpcName = Annotated[str, AfterValidator(_grpc_name)]
Group = Annotated[str, AfterValidator(_group)]
Level = Annotated[int, AfterValidator(_level)]
PublicKey = Annotated[str, AfterValidator(_public_key)]
Digest = Annotated[str, AfterValidator(_digest)]
Auditors = Annotated[dict[Name, Annotated[str, AfterValidator(_auditor_key)]], AfterValidator(_auditors)]
ApproverGroups = Annotated[dict[Name, dict[Name, PublicKey]], AfterValidator(_approver_groups)]
MetadataKey = Annotated[str, AfterValidator(_metadata_key)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ServiceSource(_Strict):
    """One service that the bundle speaks of. `workload` serves it; default: the workload of that name."""

    level: Level | None = None
    namespace: Namespace | None = None
    workload: Name | None = None
    grpc_services: list[GrpcName] = Field(default_factory=list)


class BundleSettings(_Strict):
    """`bundle.yaml`. With `namespace` the folder is a namespace bundle, without it the base bundle."""

    name: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    description: str = Field(default="", max_length=MAX_DESCRIPTION_CHARS)
    namespace: Namespace | None = None
    trust_domain: TrustDomain = "mesh.local"
    level: Level = DEFAULT_LEVEL
    lease: LeaseSettings = LeaseSettings()
    ledger: Literal["durable", "async"] = "async"
    attestation: AttestationSettings | None = None
    services: dict[Name, ServiceSource] = Field(default_factory=dict)
    roles: dict[str, list[Member]] = Field(default_factory=dict)
    action_groups: dict[Group, list[GrpcName]] = Field(default_factory=dict)
    service_groups: dict[str, list[Name]] = Field(default_factory=dict)
    metadata_keys: list[MetadataKey] = Field(default_factory=list)
    auditors: Auditors = Field(default_factory=dict)
    detection: DetectionSettings | None = None
    alerts: AlertRules | None = None
    emergency_keys: dict[Name, PublicKey] = Field(default_factory=dict)
    approver_groups: ApproverGroups = Field(default_factory=dict)
    revocation_max_ttl_s: int = Field(default=24 * 3600, ge=60, le=limits.MAX_REVOCATION_TTL_S)
    revocations: list[PermanentRevocation] = Field(default_factory=list)
    ended_revocations: list[Digest] = Field(default_factory=list)
    released_proofs: list[Digest] = Field(default_factory=list)

    @model_validator(mode="after")
    def _witnesses_are_of_the_mesh(self) -> "BundleSettings":
        if self.attestation is not None:
            check_key_names(self.attestation, self.trust_domain)
        return self

    @model_validator(mode="after")
    def _is_printable(self) -> "BundleSettings":
        shown = [self.name, *self.description.split("\n"), *self.roles, *self.service_groups]
        if not all(text.isprintable() for text in shown):
            raise ValueError("name, description, roles and service_groups must be printable text")
        return self

    def grpc_names(self) -> list[str]:
        """Every gRPC service and method named by a service, sorted."""
        return sorted({name for service in self.services.values() for name in service.grpc_services})
