"""What an announcement is: a hint that newer policy exists. It decides when to look, never what to enforce.

An announcement is the signed `timestamp.json`, verbatim, on one retained topic of the trust domain. Brokers
and streams are untrusted: everything read here is unverified, and acting on it means asking the TUF client.
"""

import json
import re
from dataclasses import dataclass
from typing import Final

from trust import limits
from trust.errors import EvidenceError, InputError, Reason
from trust.spiffe import check_trust_domain

# TUF versions are unbounded integers; a larger one is a forgery meant to make every later hint look old.
MAX_ANNOUNCED_VERSION: Final = 2**53 - 1
_TOPIC = re.compile(r"egm/v1/[a-z0-9._-]{1,255}/(?:policy|denials|alerts)\Z")
_VERSION = re.compile(r"-?[0-9]{1,17}\Z")


@dataclass(frozen=True, slots=True)
class Announced:
    """An unverified claim that `version` of timestamp.json exists; `raw` is what was received."""

    version: int
    raw: bytes


def topic(trust_domain: str) -> str:
    """Return the MQTT topic of the trust domain's announcements, `egm/v1/<trust domain>/policy`.

    Raises:
        EvidenceError: IDENTITY_INVALID; a name with `/`, `+` or `#` could otherwise reach other topics.
    """
    return f"egm/v1/{check_trust_domain(trust_domain)}/policy"


def denials_topic(trust_domain: str) -> str:
    """Return the MQTT topic of what is revoked and proven, `egm/v1/<trust domain>/denials`. Raises as `topic`."""
    return f"egm/v1/{check_trust_domain(trust_domain)}/denials"


def is_topic(text: str) -> bool:
    """Whether `text` is a topic of some trust domain, literally: no wildcards."""
    return bool(_TOPIC.match(text))


def check_payload(payload: bytes) -> bytes:
    """Return `payload` if it may be announced: not empty (that erases a retained message), within the limit.

    Raises:
        InputError: INPUT_INVALID, with the size and the limit.
    """
    if not 0 < len(payload) <= limits.MAX_ANNOUNCEMENT_BYTES:
        raise InputError(
            Reason.INPUT_INVALID,
            f"an announcement has 1 to {limits.MAX_ANNOUNCEMENT_BYTES} bytes, this one has {len(payload)}",
        )
    return payload


def parse_announcement(payload: bytes) -> Announced:
    """Read the version that an announcement claims. Total: any bytes give an `Announced` or an error.

    Nothing is verified: the signature is checked when the file is fetched.

    Args:
        payload: bytes as received, at most `limits.MAX_ANNOUNCEMENT_BYTES`.

    Raises:
        EvidenceError: METADATA_INVALID.
    """
    if len(payload) > limits.MAX_ANNOUNCEMENT_BYTES:
        raise _garbage(f"{len(payload)} bytes, the limit is {limits.MAX_ANNOUNCEMENT_BYTES}")
    try:
        document = json.loads(payload.decode("utf-8"), parse_int=_bounded_int)
    except (ValueError, RecursionError):  # ValueError: not UTF-8, not JSON, or a number too long to read
        raise _garbage("not JSON") from None
    signed = document.get("signed") if isinstance(document, dict) else None
    if not isinstance(signed, dict) or signed.get("_type") != "timestamp":
        raise _garbage("not TUF timestamp metadata")
    version = signed.get("version")
    if type(version) is not int or not 1 <= version <= MAX_ANNOUNCED_VERSION:  # bool is an int: exact type
        raise _garbage("its version is not a positive whole number")
    return Announced(version, payload)


def _bounded_int(text: str) -> int:
    if not _VERSION.match(text):
        raise ValueError("number too long")
    return int(text)


def _garbage(what: str) -> EvidenceError:
    return EvidenceError(Reason.METADATA_INVALID, f"announcement ignored: {what}")
