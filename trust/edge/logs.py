"""What a process writes to its log: one JSON object a line, so many lines a second and no more, and no secrets.

A caller can make a sidecar refuse, and log, as fast as it can call. So each kind of record gets `LINES_PER_S`, each
statement of the program `STATEMENT_LINES_PER_S`, and a line at most `MAX_LINE_CHARS` (plus its frame); what is over
is counted in `suppressed` of the next line of that kind. Lines are written by a thread: a reader that stops reading
costs lines (`dropped` counts them), never calls.
"""

import json
import logging
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, TextIO

LINES_PER_S: Final = 5.0
BURST_LINES: Final = 50.0
STATEMENT_LINES_PER_S: Final = 50.0
STATEMENT_BURST_LINES: Final = 200.0
MAX_KINDS: Final = 4096
MAX_LINE_CHARS: Final = 8192
MAX_QUEUED_LINES: Final = 4096
FLUSH_S: Final = 2.0

_FIELDS, _KIND = "egm_fields", "egm_kind"
# What a third party logs below this is noise next to ours; the failures it notes reach us as exceptions.
_QUIET: Final = {
    "alembic": logging.WARNING,
    "amqtt": logging.ERROR,
    "mqtt": logging.ERROR,
    "transitions": logging.ERROR,
    "tuf": logging.WARNING,
}
_SECRETS: Final = (
    (re.compile(r"(?<=://)[^/@\s\":]*:[^/@\s\"]*(?=@)"), "***"),  # credentials in a URL
    (re.compile(r"egm-join\.v1\.[A-Za-z0-9_-]+"), "egm-join.v1.***"),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S), "***"),
)


def fields(values: Mapping[str, object], *, kind: object = None) -> dict[str, object]:
    """Return the `extra` of a log call that adds `values` to the line.

    Args:
        values: JSON values; they cannot replace `time`, `level`, `logger` and `message`.
        kind: hashable; records of one statement that differ in it do not crowd each other out.
    """
    return {_FIELDS: dict(values), _KIND: kind}


class JsonFormatter(logging.Formatter):
    """`time` (RFC 3339, UTC), `level`, `logger`, `message`, further fields, and `error` with a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line without its end."""
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _bounded(record.getMessage()),
        }
        for name, value in (getattr(record, _FIELDS, None) or {}).items():
            line.setdefault(name, _bounded(value) if isinstance(value, str) else value)
        if record.exc_info:
            line["error"] = _bounded(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=str)


def _bounded(text: str) -> str:
    for pattern, shown in _SECRETS:
        text = pattern.sub(shown, text)
    if len(text) <= MAX_LINE_CHARS:
        return text
    half = MAX_LINE_CHARS // 2  # the end of a traceback says most
    return f"{text[:half]} … {text[-half:]}"


class _Bucket:
    """A token bucket; `suppressed` counts what it refused since it last let something through."""

    __slots__ = ("_at", "_burst", "_per_s", "_tokens", "suppressed")

    def __init__(self, per_s: float, burst: float, now: float) -> None:
        self._per_s, self._burst, self._tokens, self._at = per_s, burst, burst, now
        self.suppressed = 0

    def take(self, now: float) -> bool:
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class RateLimit(logging.Filter):
    """Lets records through up to the named rates; the rest is counted, before it costs any formatting."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`monotonic`: seconds."""
        super().__init__()
        self._monotonic = monotonic
        self._kinds: dict[tuple[object, ...], _Bucket] = {}
        self._statements: dict[tuple[object, ...], _Bucket] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to write `record`; adds `suppressed` to one that follows suppressed ones."""
        now = self._monotonic()
        statement = (record.name, record.pathname, record.lineno)
        kind = (*statement, getattr(record, _KIND, None))
        if len(self._kinds) >= MAX_KINDS and kind not in self._kinds:
            self._kinds.clear()  # the bound of the statement still holds
        whole = self._statements.setdefault(
            statement, _Bucket(STATEMENT_LINES_PER_S, STATEMENT_BURST_LINES, now)
        )
        part = self._kinds.setdefault(kind, _Bucket(LINES_PER_S, BURST_LINES, now))
        if not part.take(now) or not whole.take(now):
            part.suppressed += 1
            return False
        if part.suppressed:
            setattr(
                record, _FIELDS, {**(getattr(record, _FIELDS, None) or {}), "suppressed": part.suppressed}
            )
            part.suppressed = 0
        return True


class LineWriter(logging.Handler):
    """Hands lines to a thread that writes them: logging never waits for whoever reads the log."""

    def __init__(self, stream: TextIO) -> None:
        """Start the thread."""
        super().__init__()
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_QUEUED_LINES)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one line, or count it as dropped."""
        if self._dropped:
            setattr(record, _FIELDS, {**(getattr(record, _FIELDS, None) or {}), "dropped": self._dropped})
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self._dropped += 1
        except Exception:  # noqa: BLE001  # a record that cannot be formatted must not end the caller's work
            self.handleError(record)
        else:
            self._dropped = 0

    def close(self) -> None:
        """Write what is queued, for at most `FLUSH_S` seconds."""
        if self._thread.is_alive():
            try:
                self._lines.put(None, timeout=FLUSH_S)
            except queue.Full:
                return  # nobody reads
            self._thread.join(FLUSH_S)
        super().close()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._stream.write(line + "\n")
                if self._lines.empty():
                    self._stream.flush()
            except (OSError, ValueError):
                return  # the stream is closed: nobody can be told
        self._stream.flush()


def configure(stream: TextIO | None = None, level: int = logging.INFO) -> LineWriter:
    """Send every log record of this process to `stream` (standard error); return the handler.

    What is queued when the process ends is still written (`logging.shutdown` closes the handler).
    """
    handler = LineWriter(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(RateLimit())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(least)
    return handler
