"""Which worker gets the packets for an address: the tables that the TUN's steering program reads.

An address of its own (a client's, an offer's) comes first; else the longest network around it.

Apart from `steering.py`, for workers read it too and load no programs.
"""

from __future__ import annotations

import os
import struct
from ipaddress import ip_network

from zgate_bpf import layouts, syscalls
from zgate_bpf.layouts import IpAddress, network_key, pack_address
from zgate_bpf.maps import Map
from zgate_bpf.prefix_search import IpNetwork
from zgate_bpf.syscalls import NO_PREALLOC, MapType

ADDRESS_BYTES = 16
_OWNER = struct.Struct("=I")


MAX_NETWORKS = layouts.MAX_NETWORKS


class AddressOwners:
    """The tables, for whoever fills them (`zgate_gateway.registry.Steering`).

    Raises:
        OSError: the kernel makes no map of this size.
    """

    def __init__(self, max_addresses: int) -> None:
        self._map = Map(
            MapType.HASH, "zg_owners", ADDRESS_BYTES, _OWNER.size, max_addresses, flags=NO_PREALLOC
        )
        self._network_owners: dict[IpNetwork, int] = {}
        key = layouts.NETWORK_KEY.size_bytes
        try:
            self._networks = Map(
                MapType.LPM_TRIE, "zg_net_owners", key, _OWNER.size, MAX_NETWORKS, flags=NO_PREALLOC
            )
        except OSError:
            self._map.close()
            raise

    @property
    def fd(self) -> int:
        """The descriptor of the map of addresses."""
        return self._map.fd

    @property
    def networks_fd(self) -> int:
        """The descriptor of the map of networks."""
        return self._networks.fd

    def assign(self, address: IpAddress, owner: int) -> None:
        """Packets for the address go to this worker from now on.

        Raises:
            CapacityError, OSError: the table is full, or the kernel refused.
        """
        self._map.update(pack_address(address), _OWNER.pack(owner))

    def release(self, address: IpAddress, owner: int) -> None:
        """Packets for the address go to this worker no more; nothing if they go to another."""
        key = pack_address(address)
        if self._map.lookup(key) == _OWNER.pack(owner):
            self._map.delete(key)

    def assign_network(self, network: IpNetwork, owner: int) -> None:
        """Packets into the network, for no address of its own, go to this worker from now on.

        Raises:
            CapacityError, OSError: the table is full, or the kernel refused.
        """
        self._networks.update(network_key(network), _OWNER.pack(owner))
        self._network_owners[network] = owner

    def release_network(self, network: IpNetwork, owner: int) -> None:
        """They go to this worker no more; nothing if they go to another."""
        if self._network_owners.get(network) == owner:
            self._networks.delete(network_key(network))
            del self._network_owners[network]

    def close(self) -> None:
        """Give the descriptors back."""
        self._map.close()
        self._networks.close()


class OwnerLookup:
    """The same tables, to be asked only; the descriptors are closed with it."""

    def __init__(self, fd: int, networks_fd: int) -> None:
        self._fd = fd
        self._networks_fd = networks_fd

    def owner_of(self, packed_address: bytes) -> int | None:
        """Which worker gets the packets for an address of 4 or 16 bytes; None: no one."""
        found = _look_up(self._fd, packed_address.ljust(ADDRESS_BYTES, b"\0"))
        if found is None:
            found = _look_up(self._networks_fd, network_key(ip_network(packed_address)))
        return found

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self._fd)
        os.close(self._networks_fd)


def _look_up(fd: int, key: bytes) -> int | None:
    try:
        found = syscalls.map_lookup(fd, key, _OWNER.size)
    except OSError:
        return None
    return _OWNER.unpack(found)[0] if found is not None else None
