"""What one sidecar can be told, and which settings contradict each other (read by `sidecar.config_file`).

Nothing here can loosen what the approvers signed: `level` only raises, and routes only say where services are.
"""

import difflib
import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sidecar.config_tpm import Tpm
from trust import limits
from trust.address import split_address
from trust.mesh import LEVELS_TEXT, SUPPORTED_LEVELS
from trust.spiffe import SpiffeId, check_name, check_trust_domain

UNIX: Final = "unix://"


def check_address(text: str, *, may_be_unix: bool = True) -> str:
    """Return `text` if it is "host:port", "[v6]:port" or (if allowed) "unix:///path", else raise ValueError."""
    if text.startswith(UNIX):
        if not may_be_unix:
            raise ValueError(f"{text!r}: a Unix socket is not possible here; use HOST:PORT")
        if not text.startswith(f"{UNIX}/") or len(text.removeprefix(UNIX).encode()) > 100:
            raise ValueError(f"{text!r} must be unix:///ABSOLUTE/PATH of at most 100 bytes")
        return text
    try:
        split_address(text)
    except ValueError as error:
        raise ValueError(f"{error}{', or unix:///PATH' if may_be_unix else ''}") from None
    return text


def is_loopback(address: str) -> bool:
    """Return whether "host:port" can be reached from this machine alone."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ControlPlaneLinks(_Strict):
    """Where the control plane answers; several addresses are tried in order."""

    addresses: tuple[str, ...] = Field(min_length=1, description="HOST:PORT of its `listen` (mTLS).")
    join_addresses: tuple[str, ...] = Field(
        default=(), description="HOST:PORT of its `join_listen`, needed to enrol."
    )

    @field_validator("addresses", "join_addresses")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_address(one, may_be_unix=False) for one in value)


class Identity(_Strict):
    """Where certificates come from."""

    source: Literal["embedded", "workload-api"] = "embedded"
    ca: Path | None = Field(
        default=None, description="CA certificates to trust when enrolling (source: embedded)."
    )
    join_token_file: Path | None = Field(
        default=None, description="One-time token; not read again after enrolment."
    )
    workload_api: str | None = Field(
        default=None, description="unix:///PATH of the SPIFFE Workload API (source: workload-api)."
    )
    workloads: tuple[str, ...] | None = Field(
        default=None, description="Workloads this node speaks for; default: those of inbound and outbound."
    )

    @field_validator("workloads")
    @classmethod
    def _workloads(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if value is None else tuple(check_name(name) for name in value)

    @model_validator(mode="after")
    def _source_has_what_it_needs(self) -> "Identity":
        if self.source == "embedded" and self.ca is None:
            raise ValueError("source embedded needs `ca`: the control plane's ca.pem")
        if self.source == "workload-api" and self.workload_api is None:
            raise ValueError("source workload-api needs `workload_api`: unix:///PATH of its socket")
        return self


class UpstreamTls(_Strict):
    """TLS to the local service."""

    ca: Path
    server_name: str | None = None


class LocalUpstream(_Strict):
    """The service next to this sidecar."""

    address: str
    tls: UpstreamTls | None = None

    @field_validator("address")
    @classmethod
    def _address(cls, value: str) -> str:
        return check_address(value)


class Inbound(_Strict):
    """A listener for calls from the mesh to one local service."""

    service: str
    listen: str
    upstream: LocalUpstream
    identify: Literal["mtls", "jwt-svid"] = "mtls"
    handover: bool = Field(
        default=False,
        description="Sign every call for the service's interceptor, which then accepts no other.",
    )

    @field_validator("service")
    @classmethod
    def _service(cls, value: str) -> str:
        return check_name(value)

    @field_validator("listen")
    @classmethod
    def _listen(cls, value: str) -> str:
        return check_address(value, may_be_unix=False)


class Outbound(_Strict):
    """A listener for calls of one local workload to one service of the mesh."""

    workload: str
    listen: str
    service: str
    identify: Literal["loopback", "unix-socket", "jwt-svid"]

    @field_validator("workload", "service")
    @classmethod
    def _name(cls, value: str) -> str:
        return check_name(value)

    @field_validator("listen")
    @classmethod
    def _listen(cls, value: str) -> str:
        return check_address(value)

    @model_validator(mode="after")
    def _only_the_workload_can_reach_it(self) -> "Outbound":
        unix = self.listen.startswith(UNIX)
        if self.identify == "unix-socket" and not unix:
            raise ValueError(f"identify unix-socket needs listen: unix:///PATH, not {self.listen!r}")
        if self.identify == "loopback" and unix:
            raise ValueError("identify loopback needs listen: 127.0.0.1:PORT; for a socket use unix-socket")
        if not unix and not is_loopback(self.listen):
            raise ValueError(
                f"{self.listen!r} is reachable from other machines, in plaintext; use a loopback address "
                "or unix:///PATH"
            )
        return self


class Service(_Strict):
    """Where a service of the mesh is. Which workload may serve it, the signed policy says if it says so."""

    addresses: tuple[str, ...] = Field(min_length=1)
    workload: str | None = Field(default=None, description="Who serves it; default: the service's name.")

    @field_validator("addresses")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_address(one, may_be_unix=False) for one in value)

    @field_validator("workload")
    @classmethod
    def _workload(cls, value: str | None) -> str | None:
        return None if value is None else check_name(value)


class Listen(_Strict):
    """One address."""

    listen: str

    @field_validator("listen")
    @classmethod
    def _listen(cls, value: str) -> str:
        return check_address(value)


class Admin(Listen):
    """Node status and checks, over mTLS, for operators, the control plane and other nodes."""

    advertise: str | None = Field(
        default=None,
        description="HOST:PORT that others use to reach `listen`; default: what it is bound to, or nothing if that is "
        "every address (0.0.0.0).",
    )

    @field_validator("listen")
    @classmethod
    def _listen(cls, value: str) -> str:
        return check_address(value, may_be_unix=False)

    @field_validator("advertise")
    @classmethod
    def _advertise(cls, value: str | None) -> str | None:
        return None if value is None else check_address(value, may_be_unix=False)

    def told(self, bound: str) -> str:
        """Return what others are told of the listener bound at `bound`; "" when nobody else could dial that."""
        if self.advertise is not None:
            return self.advertise
        try:
            anywhere = ipaddress.ip_address(bound.rpartition(":")[0].strip("[]")).is_unspecified
        except ValueError:
            return bound  # a name
        return "" if anywhere else bound


class Jwt(_Strict):
    """How JWT-SVIDs are verified."""

    audience: str = Field(min_length=1)
    jwks: Path | None = Field(default=None, description="JWKS file; default: the Workload API's JWT bundles.")


class Bounds(_Strict):
    """Limits of this node; they may only be tighter than the built-in ones."""

    max_message_bytes: int = Field(default=limits.MAX_MESSAGE_BYTES, ge=1024, le=limits.MAX_MESSAGE_BYTES)
    drain_grace_s: float = Field(default=limits.DRAIN_GRACE_S, ge=0, le=600)
    report_period_s: float = Field(default=limits.REPORT_PERIOD_S, ge=0.1, le=300)


class Archive(_Strict):
    """Where old parts of this node's ledger go; endpoint, region and credentials of S3 come from the environment."""

    to: str = Field(
        description="A folder, file:///PATH or s3://BUCKET/PREFIX; the ledger's own folder is made below."
    )
    keep_records: int = Field(
        default=limits.ARCHIVE_KEPT_RECORDS, ge=0, description="The newest so many records stay on this disk."
    )

    @field_validator("to")
    @classmethod
    def _to(cls, value: str) -> str:
        scheme, separator, rest = value.partition("://")
        if separator and (scheme not in {"file", "s3"} or "@" in rest.partition("/")[0]):
            raise ValueError("use a folder, file:///PATH or s3://BUCKET/PREFIX, without credentials")
        if not separator and not value.startswith("/"):
            raise ValueError(f"{value!r}: a folder is an absolute path")
        return value


