"""What changes when one version of signed metadata replaces another: who may sign what, and until when.

A bundle's difference says what calls become possible. This says the rest of what a signature covers: a delegation
or a key smuggled in beside a harmless policy change would hand the policy to somebody else.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from securesystemslib.signer import Key
from tuf.api.metadata import Root, Targets

from trust.keys import key_name
from trust.metadata import is_development, trust_domain_of


@dataclass(frozen=True, slots=True)
class HolderChange:
    """One line of what changes; `before` and `after` are for people, empty when there is none."""

    what: str  # "approvers of namespace payments", "threshold of root", "expires"
    before: str
    after: str


def holder_changes(before: Root | Targets | None, after: Root | Targets) -> list[HolderChange]:
    """Return every holder, threshold and namespace that differs, and the new expiry (always said).

    Args:
        before: what is in force; None when nothing is.
        after: what is proposed, of the same type.
    """
    old, new = {} if before is None else _facts(before), _facts(after)
    changes = [
        HolderChange(what, old.get(what, ""), new.get(what, ""))
        for what in sorted(old.keys() | new.keys())
        if old.get(what) != new.get(what)
    ]
    ended = "" if before is None else f"{before.expires:%Y-%m-%d %H:%M} UTC"
    return [*changes, HolderChange("expires", ended, f"{after.expires:%Y-%m-%d %H:%M} UTC")]


def _facts(signed: Root | Targets) -> dict[str, str]:
    if isinstance(signed, Root):
        facts = {
            "trust domain": trust_domain_of(signed) or "",
            "development domain": "yes" if is_development(signed) else "no",
        }
        for name, role in signed.roles.items():
            facts |= _holders(f"role {name}", role.keyids, role.threshold, signed.keys)
        return facts
    facts = {}
    delegations = signed.delegations
    for name, delegated in ({} if delegations is None else delegations.roles or {}).items():
        keys = {} if delegations is None else delegations.keys
        facts |= _holders(f"namespace {name}", delegated.keyids, delegated.threshold, keys)
    return facts


def _holders(whose: str, key_ids: list[str], threshold: int, keys: Mapping[str, Key]) -> dict[str, str]:
    facts = {f"{whose}: signatures needed": f"{threshold} of {len(key_ids)}"}
    for key_id in key_ids:
        key = keys[key_id]
        # the whole key, not its id alone: an id is only a label
        facts[f"{whose}: key {key_id}"] = f"{key_name(key)} ({key.scheme} {key.keyval['public']})"
    return facts
