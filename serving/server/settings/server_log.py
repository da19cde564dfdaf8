"""The server's own log on standard error: as text, or as one JSON object a line.

Nothing that a client sends can forge a line or move a terminal's cursor: control characters are written as escapes.
"""

import json
import logging
import os
import re
import sys
from datetime import UTC, datetime

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

# TensorFlow's levels: 0 logs everything, 1 leaves out INFO, 2 also WARNING, 3 also ERROR.
_TF_LEVELS = {"0": logging.INFO, "1": logging.WARNING, "2": logging.ERROR, "3": logging.CRITICAL}
# Also those that only some terminals or log readers take for a line break or a control.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def configure(style: str, level: str, worker: int = 0) -> None:
    """Sets up logging for this process; without a level TF_CPP_MIN_LOG_LEVEL decides, and without that it is info.

    The lines of every `worker` but 0 tell its number.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(worker) if style == "json" else TextFormatter(worker))
    chosen = _LEVELS[level] if level else _TF_LEVELS.get(os.environ.get("TF_CPP_MIN_LOG_LEVEL", "0"), logging.INFO)
    logging.basicConfig(level=chosen, handlers=[handler])


class TextFormatter(logging.Formatter):
    """Time, level, logger and message on one line; a traceback below it, indented."""

    def __init__(self, worker: int = 0) -> None:
        super().__init__()
        self._worker = f" worker {worker}" if worker else ""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        head = f"{self.formatTime(record)} {record.levelname[0]} {record.name}{self._worker}"
        lines = [f"{head}: {printable(record.getMessage())}"]
        if record.exc_info:
            lines += ["    " + printable(line) for line in self.formatException(record.exc_info).splitlines()]
        return "\n".join(lines)


class JsonFormatter(logging.Formatter):
    """Time, level, logger, message, what `extra={"fields": …}` adds, and the traceback where there is one."""

    def __init__(self, worker: int = 0) -> None:
        super().__init__()
        self._worker = {"worker": worker} if worker else {}

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._worker,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def printable(text: str) -> str:
    """The text with its control characters as escapes."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
