"""The extension module by itself: what it refuses, what it counts, what an idle session costs."""

from __future__ import annotations

import gc
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP, TCP, UDP
from zgate_datapath.engine import native_problem
from zgate_datapath.udp import UdpSocket
from zgate_protocol.icmp import checksum

if native_problem():
    pytest.skip("the native engine is not built", allow_module_level=True)

from zgate_datapath import _native

KEY, IV = bytes(16), bytes(12)
CID = b"\x07" * 8
NEVER = float("inf")


@pytest.fixture
def udp() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("127.0.0.1", 0))
        yield made


@pytest.fixture
def carrier(udp: socket.socket) -> _native.Carrier:
    return _native.Carrier(udp.fileno(), 8)


def make_session(carrier: _native.Carrier, *, congestion: int = 0) -> _native.Session:
    return _native.Session(
        carrier,
        is_client=False,
        congestion=congestion,
        max_packet_bytes=1452,
        initial_rtt_ns=0,
        peer_max_ack_delay_ns=25_000_000,
        peer_ack_delay_exponent=3,
    )


def make_ready(carrier: _native.Carrier, peer: socket.socket) -> _native.Session:
    """A session that opens and seals under one key, on the path to `peer`."""
    session = make_session(carrier)
    session.set_receive_key(_native.AES_128_GCM, KEY, IV, KEY, 0)
    session.set_send_key(_native.AES_128_GCM, KEY, IV, KEY, 0)
    session.add_cid(CID)
    session.set_peer_cid(CID)
    session.set_path(peer.getsockname())
    session.set_limits(1452, 1400)
    session.may_send = True
    return session


@pytest.mark.parametrize("cid_bytes", [0, 21, -1])
def test_connection_ids_have_1_to_20_bytes(udp: socket.socket, cid_bytes: int) -> None:
    with pytest.raises(ValueError, match="cid_bytes"):
        _native.Carrier(udp.fileno(), cid_bytes)


@pytest.mark.parametrize(
    ("cipher", "key", "iv", "header_key", "phase"),
    [
        (_native.AES_128_GCM, bytes(15), IV, KEY, 0),
        (_native.AES_128_GCM, KEY, bytes(11), KEY, 0),
        (_native.AES_128_GCM, KEY, IV, bytes(32), 0),
        (_native.AES_256_GCM, KEY, IV, KEY, 0),
        (_native.CHACHA20_POLY1305, KEY, IV, KEY, 0),
        (_native.AES_128_GCM, KEY, IV, KEY, 2),
        (99, KEY, IV, KEY, 0),
    ],
)
def test_wrong_keys_are_refused(
    carrier: _native.Carrier, cipher: int, key: bytes, iv: bytes, header_key: bytes, phase: int
) -> None:
    session = make_session(carrier)
    for take in (session.set_receive_key, session.set_next_receive_key, session.set_send_key):
        with pytest.raises(ValueError, match="wrong length"):
            take(cipher, key, iv, header_key, phase)


def test_packet_numbers_only_grow(carrier: _native.Carrier) -> None:
    session = make_session(carrier)
    session.next_number = 7
    with pytest.raises(ValueError, match="only grow"):
        session.next_number = 6
    with pytest.raises(ValueError, match="only grow"):
        session.next_number = 1 << 62
    assert session.next_number == 7


def test_ranges_of_received_numbers_are_bounded(carrier: _native.Carrier) -> None:
    session = make_session(carrier)
    session.note_received(3, 5, True)
    assert session.expected_number == 6
    for first, last in ((5, 4), (0, 1 << 40)):
        with pytest.raises(ValueError, match="no such range"):
            session.note_received(first, last, True)


@pytest.mark.parametrize("size", [0, 65536, 100000])
def test_limits_are_a_udp_payloads(carrier: _native.Carrier, size: int) -> None:
    with pytest.raises(ValueError, match="UDP payload"):
        make_session(carrier).set_limits(size, 100)


