"""QUIC address discovery (draft-ietf-quic-address-discovery-01): who is told, and when."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from ipaddress import ip_address
from typing import Any

import pytest
import pytest_asyncio
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicErrorCode
from zgate_datapath.address_discovery import DiscoveringQuicConnection
from zgate_datapath.offers import Notices
from zgate_datapath.peer_authentication import ClientQuicConnection, ServerQuicConnection
from zgate_protocol.address_discovery import DiscoveryMode, encode_observed_address
from zgate_protocol.service_capsule import ObservedAddress
from zgate_protocol.varint import encode_varint

from ...loopback import Lab, eventually, udp_packet  # noqa: TID252
from .conftest import (
    CLIENT_ADDRESS,
    SERVER_ADDRESS,
    Credentials,
    Pair,
    client_configuration,
    server_configuration,
)
from .wire import Wire

FRAME = encode_observed_address(ObservedAddress(7, ip_address("203.0.113.9"), 4433))


def make_pair(
    credentials: Credentials,
    *,
    client_type: type[ClientQuicConnection] = ClientQuicConnection,
    server_type: type[ServerQuicConnection] = ServerQuicConnection,
) -> Pair:
    client = client_type(
        verify_gateway=lambda leaf, chain: None, configuration=client_configuration(credentials)
    )
    server = server_type(
        verify_peer=lambda leaf, chain: "client",
        configuration=server_configuration(credentials),
        original_destination_connection_id=client.original_destination_connection_id,
    )
    pair = Pair(client, server)
    client.connect(SERVER_ADDRESS, now=pair.now)
    return pair


def observed_by(pair: Pair) -> ObservedAddress | None:
    assert isinstance(pair.client, DiscoveringQuicConnection)
    return pair.client.observed_address


def ending(connection: QuicConnection) -> int:
    """The error code that a connection has ended with."""
    assert connection._close_event is not None, "it goes on"
    return int(connection._close_event.error_code)


def write_frame(connection: QuicConnection, frame: bytes) -> None:
    """Let the next packet of `connection` carry `frame`, and no other of its kind."""
    waiting = [frame]

    def write(builder: Any, space: Any) -> None:
        if waiting:
            whole = waiting.pop()
            buffer = builder.start_frame(int.from_bytes(whole[:4], "big") & 0x3FFFFFFF, len(whole))
            buffer.push_bytes(whole[4:])

    connection._write_connection_limits = write  # type: ignore[method-assign]


# Negotiation.


def test_the_gateway_provides_and_the_client_receives(credentials: Credentials) -> None:
    pair = make_pair(credentials)
    pair.pump()
    assert isinstance(pair.client, DiscoveringQuicConnection)
    assert pair.client.peer_discovery_mode is DiscoveryMode.PROVIDES
    assert pair.server.peer_discovery_mode is DiscoveryMode.RECEIVES
    assert pair.server.tells_observed_address
    assert not pair.client.tells_observed_address
    assert observed_by(pair) == ObservedAddress(0, ip_address(CLIENT_ADDRESS[0]), 40000)
    assert pair.server.observed_address is None


def test_a_client_that_knows_nothing_of_it_is_told_nothing(pair: Pair) -> None:
    assert pair.server.peer_discovery_mode is None
    assert not pair.server.tells_observed_address
    # aioquic would have ended the connection for a frame that it does not know.
    assert pair.client._close_event is None


@pytest.mark.parametrize("value", [b"", b"\x03", b"\x01\x00", b"\x40"])
def test_a_malformed_parameter_ends_the_handshake(credentials: Credentials, value: bytes) -> None:
    class Odd(ClientQuicConnection):
        def _serialize_transport_parameters(self) -> bytes:
            known = QuicConnection._serialize_transport_parameters(self)
            return known + encode_varint(0x9F81A176) + encode_varint(len(value)) + value

    pair = make_pair(credentials, client_type=Odd)
    pair.pump()
    assert not pair.server.is_authenticated()
    assert ending(pair.client) == QuicErrorCode.TRANSPORT_PARAMETER_ERROR


def test_parameters_behind_others_are_found(credentials: Credentials) -> None:
    class Wordy(ClientQuicConnection):
        def _serialize_transport_parameters(self) -> bytes:
            grease = encode_varint(27 + 31 * 5) + encode_varint(3) + b"\x9f\x81\xa1"
            return grease + super()._serialize_transport_parameters() + grease

    pair = make_pair(credentials, client_type=Wordy)
    pair.pump()
    assert pair.server.peer_discovery_mode is DiscoveryMode.RECEIVES


# Frames.


def test_a_lost_observation_is_said_anew(credentials: Credentials) -> None:
    pair = make_pair(credentials)
    lost: list[bytes] = []

    def drop(packet: bytes) -> bool:
        """The first packet of the gateway's that is not of the handshake: it says what it sees."""
        is_first = not lost and packet[0] < 0x80 and pair.server._observations == 1
        if is_first:
            lost.append(packet)
        return is_first

    pair.drop = drop
    for _ in range(100):
        pair.pump()
        for end in (pair.client, pair.server):
            if (at := end.get_timer()) is not None and observed_by(pair) is None:
                pair.now = max(pair.now, at)
                end.handle_timer(pair.now)
        if observed_by(pair) is not None:
            break
    observed = observed_by(pair)
    assert observed is not None
    assert lost
    assert (str(observed.address), observed.port) == CLIENT_ADDRESS
    assert observed.sequence > 0, "a new observation, not the old one again"


