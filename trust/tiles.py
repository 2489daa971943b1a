"""Which file holds which hashes: C2SP tlog-tiles paths, tiles and entry bundles, and the tree read back from them."""

import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from trust.errors import EvidenceError, Reason
from trust.merkle import HASH_BYTES, MAX_SIZE, HashReader, fold_edge, leaf_hash

TILE_WIDTH: Final = 256  # hashes in a full tile
TILE_HEIGHT: Final = 8  # levels of the tree in one tile
MAX_TILE_LEVEL: Final = 63 // TILE_HEIGHT
MAX_TILE_BYTES: Final = TILE_WIDTH * (
    2 + HASH_BYTES
)  # an entry bundle of digests; tiles of hashes are smaller
CACHED_TILES: Final = 64  # by one reader; an expanded tile takes about 40 kB
ENTRIES: Final = -1  # the "level" of entry bundles

_PATH: Final = re.compile(
    r"tile/(?P<level>entries|0|[1-9][0-9]?)/(?P<index>(?:x[0-9]{3}/)*[0-9]{3})(?:\.p/(?P<width>[1-9][0-9]{0,2}))?\Z",
    re.ASCII,
)

# fetch(level, index, width) returns a tile of the disk or network; FileNotFoundError when it is not there
FetchTile = Callable[[int, int, int], bytes]


