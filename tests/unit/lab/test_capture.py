"""What a captured packet says of itself."""

from __future__ import annotations

from ipaddress import ip_address

from zgate_lab.capture import CapturedPacket

IPV4 = CapturedPacket(
    True, bytes.fromhex("46ba001c 00000000 3f110000 0a640002 0a140005 01010101 deadbeef")
)
IPV6 = CapturedPacket(
    False,
    bytes.fromhex("6ba00000 0004113e")
    + ip_address("fd7a::2").packed
    + ip_address("fd00:20::5").packed
    + bytes.fromhex("deadbeef"),
)


def test_an_ipv4_packet() -> None:
    assert IPV4.version == 4
    assert (str(IPV4.source), str(IPV4.destination)) == ("10.100.0.2", "10.20.0.5")
    assert (IPV4.protocol, IPV4.hop_limit, IPV4.traffic_class) == (17, 63, 0xBA)
    assert IPV4.payload == bytes.fromhex("deadbeef"), "options belong to the header"


def test_an_ipv6_packet() -> None:
    assert IPV6.version == 6
    assert (str(IPV6.source), str(IPV6.destination)) == ("fd7a::2", "fd00:20::5")
    assert (IPV6.protocol, IPV6.hop_limit, IPV6.traffic_class) == (17, 62, 0xBA)
    assert IPV6.payload == bytes.fromhex("deadbeef")
