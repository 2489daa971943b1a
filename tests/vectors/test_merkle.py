"""The Merkle tree against published roots and proofs, and against every corruption of them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from trust.errors import EvidenceError, Reason
from trust.merkle import (
    EMPTY_ROOT,
    CompactTree,
    check_consistency,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_from_inclusion,
)

VECTORS = json.loads((Path(__file__).parent / "merkle.json").read_text())
LEAVES = [leaf_hash(bytes.fromhex(leaf)) for leaf in VECTORS["leaves"]]
ROOTS = [bytes.fromhex(root) for root in VECTORS["roots"]]
SOME = bytes.fromhex("abacaba000000000000000000000000000000000000000000060061e00123456")


def read(level: int, index: int) -> bytes:
    """The perfect subtrees of the vectors' tree."""
    if level == 0:
        return LEAVES[index]
    return node_hash(read(level - 1, 2 * index), read(level - 1, 2 * index + 1))


def decode(proof: Sequence[str]) -> list[bytes]:
    """Hashes from hexadecimal."""
    return [bytes.fromhex(value) for value in proof]


@pytest.mark.parametrize("size", range(9))
def test_roots_are_the_published_ones(size: int) -> None:
    """The compact tree agrees with transparency-dev/merkle at every size."""
    tree = CompactTree()
    for leaf in LEAVES[:size]:
        tree.append(leaf)
    assert (tree.size, tree.root()) == (size, ROOTS[size])


@pytest.mark.parametrize(("index", "size", "proof"), VECTORS["inclusion"])
def test_inclusion_proofs_are_made_and_accepted(index: int, size: int, proof: list[str]) -> None:
    """Our proof is theirs, and leads to the root."""
    assert list(inclusion_proof(index, size, read)) == decode(proof)
    assert root_from_inclusion(LEAVES[index], index, size, decode(proof)) == ROOTS[size]


@pytest.mark.parametrize(("size1", "size2", "proof"), VECTORS["consistency"])
def test_consistency_proofs_are_made_and_accepted(size1: int, size2: int, proof: list[str]) -> None:
    """Our proof is theirs, and verifies."""
    assert list(consistency_proof(size1, size2, read)) == decode(proof)
    check_consistency(size1, ROOTS[size1], size2, ROOTS[size2], decode(proof))


def flipped(proof: Sequence[bytes], bit: int) -> Iterator[list[bytes]]:
    """The proof with one bit wrong in each of its hashes."""
    for i, value in enumerate(proof):
        yield [*proof[:i], bytes([value[0] ^ bit]) + value[1:], *proof[i + 1 :]]


@pytest.mark.parametrize(("index", "size", "hexes"), VECTORS["inclusion"])
def test_every_corruption_of_an_inclusion_proof_is_refused(index: int, size: int, hexes: list[str]) -> None:
    """Wrong place, size, leaf, root, or a proof with more, fewer or other hashes."""
    root, leaf, proof = ROOTS[size], LEAVES[index], decode(hexes)
    cases: list[tuple[int, int, bytes, bytes, list[bytes]]] = [
        (index - 1, size, leaf, root, proof),
        (index + 1, size, leaf, root, proof),
        (index ^ 2, size, leaf, root, proof),
        (index, size * 2, leaf, root, proof),
        (index, size // 2, leaf, root, proof),
        (index, size, SOME, root, proof),
        (index, size, leaf, EMPTY_ROOT, proof),
        (index, size, leaf, root, [*proof, b""]),
        (index, size, leaf, root, [*proof, root]),
        (index, size, leaf, root, [b"", *proof]),
        (index, size, leaf, root, [root, *proof]),
        *((index, size, leaf, root, wrong) for wrong in flipped(proof, 8)),
    ]
    if proof:
        cases += [(index, size, leaf, root, proof[:-1]), (index, size, leaf, root, [SOME, *proof[1:]])]
    for i, n, hashed, expected, hashes in cases:
        try:
            assert root_from_inclusion(hashed, i, n, hashes) != expected
        except EvidenceError as error:
            assert error.reason is Reason.PROOF_INVALID


@pytest.mark.parametrize(("size1", "size2", "hexes"), [c for c in VECTORS["consistency"] if c[2]])
def test_every_corruption_of_a_consistency_proof_is_refused(size1: int, size2: int, hexes: list[str]) -> None:
    """Wrong sizes, roots, or a proof with more, fewer or other hashes."""
    root1, root2, proof = ROOTS[size1], ROOTS[size2], decode(hexes)
    cases = [
        (size1 - 1, size2, root1, root2, proof),
        (size1 + 1, size2, root1, root2, proof),
        (size1 ^ 2, size2, root1, root2, proof),
        (size1, size2 * 2, root1, root2, proof),
        (size1, size2 // 2, root1, root2, proof),
        (size1, size2, SOME, root2, proof),
        (size1, size2, root1, SOME, proof),
        (size1, size2, b"wrong", root2, proof),
        (size1, size2, root2, root1, proof),
        (size1, size2, root1, root2, []),
        *((size1, size2, root1, root2, [*proof, more]) for more in (b"", root1, root2)),
        *((size1, size2, root1, root2, [more, *proof]) for more in (b"", root1, root2, proof[0])),
        (size1, size2, root1, root2, proof[:-1]),
        *((size1, size2, root1, root2, wrong) for wrong in flipped(proof, 16)),
    ]
    for first, second, one, two, hashes in cases:
        with pytest.raises(EvidenceError, match="PROOF_INVALID"):
            check_consistency(first, one, second, two, hashes)


def test_an_empty_tree_has_one_root_and_every_tree_continues_it() -> None:
    """Size 0 proves nothing, so it must not carry an arbitrary root."""
    check_consistency(0, EMPTY_ROOT, 0, EMPTY_ROOT, [])
    check_consistency(0, EMPTY_ROOT, 5, ROOTS[5], [])
    for bad in ([0, SOME, 5, ROOTS[5], []], [0, EMPTY_ROOT, 5, ROOTS[5], [SOME]], [3, ROOTS[3], 3, SOME, []]):
        with pytest.raises(EvidenceError, match="PROOF_INVALID"):
            check_consistency(*bad)  # type: ignore[arg-type]
