"""What one gateway's session serves: its services, at the addresses that the gateway gave them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from zgate_protocol.service_capsule import Health, OfferStatus

from zgate_connector.chamber import Chamber, ChamberError
from zgate_connector.config import MAX_PORTS, LimitSettings, ServiceSettings, Transport
from zgate_connector.health import HealthChecks
from zgate_connector.limits import FlowLedger, ServiceCounters, allow_descriptors
from zgate_connector.poller import Poller
from zgate_connector.tcp_relay import TcpPort, TcpRelay
from zgate_connector.udp_relay import UdpPort, UdpRelay

logger = logging.getLogger(__name__)

IpAddress = IPv4Address | IPv6Address

_MAX_SOCKETS = 2 * MAX_PORTS
_LOOK_S = 0.05
DRAIN_GRACE_S = 1.0


@dataclass(slots=True)
class _Offer:
    """One service as it is offered: its addresses and the sockets there.

    Attributes:
        is_served: whether every socket is there. Until then nobody is told that it does well: a
            new flow would be refused.
    """

    counters: ServiceCounters = field(default_factory=ServiceCounters)
    addresses: frozenset[IpAddress] = frozenset()
    ports: dict[tuple[Transport, IpAddress, int], TcpPort | UdpPort] = field(default_factory=dict)
    is_served: bool = False


class Front:
    """One session's. `chamber` is its own for that time, and stays open after `close`.

    Call from one event loop only, in which `health` runs.
    """

    def __init__(
        self,
        services: Sequence[ServiceSettings],
        limits: LimitSettings,
        health: HealthChecks,
        chamber: Chamber,
    ) -> None:
        self._services = services
        self._limits = limits
        self._health = health
        self._chamber = chamber
        self._loop = asyncio.get_running_loop()
        self._poller = Poller(self._loop)
        total = allow_descriptors(limits.max_flows)
        if total < limits.max_flows:
            logger.warning(
                "files enough for %(flows)d flows only, not for max_flows (%(max_flows)d): raise"
                " the hard limit of open files (ulimit -Hn; in a systemd unit, LimitNOFILE=)",
                {"event": "too_few_files", "flows": total, "max_flows": limits.max_flows},
            )
        self._ledger = FlowLedger(per_client=limits.open_flows_per_client, total=total)
        self._tcp = TcpRelay(self._poller, health.names, self._ledger, limits)
        self._udp = UdpRelay(
            self._poller, health.names, self._ledger, idle_timeout_s=limits.udp_idle_timeout_s
        )
        self._offers: dict[str, _Offer] = {}
        self._lock = asyncio.Lock()
        self._is_set_up = self._is_draining = self._is_closed = False
        self._silencing: asyncio.Task[None] | None = None
        self._has_news = False
        health.add_listener(self._health_changed)

    async def serve(self, offers: Mapping[str, Sequence[IpAddress]]) -> None:
        """Serve these services at these addresses, and no others; the full list each time.

        Flows of an address that is not in it any more are reset.

        Raises:
            ChamberError: the chamber has ended, or the ports are too many. Nothing may be served.
        """
        async with self._lock:
            self._check(offers)
            await self._set_up()
            for name in set(self._offers) - set(offers):
                self._close_ports(self._offers.pop(name), keep=())
            for name, addresses in offers.items():
                offer = self._offers.setdefault(name, _Offer())
                offer.addresses = frozenset(one for one in addresses if self._has_family(one))
                self._close_ports(offer, keep=offer.addresses)
            # Nobody answers for a service whose health is not known yet.
            await self._silence()
            await self._chamber.set_addresses(self._addresses())
            if not self._is_draining:
                for name in offers:
                    await self._open_ports(name, self._offers[name])
                    self._offers[name].is_served = True

    def statuses(self) -> list[OfferStatus]:
        """How each service that is served does."""
        found = []
        for name, offer in self._offers.items():
            if not offer.is_served:
                continue
            health, reason = self._health.state(name)
            one = offer.counters
            found.append(
                OfferStatus(
                    name=name,
                    health=health,
                    open_flows=one.open_flows,
                    total_flows=one.total_flows,
                    bytes_up=one.bytes_up,
                    bytes_down=one.bytes_down,
                    reason=reason,
                )
            )
        return found

    async def counters(self) -> dict[str, int]:
        """What was refused, dropped or ended early, by name; `chamber_rules.COUNTERS` among it."""
        own = {str(reason): count for reason, count in self._ledger.refused.items()}
        own["udp_flows_evicted"] = self._udp.evicted_flows
        own["datagrams_lost"] = self._udp.lost_datagrams
        return own | await self._chamber.counters()

    @property
    def open_flows(self) -> int:
        """Flows of all services."""
        return self._ledger.open_flows

    async def drain(self, deadline_s: float | None) -> None:
        """Take no new flows ever again; return when none is open. At the deadline, reset them.

        `deadline_s` counts from now; None: there is none. What the gateway sent before it asked for
        this may arrive after it: new flows are taken for a moment more.
        """
        end_s = math.inf if deadline_s is None else self._loop.time() + deadline_s
        self._is_draining = True
        await asyncio.sleep(min(DRAIN_GRACE_S, deadline_s or math.inf))
        async with self._lock:
            for port in self._ports():
                port.stop_listening()
        while not self._is_closed and self.open_flows:
            if self._loop.time() >= end_s:
                for offer in self._offers.values():
                    self._close_ports(offer, keep=())
                return
            await asyncio.sleep(_LOOK_S)

    async def close(self) -> None:
        """Reset all flows and close all sockets. Safe to call twice."""
        if self._is_closed:
            return
        self._is_closed = True
        self._health.remove_listener(self._health_changed)
        if self._silencing is not None:
            self._silencing.cancel()
        async with self._lock:
            for offer in self._offers.values():
                self._close_ports(offer, keep=())
            self._offers.clear()
            self._tcp.close()
            self._udp.close()
            self._poller.close()
            with contextlib.suppress(ChamberError):
                await self._chamber.set_addresses(())

    # Ports.

    def _check(self, offers: Mapping[str, Sequence[IpAddress]]) -> None:
        if self._is_closed:
            raise ChamberError("the session is over")
        count = sum(
            len(ports) * len(set(offers.get(service.id, ())))
            for service in self._services
            for ports in service.ports
        )
        if count > _MAX_SOCKETS:
            raise ChamberError(
                f"the services have {count} ports at all their addresses, more than {_MAX_SOCKETS}:"
                " offer fewer"
            )

    async def _set_up(self) -> None:
        if self._is_set_up:
            return
        await self._chamber.limit_new_flows(
            self._limits.new_flows_per_s, math.ceil(self._limits.udp_idle_timeout_s)
        )
        raw: dict[int, socket.socket] = {}
        for version in (4, 6):
            with contextlib.suppress(ChamberError):  # no IPv6: nobody to tell
                raw[version] = await self._chamber.open_raw(version)
        self._udp.answer_with(raw)
        self._is_set_up = True

    async def _open_ports(self, name: str, offer: _Offer) -> None:
        for service in self._services:
            if service.id != name:
                continue
            for address in offer.addresses:
                for port in (one for ports in service.ports for one in ports):
                    await self._open_port(service, offer, address, port)

    async def _open_port(
        self, service: ServiceSettings, offer: _Offer, address: IpAddress, port: int
    ) -> None:
        key = (service.protocol, address, port)
        if key in offer.ports:
            return
        target = (service.backend.host, service.backend_port(port), offer.counters)
        if service.protocol is Transport.TCP:
            listener = await self._chamber.listen_tcp(address, port)
            offer.ports[key] = TcpPort(self._tcp, listener, *target)
        else:
            sock = await self._chamber.bind_udp(address, port)
            offer.ports[key] = UdpPort(self._udp, sock, *target)

    def _close_ports(self, offer: _Offer, keep: Iterable[IpAddress]) -> None:
        for key in [one for one in offer.ports if one[1] not in keep]:
            offer.ports.pop(key).close()

    def _ports(self) -> list[TcpPort | UdpPort]:
        return [port for offer in self._offers.values() for port in offer.ports.values()]

    # Health.

    def _has_family(self, address: IpAddress) -> bool:
        return address.version == 4 or self._chamber.has_ipv6

    def _addresses(self) -> set[IpAddress]:
        return {one for offer in self._offers.values() for one in offer.addresses}

    def _health_changed(self, service_id: str) -> None:
        if service_id not in self._offers:
            return
        self._has_news = True
        if self._silencing is None or self._silencing.done():
            self._silencing = self._loop.create_task(self._silence_later())

    async def _silence_later(self) -> None:
        with contextlib.suppress(ChamberError):  # whoever owns the chamber knows
            while self._has_news:
                self._has_news = False
                async with self._lock:
                    await self._silence()

    async def _silence(self) -> None:
        silent = {
            address
            for name, offer in self._offers.items()
            if self._health.state(name)[0] is Health.DOWN
            for address in offer.addresses
        }
        await self._chamber.silence(silent)
