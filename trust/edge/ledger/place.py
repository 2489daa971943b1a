"""Where parts of a ledger are: its own directory, or an archive, which a URL names.

PATH, file:///PATH     a folder
s3://BUCKET/PREFIX     an S3-compatible object store (`object_store.py`)

What comes from a place is not trusted: it must lead to the root that was signed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, Protocol
from urllib.parse import unquote, urlsplit

from trust.edge.files import sync_directory, write_atomic
from trust.edge.ledger import layout
from trust.errors import EvidenceError, InputError, Reason
from trust.tiles import MAX_TILE_BYTES

_S3: Final = "s3"


class Place(Protocol):
    """Holds files by name, such as `records/00000000000000000000.seg` or `tile/0/x001/234`.

    Everything raises StateError: SOURCE_UNAVAILABLE, when a remote place does not answer.
    """

    @property
    def url(self) -> str:
        """What to call it; names the place, never a credential."""

    @property
    def parallel(self) -> int:
        """How many requests at one time make sense."""

    def size(self, name: str) -> int:
        """Return the length of a file in bytes; FileNotFoundError if there is none."""

    def read(self, name: str) -> bytes:
        """Return a tile or entry bundle; FileNotFoundError if there is none.

        Raises:
            EvidenceError: PROOF_INVALID, for a file that is larger than any of them (`MAX_TILE_BYTES`).
        """

    def open(self, name: str) -> BinaryIO:
        """Return a file to read and seek in; FileNotFoundError if there is none."""

    def put(self, name: str, source: Path) -> None:
        """Hold a copy of `source` under `name`: wholly or not at all, durable when this returns."""

    def names(self, prefix: str) -> Iterator[str]:
        """Yield the names below a folder, in no particular order."""


class Folder:
    """A directory of this machine."""

    parallel = 1

    def __init__(self, directory: Path) -> None:
        """Hold files below `directory`, which need not be there yet."""
        self.directory = directory

    @property
    def url(self) -> str:
        """See `Place`."""
        return str(self.directory)

    def size(self, name: str) -> int:
        """See `Place`."""
        return (self.directory / name).stat().st_size

    def read(self, name: str) -> bytes:
        """See `Place`."""
        with (self.directory / name).open("rb") as file:
            data = file.read(MAX_TILE_BYTES + 1)
        check_tile_size(str(self.directory / name), len(data))
        return data

    def open(self, name: str) -> BinaryIO:
        """See `Place`."""
        return (self.directory / name).open("rb")

    def put(self, name: str, source: Path) -> None:
        """See `Place`. Large files are copied in pieces."""
        target = self.directory / name
        made = [p for p in (target.parent, *target.parent.parents) if not p.exists()]
        layout.make_directory(target.parent)
        if target.suffix == layout.SEGMENT_SUFFIX:
            layout.copy_file(source, target)
            sync_directory(target.parent)
        else:
            write_atomic(target, source.read_bytes(), mode=layout.FILE_MODE)
        for folder in made:
            sync_directory(folder.parent)

    def names(self, prefix: str) -> Iterator[str]:
        """See `Place`."""
        for path in (self.directory / prefix).rglob("*"):
            if not path.is_dir() and not path.name.startswith("."):
                yield path.relative_to(self.directory).as_posix()


def check_tile_size(where: str, size: int) -> None:
    """Refuse a file of more than `MAX_TILE_BYTES` bytes: no ledger has written it, and it is not read to its end.

    Raises:
        EvidenceError: PROOF_INVALID, naming `where` it is.
    """
    if size > MAX_TILE_BYTES:
        raise EvidenceError(
            Reason.PROOF_INVALID, f"{where} is larger than {MAX_TILE_BYTES} bytes, so it is no tile"
        )


def open_place(where: str | Path) -> Place:
    """Return the place that a path or URL names. Nothing is read or made yet.

    Raises:
        InputError: CONFIG_INVALID, for a URL of another kind, or when what it needs is not installed.
    """
    if isinstance(where, Path) or "://" not in where:
        return Folder(Path(where))
    parts = urlsplit(where)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path:
        return Folder(Path(unquote(parts.path)))
    if parts.scheme == _S3:
        if parts.username or parts.password or parts.query or parts.fragment or not parts.netloc:
            raise InputError(
                Reason.CONFIG_INVALID,
                "an archive is s3://BUCKET/PREFIX and nothing more: endpoint, region and credentials come from the "
                "environment (AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)",
            )
        try:
            from trust.edge.ledger.object_store import Bucket
        except ImportError:
            raise InputError(
                Reason.CONFIG_INVALID,
                f"{where} needs the library obstore; install it with: pip install 'egmesh[s3]'",
            ) from None
        return Bucket(parts.netloc, parts.path.strip("/"))
    raise InputError(
        Reason.CONFIG_INVALID, f"{where!r} is not an archive; use a path, file:///PATH or s3://BUCKET/PREFIX"
    )


def below(where: str, name: str) -> str:
    """Return the path or URL of a folder `name` inside a place."""
    return f"{where.rstrip('/')}/{name}"
