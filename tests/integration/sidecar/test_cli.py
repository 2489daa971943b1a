"""`egm sidecar check` and `schema`, as a person types them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import sidecars
from tests.support.cli import egm
from tests.support.control_plane import Domain


def write(home: Path, domain: Domain, **changes: Any) -> Path:
    """Write a configuration that can work, with changes."""
    config = sidecars.settings(None, home, domain)
    config["inbound"] = [
        {"service": "payments", "listen": "127.0.0.1:0", "upstream": {"address": "127.0.0.1:9"}}
    ]
    path = home / "sidecar.yaml"
    path.write_text(yaml.safe_dump(config | changes))
    return path


def test_good_configuration_is_ok(domain: Domain, tmp_path: Path) -> None:
    """Nothing is started, nothing is written."""
    done = egm("sidecar", "check", "-c", write(tmp_path, domain), "--json")
    assert (done.code, done.data["ok"], done.data["node"]) == (0, True, "n1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sidecar.yaml"]


def test_development_listener_is_pointed_out(domain: Domain, tmp_path: Path) -> None:
    """Any local process can speak through a loopback listener."""
    outbound = [{"workload": "alice", "service": "q", "listen": "127.0.0.1:0", "identify": "loopback"}]
    services = {"q": {"addresses": ["127.0.0.1:1"]}}
    done = egm("sidecar", "check", "-c", write(tmp_path, domain, outbound=outbound, services=services))
    assert done.code == 0
    assert "identify: unix-socket is safer" in done.stdout


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"root": "/nowhere/root.json"}, "/nowhere/root.json"),
        ({"broker": "mqtt://"}, "broker"),
        ({"nod": "x"}, "did you mean 'node'"),
        ({"level": 6}, "level 6 does not exist"),
    ],
)
def test_mistake_exits_2_and_says_where(
    domain: Domain, tmp_path: Path, changes: dict[str, Any], word: str
) -> None:
    """The same words as at start."""
    done = egm("sidecar", "check", "-c", write(tmp_path, domain, **changes), "--json")
    assert (done.code, done.data["error"]) == (2, "CONFIG_INVALID")
    assert word in done.data["detail"]


def test_root_that_is_no_root_metadata_is_refused(domain: Domain, tmp_path: Path) -> None:
    """The trust anchor is checked before anything trusts it."""
    (tmp_path / "root.json").write_text("{}")
    done = egm("sidecar", "check", "-c", write(tmp_path, domain, root=str(tmp_path / "root.json")), "--json")
    assert (done.code, done.data["error"]) == (2, "METADATA_INVALID")


def test_schema_is_json_schema() -> None:
    """For editors."""
    done = egm("sidecar", "schema")
    assert done.code == 0
    assert json.loads(done.stdout)["title"] == "SidecarConfig"
