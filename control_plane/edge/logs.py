"""Structured logs: one JSON object per line on standard error."""

import json
import logging
import sys
from typing import Final

# What a third party logs below this is noise next to ours.
_QUIET: Final = {"alembic": logging.WARNING, "amqtt": logging.ERROR, "transitions": logging.ERROR}


class JsonFormatter(logging.Formatter):
    """`ts` (Unix seconds), `level`, `logger`, `message`, and `error` with a traceback when there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        entry: dict[str, object] = {
            "ts": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def configure(level: int = logging.INFO) -> None:
    """Send every log record to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(least)
