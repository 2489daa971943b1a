"""Which bytes are one compact JWS and one JSON object: a single spelling of each, everything else is refused.

base64url has spare bits and JSON has duplicates, so two readers could see two things; here they cannot. Failures
are ValueError: the caller knows what the bytes were meant to be and says so.
"""

import binascii
import json
import re
from collections.abc import Sequence
from typing import Any, Final, NoReturn

# What the last character may be when 2 or 3 of 4 are there: its spare bits are zero.
_LAST: Final = {2: frozenset("AQgw"), 3: frozenset("AEIMQUYcgkosw048")}
_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")
_PADDING: Final = ("", "", "==", "=")
_SIGNATURE_CHARS: Final = 86  # 64 bytes in base64url
_MAX_NUMBER: Final = 2**40  # of seconds and versions
_UUID7: Final = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z"
)  # RFC 9562, section 5.7


def to_base64url(data: bytes) -> str:
    """Return base64url without padding (RFC 7515, appendix C)."""
    return binascii.b2a_base64(data, newline=False).translate(_URL_SAFE).rstrip(b"=").decode("ascii")


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


def split_token(token: str, max_bytes: int) -> tuple[str, str, str]:
    """Return header, body and signature of a compact JWS with an Ed25519 signature, still encoded.

    Raises:
        ValueError: it is none, or larger than `max_bytes`.
    """
    if len(token) > max_bytes:
        raise ValueError(f"it is larger than {max_bytes} bytes")
    parts = token.split(".")
    if len(parts) != 3 or not token.isascii():
        raise ValueError("it is not a compact JWS")
    header, body, signature = parts
    if len(signature) != _SIGNATURE_CHARS:
        raise ValueError("its signature has not 64 bytes")
    return header, body, signature


def text_claim(payload: dict[str, Any], name: str) -> str:
    """Return a text that is not empty, or raise ValueError."""
    value = payload[name]
    if not isinstance(value, str) or not value:
        raise ValueError(f"its {name} is not a text")
    return value


def number_claim(value: object, name: str) -> int:
    """Return a whole number of 0..2^40-1, or raise ValueError."""
    if type(value) is not int or not 0 <= value < _MAX_NUMBER:
        raise ValueError(f"its {name} is not a whole number in bounds")
    return value


def bytes_claim(value: object, size: int, name: str) -> bytes:
    """Return `size` bytes that are spelled in base64url, or raise ValueError."""
    if isinstance(value, str):
        try:
            data = from_base64url(value)
        except ValueError:
            data = b""
        if len(data) == size:
            return data
    raise ValueError(f"its {name} is not {size} bytes in base64url")


def uuid7_claim(value: object, name: str) -> bytes:
    """Return the 16 bytes of a UUIDv7 as RFC 9562 spells it, or raise ValueError."""
    if not isinstance(value, str) or _UUID7.match(value) is None:
        raise ValueError(f"its {name} is not a UUIDv7")
    return bytes.fromhex(value.replace("-", ""))


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


def members_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object of which no member is repeated: the `object_pairs_hook` of every strict reader here.

    Raises:
        ValueError: one is, so that two readers could see two things.
    """
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object repeats a key")
    return result


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:20]} is not an integer")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=members_once, parse_float=_no_number, parse_constant=_no_number
)
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
