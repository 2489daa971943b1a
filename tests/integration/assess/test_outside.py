"""Services that are not behind a mesh are graded from outside: they are level 0, and nothing is made up about them."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import grpc.aio
import pytest

from control_plane.assess import bypass
from control_plane.assess.edge.collect import Installation
from control_plane.assess.edge.from_outside import look
from control_plane.assess.edge.past import dialled, machine_addresses, past
from control_plane.assess.model import Outcome, Verdict
from control_plane.edge.mesh_file import NodeEntry
from control_plane.lab import sample
from control_plane.lab.ports import free_port
from egm.v1 import probe_pb2
from tests.support.cli import Outcome as Printed
from tests.support.cli import egm as run_egm
from tests.support.webhook import _self_signed
from trust.edge.grpc_errors import status_of
from trust.errors import MeshError, Reason


class Answering(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # not generic at run time
    """Answers every method in one way."""

    def __init__(self, how: str) -> None:
        self._how = how

    def service(self, handler_call_details: Any) -> Any:
        async def answer(request: bytes, context: Any) -> bytes:
            nonce = probe_pb2.PingRequest.FromString(request).nonce
            if self._how == "refuses":
                code, text, trailing = status_of(Reason.CALLER_UNIDENTIFIED, "who are you", {"level": "4"})
                await context.abort(code, text, trailing)
            if self._how == "answers":
                return probe_pb2.PingReply(node="a", service="shop", nonce=nonce).SerializeToString()
            return probe_pb2.PingReply(node="a", service="shop", nonce=b"another").SerializeToString()

        return grpc.unary_unary_rpc_method_handler(answer)


async def egm(*arguments: object) -> Printed:
    return await asyncio.to_thread(run_egm, *arguments)


async def serving(how: str) -> tuple[Any, str]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Answering(how),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


async def test_a_bare_grpc_service_is_level_zero_and_found_wanting() -> None:
    """Everybody is let in, and no one knows."""
    server, address = await sample.serve("127.0.0.1:0")
    try:
        found = await look(address)
    finally:
        await server.stop(0)
    verdicts = {result.id: result.verdict for result in found.services[0].results}

    assert (found.level, found.probe) == (0, "outside")
    for wanting in ("EGMM-L0-01", "EGMM-L0-02", "EGMM-L0-05"):
        assert verdicts[wanting] is Verdict.FOUND_WANTING
    assert verdicts["EGMM-L4-01"] is Verdict.NOT_MET
    assert Verdict.MET not in verdicts.values()


@pytest.mark.parametrize("how", ["answers", "refuses", "lies"])
async def test_from_outside_nothing_is_granted_whatever_answers(how: str) -> None:
    """A sidecar, or something that pretends to be one: without the mesh there is no grade above 0."""
    server, address = await serving(how)
    try:
        found = await look(address)
    finally:
        await server.stop(0)
    verdicts = {result.id: result.verdict for result in found.services[0].results}

    assert found.level == 0
    wanting = verdicts["EGMM-L0-01"] is Verdict.FOUND_WANTING
    assert wanting is (how != "refuses")
    assert found.notes


@pytest.mark.parametrize("local", [True, False], ids=["loopback", "every-address"])
async def test_a_service_that_other_machines_reach_past_its_sidecar_is_found(
    tmp_path: Path, local: bool
) -> None:
    """Bound to every address the sidecar is a detour; bound to loopback only its own machine gets past it."""
    if not machine_addresses():
        local = True  # a machine without a network: nobody else can reach it
    server, address = await sample.serve("127.0.0.1:0" if local else "0.0.0.0:0")
    port = address.rpartition(":")[2]
    config = tmp_path / "sidecar.yaml"
    upstream = {"service": "shop", "upstream": {"address": f"127.0.0.1:{port}"}}
    config.write_text(json.dumps({"inbound": [upstream]}))
    mesh = SimpleNamespace(
        nodes={"a": NodeEntry(admin="127.0.0.1:1", inbound={"shop": "127.0.0.1:1"}, config=str(config))},
        trust_domain="mesh.local",
    )
    installation = Installation(cast("Any", mesh), cast("Any", None), None, None)
    try:
        check = await past(installation, "shop", "r")
    finally:
        await server.stop(0)

    assert check.outcome is (Outcome.HELD if local else Outcome.FAILED)
    assert f"127.0.0.1:{port}" in check.evidence


@pytest.mark.parametrize("speaks", ["nothing", "tls"])
async def test_a_service_that_does_not_answer_in_plaintext_is_not_taken_for_closed(speaks: str) -> None:
    """It listens, and other machines reach it; a plaintext call fails all the same."""
    if speaks == "nothing":
        server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        stop: Any = server.close
    else:
        chain, key = _self_signed()
        secure = grpc.aio.server()
        secure.add_generic_rpc_handlers((Answering("lies"),))
        port = secure.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, chain)]))
        await secure.start()
        address = f"127.0.0.1:{port}"
        stop = None
    try:
        answer = await dialled(address, "r")
    finally:
        if stop is None:
            await secure.stop(0)
        else:
            stop()
    check = bypass.judge("shop", [bypass.Bypass(address, False, answer)])

    assert check.outcome is (Outcome.UNKNOWN if speaks == "nothing" else Outcome.FAILED)


async def test_an_address_where_nobody_is_gives_no_grade() -> None:
    """A closed port is not a governed service."""
    with pytest.raises(MeshError) as caught:
        await look(f"127.0.0.1:{free_port(set())}")
    assert caught.value.reason is Reason.SOURCE_UNAVAILABLE


async def test_the_command_grades_a_target_writes_reports_and_stops_a_pipeline(tmp_path: Path) -> None:
    """Exit 1 below --require, 2 for wrong input, 3 when nobody answers."""
    server, address = await sample.serve("127.0.0.1:0")
    files = [tmp_path / name for name in ("r.html", "r.json", "r.md", "r.oscal.json")]
    outputs = [word for file in files for word in ("-o", str(file))]
    try:
        done = await egm("assess", "--target", address, *outputs, "--json")
        below = await egm("assess", "--target", address, "--require", "1")
    finally:
        await server.stop(0)

    assert done.code == 0 and done.data["level"] == 0
    assert all(file.stat().st_size > 1000 for file in files)
    assert below.code == 1 and "below the required 1" in below.stderr
    assert (await egm("assess", "--target", "nowhere")).code == 2
    assert (await egm("assess", "--target", f"127.0.0.1:{free_port(set())}")).code == 3
    assert (await egm("assess", "--target", address, "-o", str(tmp_path / "r.pdf"))).code == 2
    assert (await egm("assess", "compare", str(files[1]), str(files[1]))).code == 0
    assert (await egm("assess", "compare", str(files[1]), str(files[3]))).code == 2
    assert (await egm("assess", "history", "--mesh", str(tmp_path))).code == 0
    (tmp_path / "assessments").mkdir()
    (tmp_path / "assessments" / "1-bad.json").write_text("{}")
    damaged = await egm("assess", "history", "--mesh", str(tmp_path), "--json")
    assert damaged.code == 3 and "1-bad.json" in damaged.data["damaged"][0]
