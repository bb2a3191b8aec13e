"""What is served where, with a chamber whose sockets are loopback's."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from ipaddress import ip_address
from typing import Any

import pytest
import pytest_asyncio
from zgate_connector.chamber import ChamberError
from zgate_connector.config import LimitSettings, ServiceSettings
from zgate_connector.front import Front, IpAddress
from zgate_connector.health import HealthChecks
from zgate_protocol.service_capsule import Health

ONE, OTHER, IPV6 = ip_address("127.0.0.1"), ip_address("127.0.0.2"), ip_address("::1")


class Loopback:
    """A chamber in the test's own namespace, and what it was told."""

    def __init__(self) -> None:
        self.has_ipv6 = False
        self.limits: tuple[int, int] | None = None
        self.addresses: set[IpAddress] = set()
        self.silent: set[IpAddress] = set()
        self.told: list[str] = []
        self.failure: ChamberError | None = None

    def _tell(self, what: str) -> None:
        if self.failure is not None:
            raise self.failure
        self.told.append(what)

    async def limit_new_flows(self, new_flows_per_s: int, udp_idle_timeout_s: int) -> None:
        self._tell("limit")
        self.limits = (new_flows_per_s, udp_idle_timeout_s)

    async def set_addresses(self, addresses: Iterable[IpAddress]) -> None:
        self._tell("addresses")
        self.addresses = set(addresses)

    async def silence(self, addresses: Iterable[IpAddress]) -> None:
        self._tell("silence")
        self.silent = set(addresses)

    async def listen_tcp(self, address: IpAddress, port: int) -> socket.socket:
        self._tell(f"tcp {address} {port}")
        listener = socket.create_server((str(address), port))
        listener.setblocking(False)
        return listener

    async def bind_udp(self, address: IpAddress, port: int) -> socket.socket:
        self._tell(f"udp {address} {port}")
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        sock.bind((str(address), port))
        return sock

    async def open_raw(self, version: int) -> socket.socket:
        raise ChamberError("loopback has none")

    async def counters(self) -> dict[str, int]:
        return {"tcp_flows_limited": 7}


def service(name: str, port: int, **fields: Any) -> ServiceSettings:
    document = {"id": name, "ports": [port], "backend": "127.0.0.1:9", "health": {"kind": "none"}}
    return ServiceSettings.model_validate_json(json.dumps(document | fields))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
def chamber() -> Loopback:
    return Loopback()