def test_addresses_prefixes_and_pairs_have_their_lengths(carrier: _native.Carrier) -> None:
    session = make_session(carrier)
    for call, argument in (
        (session.add_address, bytes(5)),
        (session.allow_inbound, bytes(9)),
        (session.allow_outbound, bytes(31)),
        (session.set_prefix, b""),
        (session.set_prefix, bytes(17)),
        (session.add_cid, bytes(7)),
        (session.remove_cid, CID),
        (session.set_peer_cid, bytes(21)),
        (session.set_path, ("gateway.test", 443)),
        (session.set_path, ("127.0.0.1", 443, bytes(11))),
        (session.set_path, ("127.0.0.1", 443, "127.0.0.2")),
        (session.set_path, ("::1", 443, 0, 0, bytes(21))),
    ):
        with pytest.raises(ValueError):
            call(argument)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("bound", "dialled"),
    [
        ("127.0.0.2", "127.0.0.2"),
        ("::1", "::1"),
        ("0.0.0.0", "127.0.0.2"),
        ("::", "127.0.0.2"),
        ("::", "::1"),
    ],
)
def test_a_path_has_the_same_name_in_c_and_python(bound: str, dialled: str) -> None:
    with closing(UdpSocket.bind(bound, 0)) as server:
        carrier = _native.Carrier(server.fileno(), 8)
        family = socket.AF_INET6 if ":" in dialled else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as peer:
            peer.connect((dialled, server.local_address[1]))
            peer.send(b"for Python")
            ((_, address),) = server.receive_batch(4)
            peer.send(b"for C")
            _, ((_, _, packet, _, reported),) = carrier.run(1_000_000)
            assert (packet, reported) == (b"for C", address)
            # And back: what C sends leaves from there, or `peer` would not hear it.
            session = make_session(carrier)
            session.set_send_key(_native.AES_128_GCM, KEY, IV, KEY, 0)
            session.set_peer_cid(CID)
            session.set_path(address)
            session.set_limits(1452, 1400)
            session.may_send = True
            for _ in range(3):
                session.send_frame(bytes(1000))
            carrier.flush()
            peer.settimeout(5.0)
            assert [peer.recv(2000)[1:9] for _ in range(3)] == [CID] * 3
            assert carrier.counters()["send_dropped"] == 0


def whose(carrier: _native.Carrier, tun: socket.socket, *destinations: str) -> list[object]:
    """The sessions that reads of the TUN with these destinations are for."""
    for destination in destinations:
        packed = ip_address(destination).packed
        if len(packed) == 4:
            packet = b"\x45\0\0\x14" + bytes(12) + packed
        else:
            packet = b"\x60" + bytes(23) + packed
        tun.send(bytes(_native.VNET_HEADER_BYTES) + packet)
    _, reports = carrier.run(1_000_000_000)
    assert {kind for kind, *_ in reports} == {_native.REPORT_READ}
    return [session for _, session, *_ in reports]


def test_an_address_goes_before_a_network_and_a_longer_prefix_before_a_shorter(
    carrier: _native.Carrier,
) -> None:
    ours, kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with ours, kernels:
        carrier.set_tun(ours.fileno(), False, False)
        client, near, far = (make_session(carrier) for _ in range(3))
        client.add_address(ip_address("10.20.30.4").packed)
        near.add_network(ip_address("10.20.30.0").packed, 24)
        far.add_network(ip_address("10.0.0.0").packed, 8)
        far.add_network(ip_address("fd00::").packed, 8)
        asked = ("10.20.30.4", "10.20.30.5", "10.20.31.5", "192.0.2.1", "fd00::1", "2001:db8::1")
        assert whose(carrier, kernels, *asked) == [client, near, far, None, far, None]
        assert carrier.counters()["no_session"] == 2

        # Taken away again, by their owner alone.
        near.remove_address(ip_address("10.20.30.4").packed)
        far.remove_network(ip_address("10.20.30.0").packed, 24)
        assert whose(carrier, kernels, *asked[:2]) == [client, near]
        client.remove_address(ip_address("10.20.30.4").packed)
        near.remove_network(ip_address("10.20.30.0").packed, 24)
        assert whose(carrier, kernels, *asked[:2]) == [far, far]

        # A session that ends leaves nothing behind.
        far.close()
        assert whose(carrier, kernels, *asked) == [None] * 6
        carrier.set_tun(-1, False, False)


