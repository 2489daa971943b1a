"""A configuration that cannot mean what its author thinks is refused, naming the key."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.config import Admin, SidecarConfig
from sidecar.config_file import json_schema, load_config, parse_config
from trust.errors import InputError, Reason

GOOD: dict[str, Any] = {
    "node": "a",
    "trust_domain": "mesh.local",
    "data_dir": "data",
    "root": "root.json",
    "control_plane": {"addresses": ["127.0.0.1:7400"], "join_addresses": ["127.0.0.1:7401"]},
    "identity": {"source": "embedded", "ca": "ca.pem", "join_token_file": "token"},
    "broker": "mqtt://127.0.0.1:1883",
    "inbound": [
        {
            "service": "payments",
            "listen": "0.0.0.0:9443",
            "upstream": {"address": "127.0.0.1:50051", "tls": {"ca": "up.pem", "server_name": "x"}},
        }
    ],
    "outbound": [
        {"workload": "alice", "listen": "127.0.0.1:9000", "service": "quotes", "identify": "loopback"},
        {
            "workload": "bob",
            "listen": "unix:///run/egm/bob.sock",
            "service": "quotes",
            "identify": "unix-socket",
        },
    ],
    "services": {"quotes": {"addresses": ["quotes-1:9443", "[::1]:9443"], "workload": "quoter"}},
    "admin": {"listen": "127.0.0.1:0"},
    "health": {"listen": "127.0.0.1:8086"},
}


def parse(changes: dict[str, Any] | None = None, env: dict[str, str] | None = None) -> SidecarConfig:
    """Parse GOOD with `changes` laid over its top level."""
    text = yaml.safe_dump(GOOD | (changes or {}))
    return parse_config(text, base=Path("/etc/egm"), env=env or {}, where="sidecar.yaml")


def refusal(changes: dict[str, Any] | None = None, env: dict[str, str] | None = None) -> str:
    """Return what a person is told."""
    with pytest.raises(InputError) as caught:
        parse(changes, env)
    assert caught.value.reason is Reason.CONFIG_INVALID
    return caught.value.detail


def inbound(**changes: Any) -> dict[str, Any]:
    """Return GOOD's inbound section with changes."""
    return {"inbound": [GOOD["inbound"][0] | changes]}


def outbound(**changes: Any) -> dict[str, Any]:
    """Return GOOD's first outbound listener with changes."""
    return {"outbound": [GOOD["outbound"][0] | changes]}


def test_good_configuration_has_absolute_paths_and_derived_workloads() -> None:
    """Relative paths belong to the file, not to whoever starts the process."""
    config = parse()
    assert config.root == Path("/etc/egm/root.json")
    assert config.data_dir == Path("/etc/egm/data")
    assert config.identity.ca == Path("/etc/egm/ca.pem")
    tls = config.inbound[0].upstream.tls
    assert tls is not None
    assert tls.ca == Path("/etc/egm/up.pem")
    assert config.workloads() == ("payments", "alice", "bob")
    assert config.workload_of("quotes") == "quoter"
    assert str(config.spiffe_id("node", config.node)) == "spiffe://mesh.local/node/a"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"leve": 4}, ("leve: unknown key", "did you mean 'level'")),
        ({"identity": GOOD["identity"] | {"tokenfile": "x"}}, ("identity.tokenfile", "join_token_file")),
        (inbound(upstreem={}), ("inbound.0.upstreem", "did you mean 'upstream'")),
        (
            {"services": {"quotes": {"adresses": []}}},
            ("services.quotes.adresses", "did you mean 'addresses'"),
        ),
        (inbound(upstream={"adress": "x"}), ("inbound.0.upstream.adress", "did you mean 'address'")),
        ({"level": 6}, ("level 6",)),
        ({"level": 7}, ("level 7 does not exist", "0, 1, 2, 3, 4, 5")),
        ({"node": "No Name"}, ("is not a name",)),
        ({"trust_domain": "UPPER"}, ("trust domain",)),
        ({"broker": "amqp://x"}, ("broker", "mqtt://")),
        ({"control_plane": {"addresses": []}}, ("control_plane.addresses",)),
        ({"control_plane": {"addresses": ["nohost"]}}, ("HOST:PORT",)),
        (inbound(listen="unix:///x"), ("a Unix socket is not possible here",)),
        (inbound(listen="1.2.3.4:99999"), ("HOST:PORT",)),
        (outbound(listen="0.0.0.0:9000"), ("reachable from other machines",)),
        (outbound(listen="unix:///x"), ("loopback needs", "unix-socket")),
        (outbound(identify="unix-socket"), ("unix-socket needs listen: unix",)),
        (outbound(identify="jwt-svid", listen="10.0.0.1:1"), ("reachable from other machines",)),
        (outbound(identify="jwt-svid"), ("needs a jwt section",)),
        (outbound(identify="mtls"), ("outbound.0.identify",)),
        (outbound(service="quote"), ("not under services", "did you mean 'quotes'")),
        ({"inbound": [], "outbound": []}, ("nothing to govern",)),
        ({"identity": {"source": "embedded"}}, ("needs `ca`",)),
        ({"identity": {"source": "workload-api"}}, ("needs `workload_api`",)),
        ({"identity": GOOD["identity"] | {"workloads": ["alice", "bob"]}}, ("lacks 'payments'",)),
        ({"jwt": {"audience": "x"}}, ("jwt.jwks is required",)),
        ({"admin": {"listen": "127.0.0.1:9000"}}, ("is used by", "give each its own")),
        ({"inbound": GOOD["inbound"] * 2}, ("listed twice",)),
        ({"limits": {"max_message_bytes": 10**12}}, ("limits.max_message_bytes",)),
        ({"inbound": [], "outbound": GOOD["outbound"], "services": {}}, ("add it under services",)),
    ],
)
def test_mistake_is_named_with_what_to_write_instead(changes: dict[str, Any], words: tuple[str, ...]) -> None:
    """Each line is one mistake a person makes."""
    detail = refusal(changes)
    assert detail.startswith("sidecar.yaml: ")
    for word in words:
        assert word in detail


