"""An S3-compatible object store as a place for archived parts of a ledger.

Endpoint, region and credentials come from the environment, by the names that S3 tools use: AWS_ENDPOINT_URL,
AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN; or from the machine's role.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, Final, cast

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from trust import limits
from trust.edge.ledger.place import check_tile_size
from trust.errors import InputError, Reason, StateError

_ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_LOCAL: Final = ("http://127.0.0.1", "http://localhost", "http://[::1]")
_DETAIL_CHARS: Final = 300
_PARALLEL: Final = 16


class Bucket:
    """Objects below one prefix of a bucket."""

    parallel = _PARALLEL

    def __init__(self, bucket: str, prefix: str) -> None:
        """Name the bucket; nothing is asked of it yet.

        Raises:
            InputError: CONFIG_INVALID, for an endpoint without TLS on another machine.
        """
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._store = S3Store(
            bucket,
            prefix=prefix or None,
            client_options={
                "allow_http": _plain_http(),
                "connect_timeout": timedelta(seconds=limits.ARCHIVE_CONNECT_TIMEOUT_S),
                "timeout": timedelta(seconds=limits.ARCHIVE_REQUEST_TIMEOUT_S),
            },
            retry_config={
                "max_retries": limits.ARCHIVE_RETRIES,
                "retry_timeout": timedelta(seconds=limits.ARCHIVE_REQUEST_TIMEOUT_S),
            },
        )

    def size(self, name: str) -> int:
        """See `trust.edge.ledger.place.Place`."""
        with self._answers():
            return int(self._store.head(name)["size"])

    def read(self, name: str) -> bytes:
        """See `trust.edge.ledger.place.Place`."""
        with self._answers():
            found = self._store.get(name)
            check_tile_size(f"{self.url}/{name}", found.meta["size"])  # before the content is fetched
            return bytes(found.bytes())

    def open(self, name: str) -> BinaryIO:
        """See `trust.edge.ledger.place.Place`. Reads ranges of `ARCHIVE_RANGE_BYTES`."""
        size = self.size(name)
        return cast("BinaryIO", io.BufferedReader(_Ranges(self, name, size), limits.ARCHIVE_RANGE_BYTES))

    def range(self, name: str, start: int, end: int) -> bytes:
        """Return the bytes from `start` to before `end`."""
        with self._answers():
            return bytes(self._store.get_range(name, start=start, end=end))

    def put(self, name: str, source: Path) -> None:
        """See `trust.edge.ledger.place.Place`. A store shows an object only when it has all of it."""
        with self._answers():
            self._store.put(name, source)

    def names(self, prefix: str) -> Iterator[str]:
        """See `trust.edge.ledger.place.Place`."""
        with self._answers():
            for page in self._store.list(prefix):
                yield from (entry["path"] for entry in page)

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """Tell a missing object (FileNotFoundError) from a store that cannot be used (SOURCE_UNAVAILABLE)."""
        try:
            yield
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise self._unavailable("the bucket does not exist; create it, or mend the URL") from None
            raise FileNotFoundError(None, "not in the archive", _object(error)) from None
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise self._unavailable(f"access was refused; check the credentials: {_brief(error)}") from None
        except (BaseError, TimeoutError, OSError) as error:
            raise self._unavailable(_brief(error)) from None

    def _unavailable(self, what: str) -> StateError:
        return StateError(Reason.SOURCE_UNAVAILABLE, f"{self.url} cannot be used: {what}")


class _Ranges(io.RawIOBase):
    """One object as a file, fetched in ranges."""

    def __init__(self, bucket: Bucket, name: str, size: int) -> None:
        super().__init__()
        self._bucket, self._name, self._size, self._at = bucket, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]  # what BufferedReader gives
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        data = self._bucket.range(self._name, self._at, end)[: end - self._at]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _plain_http() -> bool:
    endpoint = next((value for name in _ENDPOINTS if (value := os.environ.get(name))), "")
    if not endpoint.startswith("http://"):
        return False
    if os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true":
        return True
    if any(endpoint == local or endpoint.startswith((f"{local}:", f"{local}/")) for local in _LOCAL):
        return True
    raise InputError(
        Reason.CONFIG_INVALID,
        f"the endpoint {endpoint} has no TLS: records would cross the network readable; use https://, or set "
        "AWS_ALLOW_HTTP=true if the network between is yours",
    )


def _object(error: FileNotFoundError) -> str:
    return str(error).partition("\n")[0].removeprefix("Object at location ").partition(" not found")[0]


def _brief(error: BaseException) -> str:
    """The first line: what follows is for debugging the library."""
    return str(error).partition("\n")[0].strip()[:_DETAIL_CHARS]
