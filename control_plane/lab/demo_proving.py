"""Steps of the demonstration: permits, attestation, lineage and evidence, each verified."""

import asyncio
import time
from typing import Final

from control_plane.edge import operator_client
from control_plane.edge.evidence_export import export_evidence, ledgers_of
from control_plane.edge.lineage_view import seen_of
from control_plane.lab.bootstrap import publish
from control_plane.lab.demo_world import POLL_S, WAIT_S, CheckError, World, expect, lines, listed, standing
from trust.attestation.credential import check_live, open_credential
from trust.errors import EvidenceError, MeshError, Reason
from trust.evidence_verify import Report, Section, Verdict, verify_evidence
from trust.lineage import build_tree
from trust.lineage_export import to_text
from trust.permit import read_claims

_CHECKPOINT_S: Final = 1.5
_CREDENTIAL: Final = "credential.json"  # in a node's data directory


async def permit(world: World) -> str:
    """Raise the level and look at the permit that a call then carries."""
    version = await publish(world.mesh, world.archive(level=5), title="Everything at level 5")
    await world.mesh.settled(version=version)
    world.payments.accounts = world.lab.address("payments", "accounts")
    await world.executed("alice", 250, within_s=WAIT_S)
    claims = read_claims(world.payments.permit)
    expect(claims.subject.endswith("/workload/alice"), f"a permit for alice, got {claims.subject}")
    return lines(
        f"permit of {claims.issuer} for {claims.subject}",
        f"to call {claims.method} of {claims.audience} once, within {claims.expires_s - claims.issued_s} s,",
        f"under policy version {claims.policy_version}, for exactly the request with SHA-256 "
        f"{(claims.request_sha256 or b'').hex()[:16]}…",
    )


async def attested(world: World) -> str:
    """Verify every node's trust credential against the witnesses that the quorum signed."""
    roster, _ = await world.roster()
    await world.wait(lambda nodes: all(standing(one) == "ATTESTED" for one in nodes.values()))
    said = [
        f"the signed policy names {len(roster.witnesses)} witnesses; {roster.needed} must vouch for a node"
    ]
    for name in world.mesh.mesh.nodes:
        data = await asyncio.to_thread((world.lab.fleet.disk(name) / _CREDENTIAL).read_bytes)
        found, now_ms = open_credential(data, roster), time.time_ns() // 1_000_000
        until_ms = check_live(found, roster, now_ms=now_ms)
        expect(found.node.path == f"node/{name}", f"a credential of {name}, got one of {found.node}")
        by = sorted(found.attested_s)
        expect(len(by) >= roster.needed == 2, f"two of three to vouch for {name}, got {by}")
        until = time.strftime("%H:%M:%S", time.gmtime(until_ms / 1000))
        said.append(
            f"{name:<10} ATTESTED by {listed(by)} until {until} UTC, credential {found.sha256.hex()[:16]}…"
        )
    claims = read_claims(world.payments.permit)
    if claims.credential_sha256 is None:
        raise CheckError("expected a permit that names the credential of alice's node")
    said += [
        "checked here: every cosignature of each credential, and that it is live",
        f"alice's permit names {claims.credential_sha256.hex()[:16]}…, which her callee's sidecar verified",
    ]
    return lines(*said)


async def lineage(world: World) -> str:
    """Ask the control plane's index for the tree of executions that alice's call began."""
    root = read_claims(world.payments.permit).root_id
    deadline = time.monotonic() + WAIT_S
    async with operator_client.operator(world.mesh.mesh, world.directory) as client:
        while True:
            try:
                answer = await client.tree(root)
            except MeshError as error:  # shipped a moment later
                if error.reason is not Reason.NOT_FOUND or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(POLL_S)
                continue
            tree = build_tree(map(seen_of, answer.entries), answer.root_id)
            if len(tree.nodes) == 3 and all(hop.status for hop in tree.hops) and len(tree.hops) == 2:
                return to_text(tree)
            if time.monotonic() > deadline:
                raise CheckError(f"two executions on three nodes, got {to_text(tree)}")
            await asyncio.sleep(POLL_S)


async def evidence(world: World) -> str:
    """Export the executions and verify the file, and a copy that was tampered with, from two files and no mesh."""
    await asyncio.sleep(_CHECKPOINT_S)  # a ledger signs a checkpoint every second
    root = read_claims(world.payments.permit).root_id
    domain = world.directory / "domain"

    def judge() -> tuple[Report, int, str]:
        trusted, anchors = (domain / "root.json").read_bytes(), (domain / "ca" / "ca.pem").read_bytes()
        data, _ = export_evidence([root], ledgers_of(world.directory), ca_pem=anchors)
        place = data.index(b'"record":"') + 40
        other = b"B" if data[place : place + 1] == b"A" else b"A"
        try:
            found = verify_evidence(data[:place] + other + data[place + 1 :], trusted, anchors)
            wrong = next(str(f.what) for f in found.findings if f.reason is not None)
        except EvidenceError as error:
            wrong = str(error)
        return verify_evidence(data, trusted, anchors), len(data), wrong

    report, size, wrong = await asyncio.to_thread(judge)
    expect(report.verdict() is not Verdict.CONTRADICTED, f"a file that verifies, got {report.findings}")
    expect(report.verdict(Section.INTEGRITY) is Verdict.ESTABLISHED, f"integrity, got {report.findings}")
    expect(report.verdict(Section.AUTHORITY) is Verdict.ESTABLISHED, f"authority, got {report.findings}")
    signed = ", ".join(report.approved[0].approvers)
    return lines(
        f"{size} bytes, checked with root.json and ca.pem alone, no mesh: integrity; policy signed by {signed}",
        f"the changed copy is refused: {wrong}",
    )
