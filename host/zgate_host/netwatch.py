"""Notices that the host's network has changed, from the kernel's own messages (rtnetlink(7)).

Which change it was is not asked here: the router compares tables, which is right also when
messages were lost. This module only keeps apart what can matter and what cannot, and waits a
moment for a burst to end.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import Callable, Iterator

logger = logging.getLogger(__name__)

AGENT_ROUTES, CONNECTOR_ROUTES = 122, 123
"""Mark every route that an agent, or a connector, makes (`proto 122` in ip route); the numbers are
nobody's."""
SETTLE_S = 0.1
"""How long after the first message the change is told: a move is many messages."""

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, dst_len, ..., protocol (sixth), ..., flags
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_NEWLINK, _NEWADDR, _NEWROUTE, _DELROUTE = 16, 20, 24, 25
_IFF_UP = 1
_RTPROT_KERNEL = 2
_TOLD_PROTOCOLS = (AGENT_ROUTES, CONNECTOR_ROUTES, _RTPROT_KERNEL)
_RTM_F_CLONED = 0x200
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # links, IPv4 and IPv6 addresses and routes
_READ_BYTES = 65536
_NETLINK_ROUTE = 0


def can_matter(data: bytes, tun_index: int) -> bool:
    """Whether a datagram from the kernel may mean another way to the gateway, or none.

    What we add ourselves (to the TUN, and as routes that are marked) does not. Whatever is taken
    away does: nobody but us may take away what we made. What cannot be read does too.
    """
    return any(_message_matters(kind, body, tun_index) for kind, body in _messages(data))


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while len(data) - offset >= _HEADER.size:
        length, kind, _flags, _sequence, _port = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or length > len(data) - offset:
            break
        yield kind, data[offset + _HEADER.size : offset + length]
        offset += length + 3 & ~3
    if offset < len(data):
        yield 0, b""


def _message_matters(kind: int, body: bytes, tun_index: int) -> bool:
    try:
        if kind in (_NEWROUTE, _DELROUTE):
            _, _, _, _, _, protocol, _, _, flags = _ROUTE.unpack_from(body)
            # The kernel's own routes come with an address, which is told too.
            is_told = kind == _NEWROUTE and protocol in _TOLD_PROTOCOLS
            return not is_told and not flags & _RTM_F_CLONED
        if kind == _NEWADDR:
            return bool(_ADDRESS.unpack_from(body)[4] != tun_index)
        if kind == _NEWLINK:
            _, _, index, flags, _ = _LINK.unpack_from(body)
            return bool(index != tun_index or not flags & _IFF_UP)
    except struct.error:
        return True
    return True


class NetWatch:
    """Calls `on_change` a moment after something changed; at most once per moment.

    `tun_index` is our own interface's; 0: there is none. No privilege is needed.
    """

    def __init__(self, tun_index: int, on_change: Callable[[], None]) -> None:
        self._tun_index = tun_index
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            _NETLINK_ROUTE,
        )
        try:
            self._socket.bind((0, _GROUPS))
        except OSError:
            self._socket.close()
            raise
        self._loop.add_reader(self._socket.fileno(), self._on_readable)

    def close(self) -> None:
        """Listen no longer. Safe to call twice."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
        if self._timer is not None:
            self._timer.cancel()

    def _on_readable(self) -> None:
        while True:
            try:
                data, sender = self._socket.recvfrom(_READ_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                # The kernel dropped messages: whatever they said, look.
                self._something_changed()
                return
            # Any local process may send to us; the kernel's port is 0.
            if sender[0] == 0 and can_matter(data, self._tun_index):
                self._something_changed()

    def _something_changed(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(SETTLE_S, self._tell)

    def _tell(self) -> None:
        self._timer = None
        self._on_change()
