"""Whether a leaf is in a tree, and whether one tree continues another (RFC 6962 section 2.1, RFC 9162 section 2.1).

A hash reader gives the root of any *perfect* subtree: `read(level, index)` covers the leaves
`index << level` to `(index + 1) << level`. From it every root and proof of every earlier size follows.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from trust.errors import EvidenceError, Reason

HASH_BYTES: Final = 32
MAX_SIZE: Final = 2**63 - 1  # leaves
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()

HashReader = Callable[[int, int], bytes]


def leaf_hash(entry: bytes) -> bytes:
    """Return the hash of a leaf, 32 bytes."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node, 32 bytes."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class CompactTree:
    """The right edge of a growing tree: enough to append and to know the root, never more than 63 hashes."""

    def __init__(self, size: int = 0, edge: Iterable[bytes] = ()) -> None:
        """Continue a tree of `size` leaves; `edge` has the roots of its perfect subtrees, largest first.

        Raises:
            EvidenceError: PROOF_INVALID, if the edge does not fit the size.
        """
        self._size, self._edge = size, list(edge)
        if not 0 <= size <= MAX_SIZE or len(self._edge) != size.bit_count():
            raise _invalid(f"{len(self._edge)} hashes are not the edge of a tree of size {size}")
        _check_hashes(self._edge)

    @property
    def size(self) -> int:
        """The number of leaves."""
        return self._size

    @property
    def edge(self) -> tuple[bytes, ...]:
        """The roots of the perfect subtrees, largest first."""
        return tuple(self._edge)

    def append(self, leaf: bytes) -> None:
        """Add a leaf hash (see `leaf_hash`). Two hashes on average, 63 at most."""
        carry, edge = self._size, self._edge
        while carry & 1:
            leaf = node_hash(edge.pop(), leaf)
            carry >>= 1
        edge.append(leaf)
        self._size += 1

    def root(self) -> bytes:
        """Return the root hash, 32 bytes."""
        return fold_edge(self._edge)


def fold_edge(edge: Sequence[bytes]) -> bytes:
    """Return the root over perfect subtrees, largest first; EMPTY_ROOT for none."""
    if not edge:
        return EMPTY_ROOT
    root = edge[-1]
    for left in reversed(edge[:-1]):
        root = node_hash(left, root)
    return root


def edge_of(size: int, read: HashReader) -> tuple[bytes, ...]:
    """Return the roots of the perfect subtrees of a tree of `size`, largest first."""
    return tuple(read(level, start >> level) for start, level in _perfect(0, size))


def root_of(size: int, read: HashReader) -> bytes:
    """Return the root of the tree's first `size` leaves."""
    return fold_edge(edge_of(size, read))


def inclusion_proof(index: int, size: int, read: HashReader) -> tuple[bytes, ...]:
    """Return the sibling hashes of leaf `index` in the tree of `size`, leaf to root, at most 63.

    Raises:
        EvidenceError: PROOF_INVALID, unless 0 <= index < size.
    """
    if not 0 <= index < size <= MAX_SIZE:
        raise _invalid(f"a tree of size {size} has no leaf {index}")
    proof, low, high = [], 0, size
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            proof.append(_range_root(middle, high, read))
            high = middle
        else:
            proof.append(_range_root(low, middle, read))
            low = middle
    return tuple(reversed(proof))


def consistency_proof(size1: int, size2: int, read: HashReader) -> tuple[bytes, ...]:
    """Return the hashes that show that the tree of `size2` continues the one of `size1`, at most 64.

    Empty when size1 is 0 or equal to size2.

    Raises:
        EvidenceError: PROOF_INVALID, unless 0 <= size1 <= size2.
    """
    if not 0 <= size1 <= size2 <= MAX_SIZE:
        raise _invalid(f"a tree cannot grow from size {size1} to {size2}")
    if size1 in {0, size2}:
        return ()
    proof, low, high, whole = [], 0, size2, True
    while size1 != high:
        middle = low + _split(high - low)
        if size1 <= middle:
            proof.append(_range_root(middle, high, read))
            high = middle
        else:
            proof.append(_range_root(low, middle, read))
            low, whole = middle, False
    if not whole:  # else the verifier has this hash already: it is the old root
        proof.append(_range_root(low, high, read))
    return tuple(reversed(proof))


