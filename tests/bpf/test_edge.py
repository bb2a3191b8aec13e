"""Every branch of the edge program, by frames that scapy built and BPF_PROG_TEST_RUN."""

import errno
import struct
from ipaddress import ip_address, ip_network

import pytest
from bpf_support.complexity import VERIFIED_INSTRUCTIONS
from bpf_support.edge import (
    GATEWAY4,
    GATEWAY6,
    HANDSHAKE,
    INITIAL,
    MACS,
    PORT,
    RETRY,
    STRANGER4,
    STRANGER6,
    UNKNOWN_VERSION,
    V1,
    V2,
    ZERO_RTT,
    EdgeWorld,
    ip4,
    ip6,
    long_header,
    short,
)
from scapy.layers.inet import IP, TCP, IPOption
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.ipsec import AH
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Raw
from zgate_bpf import edge, syscalls
from zgate_bpf.edge import EdgeProgram, EdgeReason, EdgeSettings, Owners, Rate
from zgate_bpf.edge_layouts import Total
from zgate_bpf.errors import BpfLoadError, CapacityError
from zgate_bpf.maps import index_key
from zgate_datapath.connection_ids import ConnectionIds

R = EdgeReason
BOTH = pytest.mark.parametrize("ip", [ip4, ip6], ids=["ipv4", "ipv6"])
VERSIONS = pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
NO_LIMITS = EdgeSettings(PORT)


@pytest.fixture(scope="module")
def program():
    with EdgeProgram() as loaded:
        yield loaded


@pytest.fixture
def world(program):
    program.configure(NO_LIMITS)
    program.set_addresses([ip_address(GATEWAY4), ip_address(GATEWAY6)])
    program.set_blocklist([])
    for total in Total:
        program._totals.update(index_key(total), bytes(8))  # no test's burst is another one's
    return EdgeWorld(program)


# What passes.


@BOTH
def test_short_header_passes(world, ip):
    assert world.says(ip(short())) is R.SHORT_HEADER


@BOTH
@VERSIONS
def test_initial_passes(world, ip, version):
    assert world.says(ip(long_header(INITIAL, version))) is R.INITIAL


@BOTH
@VERSIONS
def test_handshake_passes(world, ip, version):
    assert world.says(ip(long_header(HANDSHAKE, version, size=60))) is R.HANDSHAKE


def test_smallest_short_header_is_a_stateless_reset(world):
    assert world.says(ip4(short(21))) is R.SHORT_HEADER
    assert world.says(ip4(short(20))) is R.TOO_SHORT


def test_initial_with_longest_connection_ids(world):
    assert world.says(ip4(long_header(dcid=bytes(20), scid=bytes(20)))) is R.INITIAL


# What is not ours passes untouched, and is not counted.


@pytest.mark.parametrize(
    "frame",
    [
        ip4(b"", port=444),
        ip4(b"", destination="203.0.113.11"),
        ip6(b"", destination="2001:db8:f::11"),
        ip6(b"", port=444),
        Ether(**MACS) / IP(src=STRANGER4, dst=GATEWAY4) / TCP(dport=PORT),
        Ether(**MACS) / IPv6(src=STRANGER6, dst=GATEWAY6) / TCP(dport=PORT),
        Ether(**MACS) / IP(src=STRANGER4, dst=GATEWAY4, proto=1) / Raw(bytes(40)),
        Ether(**MACS) / ARP(pdst=GATEWAY4),
        Ether(**MACS, type=0x88CC) / Raw(bytes(60)),
        Ether(**MACS, type=0x0800) / Raw(b"\x45"),
        Ether(**MACS, type=0x86DD) / Raw(b"\x60" + bytes(20)),
        Ether(**MACS, type=0x8100) / Raw(b"\0"),
        Ether(**MACS) / IP(src=STRANGER4, dst=GATEWAY4, proto=17, len=24) / Raw(bytes(4)),
    ],
    ids=[
        "other-port4",
        "other-host4",
        "other-host6",
        "other-port6",
        "tcp4",
        "tcp6",
        "icmp",
        "arp",
        "lldp",
        "cut-ipv4",
        "cut-ipv6",
        "cut-vlan",
        "cut-udp",
    ],
)
def test_not_ours(world, frame):
    assert world.says(frame) is None