class SidecarConfig(_Strict):
    """Every setting of one sidecar. Paths are relative to the configuration file."""

    node: str = Field(description="This node's name: spiffe://TRUST_DOMAIN/node/NAME.")
    trust_domain: str
    data_dir: Path = Field(description="Certificates, verified policy, lease: what survives a restart.")
    root: Path = Field(description="The trust anchor: signed TUF root metadata, root.json.")
    control_plane: ControlPlaneLinks
    identity: Identity
    broker: str = Field(default="none", description="mqtt://… | mqtts://… | none (Watch and polling remain).")
    inbound: tuple[Inbound, ...] = ()
    outbound: tuple[Outbound, ...] = ()
    services: dict[str, Service] = Field(default_factory=dict)
    peers: dict[str, str] = Field(
        default_factory=dict,
        description="Other nodes: NAME: HOST:PORT of its admin listener. The control plane names more.",
    )
    admin: Admin = Admin(listen="127.0.0.1:0")
    health: Listen | None = Field(default=None, description="grpc.health.v1 in plaintext, nothing else.")
    jwt: Jwt | None = None
    level: int | None = Field(
        default=None, description="Raises the signed level, never lowers it: 0, 1, 2, 3, 4, 5."
    )
    archive: Archive | None = Field(default=None, description="Archives old parts of the ledger.")
    tpm: Tpm | None = Field(
        default=None, description="Where this node's TPM is, if the policy wants its quotes."
    )
    limits: Bounds = Bounds()

    @field_validator("node")
    @classmethod
    def _node(cls, value: str) -> str:
        return check_name(value)

    @field_validator("trust_domain")
    @classmethod
    def _trust_domain(cls, value: str) -> str:
        return check_trust_domain(value)

    @field_validator("services")
    @classmethod
    def _services(cls, value: dict[str, Service]) -> dict[str, Service]:
        for name in value:
            check_name(name)
        return value

    @field_validator("peers")
    @classmethod
    def _peers(cls, value: dict[str, str]) -> dict[str, str]:
        return {check_name(name): check_address(one, may_be_unix=False) for name, one in value.items()}

    @field_validator("broker")
    @classmethod
    def _broker(cls, value: str) -> str:
        if value != "none" and not value.startswith(("mqtt://", "mqtts://")):
            raise ValueError("use mqtt://HOST[:PORT], mqtts://USER:PASSWORD@HOST[:PORT] or none")
        return value

    @field_validator("level")
    @classmethod
    def _level(cls, value: int | None) -> int | None:
        if value is not None and value not in SUPPORTED_LEVELS:
            raise ValueError(f"level {value} does not exist; use one of {LEVELS_TEXT}")
        return value

    @model_validator(mode="after")
    def _parts_fit_together(self) -> "SidecarConfig":
        problems = list(_contradictions(self))
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def spiffe_id(self, kind: str, name: str) -> SpiffeId:
        """Return the ID of a member of this trust domain."""
        return SpiffeId.of(self.trust_domain, kind, name)

    def workload_of(self, service: str) -> str:
        """Return who serves `service` as far as local configuration knows."""
        known = self.services.get(service)
        return service if known is None or known.workload is None else known.workload

    def workloads(self) -> tuple[str, ...]:
        """Return every workload this node holds a certificate for, in a stable order."""
        if self.identity.workloads is not None:
            return self.identity.workloads
        derived = [
            *(self.workload_of(one.service) for one in self.inbound),
            *(o.workload for o in self.outbound),
        ]
        return tuple(dict.fromkeys(derived))


