"""Steps of the demonstration: a node that says two things is caught, convicted by its own words, and locked out."""

import asyncio
import time
from pathlib import Path

from control_plane.edge.emergency_client import CONTROL_PLANE, EmergencyClient
from control_plane.lab.demo_world import (
    ALICE_NODE,
    BALANCE,
    POLL_S,
    TRUST_DOMAIN,
    WAIT_S,
    CheckError,
    World,
    expect,
    lines,
)
from control_plane.lab.fleet import TWIN
from trust.edge.files import write_atomic
from trust.edge.node_key_file import KEY_FILE
from trust.errors import EvidenceError, MeshError, Reason
from trust.misbehaviour import Anchors, Finding, verify_proof
from trust.spiffe import SpiffeId

ACCUSED = str(SpiffeId.of(TRUST_DOMAIN, "node", ALICE_NODE))


async def twin(world: World) -> str:
    """Run a copy of alice's node beside it."""
    await world.lab.lie(ALICE_NODE, "equivocate")
    home = world.directory / "nodes"
    keys = [(home / name / "data" / KEY_FILE).read_bytes() for name in (ALICE_NODE, ALICE_NODE + TWIN)]
    expect(keys[0] == keys[1], "that both have one key")
    pids = [world.lab.fleet.process(name).pid for name in (ALICE_NODE, ALICE_NODE + TWIN)]
    expect(None not in pids, "two running processes")
    return f"pid {pids[0]} and pid {pids[1]} both run as {ACCUSED}, with one key and one past"


async def caught(world: World) -> str:
    """Wait until somebody convicts it; verify the proof with what an outsider has."""
    first, proof = await _first_proof(world)
    domain = world.directory / "domain"
    roster, bundle = await world.roster()
    write_atomic(world.directory / "proof.json", proof)
    write_atomic(world.directory / "base.tar.gz", bundle)  # for `egm evidence verify --bundle`, after --dir

    def judge() -> tuple[Finding, str]:
        root, ca = (domain / "root.json").read_bytes(), (domain / "ca" / "ca.pem").read_bytes()
        anchors = Anchors(TRUST_DOMAIN, ca, roster, root)
        other = proof.replace(ACCUSED.encode(), ACCUSED.replace(ALICE_NODE, "payments").encode())
        try:
            verify_proof(other, anchors)
        except EvidenceError as error:
            return verify_proof(proof, anchors), str(error.detail)
        raise CheckError("the same proof was good against a node that did nothing")

    found, refused = await asyncio.to_thread(judge)
    expect(found.node == ACCUSED, f"a proof against {ACCUSED}, got {found.node}")
    expect(first in roster.witnesses, f"that a witness caught it, got {first}")
    return lines(
        f"first held by witness {first}: {found.summary}",
        f"proof {found.id[:16]}… ({found.kind}, {len(proof)} bytes) verified offline:",
        "with root.json, ca.pem and the witness roster that the approvers signed, no mesh",
        f"the same proof with the name of node payments in it is refused: {refused}",
    )


async def quarantined(world: World) -> str:
    """Look at every member, and call through both copies and around them."""
    client, members = _emergency(world), (CONTROL_PLANE, *world.mesh.mesh.nodes)
    deadline = time.monotonic() + WAIT_S
    waiting = list(members)
    while waiting:
        waiting = [member for member in waiting if not await _denies(client, member)]
        expect(not waiting or time.monotonic() < deadline, f"{ALICE_NODE} denied at {', '.join(waiting)}")
        if waiting:
            await asyncio.sleep(POLL_S)
    answer = await _refused_soon(world, twin=False)
    await _refused_soon(world, twin=True)
    others = await world.lab.call("payments", BALANCE, {"account": "42"}, to="accounts", within_s=WAIT_S)
    expect(others.ok, f"payments -> accounts executed, got {others}")
    return lines(
        f"denied at {', '.join(members)}, by the proof alone",
        f"alice: {answer}",
        "the same through the twin; payments -> accounts goes on. Only the approvers' quorum lets the node back in",
    )


async def _refused_soon(world: World, *, twin: bool) -> str:
    """Expect NODE_QUARANTINED through one of the copies, once it has heard."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            return await world.refused("alice", 7, Reason.NODE_QUARANTINED, twin=twin)
        except CheckError:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(POLL_S)


async def _first_proof(world: World) -> tuple[str, bytes]:
    """Return which of the other nodes has a proof first, and the proof."""
    client, deadline = _emergency(world), time.monotonic() + 2 * WAIT_S
    others = [name for name in world.mesh.mesh.nodes if name != ALICE_NODE]
    while time.monotonic() < deadline:
        for name in others:
            answer = await client.denials_at(name)
            if answer.proofs:
                return name, answer.proofs[0]
        await asyncio.sleep(POLL_S)
    raise CheckError(f"expected a proof against {ACCUSED}, and nobody has one")


async def _denies(client: EmergencyClient, member: str) -> bool:
    try:
        found = (await client.denials_at(member)).denials
    except MeshError as error:
        if error.reason is Reason.SOURCE_UNAVAILABLE:
            return False
        raise
    return any(
        (one.kind, one.value, one.by, one.reason) == ("node", ALICE_NODE, "proof", Reason.NODE_QUARANTINED)
        for one in found
    )


def _emergency(world: World) -> EmergencyClient:
    return EmergencyClient(world.mesh.mesh, Path(world.directory))
