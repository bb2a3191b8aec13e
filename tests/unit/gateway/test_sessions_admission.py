"""Who gets a session and who is refused, with which answer; and what a refusal leaves: nothing."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address

import pytest
from aioquic.h3.connection import ErrorCode
from zgate_control.store import StoreError
from zgate_datapath.client import SessionRefused
from zgate_datapath.connection import Ending
from zgate_gateway import client_connection, proved_connection
from zgate_protocol.capsule import (
    RouteAdvertisement,
)
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.varint import encode_varint

from ...loopback import (  # noqa: TID252
    OFFICE_V4,
    Lab,
    eventually,
    udp_packet,
)

V4, V6 = ip_address("10.100.0.2"), ip_address("fd7a:7a67:6174:65::2")


# Refusals.


async def test_an_exhausted_pool_is_503_with_proxy_status(lab: Lab) -> None:
    gateway = lab.gateway(pools=("10.100.0.0/30", "fd7a::/125"))
    await lab.connect(gateway, "alice")
    with pytest.raises(SessionRefused) as refused:
        await lab.connect(gateway, "bob")
    assert refused.value.status == 503
    assert refused.value.proxy_status.startswith("zgate; error=connection_limit_reached; details=")
    assert gateway.kernel.clients.keys() == {"alice"}
    assert gateway.record.refused[0][:2] == ("bob", "connection_limit_reached")
    assert gateway.registry.refused == {"connection_limit_reached": 1}


async def test_the_addresses_of_one_family_go_back_when_the_other_is_exhausted(lab: Lab) -> None:
    gateway = lab.gateway(pools=("10.100.0.0/29", "fd7a::/126"))
    await lab.connect(gateway, "alice")
    with pytest.raises(SessionRefused):
        await lab.connect(gateway, "bob")
    assert [pool.held for pool in gateway.pools] == [["alice"], ["alice"]]


async def test_too_many_sessions_are_503(lab: Lab) -> None:
    gateway = lab.gateway(max_sessions=1)
    await lab.connect(gateway, "alice")
    with pytest.raises(SessionRefused) as refused:
        await lab.connect(gateway, "bob")
    assert refused.value.status == 503
    # The same client is no further session.
    await lab.connect(gateway, "alice")


async def test_a_draining_gateway_takes_no_new_sessions(lab: Lab) -> None:
    gateway = lab.gateway()
    await lab.connect(gateway, "alice")
    gateway.registry.accepting = False
    with pytest.raises(SessionRefused) as refused:
        await lab.connect(gateway, "bob")
    assert refused.value.status == 503
    assert "shutting down" in refused.value.proxy_status
    assert list(gateway.table.by_client) == ["alice"]


@pytest.mark.parametrize(
    "error",
    [
        StoreError("lease", "disk full", "make room"),
        OSError("bpf: E2BIG"),
        RuntimeError("no policy"),
    ],
)
async def test_a_kernel_or_store_that_fails_is_503_and_tells_no_secrets(
    lab: Lab, error: Exception
) -> None:
    gateway = lab.gateway()
    gateway.kernel.fails = error
    with pytest.raises(SessionRefused) as refused:
        await lab.connect(gateway)
    assert refused.value.status == 503
    assert "proxy_internal_error" in refused.value.proxy_status
    assert str(error) not in refused.value.proxy_status
    assert [pool.held for pool in gateway.pools] == [[], []]
    await eventually(lambda: not gateway.endpoint.connections)
    gateway.assert_holds_nothing()


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"path": "/"}, 404),
        ({"path": "/.well-known/masque/ip/10.0.0.1%2F8/*/"}, 400),
        ({"path": "/.well-known/masque/ip/*/256/"}, 400),
        ({"path": "/.well-known/masque/ip/*/44/"}, 403),
        ({"protocol": "connect-udp"}, 501),
        ({"protocol": "websocket"}, 501),
        ({"method": "GET", "protocol": None}, 404),
    ],
)
async def test_what_is_no_connect_ip_request_is_refused(
    lab: Lab, changes: dict[str, str | None], status: int
) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    stream_id = peer.open_request(**changes)
    assert (await peer.answer(stream_id))[0] == status
    assert stream_id in peer.fins
    assert not gateway.table.by_client
    # The connection goes on: another request on it gets its session.
    await peer.establish()


async def test_a_connection_may_not_try_for_ever(lab: Lab) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    for _ in range(70):
        if peer.ended:
            break
        stream_id = peer.open_request(path="/", end=True)
        await eventually(lambda: stream_id in peer.headers or peer.ended)  # noqa: B023
    assert peer.ended == Ending(ErrorCode.H3_EXCESSIVE_LOAD, "too many requests")


async def test_requests_that_wait_are_bounded(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = lab.gateway()
    monkeypatch.setattr(gateway.table.loop, "getaddrinfo", _never)
    peer = await lab.peer(gateway)
    waiting = peer.open_request("slow.example")
    # One name at a time: resolvers are few, and all clients' share.
    assert (await peer.answer(peer.open_request("slow.example")))[0] == 409
    handler = gateway.handlers[-1]
    assert list(handler._resolving) == [waiting]
    # A client that leaves meanwhile takes its task with it.
    (task,) = handler._resolving.values()
    await peer.close()
    await eventually(task.cancelled)
    await eventually(lambda: not gateway.endpoint.connections)
    gateway.assert_holds_nothing()


async def test_a_connection_without_a_session_is_closed(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proved_connection, "_SESSION_TIMEOUT_S", 1.0)
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    await eventually(lambda: peer.ended)
    assert peer.ended == Ending(ErrorCode.H3_NO_ERROR, "no session was asked for")
    client, _ = await lab.connect(gateway)
    await asyncio.sleep(1.1)
    assert not client.connection.is_terminated


# Names.


async def _never(*arguments: object, **named: object) -> list[object]:
    await asyncio.Event().wait()
    return []


def _answering(*addresses: str) -> object:
    async def getaddrinfo(*arguments: object, **named: object) -> list[object]:
        return [(0, 0, 0, "", (address, 0)) for address in addresses]

    return getaddrinfo


async def test_9484_s4_1_a_name_is_resolved_before_the_answer(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = lab.gateway()
    monkeypatch.setattr(
        gateway.table.loop, "getaddrinfo", _answering("192.0.2.7", "2001:db8::7", "fe80::1%eth0")
    )
    peer = await lab.peer(gateway)
    stream_id = peer.open_request("files.example", "17")
    await eventually(lambda: len(peer.capsules.get(stream_id, [])) >= 2)
    routes = next(c for c in peer.capsules[stream_id] if isinstance(c, RouteAdvertisement))
    assert {(str(r.start), str(r.end), r.ip_protocol) for r in routes.ranges} == {
        ("192.0.2.7", "192.0.2.7", 17),
        ("2001:db8::7", "2001:db8::7", 17),
    }
    prefix = encode_varint(stream_id // 4) + b"\0"
    peer.send_datagram(prefix + udp_packet(V4, OFFICE_V4))
    peer.send_datagram(prefix + udp_packet(V4, "192.0.2.7"))
    await eventually(lambda: gateway.tun.written)
    assert gateway.tun.written == [udp_packet(V4, "192.0.2.7")]
    assert gateway.table.total_drops() == {DropReason.DESTINATION_NOT_ROUTED: 1}


async def _fails(*arguments: object, **named: object) -> list[object]:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


async def _too_long_a_label(*arguments: object, **named: object) -> list[object]:
    raise UnicodeError("label too long")


@pytest.mark.parametrize(
    ("resolver", "status", "error"),
    [
        (_fails, 502, "dns_error"),
        (_too_long_a_label, 502, "dns_error"),
        (_answering(), 502, "dns_error"),
        (_answering("fe80::1%eth0"), 502, "dns_error"),
        (_never, 504, "dns_timeout"),
    ],
)
async def test_9484_s4_1_a_name_that_does_not_resolve_is_refused_with_proxy_status(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, resolver: object, status: int, error: str
) -> None:
    monkeypatch.setattr(client_connection, "_RESOLVE_TIMEOUT_S", 0.05)
    gateway = lab.gateway()
    monkeypatch.setattr(gateway.table.loop, "getaddrinfo", resolver)
    peer = await lab.peer(gateway)
    stream_id = peer.open_request("nowhere.example")
    assert await peer.answer(stream_id) == (
        status,
        f'zgate; error={error}; details="{gateway.record.refused[0][2]}"',
    )
    assert stream_id in peer.fins
    assert not gateway.table.by_client


async def test_a_fault_while_a_name_is_resolved_ends_that_connection_only(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = lab.gateway()
    other, _ = await lab.connect(gateway, "bob")
    peer = await lab.peer(gateway)
    monkeypatch.setattr(gateway.table.loop, "getaddrinfo", _answering("not an address"))
    peer.open_request("files.example")
    await eventually(lambda: peer.ended)
    assert peer.ended.error_code == ErrorCode.H3_INTERNAL_ERROR
    gateway.tun.inject(udp_packet(OFFICE_V4, gateway.session("bob").addresses[0]))
    await eventually(lambda: other.tun.written)


# HTTP/3 settings.


async def test_9297_s2_1_1_a_peer_without_h3_datagram_is_refused(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zgate_datapath.h3 import DatagramH3Connection, Setting

    whole = DatagramH3Connection._get_local_settings

    def without(self: DatagramH3Connection) -> dict[int, int]:
        settings = whole(self)
        if self._is_client:
            del settings[Setting.H3_DATAGRAM]
        return settings

    monkeypatch.setattr(DatagramH3Connection, "_get_local_settings", without)
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    status, proxy_status = await peer.answer(peer.open_request())
    assert (status, "SETTINGS_H3_DATAGRAM" in proxy_status) == (400, True)
    assert not gateway.kernel.clients
