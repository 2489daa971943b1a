"""How one control plane is set up: a YAML file, overridden by `EGM_CP_…` variables; anything unknown is an error."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from trust import limits
from trust.address import split_address
from trust.edge.config_file import parse_model, read_config
from trust.spiffe import check_name, check_trust_domain

ENV_PREFIX: Final = "EGM_CP_"
EMBEDDED_BROKER: Final = "embedded"
NO_BROKER: Final = "none"
_BROKER_SCHEMES: Final = frozenset({"embedded", "mqtt", "mqtts"})
_STORE_DRIVERS: Final = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OnlineKeys(_Strict):
    """The keys this control plane signs with, by role.

    Each is a key file or a securesystemslib URI. Several may be named while one is being replaced:
    the one that the root metadata in force names is used.
    """

    snapshot: tuple[str, ...]
    timestamp: tuple[str, ...]
    passphrase_file: Path | None = None

    @field_validator("snapshot", "timestamp", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("snapshot", "timestamp")
    @classmethod
    def _at_least_one(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one key file or signer URI")
        return value


class WebhookConfig(_Strict):
    """Where alerts may be sent. The signed policy names a webhook (`to: [webhook:NAME]`), never an address."""

    url: str = Field(description="https://… that takes a POST; redirects are not followed.")
    secret_file: Path = Field(
        description="The shared secret that signs each message (mode 0600, 16 bytes at least)."
    )
    ca: Path | None = Field(
        default=None, description="CA certificates of the receiver, PEM; default: the system's."
    )

    @field_validator("url")
    @classmethod
    def _https(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme != "https" or not parts.hostname or parts.username or parts.fragment:
            raise ValueError("a webhook is an https:// URL without user, password and fragment")
        return value


class ControlPlaneConfig(_Strict):
    """Every setting of one control plane. Paths are relative to the configuration file."""

    name: str = Field(description="This control plane's name: spiffe://TRUST_DOMAIN/control-plane/NAME.")
    trust_domain: str
    data_dir: Path = Field(description="Holds the repository that is served, and SQLite by default.")
    listen: str = Field(
        default="127.0.0.1:7400", description="gRPC with mutual TLS: operators, nodes, policy files."
    )
    join_listen: str = Field(
        default="127.0.0.1:7401", description="gRPC with server TLS only: enrolment by join token."
    )
    advertise: str | None = Field(
        default=None, description="HOST:PORT that others use to reach `listen`; default: what it is bound to."
    )
    store: str = Field(
        default="",
        description="sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE; default: SQLite in data_dir.",
    )
    root: Path = Field(description="The trust anchor: signed TUF root metadata, root.json.")
    online_keys: OnlineKeys
    ca: Path = Field(description="Directory of the embedded CA.")
    identity: Path = Field(
        description="Directory of this control plane's certificate; made and renewed from the CA."
    )
    broker: str = Field(
        default=EMBEDDED_BROKER,
        description="embedded | embedded://HOST:PORT | mqtt://HOST:PORT | mqtts://USER:PASSWORD@HOST | none",
    )
    renew_fraction: float = Field(
        default=1 / 3,
        ge=0.05,
        le=0.9,
        description="The lease is renewed when this part of its time has passed.",
    )

    index_retention_days: int | None = Field(
        default=None,
        ge=1,
        le=36_500,
        description="Execution records older than this leave the index; the nodes' ledgers keep them. Default: never.",
    )

    webhooks: dict[str, WebhookConfig] = Field(
        default_factory=dict,
        max_length=limits.MAX_WEBHOOKS,
        description="Receivers of alerts by name; rules in the signed policy choose among them.",
    )

    responder_key: str = Field(
        default="",
        description="An emergency key (file or signer URI) by which incidents are answered; policy must name it.",
    )
    responder_passphrase_file: Path | None = Field(
        default=None, description="Its passphrase (mode 0600); default: as for every key file."
    )

    @field_validator("webhooks")
    @classmethod
    def _webhook_names(cls, value: dict[str, WebhookConfig]) -> dict[str, WebhookConfig]:
        for name in value:
            check_name(name)
        return value

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        return check_name(value)

    @field_validator("trust_domain")
    @classmethod
    def _trust_domain(cls, value: str) -> str:
        return check_trust_domain(value)

    @field_validator("listen", "join_listen", "advertise")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is not None:
            split_address(value)
        return value

    @field_validator("store")
    @classmethod
    def _store(cls, value: str) -> str:
        scheme = value.partition("://")[0]
        if value and scheme not in _STORE_DRIVERS:
            raise ValueError(
                f"store scheme {scheme!r} is not supported; use sqlite:///FILE or postgresql://…"
            )
        return value

    @field_validator("broker")
    @classmethod
    def _broker(cls, value: str) -> str:
        if value in {EMBEDDED_BROKER, NO_BROKER}:
            return value
        parts = urlsplit(value)
        if parts.scheme not in _BROKER_SCHEMES or not parts.hostname:
            raise ValueError(
                "use embedded, embedded://HOST:PORT, mqtt://HOST:PORT, mqtts://HOST:PORT or none"
            )
        return value

    def store_url(self) -> str:
        """Return the SQLAlchemy URL, with the asynchronous driver; default: SQLite in `data_dir`."""
        if not self.store:
            return f"sqlite+aiosqlite:///{self.data_dir / 'control-plane.db'}"
        scheme, _, rest = self.store.partition("://")
        return f"{_STORE_DRIVERS[scheme]}://{rest}"

    def store_kind(self) -> str:
        """Return "sqlite" or "postgresql": what may be shown, since the URL may hold a password."""
        return self.store_url().partition("+")[0]


def parse_config(
    text: str, *, base: Path, env: Mapping[str, str], where: str = "configuration"
) -> ControlPlaneConfig:
    """Build the configuration from YAML `text` and `EGM_CP_…` variables (`__` goes one level down).

    Raises:
        InputError: CONFIG_INVALID, naming every key that is wrong and what to write instead.
    """
    return _absolute(parse_model(ControlPlaneConfig, text, env=env, prefix=ENV_PREFIX, where=where), base)


def load_config(path: Path) -> ControlPlaneConfig:
    """Read `path` and the process's environment.

    Raises:
        InputError: CONFIG_INVALID, also when the file cannot be read.
    """
    return read_config(path, parse_config)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the configuration file."""
    return ControlPlaneConfig.model_json_schema()


