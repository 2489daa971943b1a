"""`mesh.json`: the signed settings of the mesh (levels, lease, services); part of the base bundle alone."""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trust import limits
from trust.errors import EvidenceError, Reason
from trust.spiffe import check_name, check_trust_domain

DEFAULT_LEVEL: Final = 4
# Level 2 needs parts that this version does not have; asking for it is refused, never approximated.
SUPPORTED_LEVELS: Final = frozenset({0, 1, 3, 4, 5})
LEVELS_TEXT: Final = ", ".join(str(level) for level in sorted(SUPPORTED_LEVELS))

Level = Annotated[int, Field(ge=0, le=5)]


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


class MeshSettings(_Strict):
    """Every setting that only the approvers' quorum may change."""

    format: int = Field(default=1, ge=1, le=1)
    trust_domain: str
    level: Level = DEFAULT_LEVEL
    lease: LeaseSettings = LeaseSettings()
    services: dict[str, ServiceSettings] = Field(default_factory=dict)
    # whether levels 1 to 4 wait for the record of a call to be durable; level 5 always does
    ledger: Literal["durable", "async"] = "async"
    # request metadata keys that policies may read as `context.metadata`
    metadata_keys: tuple[str, ...] = Field(default=(), strict=False)

    @model_validator(mode="after")
    def _names_are_names(self) -> "MeshSettings":
        check_trust_domain(self.trust_domain)
        for name, service in self.services.items():
            check_name(name)
            if service.workload is not None:
                check_name(service.workload)
        for level in self.levels():
            if level not in SUPPORTED_LEVELS:
                raise ValueError(f"level {level} is not supported by this version; use one of {LEVELS_TEXT}")
        return self

    def levels(self) -> set[int]:
        """Every level this mesh asks for anywhere."""
        return {self.level} | {s.level for s in self.services.values() if s.level is not None}

    def level_of(self, service: str) -> int:
        """Return the level in force for `service`, before any local raise."""
        settings = self.services.get(service)
        return self.level if settings is None or settings.level is None else settings.level

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
