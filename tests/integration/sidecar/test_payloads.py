"""Payloads for auditors, through two real sidecars and the index: who can read them, and that nobody else can."""

import asyncio
import base64
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2

from control_plane.edge.ca import CertificateAuthority, issue_to_directory
from control_plane.edge.mesh_file import MeshFile
from egm.v1 import node_pb2
from sidecar.edge.admin import check
from sidecar.edge.provenance import LEDGER_DIRECTORY
from tests.support import second_verifier, sidecars
from tests.support.auditing import Auditor, sealed
from tests.support.cli import Outcome as Shown
from tests.support.cli import egm
from tests.support.control_plane import TRUST_DOMAIN
from tests.support.eventually import eventually
from tests.support.interop_service import DUPLEX, SERVICE, UNARY, ask
from tests.support.ledgers import open_ledger
from tests.support.records import intent
from tests.support.sidecar_mesh import Mesh
from trust import limits
from trust.auditor import AuditorKey
from trust.edge.auditor_keys import create_auditor_key
from trust.edge.files import write_atomic
from trust.edge.ledger import Reader, verify
from trust.errors import Reason
from trust.execution import id_text
from trust.payload import digest_fits, open_sealed, parse_sealed, payloads_of
from trust.permit import PERMIT_KEY, read_claims
from trust.policy.source import build
from trust.record import Ending, Intent, Outcome, Record, Side, build_record, parse_record
from trust.spiffe import SpiffeId

PASSPHRASE = b"correct horse battery"
MARKER = "TOP-SECRET-MARKER-TOP-SECRET"
SEALED = (("audit", "payload=sealed"),)


def descriptors() -> bytes:
    """Say that UnaryCall is unary: then its response is known to be one message, and is kept."""
    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="grpc.testing", syntax="proto3")
    file.message_type.add(name="Nothing")
    service = file.service.add(name="TestService")
    for name, streaming in (("UnaryCall", False), ("FullDuplexCall", True)):
        service.method.add(
            name=name,
            input_type=".grpc.testing.Nothing",
            output_type=".grpc.testing.Nothing",
            client_streaming=streaming,
            server_streaming=streaming,
        )
    return descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString(deterministic=True)


def policy(*auditors: AuditorKey, level: int = 5, asks: bool = True) -> bytes:
    """Return a base bundle under which alice's calls are kept for `auditors`."""
    named = "".join(f"  {key.name}: {key.text}\n" for key in auditors)
    audit = '@audit("payload") ' if asks else ""
    return build(
        {
            "bundle.yaml": (
                f"name: test\ndescription: t\ntrust_domain: {TRUST_DOMAIN}\nlevel: {level}\n"
                f"services: {{echo: {{grpc_services: [{SERVICE}]}}}}\n"
                + (f"auditors:\n{named}" if named else "")
            ).encode(),
            "policies/p.cedar": (
                f'@id("alice-may") {audit}\n'
                f'permit(principal == Workload::"spiffe://{TRUST_DOMAIN}/workload/alice", '
                f'action in Action::"{SERVICE}", resource == Service::"echo");\n'
            ).encode(),
            "tests/t.yaml": b"[]\n",
            "descriptors.binpb": descriptors(),
        }
    )


def records(home: Path, node: str) -> list[Record]:
    """Read the ledger of a node that has stopped."""
    reader = Reader(home / node / "data" / LEDGER_DIRECTORY)
    return [parse_record(frame.record) for frame in reader.scan()]


def files_with(home: Path, text: str) -> Iterator[Path]:
    """Find every file below `home` that holds `text`, plainly or in base64 or hexadecimal."""
    raw = text.encode()
    shifted = [b"x" * shift + raw for shift in range(3)]  # base64 depends on where it begins
    needles = [raw, raw.hex().encode(), *(base64.urlsafe_b64encode(text)[4:-4] for text in shifted)]
    for path in home.rglob("*"):
        if path.is_file() and any(needle in path.read_bytes() for needle in needles):
            yield path


async def called(address: str, **fields: Any) -> bytes | Reason:
    """Call as alice; in a callee's first second its permits cannot be told from those of an earlier run."""
    for _ in range(30):
        answer = await sidecars.unary(address, UNARY, ask(**fields))
        if answer is not Reason.PERMIT_UNVERIFIABLE:
            break
        await asyncio.sleep(0.1)
    return answer


def operator_directory(mesh: Mesh) -> Path:
    """Write credentials and the address of the control plane."""
    directory = mesh.home / "mesh"
    ca = CertificateAuthority.open(mesh.domain.directory / "ca")
    issue_to_directory(ca, SpiffeId.of(TRUST_DOMAIN, "operator", "olga"), directory / "operator")
    root = str(mesh.domain.directory / "root.json")
    MeshFile(trust_domain=TRUST_DOMAIN, root=root, control_plane=mesh.cp.listen).save(directory)
    return directory


async def payload(*arguments: object, mesh: Path | None = None) -> Shown:
    """Run `egm lineage payload`."""
    return await asyncio.to_thread(egm, "lineage", "payload", *arguments, mesh=mesh)


