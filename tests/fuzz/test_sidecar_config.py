"""Any file gives a configuration or one `InputError` that names what is wrong; the lease record likewise."""

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.config import SidecarConfig
from sidecar.config_file import parse_config
from sidecar.core.bundle_state import Record
from sidecar.edge.record_file import load_record, save_record
from trust.errors import InputError, Reason, StateError

GOOD: dict[str, Any] = {
    "node": "a",
    "trust_domain": "mesh.local",
    "data_dir": "data",
    "root": "root.json",
    "control_plane": {"addresses": ["127.0.0.1:7400"]},
    "identity": {"source": "embedded", "ca": "ca.pem"},
    "inbound": [{"service": "p", "listen": "127.0.0.1:1", "upstream": {"address": "127.0.0.1:2"}}],
    "outbound": [{"workload": "w", "listen": "127.0.0.1:3", "service": "q", "identify": "loopback"}],
    "services": {"q": {"addresses": ["h:1"]}},
    "jwt": {"audience": "x", "jwks": "keys.json"},
}
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def parse(text: str, env: dict[str, str] | None = None) -> None:
    """Parse; only the one error is acceptable."""
    try:
        config = parse_config(text, base=Path("/x"), env=env or {})
    except InputError as error:
        assert error.reason is Reason.CONFIG_INVALID
        assert error.detail
    else:
        assert isinstance(config, SidecarConfig)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    """Not YAML, not a mapping, not ours."""
    parse(text)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_value_in_any_place_is_parsed_or_refused(data: st.DataObject) -> None:
    """One value of a good file is replaced by junk."""
    config = copy.deepcopy(GOOD)
    where: Any = config
    while True:
        keys = list(where) if isinstance(where, dict) else list(range(len(where)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(where[key], dict | list) or not where[key] or data.draw(st.booleans()):
            where[key] = data.draw(JUNK)
            break
        where = where[key]
    parse(yaml.safe_dump(config))


@settings(max_examples=100, deadline=None)
@given(st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ_", max_size=30), st.text(max_size=30))
def test_any_variable_is_parsed_or_refused(name: str, value: str) -> None:
    """Variables are input too."""
    parse(yaml.safe_dump(GOOD), {f"EGM_SIDECAR_{name}": value})


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100) | JUNK.map(lambda value: json.dumps(value).encode()))
def test_any_record_file_is_read_or_refused(content: bytes) -> None:
    """A damaged record must not pass for an empty one."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "policy-state.json"
        path.write_bytes(content)
        try:
            load_record(path)
        except StateError as error:
            assert error.reason is Reason.POLICY_ROLLBACK


@settings(max_examples=50, deadline=None)
@given(
    st.builds(
        Record,
        floor_ms=st.integers(0, 2**53),
        lease_expires_ms=st.integers(0, 2**53),
        fresh_until_ms=st.integers(0, 2**53),
        versions=st.dictionaries(st.text(max_size=8), st.integers(1, 2**31)),
    )
)
def test_record_survives_the_disk(record: Record) -> None:
    """What was written is what is read."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "policy-state.json"
        save_record(path, record)
        assert load_record(path) == record
