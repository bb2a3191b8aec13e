"""Two TUNs joined as by a cable: what the kernel sends into one comes out of the other.

So a chamber has a way to the host's own routing, where one session carries services and networks.
Packets have vnet headers, and super-packets stay whole: a copy costs little per byte.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from zgate_datapath.tun import Tun

_READ_BYTES = 65535 + 10
_BATCH_PACKETS = 64


class TunPair:
    """Copies while it is open; the TUNs stay their owners'. `on_gone`: a device was removed."""

    def __init__(self, one: Tun, other: Tun, on_gone: Callable[[str], None]) -> None:
        assert one.has_vnet_header
        assert other.has_vnet_header
        self._loop = asyncio.get_running_loop()
        self._on_gone = on_gone
        self._fds = [one.fd, other.fd]
        self._loop.add_reader(one.fd, self._copy, one, other)
        self._loop.add_reader(other.fd, self._copy, other, one)

    def close(self) -> None:
        """Copy no longer. Safe to call twice; call it before the TUNs are closed."""
        for fd in self._fds:
            self._loop.remove_reader(fd)
        self._fds.clear()

    def _copy(self, source: Tun, target: Tun) -> None:
        for _ in range(_BATCH_PACKETS):
            try:
                packet = os.read(source.fd, _READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                # EBADFD: it would stay readable for good.
                self.close()
                self._on_gone(f"the TUN device {source.name} is gone")
                return
            try:
                os.write(target.fd, packet)
            except OSError:
                continue  # its queue is full, or it is down: lost, as on a cable that is cut