def test_an_older_observation_is_not_used(credentials: Credentials) -> None:
    pair = make_pair(credentials)
    pair.pump()
    for sequence, expected in (
        (9, "203.0.113.9"),
        (8, "203.0.113.9"),
        (9, "203.0.113.9"),
        (10, "::1"),
    ):
        address = ip_address("203.0.113.9" if sequence == 9 else "::1")
        write_frame(pair.server, encode_observed_address(ObservedAddress(sequence, address, 1)))
        pair.server.send_ping(1)
        pair.pump()
        observed = observed_by(pair)
        assert observed is not None
        assert str(observed.address) == expected


@pytest.mark.parametrize("cut", range(4, len(FRAME)))
def test_a_frame_that_is_cut_off_ends_the_connection(credentials: Credentials, cut: int) -> None:
    pair = make_pair(credentials)
    pair.pump()
    write_frame(pair.server, FRAME[:cut])
    # Nothing behind it that could be taken for its rest.
    pair.server._write_ping_frame = lambda *arguments, **more: None  # type: ignore[method-assign]
    pair.server.send_ping(1)
    pair.pump()
    assert ending(pair.server) == QuicErrorCode.FRAME_ENCODING_ERROR


def test_the_gateway_asks_nobody_for_observations(credentials: Credentials) -> None:
    pair = make_pair(credentials)
    pair.pump()
    write_frame(pair.client, FRAME)
    pair.client.send_ping(1)
    pair.pump()
    assert ending(pair.client) == QuicErrorCode.PROTOCOL_VIOLATION


def test_a_gateway_that_did_not_offer_them_must_not_send_any(credentials: Credentials) -> None:
    class Silent(ServerQuicConnection):
        def _serialize_transport_parameters(self) -> bytes:
            return QuicConnection._serialize_transport_parameters(self)

    pair = make_pair(credentials, server_type=Silent)
    pair.pump()
    assert ending(pair.server) == QuicErrorCode.PROTOCOL_VIOLATION


# Over loopback, with the engines.


@pytest_asyncio.fixture
async def wires() -> AsyncIterator[Callable[[Any], Wire]]:
    made: list[Wire] = []

    def make(address: Any) -> Wire:
        made.append(Wire(address))
        return made[-1]

    yield make
    for wire in made:
        wire.close()


async def test_a_client_behind_a_nat_learns_its_address_at_start_and_on_change(
    lab: Lab, wires: Callable[[Any], Wire]
) -> None:
    gateway = lab.gateway()
    wire = wires(gateway.endpoint.udp.local_address)
    seen: list[ObservedAddress] = []
    client, state = await lab.connect(
        gateway, port=wire.address[1], notices=Notices(on_observed=seen.append)
    )
    await eventually(lambda: seen)
    assert (str(seen[0].address), seen[0].port) == ("127.0.0.1", wire._backs[-1].getsockname()[1])
    for moves in range(2, 4):
        wire.move()
        client.tun.inject(udp_packet(state.addresses[0].ip, "10.20.0.5"))
        await eventually(lambda wanted=moves: len(seen) == wanted)
        assert seen[-1].port == wire._backs[-1].getsockname()[1]
        assert seen[-1].sequence > seen[-2].sequence
    # The session is the same, and carries.
    gateway.tun.inject(udp_packet("10.20.0.5", state.addresses[0].ip))
    await eventually(lambda: client.tun.written)


async def test_a_peer_without_the_parameter_gets_no_frame(lab: Lab) -> None:
    gateway = lab.gateway()
    peer = await lab.peer(gateway)
    await peer.establish()
    (handler,) = gateway.handlers
    assert not handler.connection.tells_observed_address
    assert peer.ended is None


async def test_a_forbidden_frame_ends_its_own_connection_alone(lab: Lab) -> None:
    gateway = lab.gateway()
    _, state = await lab.connect(gateway, "bob")
    peer = await lab.peer(gateway, "alice")
    await peer.establish()
    write_frame(peer.quic, FRAME)
    peer.connection.ping()
    peer.flush()
    await eventually(lambda: peer.ended)
    assert peer.ended is not None
    assert peer.ended.error_code == QuicErrorCode.FRAME_ENCODING_ERROR or (
        peer.ended.error_code == QuicErrorCode.PROTOCOL_VIOLATION
    )
    await eventually(lambda: "alice" not in gateway.table.by_client)
    assert gateway.session("bob").addresses[0] == state.addresses[0].ip