def _contradictions(config: SidecarConfig) -> Iterator[str]:
    if not config.inbound and not config.outbound:
        yield "inbound and outbound are both empty: there is nothing to govern; add a listener"
    if len(config.workloads()) > limits.MAX_WORKLOADS_PER_NODE:
        yield f"more than {limits.MAX_WORKLOADS_PER_NODE} workloads"
    held = set(config.workloads())
    for inbound in config.inbound:
        if (workload := config.workload_of(inbound.service)) not in held:
            yield f"identity.workloads lacks {workload!r}, which serves inbound service {inbound.service!r}"
    for outbound in config.outbound:
        if outbound.workload not in held:
            yield f"identity.workloads lacks {outbound.workload!r}, which has an outbound listener"
        if outbound.service not in config.services:
            near = difflib.get_close_matches(outbound.service, config.services, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; add it under services with its addresses"
            yield f"outbound service {outbound.service!r} is not under services{hint}"
    ways = [one.identify for one in config.inbound] + [one.identify for one in config.outbound]
    if "jwt-svid" in ways and config.jwt is None:
        yield "identify jwt-svid needs a jwt section with an audience"
    if config.jwt is not None and config.jwt.jwks is None and config.identity.source != "workload-api":
        yield "jwt.jwks is required unless identity.source is workload-api"
    yield from _duplicates(config)


def _duplicates(config: SidecarConfig) -> Iterator[str]:
    taken: dict[str, str] = {}
    listeners = [(f"inbound {one.service}", one.listen) for one in config.inbound]
    listeners += [(f"outbound {one.workload} to {one.service}", one.listen) for one in config.outbound]
    listeners.append(("admin", config.admin.listen))
    if config.health is not None:
        listeners.append(("health", config.health.listen))
    for name, address in listeners:
        if address.endswith(":0"):
            continue
        if address in taken:
            yield f"{address} is used by {taken[address]} and by {name}; give each its own"
        taken[address] = name
    services = [one.service for one in config.inbound]
    for service in sorted({one for one in services if services.count(one) > 1}):
        yield f"inbound service {service!r} is listed twice"
