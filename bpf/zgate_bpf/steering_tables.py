"""Which worker gets the packets for an address: the table that the TUN's steering program reads.

Apart from `steering.py`, for workers read it too and load no programs.
"""

from __future__ import annotations

import os
import struct

from zgate_bpf import syscalls
from zgate_bpf.layouts import IpAddress, pack_address
from zgate_bpf.maps import Map
from zgate_bpf.syscalls import NO_PREALLOC, MapType

ADDRESS_BYTES = 16
_OWNER = struct.Struct("=I")


class AddressOwners:
    """The table, for whoever fills it (`zgate_gateway.registry.Steering`).

    Raises:
        OSError: the kernel makes no map of this size.
    """

    def __init__(self, max_addresses: int) -> None:
        self._map = Map(
            MapType.HASH, "zg_owners", ADDRESS_BYTES, _OWNER.size, max_addresses, flags=NO_PREALLOC
        )

    @property
    def fd(self) -> int:
        """The map's descriptor."""
        return self._map.fd

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

    def close(self) -> None:
        """Give the descriptor back."""
        self._map.close()


class OwnerLookup:
    """The same table, to be asked only; `fd` is closed with it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def owner_of(self, packed_address: bytes) -> int | None:
        """Which worker gets the packets for an address of 4 or 16 bytes; None: no one."""
        try:
            found = syscalls.map_lookup(
                self._fd, packed_address.ljust(ADDRESS_BYTES, b"\0"), _OWNER.size
            )
        except OSError:
            return None
        return _OWNER.unpack(found)[0] if found is not None else None

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._fd)
