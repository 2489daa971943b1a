"""Decides what `context` says of one call: the parts that policies can read, as true as the whole would be."""

from collections.abc import Mapping
from typing import Final

from trust import limits
from trust.errors import EvidenceError, Reason
from trust.policy.descriptors import MethodInfo
from trust.policy.reads import Tree
from trust.policy.request_context import Json, Project, datetime_json
from trust.policy.types import Call

_MS_PER_HOUR: Final = 3_600_000
_MS_PER_DAY: Final = 24 * _MS_PER_HOUR


def build_context(
    wanted: Tree | None,
    call: Call,
    now_ms: int,
    *,
    metadata_keys: frozenset[str],
    request: tuple[MethodInfo, Project] | None,
) -> dict[str, Json]:
    """Return the Cedar JSON of `context`, attributes outside `wanted` left out (None: everything).

    Args:
        wanted: what policies can read, from `trust.policy.reads`.
        call: the call.
        now_ms: Unix time.
        metadata_keys: the signed keys; others are never shown.
        request: how to read the request message; None when there is none that policies could read.

    Raises:
        EvidenceError: REQUEST_UNREPRESENTABLE.
    """
    context: dict[str, Json] = {}
    if request is not None and (wanted is None or "request" in wanted):
        info, project = request
        if (
            call.request is None
        ):  # `forbid ... when { context has request && ... }` must not be dodged by leaving it out
            detail = f"policies read the request of {call.method}, and none was given"
            raise EvidenceError(Reason.REQUEST_UNREPRESENTABLE, detail)
        context["request"] = project(info.decode(call.request))
    if wanted is None or "caller" in wanted:
        domain = call.principal.removeprefix("spiffe://").partition("/")[0]
        caller = {"authn": str(call.authn), "trust_domain": domain}
        context["caller"] = _only(None if wanted is None else wanted["caller"], caller)
    if wanted is None or "node" in wanted:
        node = {"name": call.node, "level": int(call.level)}
        context["node"] = _only(None if wanted is None else wanted["node"], node)
    if wanted is None or "time" in wanted:
        context["time"] = _time(None if wanted is None else wanted["time"], now_ms)
    if wanted is None or "metadata" in wanted:
        shown = metadata_keys if wanted is None else _below(wanted["metadata"], metadata_keys)
        context["metadata"] = _metadata(shown, call.metadata)
    return context


def _only(wanted: Tree | None, record: dict[str, Json]) -> dict[str, Json]:
    return record if wanted is None else {name: record[name] for name in record if name in wanted}


def _time(wanted: Tree | None, now_ms: int) -> dict[str, Json]:
    shown: dict[str, Json] = {}
    if wanted is None or "now" in wanted:
        shown["now"] = datetime_json(now_ms)
    if wanted is None or "hour" in wanted:
        shown["hour"] = now_ms % _MS_PER_DAY // _MS_PER_HOUR
    if wanted is None or "weekday" in wanted:
        shown["weekday"] = (now_ms // _MS_PER_DAY + 3) % 7 + 1  # the epoch was a Thursday
    return shown


def _below(wanted: Tree | None, keys: frozenset[str]) -> frozenset[str]:
    return keys if wanted is None else keys.intersection(wanted)


def _metadata(keys: frozenset[str], metadata: Mapping[str, str]) -> dict[str, Json]:
    shown: dict[str, Json] = {}
    for key in sorted(keys.intersection(metadata)):
        if len(metadata[key].encode("utf-8", "surrogatepass")) > limits.MAX_METADATA_VALUE_BYTES:
            detail = f"metadata {key} is longer than {limits.MAX_METADATA_VALUE_BYTES} bytes"
            raise EvidenceError(Reason.REQUEST_UNREPRESENTABLE, detail)
        shown[key] = metadata[key]
    return shown
