"""Looks for the traces of the assessor's own calls: in the index, in ledgers, in the lineage, and in evidence."""

import asyncio
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from control_plane.assess.edge.attempts import node_config
from control_plane.assess.edge.calls import METHOD
from control_plane.assess.edge.collect import Installation
from control_plane.assess.edge.permits import Shown
from control_plane.assess.model import Basis, Check, Outcome
from control_plane.edge.evidence_export import Sources, export_evidence
from control_plane.edge.evidence_remote import control_plane_of
from control_plane.edge.operator_client import OperatorClient
from egm.v1 import record_pb2
from trust import limits
from trust.edge.ledger import verify as verify_ledger
from trust.errors import EvidenceError, InputError, MeshError, Reason, StateError
from trust.evidence_report import Section, Verdict
from trust.evidence_verify import verify_evidence
from trust.execution import id_text
from trust.record import Intent, Link, parse_record

ARRIVAL_S: Final = 12.0
POLL_S: Final = 0.4
_PAGE: Final = 200
_IN_FIRST_RECORD: Final = 150  # bytes into the first segment: its first record is there, which is signed


@dataclass(frozen=True, slots=True)
class Traced:
    """One record of a call of ours, as the index has it."""

    intent: Intent
    node: str
    index: int


async def traces(
    client: OperatorClient, caller: str, service: str, since_ms: int, *, any_method: bool = False
) -> list[Traced]:
    """Return the records of calls of `caller` to `service`, of the reserved method or any, newest first."""
    request = record_pb2.ListExecutionsRequest(
        limit=_PAGE, caller=caller, service=service, method="" if any_method else METHOD, since_ms=since_ms
    )
    answer = await client.executions(request)
    found = []
    for entry in answer.entries:
        record = parse_record(entry.intent) if entry.intent else None
        if isinstance(record, Intent):
            found.append(Traced(record, entry.node, entry.intent_index))
    return found


async def recorded(
    client: OperatorClient,
    caller: str,
    service: str,
    serving: Sequence[str],
    since_ms: int,
    *,
    shown: Sequence[Shown],
    patience_s: float = ARRIVAL_S,
) -> tuple[list[Check], list[Traced]]:
    """Wait until the service's own sidecar's records of calls have reached the index; judge what they say.

    `shown`: the permits that were accepted, so a record of one of those is waited for, too.
    """
    ours = {one.sha256: one.claims.execution_id for one in shown}
    tried = "called the reserved method and looked for its record in the central index"
    found: list[Traced] = []
    problem = ""
    for _ in range(max(1, int(patience_s / POLL_S))):
        try:
            found = [one for one in await traces(client, caller, service, since_ms) if one.node in serving]
            problem = ""
        except MeshError as error:
            problem = f"the index does not answer: {error.detail[:200]}"
        if found and (not ours or any(one.intent.permit_sha256 in ours for one in found)):
            break
        await asyncio.sleep(POLL_S)
    names = ("probe-recorded", "outcome-recorded", "caller-attributed")
    if problem:
        return [_probed(name, service, Outcome.UNKNOWN, tried, problem) for name in names], []
    if not found:
        why = f"no record of its sidecar reached the index within {patience_s:.0f} s"
        return [_probed(name, service, Outcome.FAILED, tried, why) for name in names], []
    newest = found[0]
    where = {
        "execution": id_text(newest.intent.execution_id),
        "node": newest.node,
        "ledger_index": str(newest.index),
        "decision": newest.intent.decision_id,
    }
    return [
        _probed("probe-recorded", service, Outcome.HELD, tried, "it is there", where),
        _complete(service, newest, where),
        _attributed(service, found, ours),
    ], found


def _complete(service: str, traced: Traced, where: Mapping[str, str]) -> Check:
    intent, tried = traced.intent, "read what the record of its own call says"
    said = {
        "caller": intent.caller,
        "method": intent.method,
        "reason": intent.reason,
        "level": str(intent.level),
        "policy_version": str(intent.policy_version),
    }
    whole = bool(intent.caller and intent.method and intent.reason and intent.boot_id)
    outcome = Outcome.HELD if whole else Outcome.FAILED
    answered = "who, what, decision and node" if whole else "it lacks caller, method or decision"
    return _probed("outcome-recorded", service, outcome, tried, answered, {**where, **said})


