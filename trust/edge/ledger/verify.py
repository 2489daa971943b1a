"""Whether a whole ledger is what its checkpoint says: every byte is read once, every problem is named."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from trust.checkpoint import open_checkpoint
from trust.edge.ledger import layout, segments
from trust.edge.ledger.place import Place
from trust.edge.ledger.reader import Reader
from trust.edge.ledger.segments import DamageError
from trust.errors import EvidenceError, MeshError, Reason
from trust.merkle import HASH_BYTES
from trust.note import Verifier
from trust.tiles import ENTRIES, TILE_HEIGHT, TILE_WIDTH, Tile, TileBuilder, parse_tile_path


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: the file, or the record in it, and what is wrong with it."""

    where: str
    what: str


@dataclass(slots=True)
class Verification:
    """What was found. `signer`: the key that the checkpoint's signature was checked with, or None.

    `known_key`: whether that key was given by the caller; if not, it is the one that the ledger itself names, and a
    forger could have named another.
    """

    origin: str = ""
    size: int = 0
    root: bytes = b""
    records: int = 0
    signer: str | None = None
    known_key: bool = False
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings


def verify(
    directory: Path, *, key: Verifier | None = None, archives: Sequence[Path | Place] = ()
) -> Verification:
    """Read the whole ledger and hold records, tiles and checkpoint against each other.

    Memory does not grow with the ledger. A running ledger may be verified; what it appends meanwhile is not looked at.

    Args:
        key: the log's key, if known from elsewhere.

    Raises:
        InputError: NOT_FOUND, if there is no ledger.
        StateError: SOURCE_UNAVAILABLE, when an archive does not answer: whether it fits is then unknown.
    """
    found = Verification()
    try:
        reader = Reader(directory, archives=archives)
    except EvidenceError as error:
        found.findings.append(Finding(layout.CHECKPOINT, error.detail))
        return found
    head = reader.checkpoint
    found.origin, found.size, found.root = head.origin, head.size, head.root
    _check_signature(found, reader, key)
    _Walk(reader, found).run()
    return found


def _check_signature(found: Verification, reader: Reader, key: Verifier | None) -> None:
    found.known_key = key is not None
    try:
        own = key or Verifier.parse((reader.directory / layout.KEY).read_text("utf-8").removesuffix("\n"))
        open_checkpoint(reader.checkpoint_note, own)
        found.signer = own.encode()
    except (EvidenceError, UnicodeDecodeError) as error:
        detail = error.detail if isinstance(error, MeshError) else "not a verifier key"
        found.findings.append(Finding(f"{layout.CHECKPOINT}, {layout.KEY}", detail))
    except FileNotFoundError:
        found.findings.append(Finding(layout.KEY, "it is missing; give the log's key to check the signature"))