def test_ipv4_header_that_contradicts_itself_is_the_stack_s_matter(world):
    assert world.says(ip4(b"", ihl=4)) is None
    assert world.says(ip4(b"", len=19)) is None


def test_nothing_is_looked_at_without_a_port_or_an_address(world):
    world.program.configure(EdgeSettings(0))
    assert world.says(ip4(b"x")) is None
    world.program.configure(NO_LIMITS)
    world.program.set_addresses([])
    assert world.says(ip4(b"x")) is None


# Ways to the port.


@BOTH
@pytest.mark.parametrize("tags", [1, 2])
def test_vlan_tags_are_seen_through(world, ip, tags):
    frame = ip(b"x")
    inner = frame.payload
    for tag in range(tags):
        inner = (Dot1AD if tag else Dot1Q)(
            vlan=7 + tag, type=frame.type if not tag else 0x8100
        ) / inner
    assert world.says(Ether(**MACS, type=0x88A8 if tags == 2 else 0x8100) / inner) is R.TOO_SHORT


def test_three_vlan_tags_are_not_ours(world):
    inner = Dot1Q(vlan=1) / Dot1Q(vlan=2) / Dot1Q(vlan=3) / ip4(b"x").payload
    assert world.says(Ether(**MACS) / inner) is None


def test_ipv4_options_are_skipped(world):
    frame = ip4(short(), options=[IPOption(b"\x94\x04\x00\x00"), IPOption(b"\x01" * 4)])
    assert world.says(frame) is R.SHORT_HEADER


def test_ipv6_extension_headers_are_walked(world):
    headers = [IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), IPv6ExtHdrRouting(segleft=0)]
    assert world.says(ip6(short(), *headers)) is R.SHORT_HEADER
    assert world.says(ip6(b"x", *headers)) is R.TOO_SHORT
    assert world.says(ip6(short(), AH(nh=17, payloadlen=4, icv=bytes(12)))) is R.SHORT_HEADER


def test_as_many_extension_headers_as_rfc_8200_has_kinds(world):
    assert world.says(ip6(short(), *[IPv6ExtHdrDestOpt()] * 6)) is R.SHORT_HEADER


def test_more_extension_headers_are_no_way_round(world):
    assert world.says(ip6(short(), *[IPv6ExtHdrDestOpt()] * 7)) is R.MALFORMED
    other = ip6(short(), *[IPv6ExtHdrDestOpt()] * 7, destination="2001:db8:f::11")
    assert world.says(other) is None


@pytest.mark.parametrize(
    ("next_header", "rest"),
    [(59, bytes(60)), (60, b"\x11"), (60, b"\x11\xff" + bytes(60))],
    ids=["no-next-header", "cut", "beyond-the-packet"],
)
def test_chain_that_does_not_lead_to_udp_is_not_ours(world, next_header, rest):
    header = IPv6(src=STRANGER6, dst=GATEWAY6, nh=next_header)
    assert world.says(Ether(**MACS) / header / Raw(rest)) is None


# Fragments.


def test_first_fragment_is_dropped_and_a_later_one_is_not_told(world):
    assert world.says(ip4(short(), flags="MF")) is R.FRAGMENT
    assert world.says(ip4(short(), flags="MF", frag=3)) is None
    assert world.says(ip4(short(), frag=3)) is None


def test_ipv6_fragments(world):
    assert world.says(ip6(short(), IPv6ExtHdrFragment(m=1))) is R.FRAGMENT
    assert world.says(ip6(short(), IPv6ExtHdrFragment(m=1, offset=3))) is None
    assert world.says(ip6(short(), IPv6ExtHdrFragment(m=0))) is R.SHORT_HEADER  # RFC 6946


def test_fragments_for_others_pass(world):
    assert world.says(ip4(short(), flags="MF", port=444)) is None


# What is no QUIC.