def key_of(name: str, directory: Path) -> AuditorKey:
    """Make an auditor's key, with its passphrase where development domains have it."""
    write_atomic(directory / "passphrase", PASSPHRASE, mode=0o600)
    return create_auditor_key(directory / f"{name}.pem", name, PASSPHRASE)


async def test_only_the_auditor_reads_what_was_sent_and_no_file_of_the_mesh_holds_it(mesh: Mesh) -> None:
    """From the index, from the ledgers and from an evidence file, on both sides; the grep finds what is in clear."""
    keys = mesh.home / "keys"
    ann = key_of("ann", keys)
    key_of("eve", keys)
    await mesh.publish(policy(ann))
    request = ask(note=MARKER, answer=f"{MARKER}-ANSWER")
    async with (
        sidecars.running(mesh.callee()) as b,
        sidecars.running(mesh.caller(b.inbound["echo"])) as a,
    ):
        await a.enforces(1)
        await b.enforces(1)
        answer = await called(a.outbound, note=MARKER, answer=f"{MARKER}-ANSWER")
        assert answer == f"{MARKER}-ANSWER".encode()
        asked = node_pb2.CheckRequest(caller="alice", service="echo", method=UNARY)
        assert check(b.sidecar.view, TRUST_DOMAIN, asked).obligations == ["audit payload"]
        directory = operator_directory(mesh)
        identifier = id_text(read_claims(str(dict(mesh.echo.metadata[-1])[PERMIT_KEY])).execution_id)

        for _ in range(40):  # records are on their way to the index
            shown = await payload(identifier, "--key", keys / "ann.pem", "--json", mesh=directory)
            if shown.code == 0 and len(shown.data["payloads"]) == 4:
                break
            await asyncio.sleep(0.25)
    assert shown.code == 0, (shown.stdout, shown.stderr)
    found = {
        (p["side"], p["part"]): (p["finding"], base64.b64decode(p["payload"])) for p in shown.data["payloads"]
    }
    for side in ("outbound", "inbound"):
        assert found[side, "request"] == ("OPENED", request)
        assert found[side, "response"] == ("OPENED", answer)
    assert list(files_with(mesh.home, MARKER)) == []
    for node in ("a", "b"):
        assert verify(mesh.home / node / "data" / LEDGER_DIRECTORY).ok

    ledgers = [
        part for node in ("a", "b") for part in ("--ledger", mesh.home / node / "data" / LEDGER_DIRECTORY)
    ]
    offline = await payload(identifier, "--key", keys / "ann.pem", *ledgers, "--json")
    assert offline.data == shown.data
    out = mesh.home / "out.bin"
    one = await payload(identifier, "--key", keys / "ann.pem", *ledgers, "--part", "request", "-o", out)
    assert (one.code, out.read_bytes(), out.stat().st_mode & 0o777) == (0, request, 0o600), one
    assert list(files_with(mesh.home, MARKER)) == [out]
    several = await payload(identifier, "--key", keys / "ann.pem", *ledgers, "-o", out)
    assert several.code == 2 and "--part" in several.stderr
    named = [
        part
        for node in ("a", "b")
        for part in ("--ledger", f"{node}={mesh.home / node / 'data' / LEDGER_DIRECTORY}")
    ]
    file = mesh.home / "evidence.json"
    exported = await asyncio.to_thread(egm, "evidence", "export", identifier, "-o", file, *named)
    assert exported.code == 0, exported
    root, ca = mesh.domain.directory / "root.json", mesh.domain.directory / "ca" / "ca.pem"
    verified = await asyncio.to_thread(egm, "evidence", "verify", file, "--root", root, "--ca", ca)
    assert verified.code == 0, verified.stdout
    second_verifier.check(file.read_bytes(), root.read_bytes(), ca.read_bytes())
    from_file = await payload(identifier, "--key", keys / "ann.pem", "--evidence", file, "--json")
    assert from_file.data == shown.data
    stranger = await payload(identifier, "--key", keys / "eve.pem", *ledgers, "--json")
    assert stranger.code == 3
    assert {p["finding"] for p in stranger.data["payloads"]} == {"OTHER_KEY"}
    signing = await payload(identifier, "--key", mesh.domain.directory / "nothing.pem", *ledgers)
    assert signing.code == 2 and "does not exist" in signing.stderr


