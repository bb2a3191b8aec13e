"""A cable between two TUNs, both with vnet headers (super-packets are carried as they are) or not.

`python pump.py FD FD`; ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys

# A vnet header before the largest IP packet.
READ_BYTES = 10 + 65535
PACKETS_PER_TURN = 32


def copy(source: int, target: int) -> None:
    with contextlib.suppress(BlockingIOError):
        for _ in range(PACKETS_PER_TURN):
            packet = os.read(source, READ_BYTES)
            with contextlib.suppress(OSError):  # an interface is down: lost, as on a cut cable
                os.write(target, packet)


def main() -> None:
    one, other = int(sys.argv[1]), int(sys.argv[2])
    towards = {one: other, other: one}
    poll = select.poll()
    for descriptor in (one, other, sys.stdin.fileno()):
        poll.register(descriptor, select.POLLIN)
    print("ready", flush=True)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor not in towards:
                return
            copy(descriptor, towards[descriptor])


if __name__ == "__main__":
    main()
