"""The longest prefix, against `ipaddress` as the judge."""

from __future__ import annotations

import random
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from zgate_gateway.prefixes import IpNetwork, PrefixTable


def packed(address: str) -> bytes:
    return ip_address(address).packed


def test_the_longest_prefix_wins_and_families_are_apart() -> None:
    table: PrefixTable[str] = PrefixTable()
    assert not table
    assert table.find(packed("10.0.0.1")) is None
    for network in ("0.0.0.0/0", "10.20.30.0/25", "10.20.0.0/16", "fd00::/8"):
        table.put(ip_network(network), network)
    assert table
    assert table.find(packed("10.20.30.1")) == "10.20.30.0/25"
    assert table.find(packed("10.20.30.128")) == "10.20.0.0/16"
    assert table.find(packed("192.0.2.1")) == "0.0.0.0/0"
    assert table.find(packed("fd00::1")) == "fd00::/8"
    assert table.find(packed("2001:db8::1")) is None


def test_only_the_owner_takes_away() -> None:
    table: PrefixTable[str] = PrefixTable()
    network = ip_network("10.20.0.0/16")
    table.put(network, "one")
    table.put(network, "other")
    assert not table.remove(network, "one")
    assert not table.remove(ip_network("10.21.0.0/16"), "other")
    assert table.remove(network, "other")
    assert not table


@pytest.mark.parametrize("make", [IPv4Network, IPv6Network])
def test_it_agrees_with_ipaddress(make: type[IPv4Network] | type[IPv6Network]) -> None:
    dice = random.Random(7)
    width = 32 if make is IPv4Network else 128
    table: PrefixTable[str] = PrefixTable()
    held: dict[IpNetwork, str] = {}

    def some_network() -> IpNetwork:
        bits = dice.choice((0, 1, 8, 9, 16, width // 2, width - 1, width))
        high = dice.getrandbits(4) << (width - 4)
        address = (high | dice.getrandbits(6)) >> (width - bits) << (width - bits) if bits else 0
        return make((address, bits))

    for _ in range(1500):
        network, value = some_network(), dice.choice("abcde")
        if dice.random() < 0.6:
            table.put(network, value)
            held[network] = value
        else:
            assert table.remove(network, value) == (held.get(network) is value)
            if held.get(network) is value:
                del held[network]
        probe = some_network().network_address
        holding = [one for one in held if probe in one]
        best = max(holding, key=lambda one: one.prefixlen, default=None)
        assert table.find(probe.packed) == (held[best] if best is not None else None)
