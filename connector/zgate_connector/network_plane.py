"""Networks behind the connector's host, alone or beside services: the session's TUN is the host's.

Beside services the chamber is one more network, joined to the host by a second TUN.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from zgate_datapath.client import TunnelState
from zgate_datapath.tun import Tun, TunError
from zgate_host.errors import NetError
from zgate_protocol.ip_range import IpAddress, networks_of
from zgate_protocol.service_capsule import OfferKind, OfferStatus, RegistrationAnswer

from zgate_connector.networks import HostNetwork
from zgate_connector.plane import PlaneError, ServicesPlane
from zgate_connector.tun_pair import TunPair


class NetworksPlane:
    """Networks: the n-th gateway's TUN on the host, and the way to its clients."""

    def __init__(self, network: HostNetwork, number: int, *, has_vnet_header: bool) -> None:
        self._network = network
        self._number = number
        self._has_vnet_header = has_vnet_header
        self._tun: Tun | None = None

    @property
    def notes(self) -> list[str]:
        """There are none: what cannot be set up is an error."""
        return []

    async def open(self) -> Tun:
        """Make the TUN if there is none."""
        if self._tun is not None and self._tun.is_gone:
            await self.close()
        if self._tun is None:
            try:
                name = self._network.tun_name(self._number)
                self._tun = Tun.open(name, has_vnet_header=self._has_vnet_header)
            except TunError as error:
                raise PlaneError(str(error)) from error
        return self._tun

    def begin(self) -> None:
        """Nothing: addresses and routes come with the first answer."""

    async def apply(
        self,
        tunnel: TunnelState,
        offered: Mapping[str, Sequence[IpAddress]],
        accepted: Sequence[RegistrationAnswer],
    ) -> None:
        """Set up the TUN, and the way to the clients if anything was accepted.

        Services are offered only beside a chamber, to which there is a way then (`BothPlane`).
        """
        offers = {one for addresses in offered.values() for one in addresses}
        is_used = bool(offers) or any(one.kind is OfferKind.ROUTE for one in accepted)
        clients = networks_of(tunnel.routes) if is_used else ()
        own = [one for one in tunnel.addresses if one.ip not in offers]
        await in_thread(
            lambda: self._network.set_up_tun(self._number, tunnel.mtu_bytes, own, clients, offers)
        )

    def statuses(self) -> list[OfferStatus]:
        """Networks have no health."""
        return []

    async def drain(self, deadline_s: float | None) -> None:
        """The gateway sends no new flows, and knows of the old ones: nothing to do here."""
        if deadline_s is not None:
            await asyncio.sleep(deadline_s)

    async def lost(self) -> str:
        """A TUN that was removed ends the session by itself."""
        return await asyncio.Future[str]()

    async def end(self) -> None:
        """Nothing: the TUN's routes lead nowhere while there is no session."""

    async def close(self) -> None:
        """Take the TUN away, and its addresses and routes with it."""
        tun, self._tun = self._tun, None
        if tun is not None:
            tun.close()


class BothPlane:
    """Services in a chamber, and networks: one session carries both."""

    def __init__(
        self,
        services: ServicesPlane,
        networks: NetworksPlane,
        network: HostNetwork,
        number: int,
    ) -> None:
        self._services = services
        self._networks = networks
        self._network = network
        self._number = number
        self._link: Tun | None = None
        self._pair: TunPair | None = None
        self._gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def notes(self) -> list[str]:
        """The chamber's."""
        return self._services.notes

    async def open(self) -> Tun:
        """Make the chamber, both TUNs, and join two of them."""
        tun = await self._networks.open()
        if self._pair is not None and (self._services.is_lost or self._gone.done()):
            self._part()
        inner = await self._services.open()
        if self._pair is None:
            try:
                self._link = Tun.open(self._network.link_name(self._number), has_vnet_header=True)
            except TunError as error:
                raise PlaneError(str(error)) from error
            self._gone = asyncio.get_running_loop().create_future()
            self._pair = TunPair(inner, self._link, self._told_gone)
        return tun

    def begin(self) -> None:
        """The services' front."""
        self._services.begin()
        self._networks.begin()

    def _told_gone(self, reason: str) -> None:
        if not self._gone.done():
            self._gone.set_result(reason)

    async def apply(
        self,
        tunnel: TunnelState,
        offered: Mapping[str, Sequence[IpAddress]],
        accepted: Sequence[RegistrationAnswer],
    ) -> None:
        """Serve both."""
        await in_thread(lambda: self._network.set_up_link(self._number, tunnel.mtu_bytes))
        await self._services.apply(tunnel, offered, accepted)
        await self._networks.apply(tunnel, offered, accepted)

    def statuses(self) -> list[OfferStatus]:
        """The services'."""
        return self._services.statuses()

    async def drain(self, deadline_s: float | None) -> None:
        """Drain both."""
        await asyncio.gather(self._services.drain(deadline_s), self._networks.drain(deadline_s))

    async def lost(self) -> str:
        """Wait for the end of the chamber, or of the TUN that leads there."""
        waits = [asyncio.ensure_future(self._services.lost()), asyncio.shield(self._gone)]
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return next(iter(done)).result()
        finally:
            for one in waits:
                one.cancel()

    async def end(self) -> None:
        """End the services' flows."""
        await self._services.end()
        await self._networks.end()

    def _part(self) -> None:
        pair, self._pair = self._pair, None
        if pair is not None:
            pair.close()
        link, self._link = self._link, None
        if link is not None:
            link.close()

    async def close(self) -> None:
        """Leave nothing behind."""
        self._part()
        await self._services.close()
        await self._networks.close()


async def in_thread(function: Callable[[], None]) -> None:
    """Call what blocks; a NetError becomes a PlaneError."""
    try:
        await asyncio.to_thread(function)
    except (NetError, OSError) as error:
        raise PlaneError(str(error)) from error
