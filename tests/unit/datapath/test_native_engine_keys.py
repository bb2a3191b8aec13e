"""Key updates under the native engine: under load, at once, overtaken."""

from __future__ import annotations

import pytest
from zgate_datapath import aioquic_private as private
from zgate_datapath.connection import Connection
from zgate_datapath.native_engine import NativeEngine

from ...loopback import eventually  # noqa: TID252
from .links import BURST, WAIT_S, Links, native_gateway, needs_native, no_forgeries, only_native
from .wire import Holder

pytestmark = needs_native


def _watch_phases(connection: Connection) -> list[int]:
    """The key phases that a connection goes through."""
    pair = private.crypto_pair(connection.quic)
    phases: list[int] = []
    update = pair._update_key

    def noted(trigger: str) -> None:
        update(trigger)
        phases.append(pair.send.key_phase)

    pair._update_key = noted  # type: ignore[method-assign]
    return phases


@pytest.mark.parametrize("who", ["gateway", "peer", "both"])
async def test_key_updates_under_load(links: Links, engines: tuple[str, str], who: str) -> None:
    link = await links.link()
    ends = {"gateway": link.gateway_side, "peer": link.peer.connection}
    updating = {name: end for name, end in ends.items() if who in (name, "both")}
    for name, end in updating.items():
        if engines[name == "peer"] == "native":
            link.native(end).key_update_packets = 60
    phases = _watch_phases(link.gateway_side)
    for _ in range(12):
        for name, end in updating.items():
            if engines[name == "peer"] != "native":
                await link.update_keys(end)
        await link.carry(BURST)
    assert len(phases) >= 3
    no_forgeries(link)


@only_native
async def test_both_ends_update_at_once(links: Links) -> None:
    link = await links.link()
    for _ in range(6):
        await link.carry(BURST)
        up, down = link.send_up([100] * 20), link.send_down([100] * 20)
        for end in (link.gateway_side, link.peer.connection):
            phase = private.crypto_pair(end.quic).send.key_phase
            end.engine.update_key(phase, link.peer.endpoint.loop.time())  # type: ignore[attr-defined]
        link.gateway.endpoint.flush(link.gateway_side)
        link.peer.flush()
        await eventually(lambda up=up: not link.missing_above(up), WAIT_S)
        await eventually(lambda down=down: not link.missing_below(down), WAIT_S)
    no_forgeries(link)


@only_native
async def test_an_update_after_a_phase_of_one_packet(links: Links) -> None:
    """aioquic took that packet: it says where the phase began, and that the next one is new."""
    link = await links.link()
    for _ in range(20):
        phase = private.crypto_pair(link.peer.quic).send.key_phase
        link.peer.connection.engine.update_key(phase, link.peer.endpoint.loop.time())  # type: ignore[attr-defined]
        await link.carry(1)
    no_forgeries(link)


@only_native
async def test_a_key_that_the_peer_has_changed_is_not_worn_any_more(links: Links) -> None:
    link = await links.link()
    pair = private.crypto_pair(link.gateway_side.quic)
    phase = pair.send.key_phase
    engine = link.gateway_side.engine
    assert isinstance(engine, NativeEngine)
    engine.update_key(phase ^ 1, 0.0)
    assert pair.send.key_phase == phase


@native_gateway
async def test_packets_overtaken_by_a_key_update_still_open(links: Links) -> None:
    link = await links.link()
    await link.carry(BURST)
    link.wire.up = holder = Holder()
    up = link.send_up([100])
    await eventually(lambda: holder.held)
    if isinstance(link.peer.connection.engine, NativeEngine):
        phase = private.crypto_pair(link.peer.quic).send.key_phase
        link.peer.connection.engine.update_key(phase, link.peer.endpoint.loop.time())
    else:
        link.peer.quic.request_key_update()
    more = link.send_up([100] * 10)
    await eventually(lambda: not link.missing_above(more), WAIT_S)
    assert holder.held is not None
    link.wire.send_up(holder.held)
    await eventually(lambda: not link.missing_above(up), WAIT_S)
