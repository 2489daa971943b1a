"""The reference pages say what the code does: reasons, their statuses, and limits."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from control_plane.config import ControlPlaneConfig
from sidecar.config import SidecarConfig
from trust import limits
from trust.edge.grpc_errors import STATUS_OF
from trust.errors import Reason

DOCS = Path(__file__).parents[3] / "docs"


def test_every_reason_is_explained_with_the_status_it_is_sent_with() -> None:
    """docs/reasons.md is total, and has nothing that does not exist."""
    rows = re.findall(r"^\| `([A-Z_]+)` \| (\S+) \|", (DOCS / "reasons.md").read_text(), re.MULTILINE)
    documented = dict(rows)
    assert len(documented) == len(rows)
    assert documented.keys() == {reason.value for reason in Reason}
    sent = {reason.value: STATUS_OF[reason].name for reason in Reason if documented[reason.value] != "(OK)"}
    assert {name: status for name, status in documented.items() if status != "(OK)"} == sent


def test_every_limit_is_listed_with_its_value() -> None:
    """docs/limits.md is total and current."""
    text = (DOCS / "limits.md").read_text()
    rows = dict(re.findall(r"^\| `([A-Z_0-9]+)` \| ([0-9.]+) \|", text, re.MULTILINE))
    actual = {name: value for name, value in vars(limits).items() if name.isupper()}
    assert rows == {
        name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in actual.items()
    }


def keys_of(schema: dict[str, Any], node: dict[str, Any]) -> Iterator[str]:
    """Every key of a configuration, by its own name."""
    for key, prop in node["properties"].items():
        yield key
        text = json.dumps(prop)
        for name, definition in schema.get("$defs", {}).items():
            if f'"#/$defs/{name}"' in text:
                yield from keys_of(schema, definition)


@pytest.mark.parametrize(
    ("title", "model"), [("Control plane", ControlPlaneConfig), ("Sidecar", SidecarConfig)]
)
def test_every_configuration_key_is_documented(title: str, model: type[BaseModel]) -> None:
    """docs/configuration.md lists every key, and none that does not exist."""
    section = (DOCS / "configuration.md").read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]
    documented = re.findall(r"^\| `([a-zA-Z_.\[\]]+)`", section, re.MULTILINE)
    names = [name.removesuffix("[]").removesuffix(".NAME").rpartition(".")[2] for name in documented]
    schema = model.model_json_schema()
    assert sorted(names) == sorted(keys_of(schema, schema))
