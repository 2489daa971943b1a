"""Which bytes are one compact JWS and one JSON object: a single spelling of each, everything else is refused.

base64url has spare bits and JSON has duplicates, so two readers could see two things; here they cannot. Failures
are ValueError: the caller knows what the bytes were meant to be and says so.
"""

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Any, Final, NoReturn

# What the last character may be when 2 or 3 of 4 are there: its spare bits are zero.
_LAST: Final = {2: frozenset("AQgw"), 3: frozenset("AEIMQUYcgkosw048")}
_PADDING: Final = ("", "", "==", "=")


def to_base64url(data: bytes) -> str:
    """Return base64url without padding (RFC 7515, appendix C)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def from_base64url(text: str) -> bytes:
    """Return what `text` encodes, if it is exactly what `to_base64url` would write.

    Raises:
        ValueError: another alphabet, padding, whitespace, or spare bits that are not zero.
    """
    over = len(text) % 4
    if over == 1 or "+" in text or "/" in text or "=" in text or (over and text[-1] not in _LAST[over]):
        raise ValueError("not canonical base64url")
    try:
        padded = text.replace("-", "+").replace("_", "/") + _PADDING[over]
        return binascii.a2b_base64(padded, strict_mode=True)
    except ValueError:  # binascii.Error is one; so is what it says of other than ASCII
        raise ValueError("not base64url") from None


def parse_object(data: bytes) -> dict[str, Any]:
    """Return the JSON object that `data` holds; every object in it has each member once.

    Raises:
        ValueError: no JSON object, not ASCII, a repeated member, or a number that is no integer.
        RecursionError: nested too deeply.
    """
    value = _DECODER.decode(data.decode("ascii"))
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def write_object(value: dict[str, Any]) -> bytes:
    """Return `value` as ASCII JSON without spaces, members in the given order."""
    return _ENCODER.encode(value).encode("ascii")


def _members_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("repeated member")
    return result


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:20]} is not an integer")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_members_once, parse_float=_no_number, parse_constant=_no_number
)
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
