"""Which characteristics the maturity model has, and by which checks each is measured: parsed strictly from one file."""

import enum
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Annotated, Final, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trust.errors import InputError, Reason

LEVELS: Final = range(6)
FILE: Final = "catalogue.yaml"
_ID: Final = re.compile(r"EGMM-L([0-5])-(0[1-9])\Z")
_FRAMEWORKS: Final[Mapping[str, re.Pattern[str]]] = {
    "owasp_agentic": re.compile(r"ASI(0[1-9]|10)\Z"),
    "owasp_aisvs": re.compile(r"(5|9|12)\.[1-9]\.[1-9]\Z"),
    "nist_ai_rmf": re.compile(r"(GOVERN|MAP|MEASURE|MANAGE) [1-6]\.[1-9][0-3]?\Z"),
    "iso_42001": re.compile(r"A\.([2-9]|10)\.[2-6](\.[2-8])?\Z"),
    "eu_ai_act": re.compile(r"Article [1-9][0-9]{0,2}\Z"),
}

Text = Annotated[str, Field(min_length=3, max_length=300)]


@enum.unique
class Scope(enum.StrEnum):
    """Whether a check is made for each service, or once."""

    SERVICE = "service"
    MESH = "mesh"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Strict):
    """Where the ids of a framework come from."""

    title: Text
    url: Annotated[str, Field(pattern=r"^https://\S+$")]


class Level(_Strict):
    """One level of the model."""

    level: Annotated[int, Field(ge=0, le=5)]
    name: Text
    meaning: Text


class Test(_Strict):
    """What one check does. It can never be stronger than `basis`."""

    __test__ = False  # pytest: this is no test

    scope: Scope
    basis: Literal["PROBED", "OBSERVED"]
    does: Text


class Remedy(_Strict):
    """How a characteristic is reached. `effort`: 1 a look, 2 a change of configuration, 3 a change of signed policy."""

    effort: Annotated[int, Field(ge=1, le=5)]
    does: Text
    commands: Annotated[tuple[Text, ...], Field(min_length=1)]


class Characteristic(_Strict):
    """One characteristic of one level."""

    id: str
    level: Annotated[int, Field(ge=0, le=5)]
    name: Text
    provides: Text
    tests: Annotated[tuple[str, ...], Field(min_length=1)]
    evidence: Text
    remedy: Remedy | None = None  # level 0 has none: what is wanting there is what the levels above bring
    maps: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        found = _ID.match(self.id)
        if found is None or int(found[1]) != self.level:
            raise ValueError(f"{self.id} is not an id of level {self.level}")
        if (self.remedy is None) != (self.level == 0):
            raise ValueError(f"{self.id}: a remedy belongs to levels 1 to 5")
        for framework, ids in self.maps.items():
            pattern = _FRAMEWORKS.get(framework)
            if pattern is None:
                raise ValueError(f"{self.id}: unknown framework {framework!r}")
            for one in ids:
                if not pattern.match(one):
                    raise ValueError(f"{self.id}: {one!r} is no id of {framework}")
        return self


class Catalogue(_Strict):
    """The whole model."""

    format: Literal[1]
    sources: dict[str, Source]
    levels: tuple[Level, ...]
    checks: dict[str, Test]
    characteristics: tuple[Characteristic, ...]

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if [one.level for one in self.levels] != list(LEVELS):
            raise ValueError("levels 0 to 5 belong in the catalogue, in order")
        ids = [one.id for one in self.characteristics]
        if len(set(ids)) != len(ids) or ids != sorted(ids):
            raise ValueError("ids of characteristics must be ascending and distinct")
        used = {test for one in self.characteristics for test in one.tests}
        if missing := used - self.checks.keys():
            raise ValueError(f"no such check: {', '.join(sorted(missing))}")
        if unused := self.checks.keys() - used:
            raise ValueError(f"checks that no characteristic uses: {', '.join(sorted(unused))}")
        if unsourced := {name for one in self.characteristics for name in one.maps} - self.sources.keys():
            raise ValueError(f"frameworks without a source: {', '.join(sorted(unsourced))}")
        return self

    def characteristic(self, identifier: str) -> Characteristic:
        """Return one characteristic. Raises KeyError."""
        for one in self.characteristics:
            if one.id == identifier:
                return one
        raise KeyError(identifier)

    def of_level(self, level: int) -> tuple[Characteristic, ...]:
        """Return the characteristics of a level, by id."""
        return tuple(one for one in self.characteristics if one.level == level)


def parse_catalogue(data: bytes) -> Catalogue:
    """Parse a catalogue (YAML, UTF-8).

    Raises:
        InputError: INPUT_INVALID, naming the first thing that is wrong.
    """
    try:
        return Catalogue.model_validate(yaml.safe_load(data))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or FILE
        raise InputError(Reason.INPUT_INVALID, f"{FILE}: {where}: {first['msg']}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(Reason.INPUT_INVALID, f"{FILE}: {error}") from None


@cache
def load_catalogue() -> Catalogue:
    """Return the catalogue of this version, from the package."""
    return parse_catalogue(resources.files(__package__).joinpath(FILE).read_bytes())
