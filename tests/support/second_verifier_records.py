"""The second verifier's reading of records: protobuf, RFC 6962 leaves and RFC 9162 proofs. No import of the product."""

import hashlib
from typing import Any

from tests.support.second_verifier_base import b64, need


def record_of(part: dict[str, Any], size: int, root: bytes) -> dict[str, Any]:
    """Return what a record says that is in the tree of `size` records with this root."""
    need(part.keys() == {"node", "index", "record", "proof"}, "members of a record")
    need(isinstance(part["proof"], list), "proof")
    data = b64(part["record"])
    leaf = hashlib.sha256(b"\0" + hashlib.sha256(data).digest()).digest()
    need(_root(leaf, part["index"], size, [b64(h) for h in part["proof"]]) == root, "inclusion proof")
    outer = _fields(data)
    if 2 in outer:
        record = _intent(_fields(outer[2]))
        need(outer.get(1) == (2 if record["permit"] else 1), "format of a record")
    else:
        record = _outcome(_fields(outer[3]))
        need(outer.get(1) == 1, "format of a record")
    need(record["node"] == part["node"], "node of a record")
    return record


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return value, at


def _fields(data: bytes) -> dict[int, Any]:
    """Field number to its last value: an integer, or bytes."""
    found: dict[int, Any] = {}
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        if tag & 7 == 0:
            found[tag >> 3], at = _varint(data, at)
        else:
            need(tag & 7 == 2, "wire type")
            size, at = _varint(data, at)
            need(at + size <= len(data), "truncated record")
            found[tag >> 3], at = data[at : at + size], at + size
    return found


def _intent(f: dict[int, Any]) -> dict[str, Any]:
    texts = {"caller": 7, "callee": 10, "method": 11, "node": 23, "boot": 24}
    values = {name: f.get(number, b"").decode() for name, number in texts.items()}
    raw = {"id": 1, "root": 2, "parent": 3, "parent_permit": 5, "request": 12, "sha256": 22, "permit": 33}
    values |= {name: f.get(number, b"") for name, number in raw.items()}
    numbers = {"side": 6, "version": 13, "allowed": 17, "level": 20, "wall": 25, "monotonic": 26}
    values |= {name: f.get(number, 0) for name, number in numbers.items()}
    return values | {"kind": "intent", "digest": f.get(14, b"").hex()}


def _outcome(f: dict[int, Any]) -> dict[str, Any]:
    values = {"kind": "outcome", "id": f[1], "side": f[2], "node": f[12].decode(), "boot": f[13].decode()}
    return values | {"wall": f.get(14, 0), "monotonic": f.get(15, 0)}


def _root(leaf: bytes, index: int, size: int, proof: list[bytes]) -> bytes:
    """RFC 9162, section 2.1.3.2."""
    need(type(index) is int and 0 <= index < size, "index")
    fn, sn, r = index, size - 1, leaf
    for p in proof:
        need(sn and len(p) == 32, "proof too long")
        if fn & 1 or fn == sn:
            r = hashlib.sha256(b"\1" + p + r).digest()
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = hashlib.sha256(b"\1" + r + p).digest()
        fn, sn = fn >> 1, sn >> 1
    need(sn == 0, "proof too short")
    return r
