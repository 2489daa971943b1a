"""Fetches the newest records of ordinary calls to a service from the control plane's index."""

from typing import Final

from control_plane.assess.edge.collect import Installation
from control_plane.assess.observations import SILENT_AFTER_S
from control_plane.assess.ordinary import Past, Seen
from control_plane.edge.operator_client import OperatorClient
from egm.v1 import record_pb2
from trust import limits
from trust.errors import MeshError
from trust.record import Intent, Outcome, parse_record

_PAGE: Final = 500
_DAY_MS: Final = 24 * 3600 * 1000


async def past(client: OperatorClient, installation: Installation, service: str) -> Past:
    """Return what the index has of the last day, made under the policy that is in force; never raises."""
    version = installation.facts.policy.version
    request = record_pb2.ListExecutionsRequest(
        limit=_PAGE, service=service, since_ms=max(0, installation.facts.now_ms - _DAY_MS)
    )
    found: list[Seen] = []
    looked_at = 0
    try:
        while looked_at < limits.MAX_ASSESSED_RECORDS:
            answer = await client.executions(request)
            for entry in answer.entries:
                looked_at += 1
                seen = _seen(entry)
                if seen is not None and seen.intent.policy_version == version:
                    found.append(seen)
            if not answer.next_cursor:
                break
            request.cursor = answer.next_cursor
    except MeshError as error:
        return Past(problem=f"the index does not answer: {error.reason}: {error.detail[:160]}")
    return Past(found, unknown=_silent(installation, service))


def _seen(entry: record_pb2.ExecutionEntry) -> Seen | None:
    intent = parse_record(entry.intent) if entry.intent else None
    outcome = parse_record(entry.outcome) if entry.outcome else None
    if not isinstance(intent, Intent):
        return None
    return Seen(intent, outcome if isinstance(outcome, Outcome) else None)


def _silent(installation: Installation, service: str) -> list[str]:
    facts = installation.facts
    ages = {name: one.reported_s_ago for name, one in facts.nodes.items()}
    serving = facts.services[service].serving
    return [name for name in serving if (age := ages.get(name)) is None or age > SILENT_AFTER_S]
