"""A whole client and a whole gateway, each with the one or the other engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from itertools import product

import pytest
import pytest_asyncio
from zgate_datapath.engine import native_problem
from zgate_datapath.native_engine import NativeEngine

from ...loopback import OFFICE_V4, OFFICE_V6, Lab, Pki, eventually, udp_packet  # noqa: TID252

pytestmark = pytest.mark.skipif(bool(native_problem()), reason="the native engine is not built")

_WAIT_S = 30.0
_IDLE_S = 1.0


@pytest.fixture(params=list(product(("native", "python"), repeat=2)), ids="-".join)
def engines(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The gateway's engine and the client's."""
    pair: tuple[str, str] = request.param
    return pair


@pytest_asyncio.fixture
async def mixed(pki: Pki, engines: tuple[str, str]) -> AsyncIterator[Lab]:
    made = Lab(pki, *engines)
    yield made
    await made.close()


async def test_both_ways_and_both_families(mixed: Lab, engines: tuple[str, str]) -> None:
    gateway = mixed.gateway()
    client, state = await mixed.connect(gateway)
    ours = gateway.session("alice").addresses
    assert gateway.handlers[0].connection.engine.name == engines[0]
    assert client.connection.engine.name == engines[1]
    for address, office in zip(ours, (OFFICE_V4, OFFICE_V6), strict=True):
        for size in (0, 1, 500, state.mtu_bytes - 48):
            up, down = (
                udp_packet(*ends, bytes(size)) for ends in ((address, office), (office, address))
            )
            client.tun.inject(up)
            gateway.tun.inject(down)
            # The last bytes: a hop may change TTL and header checksum.
            await eventually(lambda up=up: _has(gateway.tun.written, up), _WAIT_S)
            await eventually(lambda down=down: _has(client.tun.written, down), _WAIT_S)


def _has(written: list[bytes], packet: bytes) -> bool:
    return any(one[12:] == packet[12:] for one in written)


async def test_the_client_moves_in_the_middle(mixed: Lab) -> None:
    gateway = mixed.gateway()
    client, _ = await mixed.connect(gateway)
    address = gateway.session("alice").addresses[0]
    for number in range(3):
        before = gateway.handlers[0].connection.peer_address
        client.tunnel.rebind()
        await eventually(
            lambda before=before: gateway.handlers[0].connection.peer_address != before, _WAIT_S
        )
        packet = udp_packet(address, OFFICE_V4, bytes([number]) * 40)
        client.tun.inject(packet)
        await eventually(lambda packet=packet: _has(gateway.tun.written, packet), _WAIT_S)
        packet = udp_packet(OFFICE_V4, address, bytes([number]) * 40)
        gateway.tun.inject(packet)
        await eventually(lambda packet=packet: _has(client.tun.written, packet), _WAIT_S)


async def test_an_idle_pair_sleeps(mixed: Lab, engines: tuple[str, str]) -> None:
    """No deadline that has long passed keeps the loop turning."""
    gateway = mixed.gateway()
    client, _ = await mixed.connect(gateway)
    await eventually(
        lambda: (
            client.connection.path_mtu.next_at()
            and gateway.handlers[0].connection.path_mtu.state.value == "complete"
        ),
        _WAIT_S,
    )
    used_s: list[float] = []
    while min(used_s, default=_IDLE_S) >= 0.1 * _IDLE_S:
        assert len(used_s) < 5, used_s  # a stray timer may fall into one, but not into each
        before_s = time.process_time()
        await asyncio.sleep(_IDLE_S)
        used_s.append(time.process_time() - before_s)
    if engines[0] == "native":
        assert isinstance(gateway.handlers[0].connection.engine, NativeEngine)
