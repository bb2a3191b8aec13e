"""Starting a worker's process, before anything is known of what it will do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass

from zgate_gateway.worker.channel import socket_pair

#: What a service manager has handed over is the supervisor's.
_NOT_FOR_WORKERS = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_PID")


@dataclass(frozen=True, slots=True)
class Launched:
    """A process that waits to be configured, and our end of the channel to it."""

    popen: subprocess.Popen[bytes]
    channel: socket.socket

    def discard(self) -> None:
        """End it: nobody wants it any more."""
        self.channel.close()
        self.popen.kill()
        self.popen.wait()


def launch() -> Launched:
    """Start a process. From the thread that stays longest: with it, the kernel ends the process.

    Raises:
        OSError: there is no process to be had.
    """
    ours, theirs = socket_pair()
    try:
        arguments = (str(theirs.fileno()), str(os.getpid()))
        popen = subprocess.Popen(
            [sys.executable, "-P", "-m", "zgate_gateway.worker", *arguments],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            env={name: text for name, text in os.environ.items() if name not in _NOT_FOR_WORKERS},
        )
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    return Launched(popen, ours)