def _attributed(service: str, found: Sequence[Traced], ours: Mapping[bytes, bytes]) -> Check:
    """A record must name the caller as its certificate proved it, and the permit that it came with.

    `ours`: digest of a permit that we showed -> its execution; a digest that nobody showed attributes nothing.
    """
    name, tried = "caller-attributed", "read from the records who called, and by which permit"
    with_permit = [
        one.intent
        for one in found
        if one.intent.authn == "mtls" and ours.get(one.intent.permit_sha256) == one.intent.execution_id
    ]
    if with_permit:
        one = with_permit[0]
        evidence = {
            "execution": id_text(one.execution_id),
            "caller": one.caller,
            "authn": one.authn,
            "permit_sha256": one.permit_sha256.hex(),
        }
        return _probed(name, service, Outcome.HELD, tried, "caller by mTLS, and permit digest", evidence)
    return _probed(name, service, Outcome.FAILED, tried, "no record names a permit that was accepted")


async def lineage(client: OperatorClient, service: str, shown: Sequence[Shown]) -> Check:
    """Look for the verified link between a call and the one that was made under its permit."""
    name, tried = "lineage-linked", "called under the permit of another call, and looked for the link"
    if len(shown) < 2:
        return _probed(name, service, Outcome.UNKNOWN, tried, "no two permits were accepted")
    parent, child = shown[0], shown[1]
    evidence = {
        "parent": id_text(parent.claims.execution_id),
        "child": id_text(child.claims.execution_id),
    }
    for _ in range(int(ARRIVAL_S / POLL_S)):
        try:
            tree = await client.tree(parent.claims.root_id)
        except MeshError as error:
            return _probed(name, service, Outcome.UNKNOWN, tried, error.detail[:200], evidence)
        records = [parse_record(entry.intent) for entry in tree.entries if entry.intent]
        for record in records:
            if not isinstance(record, Intent) or record.execution_id != child.claims.execution_id:
                continue
            if record.link is Link.VERIFIED and record.parent_permit_sha256 == parent.sha256:
                return _probed(name, service, Outcome.HELD, tried, "linked by the verified permit", evidence)
            why = f"{tried}: the record says {record.link.name.lower()}"
            return _probed(name, service, Outcome.FAILED, tried, why, evidence)
        await asyncio.sleep(POLL_S)
    why = f"{tried}: the second call is not in the tree of the first after {ARRIVAL_S:.0f} s"
    return _probed(name, service, Outcome.FAILED, tried, why, evidence)


def ledger_of(installation: Installation, node: str) -> Path | None:
    """Return where a node's ledger is on this machine; None when it is not."""
    entry = installation.mesh.nodes.get(node)
    data_dir = node_config(entry.config).get("data_dir") if entry is not None else None
    path = Path(str(data_dir)) / "ledger" if data_dir else None
    return path if path is not None and (path / "checkpoint").is_file() else None


def ledgers(installation: Installation, service: str, serving: Sequence[str]) -> list[Check]:
    """Verify the ledgers of the nodes that serve a service, and copies of them that were tampered with. Blocks."""
    names = ("ledger-intact", "ledger-tampering-noticed")
    tried = "read the ledgers of the nodes that serve it"
    found = {node: path for node in serving if (path := ledger_of(installation, node)) is not None}
    if not serving or len(found) < len(serving):
        missing = ", ".join(sorted(set(serving) - found.keys())) or "any node"
        why = f"the ledger of {missing} is not on this machine"
        return [_probed(name, service, Outcome.UNKNOWN, tried, why) for name in names]
    if large := [node for node, path in found.items() if _size(path) > limits.MAX_ASSESSED_LEDGER_BYTES]:
        most = limits.MAX_ASSESSED_LEDGER_BYTES >> 20
        why = f"the ledger of {', '.join(large)} is larger than {most} MiB: run egm ledger verify there"
        return [_probed(name, service, Outcome.UNKNOWN, tried, why) for name in names]
    intact, evidence = Outcome.HELD, {}
    for node, path in found.items():
        verification = verify_ledger(path)
        evidence[node] = f"{verification.size} records, root {verification.root.hex()[:16]}"
        if not verification.ok:
            intact = Outcome.FAILED
            evidence[node] = "; ".join(f"{one.where}: {one.what}" for one in verification.findings[:3])
    answered = "every record fits its signed checkpoint" if intact is Outcome.HELD else f"damaged: {evidence}"
    node, path = next(iter(found.items()))
    return [
        _probed("ledger-intact", service, intact, tried, answered, evidence),
        _tampering(service, node, path),
    ]


def _size(path: Path) -> int:
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())


