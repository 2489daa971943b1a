"""The second verifier's consistency proofs: the ledgers of a file continue the tree heads in its credentials."""

import base64
import hashlib
import json
from typing import Any

from tests.support.second_verifier_base import b64, need, ordered


def check_links(
    credentials: list[bytes], links: list[dict[str, Any]], trees: dict[str, tuple[int, bytes]]
) -> None:
    """Verify the tree head of every credential of a node of the file; each link is used."""
    ordered([(one["node"], one["size"]) for one in links])
    by_head = {(one["node"], one["size"]): one for one in links}
    used = set()
    for data in credentials:
        payload = b64(json.loads(data.decode("ascii"))["evidence"]["payload"])
        said = json.loads(payload.decode("ascii"))["predicate"]
        node = said["sub"].rpartition("/")[2]
        if node not in trees:
            continue
        _, number, root_text = said["checkpoint"].split("\n")[:3]
        size, root = int(number), base64.b64decode(root_text)
        held_size, held_root = trees[node]
        need(size <= held_size, "a ledger shorter than the one that was witnessed")
        if size in {0, held_size}:
            need(size == 0 or root == held_root, "another ledger than the one that was witnessed")
            continue
        link = by_head[node, size]
        need(
            link.keys() == {"node", "size", "proof"} and isinstance(link["proof"], list), "members of a link"
        )
        _consistent(size, root, held_size, held_root, [b64(one) for one in link["proof"]])
        used.add((node, size))
    need(used == by_head.keys(), "links are not those of credentials")


def _consistent(first: int, first_root: bytes, second: int, second_root: bytes, path: list[bytes]) -> None:
    """RFC 9162, section 2.1.4.2."""
    need(path and all(len(one) == 32 for one in path), "a consistency proof")
    if first & (first - 1) == 0:
        path = [first_root, *path]
    fn, sn = first - 1, second - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = path[0]
    for one in path[1:]:
        need(sn, "a consistency proof that is too long")
        if fn & 1 or fn == sn:
            fr, sr = hashlib.sha256(b"\1" + one + fr).digest(), hashlib.sha256(b"\1" + one + sr).digest()
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = hashlib.sha256(b"\1" + sr + one).digest()
        fn, sn = fn >> 1, sn >> 1
    need(sn == 0 and (fr, sr) == (first_root, second_root), "a ledger does not continue the witnessed one")
