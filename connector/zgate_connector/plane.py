"""Where the packets of a session come from and go to, and what is served with them.

One for each gateway, for as long as the connector runs: sessions come and go on the same TUN.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

from zgate_datapath.client import TunnelState
from zgate_datapath.tun import Tun
from zgate_protocol.ip_range import IpAddress
from zgate_protocol.service_capsule import OfferStatus, RegistrationAnswer

from zgate_connector.chamber import Chamber, ChamberError
from zgate_connector.config import LimitSettings, ServiceSettings
from zgate_connector.front import Front
from zgate_connector.health import HealthChecks


class PlaneError(Exception):
    """Nothing can be served now; the text names cause and cure."""


class Plane(Protocol):
    """What a session needs. Every method may be called again; PlaneError where it cannot do it."""

    @property
    def notes(self) -> list[str]:
        """What could not be set up as wanted, and is not needed."""

    async def open(self) -> Tun:
        """Be ready for a new session; the TUN that it reads and writes."""

    def begin(self) -> None:
        """There is a session now."""

    async def apply(
        self,
        tunnel: TunnelState,
        offered: Mapping[str, Sequence[IpAddress]],
        accepted: Sequence[RegistrationAnswer],
    ) -> None:
        """Serve these services at these addresses, and no others; the networks too."""

    def statuses(self) -> list[OfferStatus]:
        """How the services do."""

    async def drain(self, deadline_s: float | None) -> None:
        """Take no new flows; end those that are open at the deadline. Returns when none is left."""

    async def lost(self) -> str:
        """Wait until this cannot serve any longer, and must be opened anew; returns why."""

    async def end(self) -> None:
        """The session is over, and its flows with it."""

    async def close(self) -> None:
        """Leave nothing behind."""


class ServicesPlane:
    """Services, in a chamber: nothing of it is visible on the host."""

    def __init__(
        self,
        services: Sequence[ServiceSettings],
        limits: LimitSettings,
        health: HealthChecks,
        *,
        mtu_bytes: int,
        has_vnet_header: bool,
    ) -> None:
        self._services = services
        self._limits = limits
        self._health = health
        self._mtu_bytes = mtu_bytes
        self._has_vnet_header = has_vnet_header
        self._chamber: Chamber | None = None
        self._front: Front | None = None
        self._set_mtu_bytes = 0

    @property
    def notes(self) -> list[str]:
        """What could not be set up as wanted."""
        return self._chamber.notes if self._chamber is not None else []

    @property
    def is_lost(self) -> bool:
        """Whether the chamber has ended by itself."""
        return self._chamber is not None and self._chamber.lost.done()

    async def open(self) -> Tun:
        """Make the chamber if there is none."""
        if self.is_lost:
            await self.close()
        try:
            if self._chamber is None:
                self._chamber = await Chamber.open(
                    "zgate0", mtu_bytes=self._mtu_bytes, has_vnet_header=self._has_vnet_header
                )
                self._set_mtu_bytes = self._mtu_bytes
        except ChamberError as error:
            raise PlaneError(str(error)) from error
        return self._chamber.open_tun()

    def begin(self) -> None:
        """Make a front for the session."""
        assert self._chamber is not None
        self._front = Front(self._services, self._limits, self._health, self._chamber)

    async def apply(
        self,
        tunnel: TunnelState,
        offered: Mapping[str, Sequence[IpAddress]],
        accepted: Sequence[RegistrationAnswer],  # noqa: ARG002 - networks' planes use it
    ) -> None:
        """Serve what was accepted."""
        assert self._chamber is not None
        assert self._front is not None
        try:
            await self._fit_mtu(tunnel.mtu_bytes)
            await self._front.serve(offered)
        except ChamberError as error:
            raise PlaneError(str(error)) from error

    async def _fit_mtu(self, mtu_bytes: int) -> None:
        assert self._chamber is not None
        if mtu_bytes != self._set_mtu_bytes:
            await self._chamber.set_mtu(mtu_bytes)
            self._set_mtu_bytes = mtu_bytes

    def statuses(self) -> list[OfferStatus]:
        """How the services do; nothing before the first session."""
        return self._front.statuses() if self._front is not None else []

    async def drain(self, deadline_s: float | None) -> None:
        """Take no new flows."""
        if self._front is not None:
            await self._front.drain(deadline_s)

    async def lost(self) -> str:
        """Wait for the end of the chamber's process."""
        assert self._chamber is not None
        return await asyncio.shield(self._chamber.lost)

    async def end(self) -> None:
        """End the flows; the chamber stays for the next session."""
        front, self._front = self._front, None
        if front is not None:
            await front.close()

    async def close(self) -> None:
        """End flows and chamber."""
        await self.end()
        chamber, self._chamber = self._chamber, None
        if chamber is not None:
            await chamber.close()
