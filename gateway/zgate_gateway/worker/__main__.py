"""The process of a worker: `python -m zgate_gateway.worker FD SUPERVISOR_PID`; not for people.

It ends with its supervisor, in whatever way that ends: the kernel kills it, and should it be too
late for that, its end of the socket pair is closed.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import socket
import sys

from zgate_config.logs import configure_logging
from zgate_datapath.event_loop import new_event_loop

from zgate_gateway.worker.channel import receive_first
from zgate_gateway.worker.child import Worker
from zgate_gateway.worker.messages import Configure, Stop

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Wait to be configured, work, end."""
    descriptor, supervisor_pid = (int(word) for word in sys.argv[1:3])
    _end_with(supervisor_pid)
    # Ctrl-C and a service manager's SIGTERM reach every process: the supervisor decides.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sock = socket.socket(fileno=descriptor)
    try:
        configure, descriptors = receive_first(sock)
    except EOFError:
        return 0
    if isinstance(configure, Stop):
        return 0  # the supervisor's own start has failed
    if not isinstance(configure, Configure):
        raise TypeError(f"the first message has to configure: {configure}")
    configure_logging(configure.log_level, configure.log_format)
    logging.getLogger(__name__).debug(
        "worker %(worker)d, pid %(pid)d",
        {"event": "worker_begins", "worker": configure.worker, "pid": os.getpid()},
    )
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(_work(sock, configure, descriptors))


async def _work(sock: socket.socket, configure: Configure, descriptors: list[int]) -> int:
    return await Worker(sock, configure, descriptors, asyncio.get_running_loop()).run()


def _end_with(supervisor_pid: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != supervisor_pid:
        sys.exit("the supervisor has ended")


if __name__ == "__main__":
    sys.exit(main())