def _tampering(service: str, node: str, path: Path) -> Check:
    """Change one byte of a record in a copy, and cut another copy short: both must be found."""
    name, tried = "ledger-tampering-noticed", "changed a byte in a copy of the ledger, and cut another short"
    with tempfile.TemporaryDirectory(prefix="egm-assess-") as home:
        original = Path(home) / "whole"
        shutil.copytree(path, original, symlinks=True)
        whole = verify_ledger(original)
        if not whole.ok or whole.size == 0:
            return _probed(
                name,
                service,
                Outcome.UNKNOWN,
                tried,
                "the copy does not verify as it is, or nothing in it is signed yet",
            )
        segments = sorted(one for one in original.glob("records/*") if one.is_file())
        data = segments[0].read_bytes() if segments else b""
        if len(data) < 2 * _IN_FIRST_RECORD:
            return _probed(name, service, Outcome.UNKNOWN, tried, "it holds no records yet")
        target, at, evidence = segments[0], _IN_FIRST_RECORD, {"node": node}
        for how, changed in (
            ("changed", data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]),
            ("cut", data[:at]),
        ):
            target.write_bytes(changed)
            verification = verify_ledger(original)
            if verification.ok:
                why = f"{tried}: the {how} copy still verifies"
                return _probed(name, service, Outcome.FAILED, tried, why, evidence)
            evidence[how] = f"{verification.findings[0].where}: {verification.findings[0].what}"[:160]
    return _probed(name, service, Outcome.HELD, tried, "both were found, with their place", evidence)


async def evidence(
    installation: Installation,
    directory: Path,
    service: str,
    serving: Sequence[str],
    shown: Sequence[Shown],
    *,
    endorsements: Path | None = None,
) -> Check:
    """Export the evidence of a call of ours from the callee's ledger, verify it offline, and a changed copy of it."""
    name, tried = "evidence-verifies", "exported the evidence of its own call and verified it offline"
    found = {node: path for node in serving if (path := ledger_of(installation, node)) is not None}
    if not shown or not found:
        why = (
            "no call with an accepted permit"
            if not shown
            else "no ledger of a node that serves it is on this machine"
        )
        return _probed(name, service, Outcome.UNKNOWN, tried, why)
    execution = shown[0].claims.execution_id
    ca_pem, root = await asyncio.to_thread(_trusted, installation)
    try:
        async with control_plane_of(installation.mesh, directory) as remote:
            sources = Sources(
                positions=await remote.positions([execution]),
                repository=remote.reader(),
                endorsements=() if endorsements is None else (endorsements,),
            )
            data = await _exported(execution, found, ca_pem, sources)
        report = await asyncio.to_thread(verify_evidence, data, root, ca_pem)
    except MeshError as error:
        return _probed(name, service, Outcome.FAILED, tried, f"{tried}: {error.reason}: {error.detail[:200]}")
    facts = {
        "execution": id_text(execution),
        "bytes": str(len(data)),
        **{section.value: report.verdict(section).value for section in Section},
    }
    if report.verdict() is not Verdict.ESTABLISHED:
        first = report.findings[0]
        why = f"{tried}: {first.section}: {first.where}: {first.what}"[:300]
        return _probed(name, service, Outcome.FAILED, tried, why, facts)
    if await asyncio.to_thread(_accepted_changed, data, root, ca_pem):
        return _probed(
            name, service, Outcome.FAILED, tried, f"{tried}: a changed copy verifies as well", facts
        )
    return _probed(
        name, service, Outcome.HELD, tried, "all that it can prove; a changed copy is refused", facts
    )


async def _exported(execution: bytes, found: Mapping[str, Path], ca_pem: bytes, sources: Sources) -> bytes:
    """Return the evidence of an execution; its record is covered by a signed checkpoint a moment after it was made."""
    for _ in range(int(ARRIVAL_S / POLL_S)):
        try:
            data, _ = await asyncio.to_thread(
                export_evidence, [execution], found, ca_pem=ca_pem, sources=sources
            )
        except InputError as error:
            if error.reason is not Reason.NOT_FOUND:
                raise
            await asyncio.sleep(POLL_S)
        else:
            return data
    raise StateError(Reason.NOT_FOUND, f"no signed record of the call within {ARRIVAL_S:.0f} s")


def _trusted(installation: Installation) -> tuple[bytes, bytes]:
    mesh = installation.mesh
    return (Path(mesh.operator) / "ca.pem").read_bytes(), Path(mesh.root).read_bytes()


def _accepted_changed(data: bytes, root: bytes, ca_pem: bytes) -> bool:
    middle = len(data) // 2
    changed = data[:middle] + (b"A" if data[middle : middle + 1] != b"A" else b"B") + data[middle + 1 :]
    try:
        return verify_evidence(changed, root, ca_pem).verdict() is Verdict.ESTABLISHED
    except EvidenceError:
        return False


def _probed(  # noqa: PLR0917 (in the order of a sentence)
    name: str,
    service: str,
    outcome: Outcome,
    tried: str,
    answered: str,
    evidence: Mapping[str, str] | None = None,
) -> Check:
    return Check(name, service, outcome, Basis.PROBED, tried, answered, evidence or {})
