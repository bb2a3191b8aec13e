"""The UDP port: bound here, or taken from a service manager that keeps it while we restart.

`zgate-gateway.socket` has the manager bind sixteen sockets of one port (SO_REUSEPORT), one for
each worker that there may be: it has to do so before it knows how many there are. The first ones
are used, and the steering program sees to it that nothing arrives at the others. It stays with the
port when we end, so what arrives until the next start waits where the next workers read.
"""

from __future__ import annotations

import socket

from zgate_config import ConfigError
from zgate_config.errors import Mistake
from zgate_datapath.udp import UdpSocket, format_address
from zgate_host import systemd

from zgate_gateway.config import ListenConfig

UNIT = "zgate-gateway.socket"
_NAME = "quic"
_LONGEST_DATAGRAM_BYTES = 65_535
_MAX_STALE = 100_000


class UdpPort:
    """The port that the configuration names.

    Attributes:
        is_activated: a service manager holds it.

    Raises:
        ConfigError: what the service manager gives is not what the configuration says.
    """

    def __init__(self, listen: ListenConfig, workers: int) -> None:
        self._listen = listen
        self._workers = workers
        try:
            given = systemd.activated_sockets()
        except systemd.ActivationError as error:
            raise ConfigError([Mistake(UNIT, None, (), str(error))]) from error
        self._given = given.pop(_NAME, [])
        self.is_activated = bool(self._given)
        for sock in (one for group in given.values() for one in group):
            sock.close()
        try:
            self._check(len(given))
        except ConfigError:
            self.close()
            raise

    def _check(self, others: int) -> None:
        if not self._given and not others:
            return
        wanted = str(self._listen.address), self._listen.port
        if not self._given:
            raise _misfit(f"sockets named {_NAME}", "FileDescriptorName")
        for sock in self._given:
            if sock.type != socket.SOCK_DGRAM or sock.family not in (
                socket.AF_INET,
                socket.AF_INET6,
            ):
                raise _misfit("UDP sockets", "ListenDatagram")
            if sock.getsockname()[:2] != wanted:
                bound = format_address(sock.getsockname())
                raise _misfit(
                    f"the address and port of `listen` ({format_address(wanted)}), and not {bound}",
                    "ListenDatagram",
                )
            if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT):
                raise _misfit("sockets that share the port", "ReusePort")
        if len(self._given) < self._workers:
            raise _misfit(
                f"a socket for each of the {self._workers} workers, and not {len(self._given)}",
                "ListenDatagram",
            )

    def open(self) -> list[UdpSocket]:
        """The workers' sockets, in their order; the caller owns them.

        Raises:
            OSError: the port cannot be bound.
        """
        if not self._given:
            listen = self._listen
            return UdpSocket.bind_group(str(listen.address), listen.port, self._workers)
        used, self._given = self._given[: self._workers], self._given[self._workers :]
        return [UdpSocket(sock) for sock in used]

    def close(self) -> None:
        """Let go of the sockets that nobody uses, once the steering program is there.

        What came to them before they were steered, at the very first start, goes: it would lie
        there for ever, and who sent it sends it again. Twice is no error.
        """
        for sock in self._given:
            _empty(sock)
            sock.close()
        self._given = []


def _misfit(expected: str, setting: str) -> ConfigError:
    text = (
        f"expected {expected}: look at {setting}= of this unit, at `listen` and `workers` of"
        " gateway.yaml, then restart both units"
    )
    return ConfigError([Mistake(UNIT, None, (), text)])


def _empty(sock: socket.socket) -> None:
    sock.setblocking(False)
    for _ in range(_MAX_STALE):
        try:
            sock.recv(_LONGEST_DATAGRAM_BYTES)
        except OSError:
            return
