"""Short texts of people, peers and files: a value or a reasoned error, never anything else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given, settings
from hypothesis import strategies as st

from control_plane.cli.when import parse_when, seconds
from control_plane.config import ControlPlaneConfig, parse_config
from control_plane.core.executions import Cursor
from tests.support.attestation import AttestedNode, credential_of, holders
from tests.support.damage import JUNK, damaged
from tests.support.tuf_world import signer
from trust.address import split_address
from trust.alerting import sign, verify
from trust.approval_rule import check_groups, parse_duration
from trust.attestation.cosignature import signature_lines
from trust.edge.broker_url import BrokerUrl
from trust.errors import MeshError, Reason
from trust.evidence_links import witnessed_head
from trust.mesh import parse_mesh
from trust.shadow import Order, read_order, sign_order

NOW_S = 1_700_000_000
ORDER = sign_order(
    Order("mesh.local", "targets", "a" * 64, "b" * 64, 1000, NOW_S, NOW_S + 60), signer("approver-1")
)
WITNESSES = holders("a", "b", "c")
CREDENTIAL = credential_of(AttestedNode("n").evidence(), WITNESSES)
KEY, OTHER_KEY = (
    Ed25519PrivateKey.from_private_bytes(bytes([one]) * 32).public_key().public_bytes_raw().hex()
    for one in (1, 2)
)
MESH = {
    "trust_domain": "mesh.local",
    "level": 4,
    "lease": {"ttl_s": 10, "grace_s": 10},
    "services": {"s": {"grpc_services": ["p.S"], "level": 5, "namespace": "n"}},
    "attestation": {
        "witnesses": {one.name: {"key": one.key.encode()} for one in WITNESSES},
        "quorum": 2,
        "ttl_s": 30,
    },
    "metadata_keys": ["x-tenant"],
    "detection": {
        "respond": True,
        "responses": [{"on": "EGM-T003", "do": ["throttle"], "rate": "60/m", "ttl_s": 600}],
    },
    "alerts": {"slow": {"when": "p95_ms", "above": 100.0, "to": ["webhook:ops"]}},
    "emergency_keys": {"e": KEY},
    "approver_groups": {"ops": {"ann": OTHER_KEY}},
    "revocations": [{"kind": "workload", "value": "w", "reason": "stolen"}],
}
CONFIG = {
    "name": "cp-1",
    "trust_domain": "mesh.local",
    "data_dir": "data",
    "root": "root.json",
    "online_keys": {"snapshot": "a.pem", "timestamp": ["b.pem"]},
    "ca": "ca",
    "identity": "identity",
    "webhooks": {"ops": {"url": "https://example.test/x", "secret_file": "s"}},
}
NAMES = st.text("abcé-", max_size=4)
PLACES = st.text("0123456789abc:./[]@%?=&# -", max_size=40)


def total(
    read: Callable[[Any], object], value: object, *reasons: Reason, also: type[Exception] = MeshError
) -> object:
    """Read; only a reasoned error with one of `reasons`, or `also`, is acceptable. Returns None when refused."""
    try:
        return read(value)
    except MeshError as error:
        assert error.reason in reasons, error
        assert error.detail
    except also:
        pass
    return None


def test_what_is_damaged_here_is_right_before() -> None:
    """Otherwise nothing would be tried below."""
    assert parse_mesh(json.dumps(MESH).encode()).trust_domain == "mesh.local"
    assert parse_config(json.dumps(CONFIG), base=Path("/x"), env={}).name == "cp-1"
    assert witnessed_head(CREDENTIAL) is not None
    assert read_order(ORDER)[0].role == "targets"


@given(st.binary(max_size=200) | (damaged(MESH) | JUNK).map(lambda value: json.dumps(value).encode()))
@settings(max_examples=400, deadline=None)
def test_signed_settings_are_read_or_refused(data: bytes) -> None:
    """Signed by a quorum, but a namespace's approvers are not the base's, and a person wrote them."""
    total(parse_mesh, data, Reason.BUNDLE_MALFORMED)


@given(damaged(CONFIG) | JUNK)
@settings(max_examples=200, deadline=None)
def test_a_control_planes_configuration_is_read_or_refused(value: Any) -> None:
    """Every mistake has an answer that names it."""
    found = total(
        lambda text: parse_config(text, base=Path("/x"), env={}), json.dumps(value), Reason.CONFIG_INVALID
    )
    assert found is None or isinstance(found, ControlPlaneConfig)


@given(st.binary(max_size=200) | damaged(json.loads(ORDER)).map(lambda value: json.dumps(value).encode()))
@example(json.dumps({**json.loads(ORDER), "order": "\ud800"}).encode())
@settings(max_examples=150, deadline=None)
def test_an_order_to_try_a_bundle_is_read_or_refused(data: bytes) -> None:
    """Nodes get it from a control plane that they do not believe."""
    total(read_order, data, Reason.SHADOW_ORDER_INVALID)


@given(
    st.binary(max_size=200) | damaged(json.loads(CREDENTIAL)).map(lambda value: json.dumps(value).encode())
)
@settings(max_examples=150, deadline=None)
def test_a_credential_has_a_tree_head_or_none(data: bytes) -> None:
    """Evidence files carry what anybody put there."""
    witnessed_head(data)


@given(st.binary(max_size=80) | st.text("\u2014 abAB=+/\n", max_size=80).map(str.encode))
@settings(max_examples=150, deadline=None)
def test_signature_lines_are_read_or_refused(lines: bytes) -> None:
    """Cosignatures come from other nodes."""
    total(lambda data: signature_lines(b"text\n", data), lines, Reason.ATTESTATION_INVALID)


@given(
    st.dictionaries(
        NAMES, st.dictionaries(NAMES, st.just(KEY) | st.text(max_size=64), max_size=3), max_size=3
    )
)
@settings(max_examples=100, deadline=None)
def test_approver_groups_are_taken_or_refused(groups: dict[str, dict[str, str]]) -> None:
    """Names twice, keys twice, keys that are none."""
    total(check_groups, groups, Reason.KEY_UNSAFE, Reason.IDENTITY_INVALID, Reason.LIMIT_EXCEEDED)


@given(st.text(max_size=20) | st.from_regex(r"[0-9]{1,12}[smhdw]"))
@settings(max_examples=100, deadline=None)
def test_durations_and_times_are_read_or_refused(text: str) -> None:
    """As people write them."""
    total(lambda value: parse_duration(value, 3600), text, Reason.APPROVAL_INVALID)
    total(lambda value: seconds(value, "--ttl"), text, Reason.INPUT_INVALID)
    total(lambda value: parse_when(value, now_ms=NOW_S * 1000), text, Reason.INPUT_INVALID)


@given(st.datetimes().map(str) | st.text("0123456789-:TZ+. ", max_size=32))
@example("0001-01-01T00:00:00+23:59")
@example("9999-12-31T23:59:59-23:59")
@settings(max_examples=100, deadline=None)
def test_dates_are_read_or_refused(text: str) -> None:
    """Before and after all time, too."""
    found = total(lambda value: parse_when(value, now_ms=NOW_S * 1000), text, Reason.INPUT_INVALID)
    assert found is None or isinstance(found, int)


@given(st.text(max_size=40) | st.text("0123456789-MTcwMDAw=_", max_size=60))
@settings(max_examples=100, deadline=None)
def test_a_cursor_has_one_spelling(text: str) -> None:
    """It names a row of a database."""
    found = total(Cursor.parse, text, Reason.INPUT_INVALID)
    assert found is None or str(found) == text


@given(PLACES | st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_addresses_and_broker_urls_are_read_or_refused(text: str) -> None:
    """Of configurations, and of what nodes say of themselves."""
    total(split_address, text, also=ValueError)
    for scheme in ("", "mqtt://", "mqtts://"):
        total(BrokerUrl.parse, scheme + text, Reason.CONFIG_INVALID, Reason.KEY_UNREADABLE, Reason.KEY_UNSAFE)


@given(st.text(max_size=90) | st.from_regex(r"t=[0-9]{0,14},v1=[0-9a-f]{60,66}"), st.binary(max_size=20))
@settings(max_examples=100, deadline=None)
def test_a_signature_of_an_alert_verifies_only_if_it_was_made_so(header: str, body: bytes) -> None:
    """Receivers read what anybody sends them."""
    assert not verify(b"secret", body, header, now_s=NOW_S)
    assert verify(b"secret", body, sign(b"secret", body, now_s=NOW_S), now_s=NOW_S)
