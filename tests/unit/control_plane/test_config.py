"""The configuration of a control plane: what is accepted, and how mistakes are told."""

import json
from pathlib import Path

import pytest

from control_plane.config import json_schema, load_config, parse_config
from trust.errors import InputError, Reason

GOOD = """
name: cp-1
trust_domain: mesh.local
data_dir: data
root: root.json
online_keys: {snapshot: keys/snapshot.pem, timestamp: "hsm:2?label=timestamp#timestamp.pub.json"}
ca: /etc/egm/ca
identity: identity
"""
BASE = Path("/srv/egm")


def refused(text: str, env: dict[str, str] | None = None) -> str:
    """Return why a configuration is refused."""
    with pytest.raises(InputError) as caught:
        parse_config(text, base=BASE, env=env or {}, where="cp.yaml")
    assert caught.value.reason is Reason.CONFIG_INVALID
    assert caught.value.detail.startswith("cp.yaml: ")
    return caught.value.detail


def test_defaults_are_embedded_and_paths_are_relative_to_the_file() -> None:
    """A short file is enough, wherever the process is started."""
    config = parse_config(GOOD, base=BASE, env={})
    assert config.broker == "embedded"
    assert config.data_dir == BASE / "data"
    assert config.ca == Path("/etc/egm/ca")
    assert config.online_keys.snapshot == (str(BASE / "keys/snapshot.pem"),)
    assert config.online_keys.timestamp == ("hsm:2?label=timestamp#timestamp.pub.json",)
    assert config.store_url() == f"sqlite+aiosqlite:///{BASE / 'data' / 'control-plane.db'}"
    assert config.listen == "127.0.0.1:7400"


@pytest.mark.parametrize(
    ("store", "url", "kind"),
    [
        ("postgresql://u:p@db/egm", "postgresql+asyncpg://u:p@db/egm", "postgresql"),
        ("postgres://db/egm", "postgresql+asyncpg://db/egm", "postgresql"),
        ("sqlite:////var/egm.db", "sqlite+aiosqlite:////var/egm.db", "sqlite"),
        ("sqlite:///egm.db", "sqlite+aiosqlite:////srv/egm/egm.db", "sqlite"),
    ],
)
def test_a_store_url_names_the_database_and_we_the_driver(store: str, url: str, kind: str) -> None:
    """The URL that a person knows is enough."""
    config = parse_config(GOOD + f"store: {store}\n", base=BASE, env={})
    assert (config.store_url(), config.store_kind()) == (url, kind)


def test_variables_override_the_file_one_level_down_too() -> None:
    """Secrets and per-host values stay out of the file."""
    env = {
        "EGM_CP_STORE": "postgresql://db/x",
        "EGM_CP_ONLINE_KEYS__PASSPHRASE_FILE": "/run/secrets/pass",
        "EGM_CP_ONLINE_KEYS__SNAPSHOT": '["a.pem", "b.pem"]',
        "OTHER": "x",
    }
    config = parse_config(GOOD, base=BASE, env=env)
    assert config.store == "postgresql://db/x"
    assert config.online_keys.passphrase_file == Path("/run/secrets/pass")
    assert config.online_keys.snapshot == (str(BASE / "a.pem"), str(BASE / "b.pem"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("brokr: none", "brokr: unknown key; did you mean 'broker'?"),
        ("listen: localhost", "'localhost' is not HOST:PORT"),
        ("listen: 'a:99999'", "is not HOST:PORT"),
        ("store: mysql://x", "store scheme 'mysql' is not supported"),
        ("broker: amqp://x", "broker: use embedded"),
        ("broker: 'mqtt://'", "broker: use embedded"),
        ("name: Not A Name", "is not a name"),
        ("trust_domain: Mesh", "trust domain must be"),
        ("renew_fraction: 1.5", "renew_fraction:"),
        ("online_keys: {snapshot: [], timestamp: t.pem}", "online_keys.snapshot: name at least one"),
        ("online_keys: {snapshot: s.pem, timstamp: t.pem}", "did you mean 'timestamp'?"),
    ],
)
def test_a_mistake_is_named_with_its_key_and_what_to_write(line: str, expected: str) -> None:
    """Nobody should have to guess which line is wrong."""
    key = line.partition(":")[0]
    kept = "\n".join(text for text in GOOD.splitlines() if not text.startswith(f"{key}:"))
    assert expected in refused(f"{kept}\n{line}\n")


def test_every_missing_key_is_reported_at_once() -> None:
    """One run tells all, not one key per run."""
    detail = refused("name: cp-1")
    for key in ("trust_domain", "data_dir", "root", "online_keys", "ca", "identity"):
        assert f"{key}: is required" in detail


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", "{", "a: b: c"])
def test_what_is_not_a_mapping_is_refused(text: str) -> None:
    """A file of another kind is an error, not an empty configuration."""
    refused(text)


def test_a_variable_below_a_plain_value_is_refused() -> None:
    """A misspelt variable must not be ignored."""
    with pytest.raises(InputError) as caught:
        parse_config(GOOD, base=BASE, env={"EGM_CP_NAME__X": "1"})
    assert "EGM_CP_NAME__X" in caught.value.detail


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """The most common mistake of all."""
    with pytest.raises(InputError) as caught:
        load_config(tmp_path / "none.yaml")
    assert "none.yaml" in caught.value.detail


def test_the_schema_is_json_and_closed() -> None:
    """Editors can check the file."""
    schema = json.loads(json.dumps(json_schema()))
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {
        "name",
        "trust_domain",
        "data_dir",
        "root",
        "online_keys",
        "ca",
        "identity",
    }
