"""The client's end: how dialling fails, what it tells, how it treats its TUN, how it ends."""

from __future__ import annotations

import asyncio
import errno
import socket
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from zgate_datapath.client import (
    ConnectionLost,
    ConnectTimeout,
    PathTooSmall,
    SessionRefused,
    TunnelClient,
    TunnelError,
)
from zgate_datapath.h3 import DatagramH3Connection, Setting
from zgate_datapath.path_mtu import PathMtuState
from zgate_datapath.udp import PathError, UdpSocket
from zgate_protocol.capsule import (
    AddressAssign,
    AssignedAddress,
    RouteAdvertisement,
    encode_capsule,
)
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.icmp import TokenBucket
from zgate_protocol.ip_range import IpRange

from ...loopback import (  # noqa: TID252
    OFFICE_V4,
    OFFICE_V6,
    Client,
    Gateway,
    Lab,
    eventually,
    icmp_type_and_code,
    python_engine,
    sized_packet,
    udp_packet,
)

V4, V6 = "10.100.0.2", "fd7a:7a67:6174:65::2"


def tell(gateway: Gateway, data: bytes, *, end: bool = False) -> None:
    """The gateway sends capsules on alice's stream."""
    tunnel = gateway.session("alice").tunnel
    tunnel.connection.send_data(tunnel.stream_id, data, end=end)
    gateway.endpoint.flush(tunnel.connection)


async def why(client: Client) -> str:
    return await asyncio.wait_for(client.tunnel.wait_closed(), 5)


# Dialling.


async def test_a_session_is_ready_when_packets_can_flow(lab: Lab) -> None:
    gateway = lab.gateway()
    client, state = await lab.connect(gateway)
    assert [str(address.ip) for address in state.addresses] == [V4, V6]
    assert state.gateway_address == gateway.endpoint.udp.local_address
    assert state.local_address == client.endpoint.udp.local_address
    assert 1400 <= state.mtu_bytes <= 1420
    assert client.changes == []
    client.tun.inject(udp_packet(V4, OFFICE_V4))
    await eventually(lambda: gateway.tun.written)


async def test_the_mtu_is_no_more_than_configured(lab: Lab) -> None:
    _, state = await lab.connect(lab.gateway(), mtu_bytes=1300)
    assert state.mtu_bytes == 1300


async def test_a_closed_port_is_told_as_the_cause(lab: Lab) -> None:
    gateway = lab.gateway()
    with UdpSocket.bind("127.0.0.1", 0)._socket as closed:
        port = closed.getsockname()[1]
    client = lab.make_client(gateway, port=port)
    with pytest.raises(ConnectionLost, match=rf"nobody listens at 127\.0\.0\.1:{port} \(UDP\)"):
        await client.tunnel.connect(5)
    assert client.endpoint.udp.fileno() == -1


async def test_a_forged_refusal_does_not_end_a_session(lab: Lab) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    client.tunnel._path_error(PathError(("127.0.0.1", 1), errno.ECONNREFUSED, None))
    client.tun.inject(udp_packet(V4, OFFICE_V4))
    await eventually(lambda: gateway.tun.written)


async def test_a_silent_port_is_told_as_the_cause(lab: Lab) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        client = lab.make_client(lab.gateway(), port=silent.getsockname()[1])
        with pytest.raises(ConnectTimeout, match="is UDP open on the way"):
            await client.tunnel.connect(0.2)
    assert await why(client) == "timeout"
    assert client.endpoint.udp.fileno() == -1


