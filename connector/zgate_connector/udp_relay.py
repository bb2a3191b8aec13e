"""UDP services: a socket in the chamber for each offer's address and port, and for each client's
address and port a socket that is connected to the backend.

A flow ends after some time without datagrams, or when its client needs room for a newer one: its
least recently used goes first. A backend that has no such port is told to the client by ICMP, as
the backend's own host would do.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import OrderedDict
from ipaddress import IPv4Address, IPv6Address, ip_address

from zgate_protocol.icmp import IcmpError, build_icmp_error, checksum

from zgate_connector.backends import BackendNames, connect_udp
from zgate_connector.limits import FlowLedger, Refusal, ServiceCounters
from zgate_connector.poller import Poller

logger = logging.getLogger(__name__)

IpAddress = IPv4Address | IPv6Address
Source = tuple[str, int]
Data = bytes | memoryview

_DATAGRAMS_PER_PIECE = 32
_READ_BYTES = 65535
_SWEEP_S = 1.0
_HOP_LIMIT = 64


class UdpFlow:
    """One client's address and port, and the socket to the backend.

    Attributes:
        used_s: when the last datagram went either way.
        is_queued: see `Job`.
    """

    def __init__(self, port: UdpPort, source: Source, backend: socket.socket) -> None:
        self.source = source
        self.backend = backend
        self.port = port
        self.used_s = 0.0
        self.sent_bytes = 0
        self.is_queued = False
        self.is_closed = False
        port.relay.poller.watch(backend.fileno(), self, for_writing=False)

    def ready(self, _events: int) -> None:
        """See `Watcher.ready`."""
        self.port.relay.poller.queue(self)

    def send(self, data: Data) -> None:
        """Give the backend a datagram."""
        try:
            self._send(data)
        except ConnectionRefusedError:
            # About an earlier one; this one has not been sent.
            self.port.refused(self)
        except OSError:
            self.port.relay.lost_datagrams += 1  # too big for the way, or no room: as on any path

    def _send(self, data: Data) -> None:
        self.sent_bytes = len(data)
        self.backend.send(data)
        self.port.counters.bytes_up += len(data)

    def work(self) -> bool:
        """Carry what the backend has answered."""
        if self.is_closed:
            return False
        port = self.port
        for count in range(_DATAGRAMS_PER_PIECE):
            try:
                size_bytes = self.backend.recv_into(port.relay.buffer)
            except BlockingIOError:
                if count:
                    port.relay.used(self)
                return False
            except ConnectionRefusedError:
                port.refused(self)
                return False
            except OSError as error:
                logger.debug("backend: %(error)s", {"event": "backend_error", "error": error})
                continue
            port.reply(self, port.relay.view[:size_bytes])
        port.relay.used(self)
        return True

    def abort(self) -> None:
        """See `Job.abort`."""
        self.port.end(self)


class UdpPort:
    """One socket in the chamber.

    Attributes:
        counters: of the service.
        is_queued: see `Job`.
    """

    def __init__(
        self,
        relay: UdpRelay,
        sock: socket.socket,
        host: str,
        port: int,
        counters: ServiceCounters,
    ) -> None:
        self.relay = relay
        self.counters = counters
        self.is_queued = False
        self._socket = sock
        self._own: Source = sock.getsockname()[:2]
        self._host = host
        self._port = port
        self._flows: dict[Source, UdpFlow] = {}
        self._takes_new = True
        self._is_closed = False
        relay.poller.watch(sock.fileno(), self, for_writing=False)

    def ready(self, _events: int) -> None:
        """See `Watcher.ready`."""
        self.relay.poller.queue(self)

    def work(self) -> bool:
        """Carry what clients have sent."""
        for _ in range(_DATAGRAMS_PER_PIECE):
            if self._is_closed:
                return False
            try:
                size_bytes, address = self._socket.recvfrom_into(self.relay.buffer)
            except BlockingIOError:
                return False
            except OSError:
                continue  # an ICMP error about an answer of ours
            source: Source = address[:2]
            flow = self._flows.get(source) or self._begin(source)
            if flow is not None:
                self.relay.used(flow)
                flow.send(self.relay.view[:size_bytes])
        return True

    def reply(self, flow: UdpFlow, data: Data) -> None:
        """Give a client an answer, from the offer's address."""
        try:
            self._socket.sendto(data, flow.source)
        except OSError:
            self.relay.lost_datagrams += 1
        else:
            self.counters.bytes_down += len(data)

    def refused(self, flow: UdpFlow) -> None:
        """The backend's host has nobody at that port: so the client hears it, and the flow ends."""
        self.relay.ledger.refused[Refusal.BACKEND] += 1
        self.relay.tell_unreachable(flow.source, self._own, flow.sent_bytes)
        self.end(flow)

    def end(self, flow: UdpFlow) -> None:
        """The flow is over."""
        if not flow.is_closed:
            flow.is_closed = True
            del self._flows[flow.source]
            self.counters.open_flows -= 1
            self.relay.ended(flow)

    def stop_listening(self) -> None:
        """Begin no flows any more; those that are open go on."""
        self._takes_new = False

    def abort(self) -> None:
        """See `Job.abort`: other datagrams may yet be carried."""

    def close(self) -> None:
        """End all flows, and the socket."""
        for flow in list(self._flows.values()):
            self.end(flow)
        if not self._is_closed:
            self._is_closed = True
            self.relay.poller.forget(self._socket.fileno())
            self._socket.close()

    def _begin(self, source: Source) -> UdpFlow | None:
        relay = self.relay
        if not self._takes_new or not relay.open(source[0]):
            return None
        try:
            backend = connect_udp(relay.names.addresses(self._host), self._port)
        except OSError as error:
            relay.ledger.close(source[0])
            relay.ledger.refused[Refusal.BACKEND] += 1
            logger.debug(
                "backend %(backend)s port %(port)d: %(error)s",
                {
                    "event": "backend_refused",
                    "backend": self._host,
                    "port": self._port,
                    "error": error,
                },
            )
            return None
        flow = self._flows[source] = UdpFlow(self, source, backend)
        self.counters.open_flows += 1
        self.counters.total_flows += 1
        return flow