@dataclass(frozen=True, slots=True)
class Tile:
    """The name of a tile: `width` hashes of `level`, from tile number `index`. Level `ENTRIES`: an entry bundle."""

    level: int
    index: int
    width: int = TILE_WIDTH

    @property
    def path(self) -> str:
        """The path below the log's prefix, such as `tile/0/x001/234.p/17`."""
        digits = f"{self.index:03d}"
        digits = digits.zfill(-(-len(digits) // 3) * 3)
        groups = [digits[i : i + 3] for i in range(0, len(digits), 3)]
        number = "/".join([*(f"x{group}" for group in groups[:-1]), groups[-1]])
        level = "entries" if self.level == ENTRIES else str(self.level)
        return f"tile/{level}/{number}" + (f".p/{self.width}" if self.width < TILE_WIDTH else "")


def parse_tile_path(path: str) -> Tile:
    """Return the tile of a path.

    Raises:
        EvidenceError: PROOF_INVALID, for a path that no tile has.
    """
    found = _PATH.match(path)
    if found:
        level = ENTRIES if found["level"] == "entries" else int(found["level"])
        index = int(found["index"].replace("/", "").replace("x", ""))
        tile = Tile(level, index, int(found["width"] or TILE_WIDTH))
        partial_ok = found["width"] is None or tile.width < TILE_WIDTH
        if partial_ok and level <= 63 and tile.path == path and index <= MAX_SIZE:
            return tile
    raise EvidenceError(Reason.PROOF_INVALID, f"{path[:120]!r} is not the path of a tile")


def tile_width(level: int, index: int, size: int) -> int:
    """Return how many hashes tile `index` of `level` has in a tree of `size`: 0 (no such tile) to 256."""
    hashes = size >> (TILE_HEIGHT * max(level, 0))
    return max(0, min(TILE_WIDTH, hashes - index * TILE_WIDTH))


def partial_tiles(size: int) -> Iterator[Tile]:
    """Yield the partial tiles, and the partial entry bundle, of a tree of `size`."""
    for level in (ENTRIES, *range(MAX_TILE_LEVEL + 1)):
        hashes = size >> (TILE_HEIGHT * max(level, 0))
        if hashes % TILE_WIDTH:
            yield Tile(level, hashes // TILE_WIDTH, hashes % TILE_WIDTH)


def encode_entries(entries: Sequence[bytes]) -> bytes:
    """Return an entry bundle: each entry after its length, two bytes big-endian."""
    pack = struct.Struct(">H").pack
    return b"".join([pack(len(entry)) + entry for entry in entries])


def decode_entries(data: bytes, count: int) -> tuple[bytes, ...]:
    """Return the `count` entries of a bundle.

    Raises:
        EvidenceError: PROOF_INVALID, if the bytes are not exactly so many entries.
    """
    entries: list[bytes] = []
    at = 0
    while at < len(data) and len(entries) < count:
        length = int.from_bytes(data[at : at + 2], "big")
        entries.append(data[at + 2 : at + 2 + length])
        at += 2 + length
    if at != len(data) or len(entries) != count:
        raise EvidenceError(Reason.PROOF_INVALID, f"not an entry bundle of {count} entries")
    return tuple(entries)


class TileBuilder:
    """Grows the tree and yields each tile as it fills. Constant work per entry; memory grows with the logarithm.

    An entry is at most 65,535 bytes; here it is the SHA-256 of a record.
    """

    def __init__(self, size: int, read: HashReader, entries: Sequence[bytes]) -> None:
        """Continue a tree of `size`: `read` gives its hashes, `entries` the last `size % 256` entries."""
        self.size = size
        self.entries = list(entries)
        self._levels: list[list[bytes]] = []  # of each level, the hashes that do not fill a tile yet
        for level in range(MAX_TILE_LEVEL + 1):
            hashes = size >> (TILE_HEIGHT * level)
            first = hashes - hashes % TILE_WIDTH
            self._levels.append([read(TILE_HEIGHT * level, i) for i in range(first, hashes)])
        if len(self.entries) != size % TILE_WIDTH:
            raise ValueError(f"{len(self.entries)} entries do not fill the last bundle of size {size}")

    @classmethod
    def empty(cls) -> "TileBuilder":
        """Return the builder of a new tree."""
        return cls(0, lambda _level, _index: b"", ())

    def append(self, entry: bytes) -> list[tuple[Tile, bytes]]:
        """Add an entry; return the tiles that are full now, with their content. Mostly none."""
        self.entries.append(entry)
        self._levels[0].append(leaf_hash(entry))
        self.size += 1
        return [] if self.size % TILE_WIDTH else self._full_tiles()

    def extend(self, entries: Sequence[bytes]) -> list[tuple[Tile, bytes]]:
        """Add many entries, as `append` does one after the other; a little quicker."""
        full: list[tuple[Tile, bytes]] = []
        at = 0
        while at < len(entries):
            part = entries[at : at + TILE_WIDTH - len(self.entries)]
            self.entries += part
            self._levels[0] += [sha256(b"\x00" + entry).digest() for entry in part]
            self.size += len(part)
            at += len(part)
            if not self.size % TILE_WIDTH:
                full += self._full_tiles()
        return full

    def root(self) -> bytes:
        """Return the root hash of everything appended. At most 255 hashes per level of tiles."""
        edge: list[bytes] = []
        for hashes in reversed(self._levels):
            edge += _edge_of_hashes(hashes)
        return fold_edge(edge)

    def partial(self) -> list[tuple[Tile, bytes]]:
        """Return the partial tiles and the partial entry bundle of this size, with their content."""
        found = []
        for tile in partial_tiles(self.size):
            if tile.level == ENTRIES:
                found.append((tile, encode_entries(self.entries)))
            else:
                found.append((tile, b"".join(self._levels[tile.level])))
        return found

    def _full_tiles(self) -> list[tuple[Tile, bytes]]:
        index = self.size // TILE_WIDTH - 1
        full = [(Tile(ENTRIES, index), encode_entries(self.entries))]
        self.entries.clear()
        for level, hashes in enumerate(self._levels):
            if len(hashes) < TILE_WIDTH:
                break
            index = (self.size >> (TILE_HEIGHT * level)) // TILE_WIDTH - 1
            full.append((Tile(level, index), b"".join(hashes)))
            if level < MAX_TILE_LEVEL:
                self._levels[level + 1].append(tile_root(hashes))
            hashes.clear()
        return full


class TileTree:
    """A hash reader (`trust.merkle`) over tiles that are fetched when needed; the last used stay in memory.

    Tiles are not trusted: a proof made from wrong ones does not lead to the checkpoint's root.
    """

    def __init__(self, size: int, fetch: FetchTile, *, cached: int = CACHED_TILES) -> None:
        """Read the tree of `size` leaves; `cached` bounds the memory, in tiles."""
        self.size = size
        self._fetch = fetch
        self._cached = cached
        self._cache: OrderedDict[tuple[int, int], tuple[Sequence[bytes], ...]] = OrderedDict()

    def read(self, level: int, index: int) -> bytes:
        """Return the root of the perfect subtree of `1 << level` leaves at `index`.

        Raises:
            FileNotFoundError: a tile that it needs is not there.
            EvidenceError: PROOF_INVALID, for a tile of the wrong length or a subtree outside the tree.
        """
        if (index + 1) << level > self.size:
            raise EvidenceError(Reason.PROOF_INVALID, f"no such subtree in a tree of size {self.size}")
        tile_level, inner = divmod(level, TILE_HEIGHT)
        per_tile = TILE_HEIGHT - inner
        nodes = self._nodes(tile_level, index >> per_tile)
        return nodes[inner][index & ((1 << per_tile) - 1)]

    def _nodes(self, level: int, index: int) -> tuple[Sequence[bytes], ...]:
        """Every perfect subtree inside a tile, by height."""
        key = (level, index)
        found = self._cache.get(key)
        if found is None:
            found = expand_tile(self.hashes(level, index))
            self._cache[key] = found
            if len(self._cache) > self._cached:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(key)
        return found

    def hashes(self, level: int, index: int) -> tuple[bytes, ...]:
        """Return the hashes of one tile.

        A partial tile above level 0 that is not there is made from the full tiles below it.

        Raises:
            FileNotFoundError, EvidenceError: as `read`.
        """
        width = tile_width(level, index, self.size)
        try:
            data = self._fetch(level, index, width)
        except FileNotFoundError:
            if level == 0 or width == TILE_WIDTH:
                raise
            first = index * TILE_WIDTH
            return tuple(tile_root(self.hashes(level - 1, first + i)) for i in range(width))
        if len(data) != width * HASH_BYTES:
            raise EvidenceError(
                Reason.PROOF_INVALID,
                f"{Tile(level, index, width).path} has {len(data)} bytes instead of {width * HASH_BYTES}",
            )
        return tuple(data[i : i + HASH_BYTES] for i in range(0, len(data), HASH_BYTES))


def expand_tile(hashes: Sequence[bytes]) -> tuple[Sequence[bytes], ...]:
    """Return the perfect subtrees of a tile by height: the hashes themselves, their pairs, and so on."""
    levels = [hashes]
    while len(levels) < TILE_HEIGHT:
        levels.append(_pairs(levels[-1]))
    return tuple(levels)


def tile_root(hashes: Sequence[bytes]) -> bytes:
    """Return the root over the hashes of a full tile: one hash of the level above."""
    return _pairs(expand_tile(hashes)[-1])[0]


def _pairs(hashes: Sequence[bytes]) -> list[bytes]:
    """The nodes above pairs of neighbours (`node_hash`, written out: this is where the time goes)."""
    below = iter(hashes)
    return [sha256(b"\x01" + left + right).digest() for left, right in zip(below, below, strict=False)]


def _edge_of_hashes(hashes: Sequence[bytes]) -> list[bytes]:
    """The roots of the perfect subtrees over the hashes of a partial tile, largest first."""
    edge: list[bytes] = []
    rest = list(hashes)
    while rest:  # from the smallest: an odd one has no neighbour at its height
        if len(rest) % 2:
            edge.append(rest.pop())
        rest = _pairs(rest)
    edge.reverse()
    return edge
