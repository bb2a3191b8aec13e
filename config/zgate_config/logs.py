"""A daemon's log: what happened, for people and for machines.

Every call says what it is about in words, and in one dict its event's name and fields, which the
words name (``logging`` takes a single dict so)::

    logger.info("session up with %(gateway)s", {"event": "session_up", "gateway": gateway})

``docs/logs.md`` lists all events; a test compares it with every call. Where it goes:

- ``json``: one JSON object per line on standard output.
- ``journal``: journald's own protocol. MESSAGE is the text, ZGATE_EVENT the name, ZGATE_<FIELD>
  each field, PRIORITY as syslog has it.
- ``auto``: the journal if standard output is connected to it and Debian's python3-systemd is
  there, else JSON.

Never a line per packet at INFO or above, and no client addresses: those are for the audit log.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

#: The event of a line that a library wrote.
LIBRARY_EVENT = "library"
_NOISY = ("http3", "asyncio", "pyroute2", "uvicorn.access", "uvicorn.error", "alembic")
#: Lowest level first; syslog's number of each (RFC 5424 section 6.2.1).
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG_PRIORITY = 7


class LogLevel(StrEnum):
    """How much is said."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """Where a log goes, and how; see the module's text."""

    AUTO = "auto"
    JSON = "json"
    JOURNAL = "journal"


def event_of(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """A record's event and its fields, as plain values."""
    if not isinstance(record.args, Mapping) or "event" not in record.args:
        return LIBRARY_EVENT, {}
    fields = {str(name): _plain(value) for name, value in record.args.items()}
    return str(fields.pop("event")), fields


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    return str(value)


class JsonFormatter(logging.Formatter):
    """ts, level, event, message, the event's fields, logger, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message holds."""
        event, fields = event_of(record)
        line = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": event,
            "message": record.getMessage(),
            **fields,
            "logger": record.name,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)  # in ASCII: no name and no locale costs a line


class JournalHandler(logging.Handler):
    """Gives each record to journald, fields and all."""

    def __init__(self) -> None:
        super().__init__()
        from systemd import journal

        self._send = journal.send

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        try:
            event, fields = event_of(record)
            text = record.getMessage()
            if record.exc_info:
                text += "\n" + logging.Formatter().formatException(record.exc_info)
            self._send(
                _text(text),
                PRIORITY=str(_priority(record.levelno)),
                LOGGER=record.name,
                CODE_FILE=record.pathname,
                CODE_LINE=record.lineno,
                CODE_FUNC=record.funcName,
                ZGATE_EVENT=event,
                **{f"ZGATE_{name.upper()}": _text(value) for name, value in fields.items()},
            )
        except Exception:
            self.handleError(record)


def _text(value: Any) -> str:
    """What can be UTF-8: a file's name may hold bytes that are none (PEP 383)."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode(errors="backslashreplace").decode()


def _priority(level: int) -> int:
    return next((number for least, number in _PRIORITIES if level >= least), _DEBUG_PRIORITY)


def configure_logging(level: str, log_format: str = LogFormat.AUTO) -> None:
    """Send everything at `level` and above where `log_format` says."""
    root = logging.getLogger()
    root.handlers[:] = [_handler(LogFormat(log_format))]
    set_level(level)
    # A watchdog ends a process that hangs with SIGABRT: where its threads were goes here. Not to
    # sys.stderr, which need not be a file.
    faulthandler.enable(2)


def set_level(level: str) -> None:
    """From now on so much is said."""
    root = logging.getLogger()
    root.setLevel(level.upper())
    # aioquic tells each handshake step at INFO, with connection IDs, and at WARNING what we
    # tell better; uvicorn tells each request.
    logging.getLogger("quic").setLevel(max(logging.ERROR, root.level))
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


def _handler(log_format: LogFormat) -> logging.Handler:
    if log_format is not LogFormat.JSON:
        wanted = log_format is LogFormat.JOURNAL
        if wanted or _is_connected_to_the_journal():
            try:
                return JournalHandler()
            except ImportError:
                if wanted:
                    sys.stderr.write(
                        "log.format is journal, and Debian's python3-systemd is not installed:"
                        " JSON on standard output\n"
                    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    return handler


def _is_connected_to_the_journal() -> bool:
    """Whether standard output is the stream of systemd.exec(5)'s JOURNAL_STREAM."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(sys.stdout.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))