class UdpRelay:
    """What all UDP ports of a chamber share.

    Attributes:
        evicted_flows: ended early for a newer one of the same client.
        lost_datagrams: neither the backend's way nor the client's took them.
        buffer, view: where a datagram is while it is carried.
    """

    def __init__(
        self, poller: Poller, names: BackendNames, ledger: FlowLedger, *, idle_timeout_s: float
    ) -> None:
        self.poller = poller
        self.names = names
        self.ledger = ledger
        self.evicted_flows = 0
        self.lost_datagrams = 0
        self.buffer = bytearray(_READ_BYTES)
        self.view = memoryview(self.buffer)
        self._idle_timeout_s = idle_timeout_s
        self._loop = asyncio.get_running_loop()
        #: For each client, least recently used first.
        self._of_client: dict[str, OrderedDict[UdpFlow, None]] = {}
        self._raw: dict[int, socket.socket] = {}
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)

    def answer_with(self, raw: dict[int, socket.socket]) -> None:
        """Send ICMP errors through these sockets of the chamber, by IP version."""
        self._raw = raw

    def open(self, client: str) -> bool:
        """Count a new flow, at the cost of the client's own oldest; False: there is no room."""
        own = self._of_client.get(client)
        if own and self.ledger.limit_of(client) is not None:
            oldest = next(iter(own))
            self.evicted_flows += 1
            oldest.port.end(oldest)
        return self.ledger.open(client)

    def used(self, flow: UdpFlow) -> None:
        """A datagram has gone one way or the other."""
        flow.used_s = self._loop.time()
        own = self._of_client.setdefault(flow.source[0], OrderedDict())
        own[flow] = None
        own.move_to_end(flow)

    def ended(self, flow: UdpFlow) -> None:
        """The flow is over."""
        self.poller.forget(flow.backend.fileno())
        flow.backend.close()
        self.ledger.close(flow.source[0])
        own = self._of_client.get(flow.source[0])
        if own is not None:
            own.pop(flow, None)
            if not own:
                del self._of_client[flow.source[0]]

    def tell_unreachable(self, source: Source, own: Source, sent_bytes: int) -> None:
        """Have the client's kernel know that nobody is at the port."""
        address = ip_address(own[0])
        raw = self._raw.get(address.version)
        error = port_unreachable(source, own, sent_bytes)
        if raw is None or error is None:
            return
        try:
            raw.sendto(error, (source[0], 0))
        except OSError as failure:
            logger.debug(
                "no ICMP to %(address)s: %(error)s",
                {"event": "icmp_not_sent", "address": source[0], "error": failure},
            )

    def close(self) -> None:
        """After all ports are closed."""
        self._sweeper.cancel()
        for raw in self._raw.values():
            raw.close()
        self._raw = {}

    def _sweep(self) -> None:
        before_s = self._loop.time() - self._idle_timeout_s
        for own in list(self._of_client.values()):
            for flow in list(own):
                if flow.used_s > before_s:
                    break
                flow.port.end(flow)
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)


def port_unreachable(source: Source, own: Source, sent_bytes: int) -> bytes | None:
    """The ICMP error that a host sends for a datagram from `source` to its closed port `own`.

    Kernels find the socket by the quoted addresses and ports; the payload is quoted as zeros.
    """
    client, offer = ip_address(source[0]), ip_address(own[0])
    ports = source[1].to_bytes(2, "big") + own[1].to_bytes(2, "big")
    datagram = ports + (8 + sent_bytes).to_bytes(2, "big") + bytes(2 + sent_bytes)
    if client.version == 4:
        head = b"\x45\0" + (20 + len(datagram)).to_bytes(2, "big") + b"\0\0\x40\0"
        head += bytes((_HOP_LIMIT, 17))
        total = checksum(head + b"\0\0" + client.packed + offer.packed)
        packet = head + total.to_bytes(2, "big") + client.packed + offer.packed + datagram
    else:
        head = b"\x60\0\0\0" + len(datagram).to_bytes(2, "big") + bytes((17, _HOP_LIMIT))
        packet = head + client.packed + offer.packed + datagram
    return build_icmp_error(IcmpError.PORT_UNREACHABLE, packet, offer.packed)