def test_what_is_no_network_is_refused(carrier: _native.Carrier) -> None:
    session = make_session(carrier)
    for packed, bits in ((bytes(4), 33), (bytes(16), 129), (bytes(5), 8), (b"", 0)):
        with pytest.raises(ValueError, match="no network"):
            session.add_network(packed, bits)
        session.remove_network(packed, bits)
        session.remove_address(packed)


def test_a_closed_session_says_so(carrier: _native.Carrier) -> None:
    session = make_session(carrier)
    session.close()
    session.close()
    assert not session.is_open
    assert session.window_bytes == 0
    for call in (
        lambda: session.send_frame(b"x"),
        lambda: session.set_limits(1200, 1000),
        lambda: session.note_received(0, 0, True),
        lambda: setattr(session, "may_send", True),
        session.statistics,
        session.forget_pairs,
    ):
        with pytest.raises(ValueError, match="closed"):
            call()
    assert carrier.flush() == []


def test_nothing_is_sealed_before_there_is_a_key_and_a_path(carrier: _native.Carrier) -> None:
    session = make_session(carrier)
    assert session.window_bytes == 0
    assert session.seal_probe(1300) == b""
    session.set_limits(1452, 1400)
    assert session.send_frame(b"\0\0x") == _native.SEND_DONE  # it waits
    assert carrier.flush() == []
    assert session.next_number == 0


