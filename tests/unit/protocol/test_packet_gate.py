"""The gate, packet by packet; the cache must never change a verdict."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.icmp import IcmpError, build_icmp_error
from zgate_protocol.ip_range import EVERYTHING, IpRange
from zgate_protocol.packet_gate import PacketGate

CLIENT, OTHER_CLIENT, SERVER = "10.100.0.5", "10.100.0.6", "192.0.2.7"
CLIENT6, SERVER6 = "fd00::5", "2001:db8::7"


def ranges(*networks: str, protocol: int = 0) -> list[IpRange]:
    return [IpRange.of(ip_network(network), protocol) for network in networks]


def proxy_gate(here: list[IpRange] | None = None, *, is_scoped: bool = False) -> PacketGate:
    gate = PacketGate(is_proxy=True, max_cached_pairs=64)
    gate.open(is_scoped=is_scoped)
    gate.set_tables(peer=ranges(CLIENT, CLIENT6), here=here or EVERYTHING)
    return gate


def client_gate(peer: list[IpRange] | None = None) -> PacketGate:
    gate = PacketGate(is_proxy=False, max_cached_pairs=64)
    gate.open(is_scoped=False)
    gate.set_tables(
        peer=peer or ranges("192.0.2.0/24", "2001:db8::/32"), here=ranges(CLIENT, CLIENT6)
    )
    return gate


def packet(source: str, destination: str, upper: object = None) -> bytes:
    kind = IPv6 if ":" in source else IP
    return bytes(kind(src=source, dst=destination) / (upper or UDP(sport=1, dport=2)))


UP, UP6 = packet(CLIENT, SERVER), packet(CLIENT6, SERVER6)
DOWN, DOWN6 = packet(SERVER, CLIENT), packet(SERVER6, CLIENT6)


@pytest.mark.parametrize("raw", [UP, UP6], ids=["v4", "v6"])
def test_a_packet_passes_the_first_time_and_the_second(raw: bytes) -> None:
    gate = proxy_gate()
    assert gate.unwrap(b"\0" + raw) == raw
    assert gate.cached_pairs == 1
    assert gate.unwrap(b"\0" + raw) == raw


@pytest.mark.parametrize("raw", [DOWN, DOWN6], ids=["v4", "v6"])
def test_a_packet_to_the_client_passes(raw: bytes) -> None:
    gate = proxy_gate()
    assert gate.check_outgoing(raw) is DropReason.NONE
    assert gate.cached_pairs == 1
    assert gate.check_outgoing(raw) is DropReason.NONE


@pytest.mark.parametrize(("up", "down"), [(UP, DOWN), (UP6, DOWN6)], ids=["v4", "v6"])
def test_the_clients_side(up: bytes, down: bytes) -> None:
    gate = client_gate()
    for _ in range(2):
        assert gate.check_outgoing(up) is DropReason.NONE
        assert gate.unwrap(b"\0" + down) == down


@pytest.mark.parametrize("context", ["4000", "80000000", "c000000000000000"])
def test_context_0_in_more_bytes_than_needed(context: str) -> None:
    assert proxy_gate().unwrap(bytes.fromhex(context) + UP) == UP


@pytest.mark.parametrize("context", ["01", "02", "4040", "c000000000000007"])
def test_unknown_contexts(context: str) -> None:
    assert proxy_gate().unwrap(bytes.fromhex(context) + UP) is DropReason.UNKNOWN_CONTEXT


@pytest.mark.parametrize("payload", ["", "40", "800000", "c0000000000000"])
def test_a_context_that_is_cut_off(payload: str) -> None:
    assert proxy_gate().unwrap(bytes.fromhex(payload)) is DropReason.BAD_DATAGRAM


INBOUND_DROPS = {
    "spoofed": (packet(OTHER_CLIENT, SERVER), DropReason.SOURCE_NOT_ASSIGNED),
    "spoofed IPv6": (packet("fd00::6", SERVER6), DropReason.SOURCE_NOT_ASSIGNED),
    "spoofed ICMP": (packet(OTHER_CLIENT, SERVER, ICMP()), DropReason.SOURCE_NOT_ASSIGNED),
    "unspecified source": (packet("::", SERVER6), DropReason.SOURCE_NOT_ASSIGNED),
    "loopback source": (packet("127.0.0.1", SERVER), DropReason.SOURCE_NOT_ASSIGNED),
    "loopback": (packet(CLIENT, "127.0.0.1"), DropReason.DESTINATION_NOT_ROUTED),
    "IPv6 loopback": (packet(CLIENT6, "::1"), DropReason.DESTINATION_NOT_ROUTED),
    "link-local source": (packet("169.254.1.1", SERVER), DropReason.LINK_LOCAL),
    "IPv6 link-local source": (packet("fe80::1", SERVER6), DropReason.LINK_LOCAL),
    "link-local": (packet(CLIENT, "169.254.1.1"), DropReason.LINK_LOCAL),
    "link-local multicast": (packet(CLIENT, "224.0.0.251"), DropReason.LINK_LOCAL),
    "all nodes": (packet(CLIENT6, "ff02::1"), DropReason.LINK_LOCAL_PEER),
    "empty": (b"", DropReason.BAD_LENGTH),
    "version 0": (b"\0" * 40, DropReason.BAD_VERSION),
    "version 5": (b"\x50" + UP[1:], DropReason.BAD_VERSION),
    "too short": (UP[:-1], DropReason.BAD_LENGTH),
    "too long": (UP + b"\0", DropReason.BAD_LENGTH),
    "IPv6 too short": (UP6[:-1], DropReason.BAD_LENGTH),
    "IPv6 too long": (UP6 + b"\0", DropReason.BAD_LENGTH),
    "short IPv4 header": (b"\x44" + UP[1:], DropReason.BAD_LENGTH),
}


@pytest.mark.parametrize(("raw", "reason"), INBOUND_DROPS.values(), ids=INBOUND_DROPS.keys())
@pytest.mark.parametrize("warm", [False, True])
def test_inbound_drops(raw: bytes, reason: DropReason, warm: bool) -> None:
    gate = proxy_gate()
    if warm:
        gate.unwrap(b"\0" + UP)
        gate.unwrap(b"\0" + UP6)
    assert gate.unwrap(b"\0" + raw) is reason


@pytest.mark.parametrize("raw", [UP, UP6], ids=["v4", "v6"])
def test_truncated_at_every_byte_with_a_warm_cache(raw: bytes) -> None:
    gate = proxy_gate()
    gate.unwrap(b"\0" + raw)
    for length in range(len(raw)):
        assert gate.unwrap(b"\0" + raw[:length]) is DropReason.BAD_LENGTH


@pytest.mark.parametrize("raw", [DOWN, DOWN6], ids=["v4", "v6"])
def test_outgoing_truncated_at_every_byte_with_a_warm_cache(raw: bytes) -> None:
    gate = proxy_gate()
    gate.check_outgoing(raw)
    for length in range(len(raw)):
        assert gate.check_outgoing(raw[:length]) is DropReason.BAD_LENGTH


OUTBOUND_DROPS = {
    "another client's": (packet(SERVER, OTHER_CLIENT), DropReason.DESTINATION_NOT_ASSIGNED),
    "link-local source": (packet("fe80::1", CLIENT6), DropReason.LINK_LOCAL),
    "link-local": (packet(SERVER6, "ff02::1"), DropReason.LINK_LOCAL),
    "loopback source": (packet("::1", CLIENT6), DropReason.SOURCE_NOT_ASSIGNED),
    "version 0": (bytes(40), DropReason.BAD_VERSION),
    "too long": (DOWN + b"\0", DropReason.BAD_LENGTH),
}


@pytest.mark.parametrize(("raw", "reason"), OUTBOUND_DROPS.values(), ids=OUTBOUND_DROPS.keys())
def test_outbound_drops(raw: bytes, reason: DropReason) -> None:
    gate = proxy_gate()
    gate.check_outgoing(DOWN)
    assert gate.check_outgoing(raw) is reason


CLIENT_DROPS = {
    "not our source": (packet(OTHER_CLIENT, SERVER), DropReason.SOURCE_NOT_ASSIGNED),
    "no route": (packet(CLIENT, "198.51.100.1"), DropReason.DESTINATION_NOT_ROUTED),
    "router solicitation": (packet("fe80::1", "ff02::2"), DropReason.LINK_LOCAL),
}


@pytest.mark.parametrize(("raw", "reason"), CLIENT_DROPS.values(), ids=CLIENT_DROPS.keys())
def test_what_a_client_does_not_send(raw: bytes, reason: DropReason) -> None:
    assert client_gate().check_outgoing(raw) is reason


def test_what_a_client_does_not_take() -> None:
    gate = client_gate()
    assert gate.unwrap(b"\0" + packet("198.51.100.1", CLIENT)) is DropReason.SOURCE_NOT_ASSIGNED
    for_another = packet(SERVER, OTHER_CLIENT)
    assert gate.unwrap(b"\0" + for_another) is DropReason.DESTINATION_NOT_ASSIGNED


@pytest.mark.parametrize(
    ("router", "client", "echo"),
    [("198.51.100.1", CLIENT, ICMP(type=11)), ("2001::1", CLIENT6, ICMPv6EchoRequest())],
)
def test_a_client_takes_icmp_from_routers_that_no_route_names(
    router: str, client: str, echo: object
) -> None:
    """And the exemption opens no door for other protocols of the same pair."""
    gate = client_gate()
    icmp, udp = packet(router, client, echo), packet(router, client)
    for _ in range(2):
        assert gate.unwrap(b"\0" + icmp) == icmp
        assert gate.unwrap(b"\0" + udp) is DropReason.SOURCE_NOT_ASSIGNED
    assert gate.cached_pairs == 0


def test_a_route_for_one_protocol() -> None:
    gate = proxy_gate(ranges("192.0.2.0/24", "2001:db8::/32", protocol=6))
    tcp, udp, icmp = (packet(CLIENT, SERVER, upper) for upper in (TCP(), UDP(), ICMP()))
    tcp6 = packet(CLIENT6, SERVER6, IPv6ExtHdrDestOpt() / TCP())
    udp6 = packet(CLIENT6, SERVER6, IPv6ExtHdrDestOpt() / UDP())
    for _ in range(2):
        assert gate.unwrap(b"\0" + tcp) == tcp
        assert gate.unwrap(b"\0" + icmp) == icmp
        assert gate.unwrap(b"\0" + tcp6) == tcp6
        assert gate.unwrap(b"\0" + udp) is DropReason.PROTOCOL_OUT_OF_SCOPE
        assert gate.unwrap(b"\0" + udp6) is DropReason.PROTOCOL_OUT_OF_SCOPE
    elsewhere = packet(CLIENT, "198.51.100.1", TCP())
    assert gate.unwrap(b"\0" + elsewhere) is DropReason.DESTINATION_NOT_ROUTED


def test_a_scoped_request_gets_nothing_from_outside_its_scope() -> None:
    gate = proxy_gate(ranges("192.0.2.0/24", protocol=17), is_scoped=True)
    assert gate.check_outgoing(DOWN) is DropReason.NONE
    other_protocol = packet(SERVER, CLIENT, TCP())
    assert gate.check_outgoing(other_protocol) is DropReason.PROTOCOL_OUT_OF_SCOPE
    other_host = packet("198.51.100.1", CLIENT)
    assert gate.check_outgoing(other_host) is DropReason.SOURCE_NOT_ASSIGNED
    echo = packet("198.51.100.1", CLIENT, ICMP())
    assert gate.check_outgoing(echo) is DropReason.NONE


def icmp_error_about(original: bytes) -> bytes:
    error = build_icmp_error(IcmpError.NO_ROUTE, original, ip_address("198.51.100.9").packed)
    assert error is not None
    return error


def test_a_scoped_request_gets_icmp_errors_about_its_own_packets_only() -> None:
    gate = proxy_gate(ranges("192.0.2.0/24", protocol=17), is_scoped=True)
    mine = icmp_error_about(packet(CLIENT, SERVER))
    other_protocol = icmp_error_about(packet(CLIENT, SERVER, TCP()))
    other_target = icmp_error_about(packet(CLIENT, "198.51.100.1"))
    assert gate.check_outgoing(mine) is DropReason.NONE
    assert gate.check_outgoing(other_protocol) is DropReason.PROTOCOL_OUT_OF_SCOPE
    assert gate.check_outgoing(other_target) is DropReason.PROTOCOL_OUT_OF_SCOPE
    short = packet("198.51.100.9", CLIENT, ICMP(type=3))
    assert gate.check_outgoing(short) is DropReason.PROTOCOL_OUT_OF_SCOPE


def test_before_and_after_the_session() -> None:
    gate = PacketGate(is_proxy=True, max_cached_pairs=64)
    gate.set_tables(peer=ranges(CLIENT), here=EVERYTHING)
    assert gate.unwrap(b"\0" + UP) is DropReason.NO_SESSION
    assert gate.check_outgoing(DOWN) is DropReason.NO_SESSION
    gate.open(is_scoped=False)
    assert gate.unwrap(b"\0" + UP) == UP
    assert gate.check_outgoing(DOWN) is DropReason.NONE
    gate.close()
    assert gate.unwrap(b"\0" + UP) is DropReason.SESSION_CLOSED
    assert gate.check_outgoing(DOWN) is DropReason.SESSION_CLOSED
    assert gate.unwrap(b"") is DropReason.SESSION_CLOSED


def test_new_tables_are_in_force_at_once() -> None:
    gate = proxy_gate()
    gate.unwrap(b"\0" + UP)
    gate.check_outgoing(DOWN)
    gate.set_tables(peer=(), here=EVERYTHING)
    assert gate.unwrap(b"\0" + UP) is DropReason.SOURCE_NOT_ASSIGNED
    assert gate.check_outgoing(DOWN) is DropReason.DESTINATION_NOT_ASSIGNED


HOSTS = [CLIENT, OTHER_CLIENT, SERVER, "198.51.100.1", "169.254.0.1", "127.0.0.1"]
HOSTS6 = [CLIENT6, "fd00::6", SERVER6, "fe80::1", "ff02::1", "::1"]
UPPERS = [UDP(), TCP(), ICMP(), IPv6ExtHdrDestOpt() / UDP(), ICMPv6EchoRequest()]
PACKETS = [packet(a, b, u) for a in HOSTS for b in HOSTS for u in UPPERS[:3]]
PACKETS += [packet(a, b, u) for a in HOSTS6 for b in HOSTS6 for u in UPPERS[3:]]


@settings(max_examples=60)
@given(st.lists(st.sampled_from(PACKETS), max_size=30), st.booleans(), st.booleans())
def test_a_warm_gate_judges_like_a_cold_one(
    raws: list[bytes], is_proxy: bool, is_scoped: bool
) -> None:
    def gate(size: int) -> PacketGate:
        new = PacketGate(is_proxy=is_proxy, max_cached_pairs=size)
        new.open(is_scoped=is_scoped)
        new.set_tables(
            peer=ranges(CLIENT, CLIENT6),
            here=[*ranges("192.0.2.0/24", "2001:db8::/32"), *ranges("198.51.100.0/24", protocol=6)],
        )
        return new

    warm = gate(2)
    for raw in raws:
        assert warm.unwrap(b"\0" + raw) == gate(64).unwrap(b"\0" + raw)
        assert warm.check_outgoing(raw) == gate(64).check_outgoing(raw)
        assert warm.cached_pairs <= 4


@given(st.binary(max_size=100))
def test_random_payloads_never_surprise(data: bytes) -> None:
    gate = proxy_gate()
    for raw in (data, b"\0" + data):
        result = gate.unwrap(raw)
        assert isinstance(result, bytes | DropReason)
    assert isinstance(gate.check_outgoing(data), DropReason)


@given(st.sampled_from([UP, UP6]), st.data())
def test_mutated_packets_never_pass_with_a_wrong_source(raw: bytes, data: st.DataObject) -> None:
    gate = proxy_gate()
    gate.unwrap(b"\0" + raw)
    changed = bytearray(b"\0" + raw)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(raw)))] = data.draw(st.integers(0, 255))
    result = gate.unwrap(bytes(changed))
    if isinstance(result, bytes):
        source = result[12:16] if result[0] >> 4 == 4 else result[8:24]
        assert str(ip_address(source)) in (CLIENT, CLIENT6)
