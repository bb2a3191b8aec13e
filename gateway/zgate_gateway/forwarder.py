"""From the TUN to the sessions: one lookup, destination address -> session.

The kernel has decided already (BPF on the egress of the TUN); here a packet only finds its
session, and one that does not fit the session's path is answered with Packet Too Big.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Protocol

from zgate_datapath.endpoint import Endpoint
from zgate_datapath.tun import VNET_HEADER_BYTES, Tun
from zgate_protocol.address_translation import translate_addresses
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.errors import PacketError
from zgate_protocol.icmp import TokenBucket, error_for_drop

from zgate_gateway.sessions import SessionTable

logger = logging.getLogger(__name__)

_BATCH_PACKETS = 128
_ICMP_PER_S = 500
_IPV6_HDRINCL = 36


class PacketSender(Protocol):
    """Who sends a whole IP packet that this host has made."""

    def send(self, packet: bytes) -> None:
        """Send it, or lose it."""

    def close(self) -> None:
        """No packet follows."""


class IcmpSender:
    """Sends finished ICMP errors from this host to the senders of packets for clients.

    Raw sockets, so that they take the host's own way out: its routes, and the connection
    tracking that knows which packet behind the masquerade an error is about.
    """

    def __init__(self) -> None:
        self._ipv4 = socket.socket(
            socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW
        )
        self._ipv6: socket.socket | None = None
        # No IPv6 on this host means no IPv6 sender to tell.
        with contextlib.suppress(OSError):
            self._ipv6 = socket.socket(
                socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW
            )
            self._ipv6.setsockopt(socket.IPPROTO_IPV6, _IPV6_HDRINCL, 1)

    def send(self, packet: bytes) -> None:
        """Send a whole IP packet; one that cannot be sent is lost, as ICMP may be."""
        with contextlib.suppress(OSError):
            if packet[0] >> 4 == 4:
                self._ipv4.sendto(packet, (socket.inet_ntop(socket.AF_INET, packet[16:20]), 0))
            elif self._ipv6 is not None:
                destination = socket.inet_ntop(socket.AF_INET6, packet[24:40])
                self._ipv6.sendto(packet, (destination, 0))

    def close(self) -> None:
        """Close both sockets."""
        self._ipv4.close()
        if self._ipv6 is not None:
            self._ipv6.close()


class Forwarder:
    """Reads the TUN in batches and flushes each session's connection once per batch.

    `icmp` sends errors to the senders of what is dropped, by raw sockets if not given;
    `on_lost` is called once if the TUN has been deleted: nothing is carried any more.
    """

    def __init__(
        self,
        tun: Tun,
        table: SessionTable,
        endpoint: Endpoint,
        loop: asyncio.AbstractEventLoop,
        *,
        icmp: PacketSender | None = None,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._tun = tun
        self._table = table
        self._endpoint = endpoint
        self._loop = loop
        self._icmp: PacketSender = icmp or IcmpSender()
        self._on_lost = on_lost
        self._icmp_bucket = TokenBucket(rate_per_s=_ICMP_PER_S, burst=_ICMP_PER_S)
        self._unserved_bucket = TokenBucket(rate_per_s=_ICMP_PER_S, burst=_ICMP_PER_S)

    def start(self) -> None:
        """Begin to read."""
        self._table.on_undelivered = self._answer
        carrier = self._endpoint.carrier
        if self._tun.has_vnet_header:
            assert carrier is not None, "only the native engine reads vnet headers"
            carrier.attach_tun(self._tun, on_read=self._nobodys, on_gone=self._lost)
            return
        self._loop.add_reader(self._tun.fd, self._on_readable)
        # Near hosts answer before a batch from the clients is through: their packets go out
        # with the same flush, and spare a turn of the loop.
        self._endpoint.after_batch = self._read

    def stop(self) -> None:
        """Stop reading; the TUN stays open."""
        self._endpoint.after_batch = None
        if not self._tun.has_vnet_header:
            self._loop.remove_reader(self._tun.fd)
        elif self._endpoint.carrier is not None:
            self._endpoint.carrier.detach_tun()
        self._icmp.close()

    def _nobodys(self, read: bytes) -> None:
        """The native engine has read a packet for an address that nobody holds."""
        self._stray(read[VNET_HEADER_BYTES:])

    def _stray(self, packet: bytes) -> None:
        reason = self._table.judge_stray(_destination_of(packet))
        # A bucket of its own: whoever knocks where nobody is must not cost others their news
        # of the path's MTU.
        is_answered = reason is DropReason.NO_BACKEND
        if is_answered and self._unserved_bucket.allow(self._loop.time()):
            self._send_error(packet, reason, 0)

    def _on_readable(self) -> None:
        self._read()
        self._endpoint.flush_touched()

    def _read(self) -> None:
        """Give each packet that waits to its session; whoever calls flushes."""
        holder_of, touch = self._table.holder_of, self._endpoint.touch
        for packet in self._tun.read_batch(_BATCH_PACKETS):
            session = holder_of(_destination_of(packet))
            if session is None:
                self._stray(packet)
                continue
            tunnel = session.tunnel
            reason = tunnel.send(packet)
            if reason:
                self._answer(packet, reason, tunnel.mtu_bytes)
            touch(tunnel.connection)
        if self._tun.is_gone:
            self._endpoint.after_batch = None
            self._loop.remove_reader(self._tun.fd)
            self._lost()

    def _lost(self) -> None:
        logger.error(
            "the TUN device %(tun)s is gone: nothing is carried any more",
            {"event": "tun_gone", "tun": self._tun.name},
        )
        self._on_lost()

    def _answer(self, packet: bytes, reason: DropReason, mtu_bytes: int) -> None:
        if self._icmp_bucket.allow(self._loop.time()):
            self._send_error(packet, reason, mtu_bytes)

    def _send_error(self, packet: bytes, reason: DropReason, mtu_bytes: int) -> None:
        try:
            sent = translate_addresses(packet, self._table.services)
        except PacketError:
            return
        error = error_for_drop(reason, sent, self._table.gateway_addresses, mtu_bytes)
        if error is not None:
            self._icmp.send(error)


def _destination_of(packet: bytes) -> bytes:
    return packet[16:20] if packet[0] >> 4 == 4 else packet[24:40]
