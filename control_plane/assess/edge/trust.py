"""Verifies the trust credential of a probe node offline, as any relying party does, and a changed one."""

import asyncio
from pathlib import Path
from typing import Final

from control_plane.assess.edge.collect import Installation
from control_plane.assess.edge.permits import CREDENTIAL_FILE
from control_plane.assess.edge.probe_node import POLL_S, ProbeNode
from control_plane.assess.model import MESH, Basis, Check, Outcome
from trust.attestation.credential import check_live, credential_sha256, open_credential
from trust.attestation.roster import Roster
from trust.edge.clock import SystemClock
from trust.errors import MeshError

ON_DISK_S: Final = 10.0


async def credential(installation: Installation, node: ProbeNode) -> list[Check]:
    """Judge the credential that the witnesses gave the probe node."""
    roster = None if installation.engine is None else installation.engine.mesh.roster()
    name, tried = "credential-verifies", "had a new node attested, and verified its credential offline"
    if roster is None:
        return [
            Check(name, MESH, Outcome.FAILED, Basis.PROBED, tried, "the signed policy names no witnesses")
        ]
    data, deadline = b"", asyncio.get_running_loop().time() + ON_DISK_S
    while not data and asyncio.get_running_loop().time() < deadline:
        data = _read(node.data_dir / CREDENTIAL_FILE)
        if not data:  # a node counts as attested a moment before its credential is on disk
            await asyncio.sleep(POLL_S)
    return [judge_credential(data, roster, SystemClock().now_ms())]


def judge_credential(data: bytes, roster: Roster, now_ms: int) -> Check:
    """Verify a credential as it is, which must work, and with one cosignature changed, which must not."""
    name, tried = "credential-verifies", "had a new node attested, and verified its credential offline"
    if not data:
        why = "no quorum of witnesses vouched for the new node"
        return Check(name, MESH, Outcome.FAILED, Basis.PROBED, tried, why)
    evidence = {"credential": credential_sha256(data).hex()}
    try:
        opened = open_credential(data, roster)
        check_live(opened, roster, now_ms=now_ms)
    except MeshError as error:
        why = f"it does not verify: {error.reason}: {error.detail[:160]}"
        return Check(name, MESH, Outcome.FAILED, Basis.PROBED, tried, why, evidence)
    evidence |= {"node": str(opened.node), "cosigned_by": ", ".join(sorted(opened.attested_s))}
    if _believed(_changed(data), roster, now_ms):
        why = "a credential with a changed cosignature verifies as well"
        return Check(name, MESH, Outcome.FAILED, Basis.PROBED, tried, why, evidence)
    answered = f"{len(opened.attested_s)} witnesses of the signed roster; a changed one is refused"
    return Check(name, MESH, Outcome.HELD, Basis.PROBED, tried, answered, evidence)


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _changed(data: bytes) -> bytes:
    """Change one character of every cosignature over the evidence."""
    start, _, rest = data.partition(b'"attested":"')
    lines, end, tail = rest.partition(b'","logged":"')
    swapped = b"\\n".join(
        line[:-6] + (b"AAAA" if line[-6:-2] != b"AAAA" else b"BBBB") + line[-2:] if len(line) > 40 else line
        for line in lines.split(b"\\n")
    )
    return start + b'"attested":"' + swapped + end + tail


def _believed(data: bytes, roster: Roster, now_ms: int) -> bool:
    try:
        check_live(open_credential(data, roster), roster, now_ms=now_ms)
    except MeshError:
        return False
    return True
