"""Which public keys payloads may be sealed to: X25519, canonical, not of small order, each auditor's own.

Auditor keys are part of the signed settings of the mesh (`mesh.json`), so only the approvers' quorum says who can read
what policy asks to keep: neither the control plane nor a node can add a reader.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from trust import limits
from trust.compact import from_base64url, to_base64url
from trust.errors import EvidenceError, Reason
from trust.spiffe import check_name

KEY_BYTES: Final = 32
_P: Final = 2**255 - 19
# The u coordinates of the points whose order divides 8, on the curve and on its twist (RFC 7748, section 6.1).
# What is sealed to one of them anybody can open: the shared secret is zero.
_SMALL_ORDER_U: Final = frozenset(
    {
        0,
        1,
        _P - 1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    }
)


@dataclass(frozen=True)
class AuditorKey:
    """One auditor: a name, and 32 bytes of X25519 public key (RFC 7748). Make it with `parse_auditor_key`."""

    name: str
    public: bytes

    @property
    def text(self) -> str:
        """The key as `bundle.yaml` and `mesh.json` spell it: 43 characters of base64url."""
        return to_base64url(self.public)

    @cached_property
    def id(self) -> str:
        """The key's id in sealed payloads: its JWK thumbprint (RFC 7638, RFC 8037), base64url."""
        return key_id_of(self.public)


def key_id_of(public: bytes) -> str:
    """Return the JWK thumbprint (SHA-256, base64url, 43 characters) of an X25519 public key."""
    jwk = {"crv": "X25519", "kty": "OKP", "x": to_base64url(public)}
    return to_base64url(hashlib.sha256(json.dumps(jwk, separators=(",", ":")).encode()).digest())


def parse_auditor_key(name: str, text: str) -> AuditorKey:
    """Return the auditor `name` with the key that `text` spells.

    Raises:
        EvidenceError: KEY_UNSAFE, if payloads must not be sealed to it; IDENTITY_INVALID for a bad name.
    """
    check_name(name)
    try:
        public = from_base64url(text)
    except ValueError:
        public = b""
    if len(public) != KEY_BYTES:
        raise _unsafe(
            name, "is not 43 characters of base64url; 'egm keys show NAME.pub.json' prints what to write"
        )
    u = int.from_bytes(public, "little")
    if u >= _P:  # X25519 ignores the top bit and reduces: two spellings would be one key
        raise _unsafe(name, "is not canonically encoded")
    if u in _SMALL_ORDER_U:
        raise _unsafe(name, "is a point of small order: anybody could read what is sealed to it")
    return AuditorKey(name, public)


def parse_auditors(auditors: Mapping[str, str]) -> tuple[AuditorKey, ...]:
    """Return the auditors in the order of their names.

    Raises:
        EvidenceError: KEY_UNSAFE, for an unusable key, one key under two names, or more than
            `limits.MAX_AUDITORS`; IDENTITY_INVALID for a bad name.
    """
    if len(auditors) > limits.MAX_AUDITORS:
        raise EvidenceError(
            Reason.KEY_UNSAFE,
            f"{len(auditors)} auditors; at most {limits.MAX_AUDITORS} fit into a record",
        )
    keys = tuple(parse_auditor_key(name, auditors[name]) for name in sorted(auditors))
    seen: dict[bytes, str] = {}
    for key in keys:
        other = seen.setdefault(key.public, key.name)
        if other != key.name:
            raise EvidenceError(
                Reason.KEY_UNSAFE,
                f"auditors {other} and {key.name} have the same key; every auditor needs their own",
            )
    return keys


def _unsafe(name: str, what: str) -> EvidenceError:
    return EvidenceError(Reason.KEY_UNSAFE, f"the key of auditor {name} {what}")
