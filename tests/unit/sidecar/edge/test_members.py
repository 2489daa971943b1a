"""Where certificates come from, and what is worth waiting for."""

from pathlib import Path

import pytest

from sidecar.config import SidecarConfig
from sidecar.edge.members import make_identity, members, start_patiently
from tests.support.pki import Authority
from tests.support.sidecar_core import ManualClock
from trust.errors import InputError, MeshError, Reason, StateError


def config(tmp_path: Path, **identity: object) -> SidecarConfig:
    """Return a configuration whose files are in `tmp_path`."""
    return SidecarConfig.model_validate(
        {
            "node": "a",
            "trust_domain": "mesh.local",
            "data_dir": tmp_path / "data",
            "root": tmp_path / "root.json",
            "control_plane": {"addresses": ["127.0.0.1:1"]},
            "identity": {"source": "embedded", "ca": tmp_path / "ca.pem", **identity},
            "inbound": [
                {"service": "pay", "listen": "127.0.0.1:0", "upstream": {"address": "127.0.0.1:1"}},
            ],
        }
    )


def test_node_comes_first_then_its_workloads(tmp_path: Path) -> None:
    """The first identity enrols the others."""
    assert [one.path for one in members(config(tmp_path))] == ["node/a", "workload/pay"]


def test_missing_ca_and_bad_token_are_named(tmp_path: Path) -> None:
    """The file, and which key of the configuration names it."""
    with pytest.raises(InputError, match=r"ca\.pem"):
        make_identity(config(tmp_path), ManualClock())
    (tmp_path / "ca.pem").write_bytes(Authority().pem)
    for content in (b"", b" \n", b"\xff", b"x" * 5000):
        (tmp_path / "token").write_bytes(content)
        with pytest.raises(InputError, match="join_token_file"):
            make_identity(config(tmp_path, join_token_file=tmp_path / "token"), ManualClock())


def test_token_file_that_is_gone_is_normal_after_enrolment(tmp_path: Path) -> None:
    """Deleting a used secret must not stop the next start."""
    (tmp_path / "ca.pem").write_bytes(Authority().pem)
    identity, jwt = make_identity(config(tmp_path, join_token_file=tmp_path / "gone"), ManualClock())
    assert jwt is None
    with pytest.raises(StateError):
        identity.svid(members(config(tmp_path))[0])


async def test_waits_for_what_time_can_mend_only() -> None:
    """A control plane that starts later is waited for; a refused token is not."""
    failures: list[MeshError] = [
        StateError(Reason.SOURCE_UNAVAILABLE, "away"),
        StateError(Reason.IDENTITY_UNAVAILABLE, "not yet"),
    ]
    told: list[str] = []

    async def start() -> None:
        if failures:
            raise failures.pop(0)

    await start_patiently(start, told.append, min_s=0, max_s=0)
    assert len(told) == 2

    async def refused() -> None:
        raise StateError(Reason.JOIN_TOKEN_INVALID, "used")

    with pytest.raises(StateError, match="JOIN_TOKEN_INVALID"):
        await start_patiently(refused, told.append, min_s=0, max_s=0)
