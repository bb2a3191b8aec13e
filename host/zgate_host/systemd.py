"""What a service manager and a daemon say to each other: sd_notify(3), sd_listen_fds(3).

The protocol is text in one datagram and a few environment variables, and its authors promise it to
those who speak it themselves (sd_notify(3), "Notes"; systemd's Interface Portability and Stability
list). Where there is no such manager, every function here does nothing.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import time

logger = logging.getLogger(__name__)

_FIRST_FD = 3  # SD_LISTEN_FDS_START
_LISTEN_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_SEND_TIMEOUT_S = 0.5
#: A status longer than a terminal's few lines is read by nobody.
_MAX_STATUS_CHARACTERS = 500
_NAMELESS = "unknown"


class ActivationError(Exception):
    """What the service manager hands over is not what it says; the text says what to do."""


def is_watched() -> bool:
    """Whether there is a service manager that listens to `notify`."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def notify(
    *,
    ready: bool = False,
    reloading: bool = False,
    stopping: bool = False,
    status: str | None = None,
    watchdog: bool = False,
    extend_timeout_s: float | None = None,
) -> None:
    """Tell the service manager, if there is one, how this process does.

    Args:
        ready: the start, or the reload that was told before, is done.
        reloading: the configuration is being read again; `ready` follows.
        stopping: the end has begun.
        status: what `systemctl status` shows, in one line.
        watchdog: the process is alive; see `watchdog_interval_s`.
        extend_timeout_s: what goes on now may take so long from here, whatever the unit allows.

    What cannot be sent is logged: a daemon does not end because nobody listens.
    """
    lines = []
    if reloading:
        # The clock's value is what Type=notify-reload asks for (systemd 253); older ones skip it.
        lines += ["RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}"]
    if ready:
        lines.append("READY=1")
    if stopping:
        lines.append("STOPPING=1")
    if extend_timeout_s is not None:
        lines.append(f"EXTEND_TIMEOUT_USEC={round(extend_timeout_s * 1e6)}")
    if watchdog:
        lines.append("WATCHDOG=1")
    if status is not None:
        lines.append(f"STATUS={_one_line(status)}")
    if lines:
        _send("\n".join(lines))


def _one_line(text: str) -> str:
    """A line break would begin another variable, and some of the text may be a peer's."""
    plain = "".join(one if one.isprintable() else " " for one in text)
    return plain[:_MAX_STATUS_CHARACTERS]


def _send(message: str) -> None:
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    if path.startswith("@"):
        path = "\0" + path[1:]  # in the abstract namespace (unix(7))
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            # A manager that does not read must not stop packets from being carried.
            sock.settimeout(_SEND_TIMEOUT_S)
            sock.connect(path)
            sock.send(message.encode())
    except OSError as error:
        logger.warning(
            "the service manager does not listen on NOTIFY_SOCKET: %(error)s",
            {"event": "notify_failed", "error": error},
        )


def watchdog_interval_s() -> float | None:
    """Return within which time the manager wants to hear `notify(watchdog=True)`, if at all."""
    text, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not _is_number(text) or int(text) == 0:
        return None
    if pid and pid != str(os.getpid()):
        return None  # it is meant for a parent of ours
    return int(text) / 1e6


def activated_sockets() -> dict[str, list[socket.socket]]:
    """Take the sockets that the manager has opened for this process, by FileDescriptorName.

    The caller owns them. The second call finds none, and neither does a child process: the
    variables are removed, and the descriptors are closed by exec.

    Raises:
        ActivationError: the variables make no sense, or a descriptor is no socket.
    """
    values = {name: os.environ.get(name, "") for name in _LISTEN_VARIABLES}
    if values["LISTEN_PID"] != str(os.getpid()):
        return {}  # nothing, or for another process
    for name in _LISTEN_VARIABLES:
        os.environ.pop(name, None)
    if not _is_number(values["LISTEN_FDS"]):
        raise ActivationError(f"LISTEN_FDS is {values['LISTEN_FDS']!r} and not a number")
    count = int(values["LISTEN_FDS"])
    names = values["LISTEN_FDNAMES"].split(":") if values["LISTEN_FDNAMES"] else []
    if names and len(names) != count:
        raise ActivationError(f"LISTEN_FDNAMES has {len(names)} names for {count} descriptors")
    found: dict[str, list[socket.socket]] = {}
    try:
        for fd, name in enumerate(names or [_NAMELESS] * count, _FIRST_FD):
            found.setdefault(name, []).append(_taken(fd))
    except ActivationError:
        for sock in (one for group in found.values() for one in group):
            sock.close()
        raise
    return found


def _taken(fd: int) -> socket.socket:
    try:
        os.set_inheritable(fd, False)
        return socket.socket(fileno=fd)
    except OSError as error:
        what = "is no socket" if error.errno == errno.ENOTSOCK else f"is not there: {error}"
        raise ActivationError(f"descriptor {fd}, from the service manager, {what}") from error


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
