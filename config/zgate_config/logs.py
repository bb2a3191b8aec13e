"""A daemon's log, at the level that its configuration says.

One JSON object per line on standard error, for journald and people alike.

Never a line per packet at INFO or above, and no client addresses: those are for the audit log.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime


class JsonFormatter(logging.Formatter):
    """ts, level, logger, message, and the traceback when there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message holds."""
        fields = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def configure_logging(level: str) -> None:
    """Send everything at `level` and above to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # aioquic tells each handshake step at INFO, with connection IDs, and at WARNING what we
    # tell better; uvicorn tells each request.
    logging.getLogger("quic").setLevel(max(logging.ERROR, root.level))
    for noisy in ("http3", "asyncio", "pyroute2", "uvicorn.access", "uvicorn.error", "alembic"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
