"""The tree, its tiles and its proofs agree with the definition of RFC 6962, at every size."""

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trust.errors import EvidenceError
from trust.merkle import (
    EMPTY_ROOT,
    CompactTree,
    check_consistency,
    consistency_proof,
    edge_of,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_from_inclusion,
    root_of,
)
from trust.tiles import TileBuilder, TileTree, decode_entries, encode_entries, parse_tile_path, partial_tiles

ENTRIES = [hashlib.sha256(str(i).encode()).digest() for i in range(1400)]
LEAVES = [leaf_hash(entry) for entry in ENTRIES]
SIZES = st.one_of(st.integers(0, len(ENTRIES)), st.sampled_from([255, 256, 257, 511, 512, 513, 1024]))


def mth(leaves: Sequence[bytes]) -> bytes:
    """The definition, RFC 6962 section 2.1."""
    if not leaves:
        return EMPTY_ROOT
    if len(leaves) == 1:
        return leaves[0]
    k = 1 << (len(leaves) - 1).bit_length() - 1
    return node_hash(mth(leaves[:k]), mth(leaves[k:]))


def store(size: int, *, partial: bool = True) -> dict[str, bytes]:
    """The tiles of a tree, by path."""
    builder = TileBuilder.empty()
    files: dict[str, bytes] = {}
    for entry in ENTRIES[:size]:
        files |= {tile.path: data for tile, data in builder.append(entry)}
    if partial:
        files |= {tile.path: data for tile, data in builder.partial()}
    return files


def tree(size: int, files: dict[str, bytes]) -> TileTree:
    """A reader of these files that knows nothing else."""

    def fetch(level: int, index: int, width: int) -> bytes:
        path = f"tile/{level}/{index:03d}" + (f".p/{width}" if width < 256 else "")
        if path not in files:
            raise FileNotFoundError(path)
        return files[path]

    return TileTree(size, fetch)


@settings(deadline=None, max_examples=40)
@given(size=SIZES, data=st.data())
def test_tiles_give_every_root_and_proof_of_every_earlier_size(size: int, data: st.DataObject) -> None:
    """Whatever is read from tiles is what the definition says."""
    read = tree(size, store(size)).read
    earlier = data.draw(st.integers(0, size))
    root, old = mth(LEAVES[:size]), mth(LEAVES[:earlier])
    assert root_of(size, read) == root
    assert root_of(earlier, read) == old
    proof = consistency_proof(earlier, size, read)
    check_consistency(earlier, old, size, root, proof)
    for i in range(len(proof)):
        with pytest.raises(EvidenceError):
            check_consistency(earlier, old, size, root, [*proof[:i], ENTRIES[0], *proof[i + 1 :]])
    if earlier:
        index = data.draw(st.integers(0, earlier - 1))
        path = inclusion_proof(index, earlier, read)
        assert root_from_inclusion(LEAVES[index], index, earlier, path) == old


@settings(deadline=None, max_examples=40)
@given(size=SIZES, more=st.integers(0, 600))
def test_a_builder_continues_where_its_tiles_end(size: int, more: int) -> None:
    """After a restart the next tiles are the ones that an uninterrupted builder makes."""
    end = min(size + more, len(ENTRIES))
    start = store(size)
    builder = TileBuilder(size, tree(size, start).read, ENTRIES[size - size % 256 : size])
    files = store(size, partial=False)
    for entry in ENTRIES[size:end]:
        files |= {tile.path: data for tile, data in builder.append(entry)}
    files |= {tile.path: data for tile, data in builder.partial()}
    assert files == store(end)
    assert builder.root() == mth(LEAVES[:end])


@settings(deadline=None, max_examples=20)
@given(size=st.integers(1, 5).map(lambda n: n * 256))
def test_a_missing_partial_tile_is_made_from_the_full_ones_below(size: int) -> None:
    """Only full tiles need to survive a crash."""
    assert root_of(size, tree(size, store(size, partial=False)).read) == mth(LEAVES[:size])


@settings(deadline=None)
@given(size=SIZES)
def test_a_compact_tree_continues_from_its_edge(size: int) -> None:
    """The right edge is all that appending needs."""
    read = tree(size, store(size)).read
    grown = CompactTree(size, edge_of(size, read))
    assert grown.root() == mth(LEAVES[:size])
    grown.append(ENTRIES[0])
    assert grown.root() == mth([*LEAVES[:size], ENTRIES[0]])


@given(entries=st.lists(st.binary(max_size=70), max_size=5))
def test_entry_bundles_round_trip(entries: list[bytes]) -> None:
    """And one entry more or less is refused."""
    data = encode_entries(entries)
    assert list(decode_entries(data, len(entries))) == entries
    for count in (len(entries) - 1, len(entries) + 1):
        with pytest.raises(EvidenceError):
            decode_entries(data, count)


@given(size=st.integers(0, 2**63 - 1))
def test_names_of_partial_tiles_round_trip(size: int) -> None:
    """Every partial tile has one path."""
    for tile in partial_tiles(size):
        assert parse_tile_path(tile.path) == tile