def test_environment_overrides_the_file() -> None:
    """Containers set variables; `__` goes one level down."""
    env = {
        "EGM_SIDECAR_NODE": "b",
        "EGM_SIDECAR_IDENTITY__CA": "/x/ca.pem",
        "EGM_SIDECAR_CONTROL_PLANE__ADDRESSES": "[cp-1:7400, cp-2:7400]",
        "EGM_SIDECAR_LEVEL": "4",
        "OTHER": "x",
    }
    config = parse(env=env)
    assert (config.node, config.identity.ca, config.level) == ("b", Path("/x/ca.pem"), 4)
    assert config.control_plane.addresses == ("cp-1:7400", "cp-2:7400")


@pytest.mark.parametrize(
    ("env", "word"),
    [
        ({"EGM_SIDECAR_NODE__X": "1"}, "no keys below"),
        ({"EGM_SIDECAR_NOD": "b"}, "unknown key"),
        ({"EGM_SIDECAR_SERVICES": "{a: ["}, "not YAML"),
    ],
)
def test_wrong_variable_is_an_error_too(env: dict[str, str], word: str) -> None:
    """A misspelt variable must not be ignored."""
    assert word in refusal(env=env)


@pytest.mark.parametrize(
    "text", ["", "[]", "2020-99-99", "[" * 5000, "a: [", "just words", "node: a\nnode: [", "\t"]
)
def test_anything_but_a_mapping_is_refused(text: str) -> None:
    """Parsing is total."""
    with pytest.raises(InputError):
        parse_config(text, base=Path("/"), env={})


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Missing, binary or a directory."""
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    for path in (tmp_path / "none.yaml", tmp_path, binary):
        with pytest.raises(InputError, match=str(path)):
            load_config(path)


def test_schema_describes_every_key() -> None:
    """Editors complete from it."""
    schema = json_schema()
    assert set(schema["properties"]) == set(SidecarConfig.model_fields)
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize(
    ("admin", "bound", "told"),
    [
        (Admin(listen="127.0.0.1:0"), "127.0.0.1:7444", "127.0.0.1:7444"),
        (Admin(listen="0.0.0.0:7444"), "0.0.0.0:7444", ""),
        (Admin(listen="[::]:7444"), "[::]:7444", ""),
        (Admin(listen="0.0.0.0:7444", advertise="b:7444"), "0.0.0.0:7444", "b:7444"),
        (Admin(listen="node-1.example:7444"), "node-1.example:7444", "node-1.example:7444"),
    ],
)
def test_other_nodes_are_told_an_address_that_is_not_their_own(admin: Admin, bound: str, told: str) -> None:
    """Who dials 0.0.0.0 reaches itself."""
    assert admin.told(bound) == told