def test_a_session_that_goes_takes_what_it_had_under_way(
    carrier: _native.Carrier, udp: socket.socket
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        peer.setblocking(False)
        session = make_ready(carrier, peer)
        for _ in range(100):
            session.send_frame(b"\0\0" + bytes(1000))
        session.close()
        del session
        gc.collect()
        other = make_ready(carrier, peer)
        assert other.send_frame(b"\0\0hello") == _native.SEND_DONE
        carrier.flush()
        packets = []
        with pytest.raises(BlockingIOError):
            while True:
                packets.append(peer.recv(2000))
        assert len(packets) == 1 or len(packets) == 65  # batches already sealed may have gone
        assert len(packets[-1]) < 100


def test_a_packet_of_one_session_is_reported_with_it_until_it_is_gone(
    carrier: _native.Carrier, udp: socket.socket
) -> None:
    """A session that is let go of between two calls leaves reports without an owner."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        one, other = make_ready(carrier, peer), _native.Carrier(peer.fileno(), 8)
        sender = make_session(other)
        sender.set_send_key(_native.AES_128_GCM, KEY, IV, KEY, 0)
        sender.set_peer_cid(CID)
        sender.set_path(udp.getsockname())
        sender.set_limits(1452, 1400)
        sender.may_send = True
        sender.send_frame(b"\x3f" + bytes(40))
        other.flush()
        _, reports = carrier.run(1_000_000)
        assert [(kind, session) for kind, session, *_ in reports] == [
            (_native.REPORT_DATAGRAM, one)
        ]
        sender.send_frame(b"\x3f" + bytes(40))
        other.flush()
        one.close()
        _, reports = carrier.run(1_000_000)
        assert [(kind, session) for kind, session, *_ in reports] == [(_native.REPORT_PACKET, None)]


def test_deadlines_are_those_of_sessions_with_something_to_do(
    carrier: _native.Carrier, udp: socket.socket
) -> None:
    assert carrier.deadline() == NEVER
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        session = make_ready(carrier, peer)
        session.send_frame(b"\0\0hello")
        carrier.flush()
        assert carrier.deadline() < NEVER  # the probe timeout
        session.close()
        assert carrier.deadline() == NEVER


_MEASURE = """
import gc, os, socket, sys
from zgate_datapath import _native
KEY, IV = bytes(16), bytes(12)
PAGE = os.sysconf("SC_PAGE_SIZE")
def resident():
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * PAGE
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", 0))
carrier = _native.Carrier(udp.fileno(), 8)
def make(number):
    session = _native.Session(carrier, is_client=False, congestion=_native.CONGESTION_MODEL,
        max_packet_bytes=1452, initial_rtt_ns=0, peer_max_ack_delay_ns=25_000_000,
        peer_ack_delay_exponent=3)
    for take in (session.set_receive_key, session.set_next_receive_key, session.set_send_key):
        take(_native.AES_128_GCM, KEY, IV, KEY, 0)
    session.add_cid(number.to_bytes(8, "big"))
    session.add_address(number.to_bytes(4, "big"))
    session.set_path(("127.0.0.1", 9))
    session.set_limits(1452, 1400)
    session.note_received(0, 40, True)
    session.allow_inbound(bytes(8))
    session.allow_outbound(bytes(8))
    return session
warm = [make(n) for n in range(50)]
before = resident()
sessions = [make(1000 + n) for n in range(1000)]
print((resident() - before) // len(sessions))
"""


def test_an_idle_session_costs_less_than_16_kilobytes() -> None:
    """C's part of it, by the resident size of a process with 1,000 sessions."""
    result = subprocess.run(
        [sys.executable, "-c", _MEASURE], capture_output=True, text=True, check=True, timeout=60
    )
    print(f"native session, idle: {result.stdout.strip()} bytes")
    assert 0 < int(result.stdout) < 16384


# Super-packets for whoever wants IP packets.


def vnet_header(gso_type: int, gso_bytes: int, start: int, offset: int) -> bytes:
    """struct virtio_net_hdr, with a checksum that is partial."""
    return struct.pack("=BBHHHH", 1, gso_type, start + 20, gso_bytes, start, offset)


def partial_checksum(packet: bytes, protocol: int) -> bytes:
    """What the kernel leaves to the card: the sum of the pseudo-header, not complemented."""
    pseudo = packet[12:20] + bytes((0, protocol)) + (len(packet) - 20).to_bytes(2, "big")
    return (0xFFFF - checksum(pseudo)).to_bytes(2, "big")


def test_a_super_packet_becomes_the_packets_that_it_stands_for() -> None:
    head = IP(src="10.101.0.1", dst="10.100.0.7", id=5)
    data = bytes(range(256)) * 10
    whole = bytes(head / TCP(sport=104, dport=1234, seq=9, flags="PA") / data)
    whole = whole[:36] + partial_checksum(whole, 6) + whole[38:]
    found = _native.segments(vnet_header(1, 1000, 20, 16) + whole, 1500)
    assert found is not None
    parsed = [IP(packet) for packet in found]
    assert [len(packet) for packet in found] == [1040, 1040, 600]
    assert b"".join(bytes(packet[TCP].payload) for packet in parsed) == data
    assert [packet[TCP].seq for packet in parsed] == [9, 1009, 2009]
    for packet, raw in zip(parsed, found, strict=True):
        del packet.chksum, packet[TCP].chksum
        assert bytes(packet) == raw


def test_a_plain_packet_is_itself_and_its_checksum_is_completed() -> None:
    whole = bytes(IP(src="10.101.0.1", dst="10.100.0.7") / UDP(sport=53, dport=9) / b"hello")
    assert _native.segments(bytes(10) + whole, 1500) == [whole]
    unfinished = whole[:26] + partial_checksum(whole, 17) + whole[28:]
    assert _native.segments(vnet_header(0, 0, 20, 6) + unfinished, 1500) == [whole]


def test_what_is_too_long_or_does_not_fit() -> None:
    whole = bytes(IP() / UDP() / bytes(100))
    assert _native.segments(bytes(10) + whole, 127) is None
    assert _native.segments(bytes(10) + whole, -1) is None
    assert _native.segments(b"", 1500) == []
    assert _native.segments(vnet_header(1, 1000, 20, 16) + whole, 1500) == []
    with pytest.raises(TypeError):
        _native.segments("read", 1500)  # type: ignore[arg-type]
