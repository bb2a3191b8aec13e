"""The supervisor's answers come later, and much may have happened by then."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from aioquic.h3.connection import ErrorCode
from zgate_protocol.drop_reason import DropReason

from ...loopback import OFFICE_V4, Lab, eventually, udp_packet  # noqa: TID252

V4 = ip_address("10.100.0.2")


async def test_a_client_that_left_meanwhile_gives_back_what_it_was_granted(lab: Lab) -> None:
    gateway = lab.gateway()
    gateway.link.delays = True
    peer = await lab.peer(gateway)
    peer.open_request()
    await eventually(lambda: gateway.link.held)
    assert gateway.kernel.clients
    peer.connection.close(ErrorCode.H3_NO_ERROR, "changed my mind")
    peer.flush()
    await eventually(lambda: not gateway.endpoint.connections)
    gateway.link.release()
    gateway.assert_holds_nothing()
    assert gateway.record.down == [("alice", "closed by the client")]


async def test_a_stream_that_was_reset_meanwhile_gets_no_session(lab: Lab) -> None:
    gateway = lab.gateway()
    gateway.link.delays = True
    peer = await lab.peer(gateway)
    first = peer.open_request()
    await eventually(lambda: gateway.link.held)
    peer.connection.abort_stream(first, ErrorCode.H3_REQUEST_CANCELLED)
    peer.flush()
    await eventually(lambda: gateway.handlers[0]._streams == {})
    gateway.link.release()
    await eventually(lambda: not gateway.registry.by_client)
    assert first not in peer.headers
    # And may ask again.
    gateway.link.delays = False
    assert (await peer.answer(peer.open_request()))[0] == 200


async def test_one_question_at_a_time_on_a_connection(lab: Lab) -> None:
    gateway = lab.gateway()
    gateway.link.delays = True
    peer = await lab.peer(gateway)
    first = peer.open_request()
    await eventually(lambda: gateway.link.held)
    assert (await peer.answer(peer.open_request()))[0] == 409
    gateway.link.release()
    assert (await peer.answer(first))[0] == 200
    assert len(gateway.registry.by_client) == 1


async def test_a_session_that_is_closed_right_after_it_was_granted(lab: Lab) -> None:
    """Both messages wait in the worker's socket: the second is about a session that it has."""
    gateway = lab.gateway()
    gateway.link.delays = True
    peer = await lab.peer(gateway)
    peer.open_request()
    await eventually(lambda: gateway.link.held)
    gateway.registry.close(gateway.registry.by_client["alice"], "kicked")
    assert len(gateway.link.held) == 2
    gateway.link.release()
    await eventually(lambda: peer.ended)
    await eventually(lambda: not gateway.endpoint.connections)
    gateway.assert_holds_nothing()
    assert gateway.record.down == [("alice", "kicked")]


async def test_a_refusal_that_comes_later_is_answered(lab: Lab) -> None:
    gateway = lab.gateway(max_sessions=0)
    gateway.link.delays = True
    peer = await lab.peer(gateway)
    stream_id = peer.open_request()
    await eventually(lambda: gateway.link.held)
    gateway.link.release()
    assert (await peer.answer(stream_id))[0] == 503


# Packets for clients of other workers.


async def test_a_packet_for_another_workers_client_is_counted(lab: Lab) -> None:
    gateway = lab.gateway()
    await lab.connect(gateway)
    gateway.steering.owners[ip_address("10.100.0.6").packed] = 1
    gateway.steering.owners[ip_address("10.100.0.5").packed] = 0
    for number in (4, 5, 6):
        gateway.tun.inject(udp_packet(OFFICE_V4, f"10.100.0.{number}"))
    await eventually(lambda: gateway.table.total_drops() == {DropReason.NO_SESSION: 3})
    assert gateway.table.misdirected_packets == 1
    gateway.steering.owners.clear()


async def test_what_our_queue_still_held_when_a_client_moved_on_is_no_wonder(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    await client.tunnel.close()
    await eventually(lambda: not gateway.table.by_client)
    gateway.steering.owners[V4.packed] = 1
    gateway.tun.inject(udp_packet(OFFICE_V4, V4))
    await eventually(lambda: gateway.table.total_drops() == {DropReason.NO_SESSION: 1})
    assert gateway.table.misdirected_packets == 0
    later = gateway.table.loop.time() + 3
    with monkeypatch.context() as context:
        context.setattr(gateway.table.loop, "time", lambda: later)
        gateway.table.upkeep()
    gateway.tun.inject(udp_packet(OFFICE_V4, V4))
    await eventually(lambda: gateway.table.misdirected_packets == 1)
    gateway.steering.owners.clear()


async def test_the_table_says_who_has_moved(lab: Lab) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    session = gateway.session("alice")
    # The first packet after the handshake may come to another ID than the handshake's.
    gateway.table.upkeep()
    assert gateway.table.upkeep() == []
    before = session.path
    client.tunnel.rebind()
    client.tun.inject(udp_packet(V4, OFFICE_V4))
    await eventually(lambda: session.owner.path() != before)
    assert gateway.table.upkeep() == [session]
    assert (session.path.port, session.path.connection_id) != (before.port, before.connection_id)