async def test_a_gateway_that_stalls_after_the_handshake_is_told_as_the_cause(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = lab.gateway()
    from zgate_gateway.client_connection import ClientConnection

    monkeypatch.setattr(ClientConnection, "headers_received", lambda *arguments: None)
    client = lab.make_client(gateway)
    with pytest.raises(ConnectTimeout, match=r"answered but gave no session in 2 s"):
        await client.tunnel.connect(2)
    await eventually(lambda: not gateway.endpoint.connections)


async def test_a_name_that_does_not_resolve(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*arguments: object, **named: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", fails)
    client = lab.make_client(lab.gateway(), host="nowhere.example")
    with pytest.raises(ConnectionLost, match=r"cannot reach nowhere\.example"):
        await client.tunnel.connect(1)


@pytest.mark.parametrize("field", ["ca_file", "certificate_file", "key_file"])
@pytest.mark.parametrize("content", [None, b"", b"not PEM", b"-----BEGIN CERTIFICATE-----\nx"])
async def test_files_that_cannot_be_used(
    lab: Lab, tmp_path: Path, field: str, content: bytes | None
) -> None:
    file = tmp_path / "file.pem"
    if content is not None:
        file.write_bytes(content)
    gateway = lab.gateway()
    client = lab.make_client(gateway, **{field: str(file)})
    with pytest.raises(TunnelError, match="certificate or key file"):
        await client.tunnel.connect(1)
    assert gateway.handlers == []


async def test_a_server_without_datagrams_is_no_gateway(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = DatagramH3Connection._get_local_settings

    def without(self: DatagramH3Connection) -> dict[int, int]:
        settings = whole(self)
        if not self._is_client:
            del settings[Setting.H3_DATAGRAM]
        return settings

    monkeypatch.setattr(DatagramH3Connection, "_get_local_settings", without)
    gateway = lab.gateway()
    with pytest.raises(ConnectionLost, match="no CONNECT-IP gateway"):
        await lab.connect(gateway)
    assert gateway.record.up == [] and gateway.record.refused == []


async def test_a_refusal_carries_status_and_reason(lab: Lab) -> None:
    gateway = lab.gateway()
    gateway.registry.accepting = False
    client = lab.make_client(gateway)
    with pytest.raises(SessionRefused) as refused:
        await client.tunnel.connect(5)
    assert refused.value.status == 503
    assert "status 503 (zgate; error=destination_unavailable" in str(refused.value)
    assert "status 503" in await why(client)


async def test_closing_while_dialling_is_no_cancellation(lab: Lab) -> None:
    gateway = lab.gateway()
    gateway.endpoint.accepting = False
    client = lab.make_client(gateway)
    dialling = asyncio.create_task(client.tunnel.connect(5))
    await asyncio.sleep(0.02)
    await client.tunnel.close("changed our mind")
    with pytest.raises(ConnectionLost, match="changed our mind"):
        await dialling
    assert not dialling.cancelled()


async def test_a_cancelled_dial_leaves_nothing(lab: Lab) -> None:
    gateway = lab.gateway()
    gateway.endpoint.accepting = False
    client = lab.make_client(gateway)
    dialling = asyncio.create_task(client.tunnel.connect(5))
    await asyncio.sleep(0.02)
    dialling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dialling
    assert client.endpoint.udp.fileno() == -1
    assert await why(client) == "connect failed"


# What the gateway changes.


async def test_new_addresses_and_routes_are_told(lab: Lab) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    fresh = AddressAssign((AssignedAddress(0, ip_network("10.100.0.6/32")),))
    tell(gateway, fresh.encode())
    await eventually(lambda: client.changes)
    assert [str(address) for address in client.changes[-1].addresses] == ["10.100.0.6/32"]
    routes = RouteAdvertisement((IpRange.of(ip_network("10.20.0.0/16")),))
    tell(gateway, routes.encode())
    await eventually(lambda: len(client.changes) == 2)
    assert client.changes[-1].routes == routes.ranges


async def test_what_comes_before_the_dialler_has_its_turn_is_not_lost(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = (IpRange.of(ip_network("10.20.0.0/16")),)
    settle = TunnelClient._settle

    def settle_twice(client: TunnelClient) -> None:
        settle(client)
        if client._ready.done() and client._routes != newer:
            client._routes = newer
            settle(client)

    monkeypatch.setattr(TunnelClient, "_settle", settle_twice)
    client, state = await lab.connect(lab.gateway())
    assert state.routes == newer
    assert client.changes == []


async def test_what_changes_nothing_is_not_told(lab: Lab) -> None:
    gateway = lab.gateway()
    client, state = await lab.connect(gateway)
    tell(gateway, RouteAdvertisement(state.routes).encode() + encode_capsule(0x1F, b"unknown"))
    tell(gateway, RouteAdvertisement((IpRange.of(ip_network("10.20.0.0/16")),)).encode())
    await eventually(lambda: client.changes)
    assert len(client.changes) == 1


async def test_a_smaller_path_is_told(lab: Lab) -> None:
    gateway = lab.gateway()
    client, state = await lab.connect(gateway)
    client.connection.path_too_big(1400, client.endpoint.loop.time())
    client.endpoint.flush(client.connection)
    await eventually(lambda: client.changes)
    assert client.changes[-1].mtu_bytes == state.mtu_bytes - (1452 - 1372) + (
        1452 - 22 - 8 - 2 - 1420
    )


async def test_9484_s7_2_an_unusable_path_ends_the_session(lab: Lab) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    client.connection.path_mtu.state = PathMtuState.UNUSABLE
    client.tunnel.mtu_changed()
    assert "1331 bytes" in await why(client)


async def test_9484_s7_2_a_gateway_that_takes_no_1280_bytes_gives_no_session(lab: Lab) -> None:
    gateway = lab.gateway()
    gateway.listener._quic_configuration.max_datagram_frame_size = 1200
    with pytest.raises(PathTooSmall, match="IPv6 needs 1280 bytes"):
        await lab.connect(gateway)


@pytest.mark.parametrize(
    "capsule", [encode_capsule(1, b"\0"), encode_capsule(2, b""), encode_capsule(3, bytes(11))]
)
async def test_a_malformed_capsule_ends_the_session(lab: Lab, capsule: bytes) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    tell(gateway, capsule)
    assert (await why(client)).startswith("the gateway broke the protocol: ")


async def test_the_end_of_the_stream_is_the_end(lab: Lab) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    tell(gateway, b"", end=True)
    assert await why(client) == "the gateway ended the session"


async def test_a_reset_stream_is_the_end(lab: Lab) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    tunnel = gateway.session("alice").tunnel
    tunnel.connection.abort_stream(tunnel.stream_id, 0x10C)
    gateway.endpoint.flush(tunnel.connection)
    assert await why(client) == "the gateway ended the session (error 0x10c)"


async def test_a_gateway_that_vanishes_is_noticed(lab: Lab) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway, idle_timeout_s=1.5, keepalive_s=100.0)
    gateway.endpoint._stop_reading()
    assert await why(client) == "Idle timeout"
    gateway.endpoint.start()


async def test_keepalives_hold_an_idle_session(lab: Lab) -> None:
    gateway = lab.gateway(idle_timeout_s=2.5)
    client, _ = await lab.connect(gateway, keepalive_s=0.1)
    await asyncio.sleep(3)
    assert gateway.record.down == []
    client.tun.inject(udp_packet(V4, OFFICE_V4))
    await eventually(lambda: gateway.tun.written)


# The TUN.


@pytest.mark.parametrize(
    ("packet", "expected", "reason"),
    [
        (udp_packet("192.168.1.5", OFFICE_V4), (3, 13), DropReason.SOURCE_NOT_ASSIGNED),
        (udp_packet("fd00::5", OFFICE_V6), (1, 5), DropReason.SOURCE_NOT_ASSIGNED),
        (udp_packet(V4, "192.0.2.1"), (3, 0), DropReason.DESTINATION_NOT_ROUTED),
        (sized_packet(V4, OFFICE_V4, 1460), (3, 4), DropReason.TOO_BIG),
        (sized_packet(V6, OFFICE_V6, 1460), (2, 0), DropReason.TOO_BIG),
    ],
)
async def test_what_goes_nowhere_is_told_to_its_sender(
    lab: Lab, packet: bytes, expected: tuple[int, int], reason: DropReason
) -> None:
    gateway = lab.gateway(routes=["10.20.0.0/16", "fd00:20::/64"])
    client, _ = await lab.connect(gateway)
    client.tun.inject(packet)
    await eventually(lambda: client.tun.written)
    (error,) = client.tun.written
    assert icmp_type_and_code(error) == expected
    destination = error[16:20] if error[0] >> 4 == 4 else error[24:40]
    assert destination == (packet[12:16] if packet[0] >> 4 == 4 else packet[8:24])
    assert client.tunnel.drops() == {reason: 1}
    assert client.tunnel.statistics()["packets_dropped"] == 1
    assert gateway.tun.written == []


async def test_errors_to_local_senders_are_limited(lab: Lab) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    client.tunnel._icmp_bucket = TokenBucket(0, 20)
    for _ in range(100):
        client.tun.inject(udp_packet("192.168.1.5", OFFICE_V4))
        await asyncio.sleep(0)
    await eventually(lambda: client.tunnel.drops() == {DropReason.SOURCE_NOT_ASSIGNED: 100})
    assert len(client.tun.written) == 20


async def test_multicast_and_link_local_noise_stays_at_home(lab: Lab) -> None:
    """What any kernel sends into a new link: router solicitations, MLD, mDNS."""
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    for packet in (
        udp_packet("fe80::1", "ff02::2"),
        udp_packet("fe80::1", "ff02::fb"),
        udp_packet("169.254.7.7", "224.0.0.251"),
    ):
        client.tun.inject(packet)
    await eventually(lambda: client.tunnel.drops() == {DropReason.LINK_LOCAL: 3})
    assert gateway.tun.written == [] and client.tun.written == []


@python_engine
async def test_a_full_window_leaves_packets_in_the_tun(lab: Lab) -> None:
    """Back-pressure: the kernel's transports see the queue, and nothing is dropped."""
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    connection = client.connection
    window = connection.engine.window_bytes
    connection.engine.window_bytes = lambda: 0  # type: ignore[method-assign]
    packets = [udp_packet(V4, OFFICE_V4, number.to_bytes(2, "big")) for number in range(1000)]
    waiting = list(packets)

    def inject() -> None:
        while waiting:
            try:
                client.tun.inject(waiting[0])
            except BlockingIOError:
                return
            waiting.pop(0)

    for _ in range(200):
        inject()
        await asyncio.sleep(0)
    assert 448 <= connection.queued_packets() <= 512
    assert client.tunnel._tun_paused
    connection.engine.window_bytes = window  # type: ignore[method-assign]
    client.endpoint.flush(connection)
    for _ in range(1000):
        inject()
        if len(gateway.tun.written) == len(packets):
            break
        await asyncio.sleep(0.001)
    assert gateway.tun.written == packets
    assert client.tunnel.drops() == {}


async def test_a_tun_that_takes_nothing_is_a_counted_drop(lab: Lab) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    client.tun.takes = False
    gateway.tun.inject(udp_packet(OFFICE_V4, V4))
    await eventually(lambda: client.tunnel.drops() == {DropReason.TUN_WRITE_FAILED: 1})


async def test_a_deleted_tun_ends_the_session(lab: Lab) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    client.tun.is_gone = True
    client.tun.inject(udp_packet(V4, OFFICE_V4))
    assert await why(client) == "the TUN device fake0 is gone"
    assert client.tunnel._tun_paused


async def test_a_spoofed_packet_from_the_gateways_side_is_dropped(lab: Lab) -> None:
    """BCP 38 both ways: what is not for us, or from where no route leads, is not delivered."""
    gateway = lab.gateway(routes=["10.20.0.0/16"])
    client, _ = await lab.connect(gateway)
    tunnel = gateway.session("alice").tunnel
    tunnel.reply(udp_packet(OFFICE_V4, "10.100.0.3"))
    tunnel.reply(udp_packet("192.0.2.1", V4))
    tunnel.reply(udp_packet(OFFICE_V4, V4))
    gateway.endpoint.flush(tunnel.connection)
    await eventually(lambda: client.tun.written)
    assert client.tun.written == [udp_packet(OFFICE_V4, V4)]
    assert client.tunnel.drops() == {
        DropReason.DESTINATION_NOT_ASSIGNED: 1,
        DropReason.SOURCE_NOT_ASSIGNED: 1,
    }


async def test_a_packet_in_a_datagram_capsule_is_delivered(lab: Lab) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    packet = udp_packet(OFFICE_V4, V4)
    tell(gateway, encode_capsule(0, b"\0" + packet))
    await eventually(lambda: client.tun.written == [packet])
    assert client.tunnel.statistics()["packets_down"] == 1


async def test_without_a_tun_packets_are_counted_only(lab: Lab) -> None:
    gateway = lab.gateway()
    client = lab.make_client(gateway)
    client.tunnel._tun = None
    await client.tunnel.connect(5)
    gateway.tun.inject(udp_packet(OFFICE_V4, V4))
    await eventually(lambda: client.tunnel.statistics()["packets_down"] == 1)


async def test_statistics_count_packets_and_bytes_of_both_directions(lab: Lab) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    up, down = udp_packet(V4, OFFICE_V4), udp_packet(OFFICE_V4, V4, b"longer answer")
    client.tun.inject(up)
    gateway.tun.inject(down)
    await eventually(lambda: gateway.tun.written and client.tun.written)
    numbers = client.tunnel.statistics()
    assert (numbers["packets_up"], numbers["bytes_up"]) == (1, len(up))
    assert (numbers["packets_down"], numbers["bytes_down"]) == (1, len(down))


# The end, and after it.


async def test_after_the_end_every_call_is_harmless(lab: Lab) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    await client.tunnel.close("enough")
    await client.tunnel.close("twice")
    assert await why(client) == "enough"
    client.tunnel.rebind()
    client.tunnel.can_send()
    client.tunnel._keep_alive()
    assert client.tunnel._tun_paused
    assert client.tunnel.statistics()["packets_up"] == 0


async def test_before_the_beginning_too(lab: Lab) -> None:
    client = lab.make_client(lab.gateway())
    client.tunnel.rebind()
    client.tunnel.can_send()
    assert client.tunnel.drops() == {}
    client.tunnel.datagrams_received([b"\0\0"])
    client.tunnel.headers_received(0, [], False)
    client.tunnel.data_received(0, b"", False)
    client.tunnel.stream_reset(0, 0)
    assert client.tunnel.statistics()["packets_down"] == 0


async def test_rebinding_without_a_route_waits_for_the_next_change(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zgate_datapath import client as client_module

    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)

    def unreachable(address: object) -> None:
        raise OSError(101, "Network is unreachable")

    with monkeypatch.context() as patch:
        patch.setattr(client_module.UdpSocket, "towards", unreachable)
        client.tunnel.rebind()
    client.tun.inject(udp_packet(V4, OFFICE_V4))
    await eventually(lambda: gateway.tun.written)
    assert ip_address(V4) in gateway.kernel.clients["alice"]
