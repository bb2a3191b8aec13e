"""The edge program and its maps: what stands on the uplink before the gateway's UDP port.

:class:`EdgeProgram` loads it and says what it is to let through; nothing is attached by it, see
:mod:`zgate_bpf.edge_attach`. With no port set, or no address, every packet passes.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from types import TracebackType
from typing import Self, TypeVar

from zgate_bpf import edge_layouts as layouts
from zgate_bpf import loader, syscalls
from zgate_bpf.edge_layouts import EdgeReason
from zgate_bpf.errors import BpfLoadError, CapacityError
from zgate_bpf.layouts import IpAddress, pack_address
from zgate_bpf.maps import Map, PerCpuArray, index_key
from zgate_bpf.syscalls import NO_PREALLOC, MapType, ProgramType

__all__ = ["EdgeProgram", "EdgeReason", "EdgeSettings", "Owners", "Rate"]

AnyMap = TypeVar("AnyMap", bound=Map)
Network = IPv4Network | IPv6Network

MAX_ADDRESSES = 1024
"""Local addresses at which the port can be ours."""
MAX_BLOCKED = 1 << 20
"""Prefixes of one family in a blocklist."""
MAX_SOURCES = 65_536
"""Sources of Initials that are remembered; the one unused for longest gives way."""

_NS_PER_S = 1_000_000_000
_XDP_HAS_FRAGS = 1 << 5
_XDP_DROP, _XDP_PASS = 1, 2
_TRIES = {4: layouts.PREFIX4, 6: layouts.PREFIX6}


@dataclass(frozen=True, slots=True)
class Rate:
    """`per_s` packets a second, and `burst` at once. No rate at all: ``None`` in its place."""

    per_s: float
    burst: int

    def words(self) -> tuple[int, int]:
        """The interval between packets, and how far a burst may run ahead of it, in ns."""
        interval_ns = max(1, int(_NS_PER_S / self.per_s))
        return interval_ns, interval_ns * max(0, self.burst - 1)


@dataclass(frozen=True, slots=True)
class Owners:
    """How connection IDs name their owner: `zgate_datapath.connection_ids.OwnerMask`.

    :ivar count: IDs that name an owner from here on were never given.
    """

    factor: int
    offset: int
    count: int


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """What the program needs to know.

    :ivar port: the gateway's UDP port; 0: every packet passes.
    :ivar source_rate: Initials of one source (an IPv4 address, an IPv6 /64).
    :ivar total_rate: Initials of all sources together.
    :ivar version_rate: packets of unknown versions that are passed, to be answered by Version
        Negotiation.
    :ivar owners: None: connection IDs are not looked at.
    """

    port: int
    source_rate: Rate | None = None
    total_rate: Rate | None = None
    version_rate: Rate | None = None
    owners: Owners | None = None

    def pack(self) -> bytes:
        """As `struct zg_edge_settings`."""
        rates = (self.source_rate, self.total_rate, self.version_rate)
        words = [word for rate in rates for word in (rate.words() if rate else (0, 0))]
        owners = self.owners or Owners(0, 0, 0)
        return layouts.SETTINGS.pack(*words, owners.factor, owners.offset, owners.count, self.port)


class EdgeProgram:
    """The loaded program.

    :ivar fd: its descriptor, to be attached.
    :ivar id: its number in the kernel.

    Raises:
        BpfLoadError: the program or its maps cannot be loaded; the text says what to do.
    """

    def __init__(self, *, name: str = "zg_edge", max_sources: int = MAX_SOURCES) -> None:
        with ExitStack() as undo:
            self._undo = undo
            try:
                self._make_maps(max_sources)
            except OSError as error:
                raise BpfLoadError(loader.explain_os_error("BPF maps", error)) from error
            self.fd = self._load(name)
            self.id = syscalls.program_id(self.fd)
            self._undo = undo.pop_all()

    def _make_maps(self, max_sources: int) -> None:
        keep = self._keep
        self._settings = keep(
            Map(MapType.ARRAY, "zg_edge_settings", 4, layouts.SETTINGS.size_bytes, 1)
        )
        self._addresses = keep(
            Map(MapType.HASH, "zg_edge_addr", layouts.ADDRESS.size_bytes, 4, MAX_ADDRESSES)
        )
        self._sources = keep(
            Map(MapType.LRU_HASH, "zg_edge_sources", layouts.SOURCE.size_bytes, 8, max_sources)
        )
        self._totals = keep(Map(MapType.ARRAY, "zg_edge_totals", 4, 8, len(layouts.Total)))
        self._counters = keep(PerCpuArray("zg_edge_counts", 8, layouts.REASONS))
        self._blocklists = {family: keep(self._blocklist_of(family)) for family in _TRIES}

    def _keep(self, made: AnyMap) -> AnyMap:
        self._undo.callback(made.close)
        return made

    def _blocklist_of(self, family: int) -> Map:
        """An array of one map, with an empty trie in it."""
        with _Trie(family, []) as empty:
            outer = Map(MapType.ARRAY_OF_MAPS, f"zg_edge_block{family}", 4, 4, 1, inner_fd=empty.fd)
            outer.update(index_key(0), struct.pack("=I", empty.fd))
        return outer

    def _load(self, name: str) -> int:
        maps = {
            "settings": self._settings.fd,
            "addresses": self._addresses.fd,
            "sources": self._sources.fd,
            "totals": self._totals.fd,
            "counters": self._counters.fd,
            "block4": self._blocklists[4].fd,
            "block6": self._blocklists[6].fd,
        }
        compiled = loader.compile_program(
            "edge", ("zg_edge",), {}, maps=maps, assertions=layouts.assertions()
        )
        fd = loader.load_program(
            compiled["zg_edge"], name=name, kind=ProgramType.XDP, flags=_XDP_HAS_FRAGS
        )
        self._undo.callback(os.close, fd)
        return fd

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give everything back. What is attached stays so until its link is closed."""
        self._undo.close()

    # What it is told.

    def configure(self, settings: EdgeSettings) -> None:
        """Put settings in force. Buckets keep what they have."""
        self._settings.update(index_key(0), settings.pack())

    def set_addresses(self, addresses: Iterable[IpAddress]) -> None:
        """Say at which addresses the port is ours; what is gone is forgotten.

        Raises:
            CapacityError: more than fit; those that did not fit are not protected.
        """
        wanted = {_address_key(address) for address in addresses}
        known = {key for key, _ in self._addresses.items()}
        for key in known - wanted:
            self._addresses.delete(key)
        for key in wanted - known:
            self._addresses.update(key, struct.pack("=I", 1))

    def set_blocklist(self, networks: Iterable[Network]) -> None:
        """Replace the blocklist. A packet sees the old one of its family, or the new one.

        Raises:
            CapacityError: too many prefixes; the old list stays.
            OSError: the kernel refused; the old list stays, or a family's old list does.
        """
        networks = list(networks)
        of_family = {
            family: [network for network in networks if network.version == family]
            for family in _TRIES
        }
        for family, members in of_family.items():
            if len(members) > MAX_BLOCKED:
                raise CapacityError(f"IPv{family} blocklist", len(members), MAX_BLOCKED)
        with ExitStack() as stack:
            tries = {
                family: stack.enter_context(_Trie(family, members))
                for family, members in of_family.items()
            }
            for family, trie in tries.items():
                self._blocklists[family].update(index_key(0), struct.pack("=I", trie.fd))

    # What it says.

    def counts(self) -> dict[EdgeReason, int]:
        """Packets to our port by what became of them."""
        return {
            reason: sum(
                int.from_bytes(value, sys.byteorder) for value in self._counters.per_cpu(reason)
            )
            for reason in EdgeReason
            if reason is not EdgeReason.NOT_OURS
        }

    def sources(self) -> int:
        """How many sources of Initials are remembered."""
        return self._sources.count()

    # Tests and benches.

    def run(self, frame: bytes, *, repeat: int = 1) -> tuple[bool, int]:
        """Show the program a frame: whether it passed, and the mean time in ns."""
        result = syscalls.program_test_run(self.fd, frame, b"", repeat=repeat)
        if result.result not in (_XDP_DROP, _XDP_PASS):
            raise OSError(errno.EPROTO, f"the program returned {result.result}")
        return result.result == _XDP_PASS, result.duration_ns


def _address_key(address: IpAddress) -> bytes:
    return layouts.ADDRESS.pack(address.version, pack_address(address))


class _Trie(Map):
    """One family's prefixes, for one lookup of the longest that fits."""

    def __init__(self, family: int, networks: list[Network]) -> None:
        layout = _TRIES[family]
        super().__init__(
            MapType.LPM_TRIE,
            f"zg_edge_trie{family}",
            layout.size_bytes,
            1,
            max(1, len(networks)),
            flags=NO_PREALLOC,
        )
        try:
            for network in networks:
                key = layout.pack(network.prefixlen, network.network_address.packed)
                self.update(key, b"\1")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