@pytest.mark.parametrize("length", [0, 7, 200])
def test_udp_length_that_contradicts_the_ip_header(world, length):
    assert world.says(ip4(short(), udp={"len": length})) is R.MALFORMED


def test_padding_behind_the_packet_is_no_payload(world):
    assert world.says(bytes(ip4(b"x")) + bytes(40)) is R.TOO_SHORT


@pytest.mark.parametrize("size", [0, 1, 20])
@BOTH
def test_too_short(world, ip, size):
    assert world.says(ip(short(size) if size else b"")) is R.TOO_SHORT


def test_frame_that_is_shorter_than_it_says(world):
    whole = bytes(ip4(short()))
    assert world.says(whole[:42]) is R.MALFORMED
    assert world.says(bytes(ip4(long_header(HANDSHAKE, size=60)))[:45]) is R.MALFORMED


@BOTH
def test_fixed_bit(world, ip):
    assert world.says(ip(short(first=0x00))) is R.FIXED_BIT
    assert world.says(ip(long_header(first=0x80))) is R.FIXED_BIT
    assert world.says(ip(long_header(version=V2, first=0x80))) is R.FIXED_BIT


@VERSIONS
@pytest.mark.parametrize("kind", [ZERO_RTT, RETRY], ids=["0-rtt", "retry"])
def test_types_that_no_client_sends_us(world, version, kind):
    assert world.says(ip4(long_header(kind, version))) is R.PACKET_TYPE


def test_version_negotiation_is_a_server_s(world):
    assert world.says(ip4(long_header(version=0))) is R.PACKET_TYPE


@VERSIONS
def test_connection_ids_of_no_possible_length(world, version):
    for dcid in (bytes(21), bytes(255)):
        assert world.says(ip4(long_header(INITIAL, version, dcid=dcid))) is R.CONNECTION_ID
    for dcid in (b"", bytes(7)):
        assert world.says(ip4(long_header(INITIAL, version, dcid=dcid))) is R.CONNECTION_ID
    assert world.says(ip4(long_header(INITIAL, version, scid=bytes(21)))) is R.CONNECTION_ID
    for dcid in (bytes(7), bytes(9)):
        answer = world.says(ip4(long_header(HANDSHAKE, version, dcid=dcid, size=60)))
        assert answer is R.CONNECTION_ID


def test_connection_id_that_reaches_beyond_the_packet(world):
    cut = long_header(dcid=bytes(20))[:26]
    assert world.says(ip4(cut)) is R.TOO_SHORT
    assert world.says(bytes(ip4(cut)) + bytes(20)) is R.TOO_SHORT
    whole = bytes(ip4(long_header(dcid=bytes(20), size=40)))
    assert world.says(whole[: 14 + 20 + 8 + 26]) is R.MALFORMED


@BOTH
@VERSIONS
def test_initial_below_1200_bytes(world, ip, version):
    assert world.says(ip(long_header(INITIAL, version, size=1199))) is R.INITIAL_TOO_SMALL


# Whose connection?


def test_connection_ids_that_name_no_owner(world):
    ids = ConnectionIds(owner=1, owners=2)
    mask = ids.mask
    world.program.configure(EdgeSettings(PORT, owners=Owners(mask.factor, mask.offset, 2)))
    for _ in range(20):
        ours = ids.issue()
        foreign = bytes([ours[0] ^ 0x82]) + ours[1:]
        assert ids.owner_of(foreign) is None
        assert world.says(ip4(short(cid=ours))) is R.SHORT_HEADER
        assert world.says(ip6(short(cid=foreign))) is R.UNKNOWN_CONNECTION
        assert world.says(ip4(long_header(HANDSHAKE, dcid=ours, size=60))) is R.HANDSHAKE
        answer = world.says(ip4(long_header(HANDSHAKE, dcid=foreign, size=60)))
        assert answer is R.UNKNOWN_CONNECTION
        # The first packet's ID is the client's own invention.
        assert world.says(ip4(long_header(INITIAL, dcid=foreign))) is R.INITIAL


