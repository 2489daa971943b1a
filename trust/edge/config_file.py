"""Reads a configuration: a YAML file, overridden by environment variables; anything unknown is an error.

A mistyped key that were ignored could leave a default in force that somebody believes to have changed.
"""

import difflib
import inspect
import os
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from trust.edge.files import read_at_most
from trust.errors import InputError, MeshError, Reason

MAX_CONFIG_BYTES: Final = 1024 * 1024
Model = TypeVar("Model", bound=BaseModel)


def read_config(path: Path, parse: Callable[..., Model]) -> Model:
    """Return `parse(text, base=…, env=…, where=…)` of the file at `path` and the process's environment.

    Raises:
        InputError: CONFIG_INVALID, also when the file cannot be read.
    """
    try:
        text = read_at_most(path, MAX_CONFIG_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Reason.CONFIG_INVALID, f"{path}: cannot be read: {error}") from None
    return parse(text, base=path.resolve().parent, env=os.environ, where=str(path))


def parse_model(model: type[Model], text: str, *, env: Mapping[str, str], prefix: str, where: str) -> Model:
    """Build `model` from YAML `text` and the variables that begin with `prefix` (`__` goes one level down).

    Args:
        model: forbids extra keys.
        text: a YAML mapping, or nothing.
        env: a value that begins with "[" or "{" is YAML, any other is text.
        prefix: of the variables, for example "EGM_CP_".
        where: names the file in errors.

    Raises:
        InputError: CONFIG_INVALID, naming every key that is wrong and what to write instead.
    """
    data = _yaml(text, where)
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise InputError(Reason.CONFIG_INVALID, f"{where}: must be a mapping of keys to values")
    for variable, value in sorted(env.items()):
        if variable.startswith(prefix):
            _overlay(data, variable.removeprefix(prefix).lower().split("__"), value, variable)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise InputError(Reason.CONFIG_INVALID, f"{where}: {_explain(error, model)}") from None
    except MeshError as error:  # a name that is not one
        raise InputError(Reason.CONFIG_INVALID, f"{where}: {error.detail}") from None


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none is a ValueError
        raise InputError(Reason.CONFIG_INVALID, f"{where}: not YAML: {error}") from None


def _overlay(data: dict[str, Any], keys: list[str], value: str, variable: str) -> None:
    for key in keys[:-1]:
        inner = data.setdefault(key, {})
        if not isinstance(inner, dict):
            raise InputError(Reason.CONFIG_INVALID, f"{variable}: {key!r} has no keys below it")
        data = inner
    data[keys[-1]] = _yaml(value, variable) if value[:1] in {"[", "{"} else value


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    problems = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(item["loc"][-1]), _keys_at(model, item["loc"][:-1]), n=1)
            problems.append(f"{where}: unknown key" + (f"; did you mean {near[0]!r}?" if near else ""))
        elif item["type"] == "missing":
            problems.append(f"{where}: is required")
        else:
            message = item["msg"].removeprefix("Value error, ")
            problems.append(f"{where}: {message}" if where else message)
    return "; ".join(problems)


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Return the keys that the model at `location` knows, for a suggestion."""
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