class _Walk:
    """One pass over records and tiles."""

    def __init__(self, reader: Reader, found: Verification) -> None:
        self._reader, self._places, self._found = reader, reader.places, found
        self._builder = TileBuilder.empty()

    def run(self) -> None:
        self._at_size()
        complete = all(self._segment(first) for first in self._firsts())
        if complete and self._builder.size < self._found.size:
            self._add(
                layout.RECORDS, f"{self._found.size} records were signed, only {self._builder.size} are here"
            )
        self._found.records = self._builder.size
        self._list_tiles()

    def _firsts(self) -> list[int]:
        firsts: set[int] = set()
        for place in self._places:
            try:
                firsts |= set(layout.list_segments(place))
            except MeshError as error:
                if error.reason is not Reason.LEDGER_CONTRADICTED:
                    raise
                self._add(layout.RECORDS, error.detail)
        return sorted(firsts)

    def _segment(self, first: int) -> bool:
        """Read one segment; return whether the next one can be read, too."""
        name = layout.segment_name(first)
        if first != self._builder.size:
            self._add(name, f"record {self._builder.size} is missing: the segment before is not complete")
            return False
        place = self._reader.segment_place(first)
        if place is None:
            self._add(name, "it was removed while it was read")
            return False
        shown = self._shown(name, place)
        with place.open(name) as file:
            try:
                for frame in segments.read_frames(file, first):
                    for tile, data in self._builder.append(frame.digest):
                        self._compare(tile, data)
                    if self._builder.size == self._found.size:
                        self._at_size()
            except DamageError as damage:
                if damage.index < self._found.size or not self._is_torn(file, damage):
                    self._add(shown, str(damage))
                else:
                    self._found.notes.append(
                        f"{shown}: {damage}; never acknowledged, it is cut when the ledger is opened"
                    )
                return False
        return True

    def _is_torn(self, file: BinaryIO, damage: DamageError) -> bool:
        if damage.offset == 0:
            return False
        salt = segments.read_header(file, layout.segment_of(damage.index))
        return not segments.acknowledged_later(file, salt, damage.index, damage.offset)

    def _shown(self, name: str, place: Place) -> str:
        """What to call a file: where it is, too, unless that is the ledger's own directory."""
        return name if place is self._places[0] else f"{place.url}/{name}"

    def _at_size(self) -> None:
        """Compare the tree with the checkpoint at the size that was signed."""
        if self._builder.size != self._found.size:
            return
        if self._builder.root() != self._found.root:
            self._add(layout.CHECKPOINT, f"its root is not that of the first {self._found.size} records")
        for tile, data in self._builder.partial():
            self._compare(tile, data)

    def _compare(self, tile: Tile, data: bytes) -> None:
        try:
            found, place = layout.fetch_tile(self._places, tile.level, tile.index, tile.width)
        except FileNotFoundError:
            if self._needed(tile):
                self._add(tile.path, "it is missing")
            return
        except EvidenceError as error:
            self._add(tile.path, error.detail)
            return
        if found != data and self._needed(tile):
            what = "it is not the tile of these records" + _difference(tile, found, data)
            self._add(self._shown(tile.path, place), what)

    def _needed(self, tile: Tile) -> bool:
        """Whether the checkpoint covers the tile; a later one may be on its way to the disk."""
        per_hash = 1 << (TILE_HEIGHT * max(tile.level, 0))
        return (tile.index * TILE_WIDTH + tile.width) * per_hash <= self._found.size

    def _list_tiles(self) -> None:
        """Hold older partial tiles against the full ones, and name files that no tree has."""
        for place in self._places:
            for name in sorted(place.names("tile")):
                try:
                    tile = parse_tile_path(name)
                except EvidenceError:
                    self._add(self._shown(name, place), "no tile has this name")
                    continue
                if tile.width < TILE_WIDTH:
                    self._older_partial(place, tile)

    def _older_partial(self, place: Place, tile: Tile) -> None:
        """A partial tile of an earlier checkpoint is the beginning of the tile that grew from it."""
        try:
            data = place.read(tile.path)
        except FileNotFoundError:
            return  # removed meanwhile: its full tile is there
        except EvidenceError as error:
            self._add(tile.path, error.detail)
            return
        later = self._grown(tile)
        if later is None:
            self._add(tile.path, "it covers records that are not here")
        elif data != later[: len(data)] or len(data) != tile.width * _step(tile):
            self._add(tile.path, "it is not the beginning of the tile of these records")

    def _grown(self, tile: Tile) -> bytes | None:
        """The longest form of a tile that is there. Partial ones are in the ledger's own directory alone."""
        folder = (self._reader.directory / tile.path).parent
        widths = {TILE_WIDTH} | {int(path.name) for path in folder.glob("*") if path.name.isdecimal()}
        for width in sorted(widths, reverse=True):
            try:
                return self._reader.fetch(tile.level, tile.index, width)
            except (FileNotFoundError, EvidenceError):
                continue
        return None

    def _add(self, where: str, what: str) -> None:
        self._found.findings.append(Finding(where, what))


def _step(tile: Tile) -> int:
    """Bytes per hash of a tile, or per entry of a bundle."""
    return HASH_BYTES + 2 if tile.level == ENTRIES else HASH_BYTES


def _difference(tile: Tile, found: bytes, data: bytes) -> str:
    if len(found) != len(data):
        return f": {len(found)} bytes instead of {len(data)}"
    at = next(i for i in range(len(data)) if found[i] != data[i]) // _step(tile)
    return f": entry {tile.index * TILE_WIDTH + at} differs" if tile.level <= 0 else f": hash {at} differs"
