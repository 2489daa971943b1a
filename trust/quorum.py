"""Who of a role has signed, who is missing, and whether that is enough.

Signatures are counted per key material, never per key id.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signature
from tuf.api.metadata import Metadata, Root, Targets

from trust.errors import EvidenceError, Reason
from trust.keys import key_material, key_name


@dataclass(frozen=True, slots=True)
class Quorum:
    """The signatures of one role: `signed` and `missing` are key ids, one per distinct key, sorted."""

    threshold: int
    signed: tuple[str, ...]
    missing: tuple[str, ...]
    names: tuple[tuple[str, str], ...] = ()  # (key id, display name) of every key above, sorted

    @property
    def met(self) -> bool:
        """Whether enough distinct keys have signed."""
        return self.threshold >= 1 and len(self.signed) >= self.threshold

    def name(self, key_id: str) -> str:
        """Return the display name of a key id."""
        return dict(self.names).get(key_id, key_id[:12])

    def explain(self) -> str:
        """Say in one line who signed and who is missing."""
        signed = ", ".join(sorted(map(self.name, self.signed))) or "nobody"
        missing = ", ".join(sorted(map(self.name, self.missing))) or "nobody"
        return f"{len(self.signed)} of {self.threshold} signatures: signed by {signed}; not by {missing}"


def quorum_of(delegator: Root | Targets, role: str, metadata: Metadata[Any]) -> Quorum:
    """Return who signed `metadata` as `role`, according to `delegator`.

    Raises:
        EvidenceError: NOT_AUTHORIZED, if `delegator` does not know the role; KEY_UNSAFE, if one of
            its keys cannot be parsed.
    """
    return count_signatures(delegator, role, metadata.signed_bytes, metadata.signatures)


def count_signatures(
    delegator: Root | Targets, role: str, payload: bytes, signatures: Mapping[str, Signature]
) -> Quorum:
    """Return who signed the canonical bytes `payload` as `role`. Raises as `quorum_of`."""
    keys = keys_of(delegator, role)
    signed: dict[bytes, str] = {}
    for key_id, key in sorted(keys.items()):
        signature = signatures.get(key_id)
        if signature is not None and _verifies(key, signature, payload):
            signed.setdefault(key_material(key), key_id)
    missing: dict[bytes, str] = {}
    for key_id, key in sorted(keys.items()):
        if key_material(key) not in signed:
            missing.setdefault(key_material(key), key_id)
    return Quorum(
        threshold=delegator.get_delegated_role(role).threshold,
        signed=tuple(signed.values()),
        missing=tuple(missing.values()),
        names=tuple((key_id, key_name(key)) for key_id, key in sorted(keys.items())),
    )


def keys_of(delegator: Root | Targets, role: str) -> dict[str, Key]:
    """Return the keys that may sign `role`, by key id. Raises as `quorum_of`."""
    try:
        key_ids = delegator.get_delegated_role(role).keyids
        return {key_id: delegator.get_key(key_id) for key_id in key_ids}
    except ValueError:
        raise EvidenceError(Reason.NOT_AUTHORIZED, f"nobody may sign the role {role[:80]!r}") from None


def _verifies(key: Key, signature: Signature, payload: bytes) -> bool:
    try:
        key.verify_signature(signature, payload)
    except UnverifiedSignatureError:
        return False
    return True
