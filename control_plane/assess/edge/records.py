"""Looks for the traces of the assessor's own calls: in the index, in the lineage, and in evidence."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from control_plane.assess.answers import Answer
from control_plane.assess.edge.calls import METHOD
from control_plane.assess.edge.collect import Installation
from control_plane.assess.edge.ledgers import ledger_of
from control_plane.assess.edge.permits import Shown
from control_plane.assess.model import Basis, Check, Outcome
from control_plane.edge.evidence_export import Sources, export_evidence
from control_plane.edge.evidence_remote import control_plane_of
from control_plane.edge.operator_client import OperatorClient
from egm.v1 import record_pb2
from trust.errors import EvidenceError, InputError, MeshError, Reason, StateError
from trust.evidence_report import Section, Verdict
from trust.evidence_verify import verify_evidence
from trust.execution import id_text
from trust.record import Intent, Link, parse_record

ARRIVAL_S: Final = 12.0
POLL_S: Final = 0.4
_PAGE: Final = 200


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
    said: Mapping[str, Answer],
    patience_s: float = ARRIVAL_S,
) -> tuple[list[Check], list[Traced]]:
    """Wait until the service's own sidecar's records of calls have reached the index; judge what they say.

    `shown`: the permits that were accepted, so a record of one of those is waited for, too. `said`: what callers of
    ours were told, by decision: a record must say the same.
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
        decided = {one.intent.decision_id for one in found}
        complete = not ours or any(one.intent.permit_sha256 in ours for one in found)
        if found and complete and said.keys() <= decided:
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
        _complete(service, newest, where, contradictions(said, [one.intent for one in found])),
        _attributed(service, found, ours),
    ], found


def contradictions(said: Mapping[str, Answer], records: Iterable[Intent]) -> list[str]:
    """Return where the records of our own calls say something else than what the callers were told."""
    written = {one.decision_id: one for one in records}
    found = []
    for decision, answer in said.items():
        record = written.get(decision)
        if record is None:
            found.append(f"the refusal {decision} ({answer.reason}) is on no record")
        elif answer.reason and (record.allowed or record.reason != answer.reason):
            what = "allowed" if record.allowed else record.reason
            found.append(
                f"decision {decision}: the caller was told {answer.reason}, and the record says {what}"
            )
    return found


def _complete(service: str, traced: Traced, where: Mapping[str, str], contradicting: Sequence[str]) -> Check:
    intent, tried = traced.intent, "read what the record of its own call says"
    said = {
        "caller": intent.caller,
        "method": intent.method,
        "reason": intent.reason,
        "level": str(intent.level),
        "policy_version": str(intent.policy_version),
    }
    whole = bool(intent.caller and intent.method and intent.reason and intent.boot_id)
    outcome = Outcome.HELD if whole and not contradicting else Outcome.FAILED
    answered = (
        "who, what, decision and node; as callers were told"
        if whole
        else "it lacks caller, method or decision"
    )
    if contradicting:
        answered = "; ".join(contradicting[:3])
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
