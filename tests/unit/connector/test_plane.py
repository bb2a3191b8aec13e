"""Planes: a chamber and a front that are scripted, and the order of things."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest
from zgate_connector import network_plane, plane
from zgate_connector.chamber import ChamberError
from zgate_connector.config import ConnectorConfig, NetworkSettings
from zgate_connector.health import HealthChecks
from zgate_connector.network_plane import BothPlane, NetworksPlane, in_thread
from zgate_connector.networks import HostNetwork
from zgate_connector.plane import PlaneError, ServicesPlane
from zgate_datapath.tun import TunError
from zgate_host.errors import NetError
from zgate_protocol.ip_range import IpAddress
from zgate_protocol.service_capsule import (
    Health,
    OfferKind,
    OfferStatus,
    RegistrationAnswer,
    RegistrationCode,
)

from .conftest import OFFER, accepted, tunnel_state

UP = tunnel_state("10.100.0.2/32", "10.101.255.254/32")
ROUTE = RegistrationAnswer(OfferKind.ROUTE, "10.20.0.0/16", RegistrationCode.ACCEPTED, "")


class FakeTun:
    """One TUN."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_gone = self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


class FakeChamber:
    """A chamber; the newest is in `made`."""

    made: list[FakeChamber] = []  # noqa: RUF012 - emptied for each test
    failure: Exception | None = None

    def __init__(self) -> None:
        self.tun = FakeTun("zgate0")
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.notes = ["net/x: not permitted"]
        self.mtus: list[int] = []
        self.is_closed = False

    @classmethod
    async def open(cls, name: str, *, mtu_bytes: int, has_vnet_header: bool) -> FakeChamber:
        if cls.failure is not None:
            raise cls.failure
        cls.made.append(FakeChamber())
        return cls.made[-1]

    def open_tun(self) -> FakeTun:
        return self.tun

    async def set_mtu(self, mtu_bytes: int) -> None:
        self.mtus.append(mtu_bytes)

    async def close(self) -> None:
        self.is_closed = True


class FakeFront:
    """A front; the newest is in `made`."""

    made: list[FakeFront] = []  # noqa: RUF012 - emptied for each test

    def __init__(self, services: Any, limits: Any, health: Any, chamber: FakeChamber) -> None:
        self.chamber = chamber
        self.served: list[Mapping[str, Sequence[IpAddress]]] = []
        self.failure: Exception | None = None
        self.calls: list[object] = []
        FakeFront.made.append(self)

    async def serve(self, offers: Mapping[str, Sequence[IpAddress]]) -> None:
        if self.failure is not None:
            raise self.failure
        self.served.append(offers)

    def statuses(self) -> list[OfferStatus]:
        return [OfferStatus("echo", Health.UP, 0, 0, 0, 0, "")]

    async def drain(self, deadline_s: float | None) -> None:
        self.calls.append(deadline_s)

    async def close(self) -> None:
        self.calls.append("close")


class FakeNetwork(HostNetwork):
    """Remembers what was asked of it."""

    def __init__(self) -> None:
        super().__init__("zct", [NetworkSettings(network="10.20.0.0/16")], Path("/none"))  # type: ignore[arg-type]
        self.calls: list[tuple[Any, ...]] = []
        self.failure: Exception | None = None

    def set_up_tun(self, *arguments: Any) -> None:
        if self.failure is not None:
            raise self.failure
        self.calls.append(("tun", *arguments))

    def set_up_link(self, *arguments: Any) -> None:
        self.calls.append(("link", *arguments))


class FakePair:
    """Two TUNs that are joined."""

    made: list[FakePair] = []  # noqa: RUF012 - emptied for each test

    def __init__(self, one: FakeTun, other: FakeTun, on_gone: Any) -> None:
        self.names, self.on_gone, self.is_closed = (one.name, other.name), on_gone, False
        FakePair.made.append(self)

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (FakeChamber, FakeFront, FakePair):
        monkeypatch.setattr(kind, "made", [])
    monkeypatch.setattr(plane, "Chamber", FakeChamber)
    monkeypatch.setattr(plane, "Front", FakeFront)
    monkeypatch.setattr(network_plane, "TunPair", FakePair)

    class Tuns:
        @staticmethod
        def open(name: str, *, has_vnet_header: bool) -> FakeTun:
            return FakeTun(name)

    monkeypatch.setattr(network_plane, "Tun", Tuns)


def services_plane(config: ConnectorConfig) -> ServicesPlane:
    health = HealthChecks(config.services)
    return ServicesPlane(
        config.services, config.limits, health, mtu_bytes=1420, has_vnet_header=True
    )


