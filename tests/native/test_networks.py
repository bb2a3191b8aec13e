"""networks.c: the longest prefix that holds an address, against `ipaddress` as the judge."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest

from .build import load

IpNetwork = IPv4Network | IPv6Network

SHIM = """
#include <stdlib.h>
#include "networks.h"
struct zdp_networks *made(void) { return calloc(1, sizeof(struct zdp_networks)); }
void gone(struct zdp_networks *networks) { zdp_networks_free(networks); free(networks); }
unsigned int used(const struct zdp_networks *networks) { return networks->table.used; }
unsigned int lengths(const struct zdp_networks *networks, int family)
{
	return networks->families[family].count;
}
"""
MAX_NETWORKS = 4096

library = load("networks.c", "table.c", shim=SHIM)
library.made.restype = ctypes.c_void_p
for function in ("zdp_networks_put", "zdp_networks_remove"):
    getattr(library, function).restype = ctypes.c_bool
library.zdp_networks_find.restype = ctypes.c_void_p


class Networks:
    """The table, with numbers above 0 as values."""

    def __init__(self) -> None:
        self.at = ctypes.c_void_p(library.made())

    def put(self, network: str | IpNetwork, value: int, bits: int | None = None) -> bool:
        return bool(library.zdp_networks_put(self.at, *self._of(network, bits), self._value(value)))

    def remove(self, network: str | IpNetwork, value: int) -> bool:
        return bool(
            library.zdp_networks_remove(self.at, *self._of(network, None), self._value(value))
        )

    def remove_value(self, value: int) -> None:
        library.zdp_networks_remove_value(self.at, self._value(value))

    def find(self, address: str) -> int | None:
        packed = ip_address(address).packed
        found = library.zdp_networks_find(self.at, packed, ctypes.c_size_t(len(packed)))
        return None if found is None else int(found)

    @property
    def used(self) -> int:
        return int(library.used(self.at))

    def lengths(self, family: int) -> int:
        return int(library.lengths(self.at, family))

    @staticmethod
    def _of(network: str | IpNetwork, bits: int | None) -> tuple[bytes, ctypes.c_size_t, int]:
        known = ip_network(network)
        packed = known.network_address.packed
        return packed, ctypes.c_size_t(len(packed)), known.prefixlen if bits is None else bits

    @staticmethod
    def _value(value: int) -> ctypes.c_void_p:
        return ctypes.c_void_p(value)


@pytest.fixture
def networks() -> Iterator[Networks]:
    made = Networks()
    yield made
    library.gone(made.at)


def test_the_longest_prefix_wins(networks: Networks) -> None:
    for value, network in enumerate(
        ("0.0.0.0/0", "10.20.0.0/16", "10.20.30.0/25", "10.0.0.0/8"), 1
    ):
        assert networks.put(network, value)
    assert networks.find("10.20.30.1") == 3
    assert networks.find("10.20.30.200") == 2
    assert networks.find("10.21.0.1") == 4
    assert networks.find("192.0.2.1") == 1
    assert networks.find("2001:db8::1") is None


def test_families_are_apart(networks: Networks) -> None:
    assert networks.put("::/0", 1)
    assert networks.find("0.0.0.0") is None
    assert networks.put("0.0.0.0/0", 2)
    assert networks.find("::") == 1
    assert networks.find("0.0.0.0") == 2
    assert networks.remove("::/0", 1)
    assert networks.find("::") is None
    assert networks.find("0.0.0.0") == 2


def test_only_the_owner_takes_its_network_away(networks: Networks) -> None:
    assert networks.put("10.20.0.0/16", 1)
    assert networks.put("10.20.0.0/16", 2), "replaced"
    assert networks.used == 1
    assert not networks.remove("10.20.0.0/16", 1)
    assert networks.find("10.20.0.1") == 2
    assert networks.remove("10.20.0.0/16", 2)
    assert not networks.remove("10.20.0.0/16", 2)
    assert (networks.used, networks.lengths(0)) == (0, 0)


def test_bits_beyond_the_prefix_do_not_count(networks: Networks) -> None:
    packed = ip_address("10.20.31.7").packed
    library.zdp_networks_put(networks.at, packed, ctypes.c_size_t(4), 23, ctypes.c_void_p(5))
    assert networks.find("10.20.30.1") == 5
    assert networks.find("10.20.32.1") is None
    assert networks.remove("10.20.30.0/23", 5)


@pytest.mark.parametrize(("bytes_", "bits"), [(4, 33), (16, 129), (5, 8), (0, 0), (16, 4096)])
def test_what_is_no_network_is_refused(networks: Networks, bytes_: int, bits: int) -> None:
    put = library.zdp_networks_put
    assert not put(networks.at, bytes(16), ctypes.c_size_t(bytes_), bits, ctypes.c_void_p(1))
    assert not library.zdp_networks_remove(
        networks.at, bytes(16), ctypes.c_size_t(bytes_), bits, ctypes.c_void_p(1)
    )
    assert networks.used == 0


def test_the_number_of_networks_is_bounded(networks: Networks) -> None:
    for number in range(MAX_NETWORKS):
        assert networks.put(f"10.{number >> 8}.{number & 255}.0/24", 1 + number % 3)
    assert not networks.put("192.0.2.0/24", 1)
    assert networks.put("10.0.0.0/24", 9), "one that is there is replaced"
    networks.remove_value(9)
    assert networks.put("192.0.2.0/24", 1)


def test_a_session_that_ends_takes_all_of_its_networks(networks: Networks) -> None:
    dice = random.Random(5)
    for _ in range(600):
        bits = dice.randrange(1, 33)
        networks.put(
            ip_network((dice.getrandbits(bits) << (32 - bits), bits)), dice.randrange(1, 4)
        )
    networks.remove_value(2)
    assert 0 < networks.used < 600
    for _ in range(2000):
        assert networks.find(str(ip_address(dice.getrandbits(32)))) != 2
    networks.remove_value(1)
    networks.remove_value(3)
    assert (networks.used, networks.lengths(0)) == (0, 0)


@pytest.mark.parametrize("width", [32, 128])
def test_it_agrees_with_ipaddress(networks: Networks, width: int) -> None:
    dice = random.Random(width)
    held: dict[IpNetwork, int] = {}

    def some_network() -> IpNetwork:
        # Few distinct beginnings, so that networks lie in one another.
        bits = dice.choice((0, 1, 7, 8, 9, 16, 23, width // 2, width - 1, width))
        high = dice.getrandbits(4) << (width - 4)
        address = (high | dice.getrandbits(6)) >> (width - bits) << (width - bits) if bits else 0
        make = IPv4Network if width == 32 else IPv6Network
        return make((address, bits))

    for _ in range(1500):
        network, value = some_network(), dice.randrange(1, 6)
        if dice.random() < 0.6:
            assert networks.put(network, value)
            held[network] = value
        else:
            assert networks.remove(network, value) == (held.get(network) == value)
            if held.get(network) == value:
                del held[network]
        probe = some_network().network_address
        holding = [one for one in held if probe in one]
        best = max(holding, key=lambda one: one.prefixlen, default=None)
        assert networks.find(str(probe)) == (held[best] if best is not None else None)
    assert networks.used == len(held)
    assert networks.lengths(0 if width == 32 else 1) == len({one.prefixlen for one in held})
