"""Packets that pass between sockets and TUN without Python, and those that may not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest

from ...loopback import OFFICE_V4, eventually, udp_packet  # noqa: TID252
from .links import WAIT_S, Link, Links, native_gateway, needs_native
from .wire import VnetTun, lost

pytestmark = needs_native


@pytest.fixture
def vnet_tun() -> Iterator[VnetTun]:
    made = VnetTun()
    yield made
    made.close()


async def _direct(links: Links, tun: VnetTun) -> Link:
    gateway = links.lab.gateway()
    assert gateway.endpoint.carrier is not None
    gateway.endpoint.carrier.attach_tun(
        tun,  # type: ignore[arg-type]
        on_read=lambda read: None,
        on_gone=lambda: None,
    )
    return await links.link(gateway=gateway)


@native_gateway
async def test_the_first_packet_of_a_pair_is_judged_and_the_rest_pass(
    links: Links, vnet_tun: VnetTun
) -> None:
    link = await _direct(links, vnet_tun)
    judged = link.send_up([100])
    await eventually(lambda: not link.missing_above(judged), WAIT_S)
    assert link.gateway_side.engine.first_packet_s == 0, "Python has seen it"
    began_s = time.monotonic()
    passing = link.send_up([100] * 20)
    arrived: list[bytes] = []
    await eventually(lambda: arrived.extend(vnet_tun.delivered()) or len(arrived) >= 20, WAIT_S)
    assert set(arrived) == set(passing)
    down = [link.down_packet(100) for _ in range(20)]
    for packet in down:
        vnet_tun.inject(packet)
    await eventually(lambda: not link.missing_below(down), WAIT_S)
    assert link.gateway_side.engine.carried.received_packets == 20
    first_s = link.gateway_side.engine.first_packet_s
    assert began_s <= first_s <= time.monotonic()
    passing = link.send_up([100])
    arrived.clear()
    await eventually(lambda: arrived.extend(vnet_tun.delivered()) or arrived, WAIT_S)
    assert link.gateway_side.engine.first_packet_s == first_s, "the first stays the first"


@native_gateway
async def test_a_source_that_is_not_the_clients_never_passes(
    links: Links, vnet_tun: VnetTun
) -> None:
    link = await _direct(links, vnet_tun)
    stolen = udp_packet("10.100.0.6", OFFICE_V4, b"stolen")
    for _ in range(5):
        link.peer.send_datagram(link.prefix + stolen)
    honest = link.send_up([100])
    await eventually(lambda: not link.missing_above(honest), WAIT_S)
    assert stolen not in link.gateway.tun.written
    assert stolen not in vnet_tun.delivered()


@native_gateway
async def test_nothing_passes_after_the_session(links: Links, vnet_tun: VnetTun) -> None:
    link = await _direct(links, vnet_tun)
    first = link.send_up([100])
    await eventually(lambda: not link.missing_above(first), WAIT_S)
    second = link.send_up([100])
    await eventually(lambda: vnet_tun.delivered() == second, WAIT_S)
    packet = link.up_packet(100)
    # The goodbye is on its way: what still comes from the peer goes nowhere.
    link.wire.down = lost
    link.gateway.table.close(link.session_of_gateway, "revoked")
    link.peer.send_datagram(link.prefix + packet)
    link.wire.sent_up.clear()
    await eventually(lambda: link.peer.connection.ping() or link.peer.flush() or link.wire.sent_up)
    assert vnet_tun.delivered() == []
    assert packet not in link.gateway.tun.written


@native_gateway
@pytest.mark.parametrize(
    ("address", "networks"), [("10.101.255.254", ()), ("10.20.0.9", ("10.20.0.0/16",))]
)
async def test_what_is_granted_passes_without_python_until_it_is_taken_away(
    links: Links, vnet_tun: VnetTun, address: str, networks: tuple[str, ...]
) -> None:
    link = await _direct(links, vnet_tun)
    gateway, session_id = link.gateway, link.session_of_gateway.session_id
    strays: list[bytes] = []
    assert gateway.endpoint.carrier is not None
    gateway.endpoint.carrier._on_read = strays.append
    own = link.send_up([100])
    await eventually(lambda: not link.missing_above(own), WAIT_S)

    def grant(*granted: str) -> None:
        addresses = () if networks else [ip_address(each) for each in granted]
        held = [ip_network(each) for each in networks if granted]
        gateway.table.granted(session_id, addresses, held)

    async def passes(source: str) -> None:
        """Both ways; Python judges the first packet of a pair only."""
        down = [udp_packet("10.100.0.6", source, bytes((n, len(strays)))) for n in range(20)]
        for packet in down:
            vnet_tun.inject(packet)
        await eventually(lambda: not link.missing_below(down), WAIT_S)
        first = udp_packet(source, "10.100.0.6", b"first")
        link.peer.send_datagram(link.prefix + first)
        await eventually(lambda: first in gateway.tun.written, WAIT_S)
        up = [udp_packet(source, "10.100.0.6", bytes((n, len(strays)))) for n in range(20)]
        for packet in up:
            link.peer.send_datagram(link.prefix + packet)
        arrived: list[bytes] = []
        await eventually(lambda: arrived.extend(vnet_tun.delivered()) or len(arrived) >= 20)
        assert set(arrived) == set(up)
        gateway.tun.written.clear()

    async def is_kept_out() -> None:
        known = len(strays)
        vnet_tun.inject(udp_packet("10.100.0.6", address))
        await eventually(lambda: len(strays) == known + 1, WAIT_S)
        link.peer.send_datagram(link.prefix + udp_packet(address, "10.100.0.6", b"late"))
        # The own address still passes, and in order: what was before it has been judged.
        honest = udp_packet(link.address, OFFICE_V4, bytes((1, len(strays))))
        link.peer.send_datagram(link.prefix + honest)
        await eventually(lambda: honest in (*vnet_tun.delivered(), *gateway.tun.written), WAIT_S)
        assert not any(b"late" in packet for packet in gateway.tun.written)

    await is_kept_out()
    grant(address)
    await passes(address)
    grant()
    await is_kept_out()
    grant(address)
    await passes(address)
    gateway.table.close(link.session_of_gateway, "revoked")
    known = len(strays)
    vnet_tun.inject(udp_packet("10.100.0.6", address))
    await eventually(lambda: len(strays) == known + 1, WAIT_S)
