"""`mesh.json`: the signed settings of the mesh (levels, lease, services); part of the base bundle alone."""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from securesystemslib.signer import SSlibKey

from trust import limits
from trust.alerting import AlertRules
from trust.approval_rule import check_groups
from trust.attestation.roster import AttestationSettings, Roster, check_key_names
from trust.attestation.struck import struck
from trust.auditor import AuditorKey, parse_auditors
from trust.detection import DetectionSettings
from trust.errors import EvidenceError, Reason
from trust.keys import check_distinct, check_public_key
from trust.revocation import Kind, Subject
from trust.spiffe import check_name, check_trust_domain

DEFAULT_LEVEL: Final = 4
SUPPORTED_LEVELS: Final = frozenset({0, 1, 2, 3, 4, 5})
LEVELS_TEXT: Final = ", ".join(str(level) for level in sorted(SUPPORTED_LEVELS))

Level = Annotated[int, Field(ge=0, le=5)]
PublicKeyHex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
DigestHex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class LeaseSettings(_Strict):
    """How long policy counts as fresh. The sidecar enforces the shorter of this and TUF expiry."""

    ttl_s: int = Field(default=60, ge=limits.MIN_LEASE_TTL_S, le=limits.MAX_LEASE_TTL_S)
    grace_s: int = Field(default=120, ge=0, le=limits.MAX_LEASE_GRACE_S)


class ServiceSettings(_Strict):
    """One governed service. `workload` is who may serve it; default: the workload of the same name."""

    level: Level | None = None
    namespace: str | None = None
    workload: str | None = None
    grpc_services: tuple[str, ...] = Field(default=(), strict=False)


class PermanentRevocation(_Strict):
    """What the quorum denies until it says otherwise; as an emergency directive, without an end."""

    kind: Literal["workload", "node", "key", "method", "throttle", "approval"]
    value: str
    reason: str = Field(min_length=1, max_length=limits.MAX_REVOCATION_REASON_CHARS)

    @property
    def subject(self) -> Subject:
        """Whom or what it denies."""
        return Subject(Kind(self.kind), self.value)


class MeshSettings(_Strict):
    """Every setting that only the approvers' quorum may change."""

    format: int = Field(default=1, ge=1, le=1)
    trust_domain: str
    level: Level = DEFAULT_LEVEL
    lease: LeaseSettings = LeaseSettings()
    services: dict[str, ServiceSettings] = Field(default_factory=dict)
    # whether levels 1 to 4 wait for the record of a call to be durable; level 5 always does
    ledger: Literal["durable", "async"] = "async"
    # who vouches for nodes; without it level 5 is in force without attestation
    attestation: AttestationSettings | None = None
    # request metadata keys that policies may read as `context.metadata`
    metadata_keys: tuple[str, ...] = Field(default=(), strict=False)
    # who may read payloads that `@audit("payload")` keeps: name -> X25519 public key (trust.auditor)
    auditors: dict[str, str] = Field(default_factory=dict)
    # what is detected in executions, and what may be done about it; without it, everything is and nothing may
    detection: DetectionSettings | None = None
    # what is watched in executions and nodes, and who is told (trust.alerting)
    alerts: AlertRules | None = None
    # whose directives deny at once: name -> Ed25519 public key, 64 hexadecimal digits (trust.revocation)
    emergency_keys: dict[str, PublicKeyHex] = Field(
        default_factory=dict, max_length=limits.MAX_EMERGENCY_KEYS
    )
    # who may approve single calls: group -> name -> Ed25519 public key (trust.approval_rule)
    approver_groups: dict[str, dict[str, PublicKeyHex]] = Field(default_factory=dict)
    revocation_max_ttl_s: int = Field(default=24 * 3600, ge=60, le=limits.MAX_REVOCATION_TTL_S)
    # what the quorum makes of them: permanent; ended, by id; proofs of misbehaviour that are settled, by id
    revocations: tuple[PermanentRevocation, ...] = Field(
        default=(), strict=False, max_length=limits.MAX_PERMANENT_REVOCATIONS
    )
    ended_revocations: tuple[DigestHex, ...] = Field(
        default=(), strict=False, max_length=limits.MAX_PERMANENT_REVOCATIONS
    )
    released_proofs: tuple[DigestHex, ...] = Field(
        default=(), strict=False, max_length=limits.MAX_PERMANENT_REVOCATIONS
    )

    @model_validator(mode="after")
    def _emergency_keys_are_keys(self) -> "MeshSettings":
        keys = []
        for name, public in self.emergency_keys.items():
            check_name(name)
            key = SSlibKey(name, "ed25519", "ed25519", {"public": public})
            check_public_key(key)
            keys.append(key)
        check_distinct(keys)
        for one in self.revocations:
            _ = one.subject  # raises for a value that is not spelled the one way
        return self

    @model_validator(mode="after")
    def _names_are_names(self) -> "MeshSettings":
        check_trust_domain(self.trust_domain)
        for name, service in self.services.items():
            check_name(name)
            if service.workload is not None:
                check_name(service.workload)
        parse_auditors(self.auditors)
        check_groups(self.approver_groups)
        if self.attestation is not None:
            check_key_names(self.attestation, self.trust_domain)
        for level in self.levels():
            if level not in SUPPORTED_LEVELS:
                raise ValueError(f"level {level} does not exist; use one of {LEVELS_TEXT}")
        return self

    def roster(self) -> Roster | None:
        """Return who vouches for nodes, without the word of whom it revokes; None when the policy names nobody."""
        if self.attestation is None:
            return None
        roster = Roster.of(self.attestation, self.trust_domain)
        return roster.without(struck(roster, {one.subject for one in self.revocations}))

    def levels(self) -> set[int]:
        """Every level this mesh asks for anywhere."""
        return {self.level} | {s.level for s in self.services.values() if s.level is not None}

    def level_of(self, service: str) -> int:
        """Return the level in force for `service`, before any local raise."""
        settings = self.services.get(service)
        return self.level if settings is None or settings.level is None else settings.level

    def auditor_keys(self) -> tuple[AuditorKey, ...]:
        """Return to whom payloads are sealed, in the order of their names."""
        return parse_auditors(self.auditors)

    def workload_of(self, service: str) -> str:
        """Return the name of the workload that may serve `service`."""
        settings = self.services.get(service)
        return service if settings is None or settings.workload is None else settings.workload


def parse_mesh(data: bytes) -> MeshSettings:
    """Parse mesh.json.

    Raises:
        EvidenceError: BUNDLE_MALFORMED, naming the first field that is wrong.
    """
    try:
        return MeshSettings.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "mesh.json"
        raise EvidenceError(Reason.BUNDLE_MALFORMED, f"mesh.json: {where}: {first['msg']}") from None
    except EvidenceError as error:
        raise EvidenceError(Reason.BUNDLE_MALFORMED, f"mesh.json: {error.detail}") from None