def root_from_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes:
    """Return the root implied by an inclusion proof (RFC 9162 section 2.1.3.2).

    The caller must compare the result with a root from a verified checkpoint;
    on its own this proves nothing.

    Args:
        leaf: leaf hash, 32 bytes (not the entry: see `leaf_hash`).
        index: 0-based position of the leaf, 0 <= index < size.
        size: number of leaves in the tree, 1..2**63-1.
        proof: sibling hashes, 32 bytes each, leaf to root, at most 63.

    Raises:
        EvidenceError: PROOF_INVALID, if index or length cannot fit a tree of `size`.
            Never for a wrong hash: that is a wrong root.
    """
    if not 0 <= index < size <= MAX_SIZE:
        raise _invalid(f"a tree of size {size} has no leaf {index}")
    _check_hashes([leaf, *proof])
    node, last, root = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise _invalid(f"{len(proof)} hashes are too many for leaf {index} of {size}")
        if node & 1 or node == last:
            root = node_hash(sibling, root)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            root = node_hash(root, sibling)
        node, last = node >> 1, last >> 1
    if last:
        raise _invalid(f"{len(proof)} hashes are too few for leaf {index} of {size}")
    return root


def check_consistency(size1: int, root1: bytes, size2: int, root2: bytes, proof: Sequence[bytes]) -> None:
    """Accept if the tree (size2, root2) continues (size1, root1) (RFC 9162 section 2.1.4.2).

    The empty tree has one root, `EMPTY_ROOT`, and every tree continues it with an empty proof.

    Raises:
        EvidenceError: PROOF_INVALID, saying what does not fit.
    """
    if not 0 <= size1 <= size2 <= MAX_SIZE:
        raise _invalid(f"a tree cannot grow from size {size1} to {size2}")
    _check_hashes([root1, root2, *proof])
    for size, root in ((size1, root1), (size2, root2)):
        if size == 0 and root != EMPTY_ROOT:
            raise _invalid("an empty tree has another root")
    if size1 in {0, size2}:
        if proof:
            raise _invalid(f"from size {size1} to {size2} the proof is empty, not {len(proof)} hashes")
        if size1 == size2 and root1 != root2:
            raise _invalid(f"two different roots at size {size1}")
        return
    old, new = _grow(size1, size2, [root1, *proof] if size1.bit_count() == 1 else list(proof))
    if old != root1:
        raise _invalid(f"the proof is not about the root at size {size1}")
    if new != root2:
        raise _invalid(f"the tree of size {size2} does not continue the one of size {size1}")


def grown_roots(size1: int, root1: bytes, size2: int, proof: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Return the roots at `size1` and at `size2` that a consistency proof implies, whatever they should be.

    Where the second is that of a signed tree head, the first is what that tree has at `size1` (unless `size1` is a
    power of two: then the proof begins with `root1` itself and says nothing of its own).

    Raises:
        EvidenceError: PROOF_INVALID, unless 0 < size1 < size2 and the proof has the right length.
    """
    if not 0 < size1 < size2 <= MAX_SIZE:
        raise _invalid(f"no proof is needed from size {size1} to {size2}")
    _check_hashes([root1, *proof])
    return _grow(size1, size2, [root1, *proof] if size1.bit_count() == 1 else list(proof))


def _grow(size1: int, size2: int, path: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Return the old and the new root that a consistency path implies."""
    if not path:
        raise _invalid(f"no hashes to grow from size {size1} to {size2}")
    node, last = size1 - 1, size2 - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise _invalid("the proof has too many hashes")
        if node & 1 or node == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        node, last = node >> 1, last >> 1
    if last:
        raise _invalid("the proof has too few hashes")
    return old, new


def _split(width: int) -> int:
    """The largest power of two below `width`."""
    return 1 << (width - 1).bit_length() - 1


def _perfect(low: int, high: int) -> Iterable[tuple[int, int]]:
    """The perfect subtrees of a range that starts on a multiple of its widest: (first leaf, level)."""
    while low < high:
        level = (high - low).bit_length() - 1
        yield low, level
        low += 1 << level


def _range_root(low: int, high: int, read: HashReader) -> bytes:
    return fold_edge([read(level, start >> level) for start, level in _perfect(low, high)])


def _check_hashes(hashes: Iterable[bytes]) -> None:
    for value in hashes:
        if len(value) != HASH_BYTES:
            raise _invalid(f"a hash of {len(value)} bytes; it has {HASH_BYTES}")


def _invalid(what: str) -> EvidenceError:
    return EvidenceError(Reason.PROOF_INVALID, what)
