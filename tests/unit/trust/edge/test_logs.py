"""One shape of log line, bounded in number and size, without secrets."""

import io
import json
import logging
import subprocess
import sys
import threading
from typing import Any

import pytest

from trust.edge.logs import (
    BURST_LINES,
    LINES_PER_S,
    MAX_KINDS,
    MAX_LINE_CHARS,
    MAX_QUEUED_LINES,
    STATEMENT_BURST_LINES,
    JsonFormatter,
    LineWriter,
    RateLimit,
    fields,
)


def record(message: str, *arguments: object, extra: dict[str, object] | None = None, line: int = 1) -> Any:
    """Return a log record."""
    made = logging.LogRecord("egm", logging.ERROR, __file__, line, message, arguments, None)
    made.__dict__.update(extra or {})
    return made


def test_a_record_is_one_json_line_with_its_traceback() -> None:
    """A log collector reads lines: a message with newlines must not become two entries."""
    try:
        raise ValueError("two\nlines")
    except ValueError:
        made = record("it %s\nfailed", "all")
        made.exc_info = sys.exc_info()
    made.created, made.msecs = 1_700_000_000.25, 250.0
    text = JsonFormatter().format(made)
    assert "\n" not in text
    told = json.loads(text)
    assert told["time"] == "2023-11-14T22:13:20.250Z"
    assert (told["level"], told["logger"], told["message"]) == ("error", "egm", "it all\nfailed")
    assert "ValueError: two" in told["error"]


def test_fields_are_added_and_replace_nothing() -> None:
    """A field that somebody else chose must not forge the level of a line."""
    told = json.loads(JsonFormatter().format(record("m", extra=fields({"level": "debug", "node": "a"}))))
    assert (told["level"], told["node"]) == ("error", "a")


@pytest.mark.parametrize(
    ("message", "secret"),
    [
        ("cannot reach postgresql+asyncpg://egm:hunter2@db/egm", "hunter2"),
        ("broker mqtts://node:pa:ss@broker:8883 is away", "pa:ss"),
        ("token egm-join.v1.AbC_9-x was refused", "AbC_9-x"),
        ("-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----", "MIIB"),
        ("cut off: -----BEGIN PRIVATE KEY-----\nMIIB", "MIIB"),
    ],
)
def test_secrets_do_not_reach_the_log(message: str, secret: str) -> None:
    """Whatever an exception of a library quotes."""
    text = JsonFormatter().format(record("%s", message, extra=fields({"detail": message})))
    assert secret not in text
    assert "***" in text


def test_a_line_is_bounded() -> None:
    """A caller chooses the length of a method name, a peer that of an error."""
    assert len(JsonFormatter().format(record("x" * 10**6))) < MAX_LINE_CHARS + 200


def test_flood_is_cut_counted_and_resumes_with_time() -> None:
    """What was suppressed is said in the next line of its kind."""
    now = 0.0
    limit = RateLimit(monotonic=lambda: now)
    assert sum(limit.filter(record("%d", number)) for number in range(1000)) == BURST_LINES
    assert limit.filter(record("another statement", line=2))
    now = 1.0
    after = [made for made in (record("again") for _ in range(100)) if limit.filter(made)]
    assert len(after) == LINES_PER_S
    assert json.loads(JsonFormatter().format(after[0]))["suppressed"] == 1000 - BURST_LINES
    assert "suppressed" not in JsonFormatter().format(after[1])


def test_many_kinds_of_one_statement_are_bounded_together() -> None:
    """Varying what one says must not lift the bound, nor grow memory."""
    limit = RateLimit(monotonic=lambda: 0.0)
    passed = sum(limit.filter(record("m", extra=fields({}, kind=number))) for number in range(2 * MAX_KINDS))
    assert passed == STATEMENT_BURST_LINES
    assert len(limit._kinds) <= MAX_KINDS


class Stuck(io.StringIO):
    """A reader that does not read until told to."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = threading.Event()

    def write(self, text: str) -> int:
        self.reading.wait(30)
        return super().write(text)


def test_reader_that_does_not_read_costs_lines_never_calls() -> None:
    """A full pipe must not stop the sidecar; how many lines were lost is told."""
    stream = Stuck()
    writer = LineWriter(stream)
    writer.setFormatter(JsonFormatter())
    for number in range(MAX_QUEUED_LINES + 100):
        writer.handle(record("%d", number))
    stream.reading.set()
    while writer._lines.qsize() > MAX_QUEUED_LINES // 2:
        pass
    writer.handle(record("back"))
    writer.close()
    last = json.loads(stream.getvalue().splitlines()[-1])
    assert last["message"] == "back"
    assert last["dropped"] >= 98


def test_last_lines_of_a_process_are_written() -> None:
    """Why it ended is what one looks for; chatter of libraries is not."""
    program = (
        "import logging; from trust.edge import logs; logs.configure();"
        "logging.getLogger('tuf.api.metadata').info('No signature for keyid');"
        "logging.getLogger('tuf.api.metadata').error('broken');"
        "logging.getLogger('transitions.core').info('entered');"
        "logging.getLogger('egm').info('the end')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert [json.loads(line)["message"] for line in done.stderr.splitlines()] == ["broken", "the end"]