def test_noise_that_looks_like_short_headers_is_told_from_connections(world):
    mask = ConnectionIds().mask
    world.program.configure(EdgeSettings(PORT, owners=Owners(mask.factor, mask.offset, 1)))
    passed = sum(
        world.says(ip4(short(cid=struct.pack("!Q", number * 0x9E3779B97F4A7C15 % 2**64))))
        is R.SHORT_HEADER
        for number in range(1, 1025)
    )
    assert passed < 20  # one in 256, that is 4 or so


# Rates.


def test_source_has_a_burst_and_then_waits(world):
    world.program.configure(EdgeSettings(PORT, source_rate=Rate(0.001, 20)))
    frame = ip4(long_header(), source="198.51.100.20")
    assert world.says(frame, repeat=50) == {R.INITIAL: 20, R.SOURCE_RATE: 30}
    assert world.says(ip4(long_header(), source="198.51.100.21")) is R.INITIAL
    # What is no Initial is not counted against it.
    assert world.says(ip4(short(), source="198.51.100.20")) is R.SHORT_HEADER


def test_source_gets_its_rate_back_with_time(world):
    world.program.configure(EdgeSettings(PORT, source_rate=Rate(1e9, 1)))
    frame = ip4(long_header(), source="198.51.100.22")
    assert all(world.says(frame) is R.INITIAL for _ in range(20))


def test_ipv6_source_is_its_64(world):
    world.program.configure(EdgeSettings(PORT, source_rate=Rate(0.001, 1)))
    assert world.says(ip6(long_header(), source="2001:db8:30::1")) is R.INITIAL
    assert world.says(ip6(long_header(), source="2001:db8:30:0:ffff::2")) is R.SOURCE_RATE
    assert world.says(ip6(long_header(), source="2001:db8:30:1::1")) is R.INITIAL


def test_super_packet_costs_what_it_holds(world):
    world.program.configure(EdgeSettings(PORT, source_rate=Rate(0.001, 10)))
    frame = ip4(long_header(size=3600), source="198.51.100.23")
    assert world.says(frame, repeat=10) == {R.INITIAL: 4, R.SOURCE_RATE: 6}


def test_all_sources_together(world):
    world.program.configure(EdgeSettings(PORT, total_rate=Rate(0.001, 30)))
    said = [world.says(ip4(long_header(), source=f"198.18.0.{number}")) for number in range(1, 101)]
    assert said.count(R.INITIAL) == 30
    assert said.count(R.TOTAL_RATE) == 70


def test_greedy_source_does_not_use_up_what_is_there_for_all(world):
    world.program.configure(EdgeSettings(PORT, source_rate=Rate(0.0001, 5), total_rate=Rate(1, 10)))
    world.says(ip4(long_header(), source="198.51.100.24"), repeat=100)
    assert world.says(ip4(long_header(), source="198.51.100.25")) is R.INITIAL


def test_more_sources_than_are_remembered():
    with EdgeProgram(max_sources=64) as small:
        small.set_addresses([ip_address(GATEWAY4)])
        small.configure(EdgeSettings(PORT, source_rate=Rate(0.001, 1)))
        world = EdgeWorld(small)
        for number in range(1000):
            source = f"198.19.{number >> 8}.{number & 255}"
            assert world.says(ip4(long_header(), source=source)) is R.INITIAL
        assert 0 < small.sources() <= 64


def test_unknown_versions_are_answered_but_not_many(world):
    world.program.configure(EdgeSettings(PORT, version_rate=Rate(0.001, 3)))
    frame = ip4(long_header(version=UNKNOWN_VERSION, first=0x80))
    assert world.says(frame, repeat=10) == {R.VERSION_TRICKLE: 3, R.UNKNOWN_VERSION: 7}


def test_unknown_version_that_could_begin_nothing(world):
    assert world.says(ip4(long_header(version=UNKNOWN_VERSION))) is R.VERSION_TRICKLE
    assert world.says(ip4(long_header(version=UNKNOWN_VERSION, size=1199))) is R.UNKNOWN_VERSION
    # RFC 8999: other versions may have other limits.
    odd = long_header(version=UNKNOWN_VERSION, dcid=bytes(255))
    assert world.says(ip4(odd)) is R.VERSION_TRICKLE