async def test_what_is_too_large_to_keep_is_not_executed_and_a_large_answer_is_withheld(mesh: Mesh) -> None:
    """Level 4 and above: an obligation that cannot be met denies."""
    ann = Auditor("ann")
    await mesh.publish(policy(ann.key))
    async with (
        sidecars.running(mesh.callee()) as b,
        sidecars.running(mesh.caller(b.inbound["echo"])) as a,
    ):
        await a.enforces(1)
        await b.enforces(1)
        assert await called(a.outbound, size=1) == b"\0"
        reached = len(mesh.echo.metadata)
        large = "x" * limits.MAX_AUDITED_PAYLOAD_BYTES
        assert await called(a.outbound, note=large) is Reason.OBLIGATION_UNMET
        assert len(mesh.echo.metadata) == reached
        assert await called(a.outbound, size=limits.MAX_AUDITED_PAYLOAD_BYTES + 1) is Reason.OBLIGATION_UNMET
        assert len(mesh.echo.metadata) == reached + 1
    refused = [r for r in records(mesh.home, "a") if isinstance(r, Intent) and not r.allowed]
    assert [(r.reason, r.obligations, r.sealed_request) for r in refused] == [
        ("OBLIGATION_UNMET", (("audit", "payload=too-large"),), b"")
    ]
    withheld = records(mesh.home, "b")[-1]
    assert isinstance(withheld, Outcome)
    assert (withheld.ending, withheld.reason, withheld.sealed_response) == (
        Ending.CUT,
        "OBLIGATION_UNMET",
        b"",
    )
    assert withheld.response_bytes == limits.MAX_AUDITED_PAYLOAD_BYTES + 1


@pytest.mark.parametrize("level", [4, 5])
async def test_the_opening_message_of_a_stream_is_kept_and_later_ones_are_counted(
    mesh: Mesh, level: int
) -> None:
    """On both sides, sealed before anything is forwarded; below level 5, too."""
    ann = Auditor("ann")
    await mesh.publish(policy(ann.key, level=level))
    first, second = ask(sizes=[1], note="first"), ask(sizes=[1], note="second")
    async with (
        sidecars.running(mesh.callee()) as b,
        sidecars.running(mesh.caller(b.inbound["echo"])) as a,
        grpc.aio.insecure_channel(a.outbound) as channel,
    ):
        await a.enforces(1)
        await b.enforces(1)
        assert await called(a.outbound, size=1) == b"\0"
        stream: Any = channel.stream_stream(DUPLEX, None, None)(timeout=30)  # type: ignore[call-arg]
        for message in (first, second):
            await stream.write(message)
            assert await stream.read() == b"\0"
        await stream.done_writing()
        assert await stream.code() is grpc.StatusCode.OK
    for node, side in (("a", Side.OUTBOUND), ("b", Side.INBOUND)):
        intent, outcome = records(mesh.home, node)[-2:]
        assert isinstance(intent, Intent) and isinstance(outcome, Outcome)
        assert (intent.side, intent.obligations) == (side, SEALED)
        recorded = payloads_of(intent)
        opened = open_sealed(recorded.sealed, recorded.binding, ann.private)
        assert opened == first and digest_fits(opened, recorded)
        assert (outcome.sealed_response, outcome.request_messages) == (b"", 2)


async def test_a_signed_bundle_replaces_the_auditor_and_cuts_streams_that_were_opened_unkept(
    mesh: Mesh,
) -> None:
    """New calls are sealed to the new key; what was not asked for at its opening cannot be kept later."""
    ann, ben = Auditor("ann"), Auditor("ben")
    await mesh.publish(policy(asks=False, level=4))
    async with (
        sidecars.running(mesh.callee()) as b,
        sidecars.running(mesh.caller(b.inbound["echo"])) as a,
        grpc.aio.insecure_channel(a.outbound) as channel,
    ):
        await a.enforces(1)
        await b.enforces(1)
        stream: Any = channel.stream_stream(DUPLEX, None, None)(timeout=30)  # type: ignore[call-arg]
        await stream.write(ask(sizes=[1]))
        assert await stream.read() == b"\0"
        for version, key in ((2, ann.key), (3, ben.key)):
            await mesh.publish(policy(key, level=4))
            await a.enforces(version)
            await b.enforces(version)
            assert await called(a.outbound, size=version) == bytes(version)
        await eventually(stream.done, "the stream was cut")
        assert await stream.code() is grpc.StatusCode.PERMISSION_DENIED
    kept = [r for r in records(mesh.home, "b") if isinstance(r, Intent) and r.sealed_request]
    assert [parse_sealed(r.sealed_request).key_ids for r in kept] == [(ann.key.id,), (ben.key.id,)]


async def test_a_node_that_seals_something_else_is_contradicted(tmp_path: Path) -> None:
    """A payload without the recorded digest, bytes that are none, and one of another record: exit 1, naming which."""
    key = key_of("ann", tmp_path)
    stand_in = Auditor("ann")
    stand_in.key = key
    lies = [
        intent(1, sealed_request=sealed(b"not what was sent", stand_in)),
        intent(2, sealed_request=os.urandom(64)),
        intent(3, sealed_request=sealed(b"moved", stand_in)),
    ]
    directory = tmp_path / "lies"
    ledger = open_ledger(directory)
    for lie in lies:
        await ledger.durable(await ledger.enqueue(build_record(lie)))
    await ledger.close()
    for lie, words in zip(
        lies, ("did not seal what it forwarded", "not one ASCII JSON", "another record"), strict=True
    ):
        shown = await payload(id_text(lie.execution_id), "--key", tmp_path / "ann.pem", "--ledger", directory)
        assert shown.code == 1, shown
        assert words in shown.stdout
