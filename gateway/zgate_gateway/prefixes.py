"""Networks and what is behind each: the longest prefix that holds an address."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import Generic, TypeVar

IpNetwork = IPv4Network | IPv6Network
Value = TypeVar("Value")


class PrefixTable(Generic[Value]):
    """One lookup for each prefix length in use, the longest first."""

    def __init__(self) -> None:
        # By the length of an address in bytes, then of a prefix in bits.
        self._by_length: dict[int, dict[int, dict[int, Value]]] = {4: {}, 16: {}}

    def __bool__(self) -> bool:
        return any(self._by_length.values())

    def put(self, network: IpNetwork, value: Value) -> None:
        """Replaces what is there."""
        lengths = self._by_length[network.max_prefixlen // 8]
        is_new = network.prefixlen not in lengths
        lengths.setdefault(network.prefixlen, {})[_high_bits(network)] = value
        if is_new:
            self._by_length[network.max_prefixlen // 8] = dict(
                sorted(lengths.items(), reverse=True)
            )

    def remove(self, network: IpNetwork, value: Value) -> bool:
        """Only if it is this value's; true when it was."""
        lengths = self._by_length[network.max_prefixlen // 8]
        networks = lengths.get(network.prefixlen, {})
        if networks.get(_high_bits(network)) is not value:
            return False
        del networks[_high_bits(network)]
        if not networks:
            del lengths[network.prefixlen]
        return True

    def find(self, address: bytes) -> Value | None:
        """What is behind the longest prefix that holds this address of 4 or 16 bytes."""
        lengths = self._by_length[len(address)]
        if not lengths:
            return None
        number, width = int.from_bytes(address, "big"), len(address) * 8
        for length, networks in lengths.items():
            value = networks.get(number >> (width - length))
            if value is not None:
                return value
        return None


def _high_bits(network: IpNetwork) -> int:
    return int(network.network_address) >> (network.max_prefixlen - network.prefixlen)
