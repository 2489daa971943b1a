"""Reads the configuration: a YAML file, overridden by `EGM_SIDECAR_…` variables; anything unknown is an error."""

import difflib
import inspect
import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ValidationError

from sidecar.config import Inbound, SidecarConfig
from trust.errors import InputError, MeshError, Reason

ENV_PREFIX: Final = "EGM_SIDECAR_"
MAX_CONFIG_BYTES: Final = 1024 * 1024


def parse_config(
    text: str, *, base: Path, env: Mapping[str, str], where: str = "configuration"
) -> SidecarConfig:
    """Build the configuration from YAML `text` and `EGM_SIDECAR_…` variables (`__` goes one level down).

    Raises:
        InputError: CONFIG_INVALID, naming every key that is wrong and what to write instead.
    """
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none is a ValueError
        raise InputError(Reason.CONFIG_INVALID, f"{where}: not YAML: {error}") from None
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise InputError(Reason.CONFIG_INVALID, f"{where}: must be a mapping of keys to values")
    for variable, value in sorted(env.items()):
        if variable.startswith(ENV_PREFIX):
            _overlay(data, variable.removeprefix(ENV_PREFIX).lower().split("__"), value, variable)
    try:
        return _absolute(SidecarConfig.model_validate(data), base)
    except ValidationError as error:
        raise InputError(Reason.CONFIG_INVALID, f"{where}: {_explain(error)}") from None
    except MeshError as error:  # a name that is not one
        raise InputError(Reason.CONFIG_INVALID, f"{where}: {error.detail}") from None


def load_config(path: Path) -> SidecarConfig:
    """Read `path` and the process's environment.

    Raises:
        InputError: CONFIG_INVALID, also when the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Reason.CONFIG_INVALID, f"{path}: cannot be read: {error}") from None
    if len(text) > MAX_CONFIG_BYTES:
        raise InputError(Reason.CONFIG_INVALID, f"{path}: larger than {MAX_CONFIG_BYTES} bytes")
    return parse_config(text, base=path.resolve().parent, env=os.environ, where=str(path))


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the configuration file."""
    return SidecarConfig.model_json_schema()


def _overlay(data: dict[str, Any], keys: list[str], value: str, variable: str) -> None:
    for key in keys[:-1]:
        inner = data.setdefault(key, {})
        if not isinstance(inner, dict):
            raise InputError(Reason.CONFIG_INVALID, f"{variable}: {key!r} has no keys below it")
        data = inner
    try:
        data[keys[-1]] = yaml.safe_load(value) if value[:1] in {"[", "{"} else value
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none is a ValueError
        raise InputError(Reason.CONFIG_INVALID, f"{variable}: not YAML: {error}") from None


def _explain(error: ValidationError) -> str:
    problems = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(item["loc"][-1]), _keys_at(item["loc"][:-1]), n=1)
            problems.append(f"{where}: unknown key" + (f"; did you mean {near[0]!r}?" if near else ""))
        elif item["type"] == "missing":
            problems.append(f"{where}: is required")
        else:
            message = item["msg"].removeprefix("Value error, ")
            problems.append(f"{where}: {message}" if where else message)
    return "; ".join(problems)


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys that the model at `location` knows, for a suggestion."""
    model: type[BaseModel] = SidecarConfig
    for part in location:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        inner = _model_of(field.annotation) if field is not None else None
        if inner is not None:
            model = inner
    return list(model.model_fields)


def _model_of(annotation: object) -> type[BaseModel] | None:
    """Return the model inside `Model`, `Model | None`, `tuple[Model, ...]` or `dict[str, Model]`."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in typing.get_args(annotation) if (found := _model_of(arg))), None)


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
