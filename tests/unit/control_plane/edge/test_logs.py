"""Structured logs."""

import json
import logging
import sys

from control_plane.edge.logs import JsonFormatter


def test_a_record_is_one_json_line_with_its_traceback() -> None:
    """A log collector reads lines: a message with newlines must not become two entries."""
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.LogRecord(
            "egm", logging.ERROR, __file__, 1, "it %s\nfailed", ("all",), sys.exc_info()
        )
    line = JsonFormatter().format(record)
    assert "\n" not in line
    entry = json.loads(line)
    assert (entry["level"], entry["logger"], entry["message"]) == ("error", "egm", "it all\nfailed")
    assert "ValueError: two" in entry["error"]