# The blocklist.


def test_blocklist_by_longest_prefix_of_each_family(world):
    world.program.set_blocklist([ip_network("198.51.100.0/25"), ip_network("2001:db8:7::/48")])
    assert world.says(ip4(short(), source="198.51.100.127")) is R.BLOCKLISTED
    assert world.says(ip4(short(), source="198.51.100.128")) is R.SHORT_HEADER
    assert world.says(ip6(short(), source="2001:db8:7:ffff::1")) is R.BLOCKLISTED
    assert world.says(ip6(short(), source="2001:db8:8::1")) is R.SHORT_HEADER


def test_blocklist_is_for_our_port_only(world):
    world.program.set_blocklist([ip_network("0.0.0.0/0"), ip_network("::/0")])
    assert world.says(ip4(short())) is R.BLOCKLISTED
    assert world.says(ip6(short())) is R.BLOCKLISTED
    assert world.says(ip4(short(), port=444)) is None
    assert world.says(ip4(short(), destination="203.0.113.11")) is None


def test_blocklist_is_replaced(world):
    world.program.set_blocklist([ip_network(f"198.51.{number}.0/24") for number in range(256)])
    assert world.says(ip4(short())) is R.BLOCKLISTED
    world.program.set_blocklist([ip_network("203.0.113.0/24")])
    assert world.says(ip4(short())) is R.SHORT_HEADER


def test_blocklist_that_is_too_long_leaves_the_old_one(world, monkeypatch):
    world.program.set_blocklist([ip_network("198.51.100.0/24")])
    monkeypatch.setattr(edge, "MAX_BLOCKED", 1)
    with pytest.raises(CapacityError, match="IPv4 blocklist: 2 needed, 1 fit"):
        world.program.set_blocklist([ip_network("10.0.0.0/8"), ip_network("11.0.0.0/8")])
    assert world.says(ip4(short())) is R.BLOCKLISTED


# The program itself.


def test_addresses_are_replaced(world):
    world.program.set_addresses([ip_address("203.0.113.99")])
    assert world.says(ip4(short())) is None
    assert world.says(ip4(short(), destination="203.0.113.99")) is R.SHORT_HEADER


def test_too_many_addresses_are_said(world):
    many = [ip_address(0x0A000000 + number) for number in range(edge.MAX_ADDRESSES + 1)]
    with pytest.raises(CapacityError, match="zg_edge_addr"):
        world.program.set_addresses(many)


def test_is_small_enough_for_any_verifier(program, record_property):
    verified = syscalls.verified_instructions(program.fd)
    record_property(VERIFIED_INSTRUCTIONS, f"zg_edge {verified:,}")
    assert 500 < verified < 20_000


def test_refusals_are_errors_with_a_cause(monkeypatch):
    def refuse(*_args, **_keywords):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(syscalls, "map_create", refuse)
    with pytest.raises(BpfLoadError, match=r"BPF maps: .*smaller"):
        EdgeProgram()


def test_struct_that_differs_does_not_load(monkeypatch):
    from zgate_bpf import edge_layouts

    wrong = edge_layouts.Layout("zg_edge_source", (*edge_layouts.SOURCE.fields, ("more", "Q")))
    monkeypatch.setattr(edge_layouts, "LAYOUTS", (wrong,))
    with pytest.raises(BpfLoadError, match="struct zg_edge_source"):
        EdgeProgram()


@pytest.mark.parametrize(
    "payload", [b"x" * 30, short(), long_header()], ids=["junk", "short", "initial"]
)
def test_what_a_packet_costs(world, payload):
    """Printed, and bounded very loosely: the machine may be busy."""
    world.program.configure(
        EdgeSettings(PORT, source_rate=Rate(50, 500), total_rate=Rate(2000, 2000))
    )
    _, each_ns = world.program.run(bytes(ip4(payload)), repeat=100_000)
    print(f"{each_ns} ns")
    assert each_ns < 5_000