def _absolute(config: ControlPlaneConfig, base: Path) -> ControlPlaneConfig:
    def ref(text: str) -> str:
        return text if re.match(r"[a-z0-9+]+:", text) and not text.startswith("file:") else str(base / text)

    keys = config.online_keys
    changes: dict[str, object] = {
        name: base / getattr(config, name) for name in ("data_dir", "root", "ca", "identity")
    }
    changes["online_keys"] = keys.model_copy(
        update={
            "snapshot": tuple(ref(key) for key in keys.snapshot),
            "timestamp": tuple(ref(key) for key in keys.timestamp),
            "passphrase_file": None if keys.passphrase_file is None else base / keys.passphrase_file,
        }
    )
    changes["webhooks"] = {
        name: hook.model_copy(
            update={
                "secret_file": base / hook.secret_file,
                "ca": None if hook.ca is None else base / hook.ca,
            }
        )
        for name, hook in config.webhooks.items()
    }
    if config.responder_key:
        changes["responder_key"] = ref(config.responder_key)
    if config.responder_passphrase_file is not None:
        changes["responder_passphrase_file"] = base / config.responder_passphrase_file
    scheme, separator, rest = config.store.partition(":///")
    if separator and scheme.startswith("sqlite") and rest and not rest.startswith("/"):
        changes["store"] = f"{scheme}:///{base / rest}"
    return config.model_copy(update=changes)