@pytest_asyncio.fixture
async def backend() -> AsyncIterator[asyncio.Server]:
    """Sends a letter, and waits."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"!")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    yield server
    server.close()


def where(server: asyncio.Server) -> str:
    return f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


def make(chamber: Loopback, *services: ServiceSettings, **limits: Any) -> Front:
    health = HealthChecks(services)
    return Front(services, LimitSettings(**limits), health, chamber)  # type: ignore[arg-type]


async def test_what_is_offered_is_served_and_no_more(
    chamber: Loopback, backend: asyncio.Server
) -> None:
    to = where(backend)
    one, other = free_port(), free_port()
    front = make(
        chamber,
        service("one", one, backend=to),
        service("one", one, protocol="udp"),
        service("other", other, backend=to),
        new_flows_per_s=12,
        udp_idle_timeout_s=29.5,
    )
    await front.serve({"one": [ONE, OTHER]})
    # Limits before anything can be reached, silence before addresses.
    assert chamber.told[:3] == ["limit", "silence", "addresses"]
    assert chamber.limits == (12, 30)
    assert chamber.addresses == {ONE, OTHER}
    assert len(chamber.told) == 3 + 4
    reader, writer = await asyncio.open_connection("127.0.0.2", one)
    assert await reader.read(1) == b"!"
    (status,) = front.statuses()
    assert (status.name, status.health, status.open_flows) == ("one", Health.UP, 1)
    assert status.bytes_down == 1
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", other)
    # The same again changes nothing; another list replaces it.
    await front.serve({"one": [ONE, OTHER]})
    assert front.open_flows == 1
    await front.serve({"other": [ONE]})
    assert await asyncio.wait_for(closed(reader), 5)
    assert front.open_flows == 0
    assert [one.name for one in front.statuses()] == ["other"]
    reader, other_writer = await asyncio.open_connection("127.0.0.1", other)
    assert await reader.read(1) == b"!"
    await front.close()
    assert chamber.addresses == set()
    for one_writer in (writer, other_writer):
        one_writer.close()


async def closed(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read(1) == b""
    except ConnectionResetError:
        return True


async def test_addresses_of_unhealthy_services_are_silent(
    chamber: Loopback, backend: asyncio.Server
) -> None:
    port = backend.sockets[0].getsockname()[1]
    check = {"kind": "tcp", "port": port, "interval_s": 0.1, "fall": 1}
    services = [service("sick", free_port(), health=check), service("well", free_port())]
    health = HealthChecks(services)
    front = Front(services, LimitSettings(), health, chamber)  # type: ignore[arg-type]
    await front.serve({"sick": [ONE], "well": [OTHER]})
    assert chamber.silent == {ONE}  # not known yet
    health.start()
    await eventually(lambda: chamber.silent == set())
    backend.close()
    await eventually(lambda: chamber.silent == {ONE})
    (reason,) = [one.reason for one in front.statuses() if one.name == "sick"]
    assert "Connection refused" in reason
    await front.close()
    await health.close()


async def test_addresses_of_a_family_that_the_kernel_lacks(chamber: Loopback) -> None:
    front = make(chamber, service("one", free_port()))
    await front.serve({"one": [ONE, IPV6]})
    assert chamber.addresses == {ONE}
    await front.close()


async def test_counters_of_both_sides(chamber: Loopback) -> None:
    front = make(chamber, service("one", free_port()))
    await front.serve({"one": [ONE]})
    found = await front.counters()
    assert found == {"tcp_flows_limited": 7, "udp_flows_evicted": 0, "datagrams_lost": 0}
    await front.close()


async def test_more_ports_than_may_be_served(chamber: Loopback) -> None:
    front = make(chamber, service("all", 1, ports=["1-65535"]))
    with pytest.raises(ChamberError, match=r"65535 ports .* more than 2048: offer fewer"):
        await front.serve({"all": [ONE]})
    assert chamber.told == []
    await front.close()


async def test_files_that_do_not_suffice_are_told(
    chamber: Loopback, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("zgate_connector.front.allow_descriptors", lambda wanted: wanted // 2)
    front = make(chamber, service("one", free_port()), max_flows=100)
    assert "for 50 flows only, not for max_flows (100)" in caplog.text
    await front.close()


async def test_a_chamber_that_has_ended(chamber: Loopback) -> None:
    front = make(chamber, service("one", free_port()))
    chamber.failure = ChamberError("the chamber has ended")
    with pytest.raises(ChamberError, match="has ended"):
        await front.serve({"one": [ONE]})
    await front.close()
    await front.close()
    with pytest.raises(ChamberError, match="over"):
        await front.serve({"one": [ONE]})


async def test_nobody_is_told_of_a_service_whose_sockets_are_not_there_yet(
    chamber: Loopback, backend: asyncio.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway gives flows to what is told to do well, and they would be refused."""
    may_go_on = asyncio.Event()
    listen = chamber.listen_tcp

    async def wait_and_listen(address: IpAddress, port: int) -> socket.socket:
        await may_go_on.wait()
        return await listen(address, port)

    monkeypatch.setattr(chamber, "listen_tcp", wait_and_listen)
    front = make(chamber, service("one", free_port(), backend=where(backend)))
    serving = asyncio.ensure_future(front.serve({"one": [ONE]}))
    await eventually(lambda: chamber.addresses)
    assert front.statuses() == []
    may_go_on.set()
    await serving
    assert [one.name for one in front.statuses()] == ["one"]
    await front.close()


async def test_drained(chamber: Loopback, backend: asyncio.Server) -> None:
    to = where(backend)
    port = free_port()
    front = make(chamber, service("one", port, backend=to))
    await front.serve({"one": [ONE]})
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert await reader.read(1) == b"!"
    draining = asyncio.ensure_future(front.drain(None))
    await asyncio.sleep(0)
    assert not is_closed(port)  # what is on its way is still taken
    await eventually(lambda: is_closed(port))
    await front.serve({"one": [ONE]})
    assert is_closed(port)
    assert not draining.done()
    writer.close()
    await asyncio.wait_for(draining, 5)
    await front.close()


async def test_a_drain_ends_with_the_session(chamber: Loopback, backend: asyncio.Server) -> None:
    to = where(backend)
    port = free_port()
    front = make(chamber, service("one", port, backend=to))
    await front.serve({"one": [ONE]})
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert await reader.read(1) == b"!"
    draining = asyncio.ensure_future(front.drain(100))
    await asyncio.sleep(0)
    await front.close()
    await asyncio.wait_for(draining, 5)
    writer.close()


def is_closed(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0