async def test_one_chamber_for_all_sessions_and_a_front_for_each(config: ConnectorConfig) -> None:
    services = services_plane(config)
    assert services.statuses() == []
    tun = await services.open()
    assert await services.open() is tun
    assert (len(FakeChamber.made), FakeFront.made) == (1, []), "an attempt is no session"
    services.begin()
    assert services.notes == ["net/x: not permitted"]
    await services.apply(UP, {"echo": (OFFER,)}, (accepted(),))
    await services.apply(UP, {}, ())
    assert FakeFront.made[0].served == [{"echo": (OFFER,)}, {}]
    assert FakeChamber.made[0].mtus == [1400], "the path's, and only when it changes"
    await services.drain(5.0)
    await services.end()
    assert FakeFront.made[0].calls == [5.0, "close"]
    assert await services.open() is tun
    services.begin()
    assert (len(FakeChamber.made), len(FakeFront.made)) == (1, 2)
    await services.close()
    await services.close()
    assert FakeChamber.made[0].is_closed


async def test_a_chamber_that_has_ended_is_replaced(config: ConnectorConfig) -> None:
    services = services_plane(config)
    first = await services.open()
    waiting = asyncio.create_task(services.lost())
    await asyncio.sleep(0)
    FakeChamber.made[0].lost.set_result("killed by signal 9")
    assert await waiting == "killed by signal 9"
    assert await services.open() is not first
    services.begin()
    assert FakeFront.made[-1].chamber is FakeChamber.made[1]


async def test_what_a_chamber_cannot_is_told(
    config: ConnectorConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = services_plane(config)
    monkeypatch.setattr(FakeChamber, "failure", ChamberError("user namespaces are not allowed"))
    with pytest.raises(PlaneError, match="user namespaces are not allowed"):
        await services.open()
    monkeypatch.setattr(FakeChamber, "failure", None)
    await services.open()
    services.begin()
    FakeFront.made[0].failure = ChamberError("too many ports")
    with pytest.raises(PlaneError, match="too many ports"):
        await services.apply(UP, {"echo": (OFFER,)}, ())


async def test_networks_have_a_tun_and_a_way_once_accepted() -> None:
    network = FakeNetwork()
    networks = NetworksPlane(network, 1, has_vnet_header=False)
    tun = await networks.open()
    assert tun.name == "zct1"
    await networks.apply(UP, {}, ())
    await networks.apply(UP, {}, (ROUTE,))
    own = list(UP.addresses)
    (_, number, mtu_bytes, addresses, clients, offers), second = network.calls
    assert (number, mtu_bytes, addresses, list(clients), offers) == (1, 1400, own, [], set())
    assert [str(one) for one in second[4]] == ["10.100.0.0/16"]
    assert (networks.statuses(), networks.notes) == ([], [])
    tun.is_gone = True
    assert await networks.open() is not tun
    await networks.drain(0.0)
    await networks.end()
    await networks.close()
    await networks.close()


async def test_networks_that_cannot_be_set_up() -> None:
    network = FakeNetwork()
    network.failure = NetError("no room")
    networks = NetworksPlane(network, 0, has_vnet_header=False)
    await networks.open()
    with pytest.raises(PlaneError, match="no room"):
        await networks.apply(UP, {}, (ROUTE,))


async def test_a_tun_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        @staticmethod
        def open(name: str, *, has_vnet_header: bool) -> FakeTun:
            raise TunError(f"cannot make TUN device {name}")

    monkeypatch.setattr(network_plane, "Tun", Refusing)
    with pytest.raises(PlaneError, match="cannot make TUN device zct0"):
        await NetworksPlane(FakeNetwork(), 0, has_vnet_header=False).open()


async def test_both_are_joined_and_the_offers_lead_into_the_chamber(
    config: ConnectorConfig,
) -> None:
    network = FakeNetwork()
    networks = NetworksPlane(network, 0, has_vnet_header=True)
    both = BothPlane(services_plane(config), networks, network, 0)
    tun = await both.open()
    both.begin()
    assert tun.name == "zct0"
    assert FakePair.made[0].names == ("zgate0", "zct0s")
    await both.apply(UP, {"echo": (OFFER,)}, (accepted(), ROUTE))
    assert [call[0] for call in network.calls] == ["link", "tun"]
    (_, _, _, addresses, _, offers) = network.calls[1]
    assert (addresses, offers) == ([ip_interface("10.100.0.2/32")], {OFFER})
    assert [one.name for one in both.statuses()] == ["echo"]
    assert both.notes == ["net/x: not permitted"]
    # The chamber ends: another one, and another pair.
    waiting = asyncio.create_task(both.lost())
    await asyncio.sleep(0)
    FakeChamber.made[0].lost.set_result("killed")
    assert await waiting == "killed"
    await both.end()
    await both.open()
    both.begin()
    assert (FakePair.made[0].is_closed, len(FakePair.made)) == (True, 2)
    # The second TUN is removed: the same.
    waiting = asyncio.create_task(both.lost())
    await asyncio.sleep(0)
    FakePair.made[1].on_gone("the TUN device zct0s is gone")
    FakePair.made[1].on_gone("again")
    assert await waiting == "the TUN device zct0s is gone"
    await both.open()
    assert len(FakePair.made) == 3
    await both.drain(0.0)
    await both.close()
    assert FakePair.made[2].is_closed and FakeChamber.made[-1].is_closed


async def test_what_fails_in_a_thread_is_a_plane_error() -> None:
    def fails() -> None:
        raise OSError("read-only")

    with pytest.raises(PlaneError, match="read-only"):
        await in_thread(fails)
