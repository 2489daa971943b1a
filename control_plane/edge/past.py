"""Fetches what a replay needs: the engines of policies that a person names, and executions of a time."""

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from control_plane.core.proposals import ID_DIGITS
from control_plane.core.replay import Recorded
from control_plane.edge.operator_client import OperatorClient
from control_plane.edge.release import InForce, Release, Reviewed
from control_plane.edge.source_folder import bundle_at
from egm.v1 import record_pb2
from trust import limits
from trust.bundle import Bundle, read_bundle
from trust.errors import EvidenceError, InputError, Reason
from trust.policy.engine import Engine
from trust.record import Intent, parse_record
from trust.verified import BASE_ROLE

_VERSION: Final = re.compile(r"[1-9][0-9]{0,8}\Z")
_PROPOSAL: Final = re.compile(rf"[0-9a-f]{{{ID_DIGITS}}}\Z")
IN_FORCE: Final = "in-force"


@dataclass(frozen=True, slots=True)
class Named:
    """A policy by its name, compiled."""

    title: str
    engine: Engine


@dataclass(frozen=True, slots=True)
class Past:
    """Executions of a time, newest first; `truncated` when there are more."""

    executions: list[Recorded]
    truncated: bool


async def engine_in_force(release: Release) -> Named:
    """Compile what is in force, verified here.

    Raises:
        InputError: POLICY_MISSING, before anything was published.
    """
    in_force = await release.in_force()
    base = in_force.bundle(BASE_ROLE)
    if base is None or in_force.policy is None:
        raise InputError(Reason.POLICY_MISSING, "no policy is in force yet; publish one first")
    title = f"version {in_force.roles[BASE_ROLE].signed.version}, in force"
    return Named(title, await asyncio.to_thread(Engine.build, base, _namespaces(in_force)))


async def engine_of(release: Release, text: str) -> Named:
    """Compile the policy that a person names.

    Args:
        release: the mesh.
        text: a folder, an archive, the id of a proposal, a version of the base bundle, or "in-force".

    Raises:
        InputError: NOT_FOUND, INPUT_INVALID: nothing is called that, or it has mistakes.
        EvidenceError: it does not verify.
    """
    if text == IN_FORCE:
        return await engine_in_force(release)
    path = Path(text)
    if await asyncio.to_thread(path.exists):
        bundle = await asyncio.to_thread(bundle_at, path)
        return Named(text, await _engine(release, bundle))
    if _PROPOSAL.match(text):
        return await engine_of_proposal(release, await release.review(text))
    if _VERSION.match(text):
        archive = await release.archive(BASE_ROLE, int(text))
        return Named(f"version {text}", await _engine(release, read_bundle(archive, role=BASE_ROLE)))
    raise InputError(
        Reason.NOT_FOUND,
        f"{text[:80]!r} is no folder or archive here, no proposal id and no version; see 'egm policy status'",
    )


async def engine_of_proposal(release: Release, reviewed: Reviewed) -> Named:
    """Compile what a proposal would put in force.

    Raises:
        InputError: INPUT_INVALID, for one that changes keys alone.
    """
    if reviewed.bundle is None:
        raise InputError(Reason.INPUT_INVALID, "this proposal changes keys, no policy: nothing to replay")
    title = f"proposal {reviewed.content.proposal.id}"
    return Named(title, await _engine(release, reviewed.bundle))


async def executions(
    client: OperatorClient,
    *,
    since_ms: int,
    until_ms: int = 0,
    most: int = limits.MAX_REPLAYED_EXECUTIONS,
    service: str = "",
    progress: Callable[[int], None] = lambda _count: None,
) -> Past:
    """Fetch executions of a time from the index, newest first.

    Args:
        client: asks the control plane.
        since_ms: Unix ms, inclusive.
        until_ms: Unix ms, exclusive; 0: to the end.
        most: at most so many.
        service: only of this one; empty: of all.
        progress: told how many there are so far.
    """
    found: list[Recorded] = []
    cursor = ""
    while len(found) < most:
        request = record_pb2.ListExecutionsRequest(
            limit=min(limits.MAX_EXECUTIONS_PAGE, most - len(found)),
            cursor=cursor,
            since_ms=since_ms,
            until_ms=until_ms,
            service=service,
        )
        answer = await client.executions(request)
        found += await asyncio.to_thread(_parsed, [entry.intent for entry in answer.entries])
        progress(len(found))
        cursor = answer.next_cursor
        if not cursor:
            break
    return Past(found, bool(cursor))


def _parsed(raw: list[bytes]) -> list[Recorded]:
    found = []
    for data in raw:
        record = parse_record(data)
        if not isinstance(record, Intent):
            raise EvidenceError(Reason.RECORD_MALFORMED, "the control plane sent an outcome as an intent")
        found.append(Recorded(record))
    return found


async def _engine(release: Release, bundle: Bundle) -> Engine:
    """Compile a bundle together with what is in force beside it."""
    in_force = await release.in_force()
    namespaces = dict(_namespaces(in_force))
    namespace = bundle.manifest.namespace
    if namespace is None:
        known = set() if bundle.mesh is None else {s.namespace for s in bundle.mesh.services.values()}
        beside = {name: one for name, one in namespaces.items() if name in known}
        return await asyncio.to_thread(Engine.build, bundle, beside)
    base = in_force.bundle(BASE_ROLE)
    if base is None:
        raise InputError(Reason.POLICY_MISSING, f"namespace {namespace} needs a base bundle in force")
    return await asyncio.to_thread(Engine.build, base, namespaces | {namespace: bundle})


def _namespaces(in_force: InForce) -> Mapping[str, Bundle]:
    if in_force.policy is None:
        return {}
    return {name: read_bundle(target.data, role=name) for name, target in in_force.policy.namespaces.items()}
