"""The gateway's log: one JSON object a line on standard error.

JSON with ASCII escapes, so that nothing a request carries can forge a line or move a terminal's cursor.
"""

import sys

import structlog


def configure() -> None:
    """Sets up structlog for this process."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
