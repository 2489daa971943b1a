"""Reads a ledger's directory: records, checkpoint, proofs. Needs no key and no running process.

What it returns is not trusted: a record and its proof lead to a root, and only a checkpoint that the log signed says
that this root is the log's.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from trust import limits
from trust.checkpoint import Checkpoint, parse_checkpoint
from trust.edge.ledger import layout, segments
from trust.edge.ledger.place import Folder, Place
from trust.edge.ledger.segments import DamageError, Frame
from trust.errors import EvidenceError, InputError, Reason
from trust.merkle import consistency_proof, inclusion_proof, root_of
from trust.note import read_unverified
from trust.tiles import ENTRIES, TILE_WIDTH, TileTree, decode_entries, tile_width

_CACHED_SEGMENTS: Final = 8


class Reader:
    """A ledger as it stands on disk. Every method may read files; none changes one."""

    def __init__(self, directory: Path, *, archives: Sequence[Path | Place] = ()) -> None:
        """Read `directory`; what was moved out of it is looked for in `archives` (see `archived.places_of`).

        Raises:
            InputError: NOT_FOUND, if there is no ledger.
            StateError: SOURCE_UNAVAILABLE, from every method, when an archive is needed and does not answer.
        """
        self.directory = directory
        self.places: list[Place] = [
            Folder(place) if isinstance(place, Path) else place for place in (directory, *archives)
        ]
        self._places: OrderedDict[int, list[int]] = OrderedDict()
        self.reload()

    def reload(self) -> None:
        """Read the checkpoint again.

        Raises:
            InputError: NOT_FOUND, if there is none.
            EvidenceError: PROOF_INVALID, if it is malformed.
        """
        try:
            with (self.directory / layout.CHECKPOINT).open("rb") as file:
                self.checkpoint_note = file.read(limits.MAX_NOTE_BYTES + 1)  # one more is refused below
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(
                Reason.NOT_FOUND, f"{self.directory} has no ledger: there is no file 'checkpoint' in it"
            ) from None
        self.checkpoint: Checkpoint = parse_checkpoint(read_unverified(self.checkpoint_note).text)
        self._tree = TileTree(self.size, self.fetch)

    @property
    def size(self) -> int:
        """Records under the checkpoint. There may be more that are durable and not yet signed."""
        return self.checkpoint.size

    def fetch(self, level: int, index: int, width: int) -> bytes:
        """Return a tile or an entry bundle (`trust.tiles.FetchTile`)."""
        return layout.fetch_tile(self.places, level, index, width)[0]

    def root(self, size: int | None = None) -> bytes:
        """Return the root of the first `size` records (default: all under the checkpoint), from the tiles.

        Raises:
            EvidenceError: PROOF_INVALID, for a size beyond the checkpoint, or a missing or damaged tile.
        """
        with _missing_tiles():
            return root_of(self.size if size is None else size, self._tree.read)

    def inclusion_proof(self, index: int, size: int | None = None) -> tuple[bytes, ...]:
        """Return the proof that record `index` is in the tree of `size` (default: the checkpoint's).

        Raises:
            EvidenceError: PROOF_INVALID, as `root`.
        """
        with _missing_tiles():
            return inclusion_proof(index, self.size if size is None else size, self._tree.read)

    def consistency_proof(self, size1: int, size2: int | None = None) -> tuple[bytes, ...]:
        """Return the proof that the tree of `size2` (default: the checkpoint's) continues the one of `size1`.

        Raises:
            EvidenceError: PROOF_INVALID, as `root`.
        """
        with _missing_tiles():
            return consistency_proof(size1, self.size if size2 is None else size2, self._tree.read)

    def digest(self, index: int) -> bytes:
        """Return the entry of the tree at `index`: the SHA-256 of the record. Its leaf hash is `leaf_hash` of it.

        Raises:
            EvidenceError: PROOF_INVALID, as `root`.
        """
        bundle, place = divmod(index, TILE_WIDTH)
        width = tile_width(0, bundle, self.size)
        if not 0 <= place < width or index < 0:
            raise EvidenceError(Reason.PROOF_INVALID, f"a tree of size {self.size} has no leaf {index}")
        with _missing_tiles():
            return decode_entries(self.fetch(ENTRIES, bundle, width), width)[place]

    def record(self, index: int) -> bytes:
        """Return a record's bytes, checked against its checksum (prove them with `inclusion_proof`).

        Raises:
            InputError: NOT_FOUND, if there is no such record, or its segment was moved away.
            EvidenceError: DIGEST_MISMATCH, if it is damaged.
        """
        absent = InputError(Reason.NOT_FOUND, f"{self.directory} has no record {index}")
        first = layout.segment_of(index)
        place = self.segment_place(first) if index >= 0 else None
        if place is None:
            raise absent
        with place.open(layout.segment_name(first)) as file:
            start = self._near(file, first, index)
            for at, offset in segments.frame_places(file, *start) if start else ():
                if at == index:
                    return segments.read_frame(file, index, offset).record
        raise absent

    def scan(self, start: int = 0, *, upto: int | None = None) -> Iterator[Frame]:
        """Yield the records from `start` to before `upto` (default: the checkpoint's size), checked.

        Raises:
            EvidenceError: DIGEST_MISMATCH, at a damaged record, or one that is missing.
        """
        index, end = start, self.size if upto is None else upto
        while index < end:
            first = layout.segment_of(index)
            place = self.segment_place(first)
            for frame in () if place is None else self._frames(place, first, index):
                if frame.index >= end:
                    return
                if frame.index == index:
                    yield frame
                    index += 1
            if index < min(end, first + limits.LEDGER_SEGMENT_RECORDS):
                raise EvidenceError(
                    Reason.DIGEST_MISMATCH, f"record {index} is missing from {self.directory}"
                )

    def _frames(self, place: Place, first: int, index: int) -> Iterator[Frame]:
        """The records of one segment, from a little before `index` on."""
        name = layout.segment_name(first)
        try:
            with place.open(name) as file:
                start = self._near(file, first, index) if index > first else None
                yield from segments.read_frames(file, first, start)
        except DamageError as damage:
            raise EvidenceError(Reason.DIGEST_MISMATCH, f"{place.url}/{name}: {damage}") from None

    def _near(self, file: BinaryIO, first: int, index: int) -> tuple[int, int] | None:
        """Where to begin reading for record `index`: at most 255 records before it. None: it is not there."""
        nearest = (index - first) // TILE_WIDTH
        places = self._places.pop(first, None) or [segments.HEADER.size]
        if nearest >= len(places):  # the segment has grown, or was never looked at
            last = first + (len(places) - 1) * TILE_WIDTH
            found = segments.frame_places(file, last, places[-1])
            places = [*places[:-1], *(offset for at, offset in found if not at % TILE_WIDTH)]
        if places:
            self._places[first] = places
        while len(self._places) > _CACHED_SEGMENTS:
            self._places.popitem(last=False)
        return (first + nearest * TILE_WIDTH, places[nearest]) if nearest < len(places) else None

    def segment_place(self, first: int) -> Place | None:
        """Return the first place that has the segment of record `first`; None when no place has it."""
        for place in self.places:
            try:
                place.size(layout.segment_name(first))
            except FileNotFoundError:
                continue
            return place
        return None


@contextmanager
def _missing_tiles() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise EvidenceError(Reason.PROOF_INVALID, f"{error.args[0]} is missing from the ledger") from None
