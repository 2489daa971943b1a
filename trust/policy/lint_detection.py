"""Answers to incidents that could never be given."""

from collections.abc import Iterator

from trust.detection import Action
from trust.mesh import MeshSettings

Where = tuple[str | int, ...]


def detection_problems(mesh: MeshSettings) -> Iterator[tuple[Where, str, str]]:
    """Yield what cannot work of `detection`: where it is, what is wrong, what to do."""
    settings = mesh.detection
    if settings is None:
        return
    if settings.respond and settings.restricting() and not mesh.emergency_keys:
        hint = "name the responder's key under emergency_keys, or set respond: false"
        what = "nothing can be done about an incident without an emergency key"
        yield ("detection", "respond"), what, hint
    longest_s = mesh.revocation_max_ttl_s
    for number, rule in enumerate(settings.responses):
        where: Where = ("detection", "responses", number)
        if rule.ttl_s > longest_s and set(rule.do) - {Action.ALERT}:
            what = f"{rule.ttl_s} s is longer than a directive may last ({longest_s} s)"
            yield (*where, "ttl_s"), what, "shorten it, or raise revocation_max_ttl_s"
        count, _, group = rule.approval.partition(" of ")
        if group and len(mesh.approver_groups.get(group, {})) < int(count):
            what = f"approver group {group!r} has not {count} approvers, so no call could ever be approved"
            yield (*where, "approval"), what, "name them under approver_groups"
        if rule.on in settings.off:
            yield (*where, "on"), f"{rule.on} is off, so this never happens", "remove one of the two"
