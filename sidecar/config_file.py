"""Reads the configuration: a YAML file, overridden by `EGM_SIDECAR_…` variables; anything unknown is an error."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from sidecar.config import Inbound, SidecarConfig
from trust.edge.config_file import parse_model, read_config

ENV_PREFIX: Final = "EGM_SIDECAR_"


def parse_config(
    text: str, *, base: Path, env: Mapping[str, str], where: str = "configuration"
) -> SidecarConfig:
    """Build the configuration from YAML `text` and `EGM_SIDECAR_…` variables (`__` goes one level down).

    Raises:
        InputError: CONFIG_INVALID, naming every key that is wrong and what to write instead.
    """
    return _absolute(parse_model(SidecarConfig, text, env=env, prefix=ENV_PREFIX, where=where), base)


def load_config(path: Path) -> SidecarConfig:
    """Read `path` and the process's environment.

    Raises:
        InputError: CONFIG_INVALID, also when the file cannot be read.
    """
    return read_config(path, parse_config)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the configuration file."""
    return SidecarConfig.model_json_schema()


def _absolute(config: SidecarConfig, base: Path) -> SidecarConfig:
    """Return `config` with every path resolved against the directory of its file."""

    def at(path: Path | None) -> Path | None:
        return None if path is None else base / path

    def inbound(one: Inbound) -> Inbound:
        tls = one.upstream.tls
        if tls is None:
            return one
        upstream = one.upstream.model_copy(update={"tls": tls.model_copy(update={"ca": at(tls.ca)})})
        return one.model_copy(update={"upstream": upstream})

    identity = config.identity.model_copy(
        update={"ca": at(config.identity.ca), "join_token_file": at(config.identity.join_token_file)}
    )
    jwt = None if config.jwt is None else config.jwt.model_copy(update={"jwks": at(config.jwt.jwks)})
    return config.model_copy(
        update={
            "data_dir": at(config.data_dir),
            "root": at(config.root),
            "identity": identity,
            "jwt": jwt,
            "inbound": tuple(inbound(one) for one in config.inbound),
        }
    )
