"""Which control plane a node's certificates come from, when some of those that it knows are of no use."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from egm.v1 import join_pb2, join_pb2_grpc
from trust.edge.clock import SystemClock
from trust.edge.identity_embedded import EmbeddedIdentity
from trust.errors import Reason, StateError
from trust.spiffe import SpiffeId

ISSUED = join_pb2.IssuedCertificates(ca_bundle_pem=b"a CA")


def identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: list[Any]) -> Any:
    """Return an identity of whose control planes the first gives the first answer, and so on."""

    async def renew(_request: object, *, timeout: float) -> Any:
        assert timeout > 0
        return answers.pop(0)

    monkeypatch.setattr(join_pb2_grpc, "JoinStub", lambda _channel: SimpleNamespace(Renew=renew))
    return EmbeddedIdentity(
        tmp_path,
        [SpiffeId.of("mesh.test", "node", "a")],
        control_plane=["127.0.0.1:1", "127.0.0.1:2"],
        trust_domain="mesh.test",
        ca_pem=b"",
        token=None,
        clock=SystemClock(),
    )


async def test_a_control_plane_that_answers_what_nobody_can_read_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no refusal: the next one is asked, as if the first had not answered."""
    source = identity(tmp_path, monkeypatch, [None, ISSUED])
    request, credentials = join_pb2.RenewRequest(), grpc.ssl_channel_credentials()
    assert await source._call(["127.0.0.1:1", "127.0.0.1:2"], credentials, "Renew", request) == ISSUED


async def test_no_control_plane_that_can_be_read_says_which_was_asked_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person must know where to look."""
    source = identity(tmp_path, monkeypatch, [None, None])
    with pytest.raises(StateError, match=r"Renew at 127.0.0.1:2: .*nobody can read") as caught:
        await source._call(
            ["127.0.0.1:1", "127.0.0.1:2"], grpc.ssl_channel_credentials(), "Renew", join_pb2.RenewRequest()
        )
    assert caught.value.reason is Reason.SOURCE_UNAVAILABLE
