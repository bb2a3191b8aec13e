"""Names of services and their virtual IPs; and the addresses by which offers are told apart.

Each pool (`services.ipv4`, `services.ipv6`) is cut in two. The lower half is the services': a name
gets the lowest address of each family that no other name has, and keeps it for good, in the store.
The upper half is the offers', from the top down, in memory: an offer has its address until it ends,
and the address then rests for as long as others can be had, for packets may still be under way.

Network and broadcast addresses are never given, nor the last 128 of a large IPv6 pool, which are
reserved (RFC 2526).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network

from zgate_control.store import IPAddress, ServiceConflict, Store
from zgate_protocol.service_capsule import service_name_problem

Network = IPv4Network | IPv6Network

#: As many as the kernel's table takes (`zgate_bpf.services`).
MAX_SERVICES = 4096
_ANYCAST_TAIL = 128
#: Losing this many races in a row to another gateway is no race.
_MAX_ATTEMPTS = 64
_WILDCARD = "*"


class NoServiceAddress(Exception):
    """A pool has no address left."""


class TooManyServices(Exception):
    """As many names are known as the kernel takes."""


def name_problem(name: str) -> str | None:
    """Why a service cannot have this name; None: it can. ``*`` is the policy's, for patterns."""
    if _WILDCARD in name:
        return "the name holds '*', which stands for other characters in policies"
    return service_name_problem(name)


class ServiceDirectory:
    """All names that the gateway knows. May be asked from any thread.

    ``on_change`` is called after a name has got its addresses, in the thread that asked for them.
    """

    def __init__(self, store: Store, ipv4_pool: IPv4Network, ipv6_pool: IPv6Network) -> None:
        """Read the names. Raises :class:`StoreError`."""
        self.on_change: Callable[[], None] = lambda: None
        self._store = store
        self._pools: tuple[Network, Network] = (ipv4_pool, ipv6_pool)
        self._lock = threading.RLock()
        self._services: dict[str, tuple[IPAddress, ...]] = {}
        self._names: dict[IPAddress, str] = {}
        # Of an earlier configuration, or of another gateway's.
        self._foreign: dict[str, tuple[IPAddress, ...]] = {}
        self._lowest = [1 for _ in self._pools]
        self._offers = [_OfferAddresses(pool) for pool in self._pools]
        self._read()

    @property
    def pools(self) -> tuple[Network, Network]:
        """Where all the addresses come from, IPv4 first."""
        return self._pools

    def addresses_of(self, name: str) -> tuple[IPAddress, ...] | None:
        """A service's virtual IPs, IPv4 first; None: no such name is known."""
        with self._lock:
            return self._services.get(name)

    def name_of(self, address: IPAddress) -> str | None:
        """Whose virtual IP it is."""
        with self._lock:
            return self._names.get(address)

    def __len__(self) -> int:
        return len(self._services)

    def names(self) -> tuple[str, ...]:
        """All names, in order."""
        with self._lock:
            return tuple(sorted(self._services))

    def snapshot(self) -> Mapping[str, tuple[IPAddress, ...]]:
        """All names with their virtual IPs, as of now."""
        with self._lock:
            return dict(self._services)

    def ensure(self, name: str) -> tuple[IPAddress, ...]:
        """A service's virtual IPs, which it gets now if it has none.

        Raises:
            ValueError: nothing can have that name.
            NoServiceAddress, TooManyServices: there is no room for another name.
            StoreError: they cannot be kept; nothing has changed.
        """
        with self._lock:
            known = self._services.get(name)
            if known is not None:
                return known
            problem = name_problem(name)
            if problem is not None:
                raise ValueError(problem)
            made = self._make(name)
        self.on_change()
        return made

    def ensure_all(self, names: Iterable[str]) -> None:
        """As :meth:`ensure`, of many."""
        for name in sorted(names):
            self.ensure(name)

    def take_offer_addresses(self) -> tuple[IPAddress, ...]:
        """Addresses for an offer, IPv4 first. Raises :class:`NoServiceAddress`."""
        with self._lock:
            taken: list[IPAddress] = []
            try:
                for pool in self._offers:
                    taken.append(pool.take())
            except NoServiceAddress:
                self.give_back(taken)
                raise
            return tuple(taken)

    def give_back(self, addresses: Iterable[IPAddress]) -> None:
        """The offer has ended."""
        with self._lock:
            for address in addresses:
                self._offers[0 if address.version == 4 else 1].give_back(address)

    # Inside, with the lock held.

    def _make(self, name: str) -> tuple[IPAddress, ...]:
        for _ in range(_MAX_ATTEMPTS):
            if len(self._services) >= MAX_SERVICES:
                raise TooManyServices(f"{MAX_SERVICES} services are known, and no more fit")
            self._forget_foreign(name)
            addresses = self._choose()
            try:
                self._store.add_service(name, addresses, datetime.now(UTC))
            except ServiceConflict:
                # Another gateway was first: with this name, or with these addresses.
                self._read()
                known = self._services.get(name)
                if known is not None:
                    return known
            else:
                self._know(name, addresses)
                return addresses
        raise NoServiceAddress(f"lost {_MAX_ATTEMPTS} addresses in a row to others")

    def _forget_foreign(self, name: str) -> None:
        """What the name had in another pool is not its own any more."""
        addresses = self._foreign.get(name)
        if addresses is not None:
            self._store.remove_service(name, addresses)
            del self._foreign[name]
            for address in addresses:
                del self._names[address]
            self._lowest = [1 for _ in self._pools]

    def _choose(self) -> tuple[IPAddress, ...]:
        chosen = []
        for index, pool in enumerate(self._pools):
            end = _half(pool)
            while self._lowest[index] < end and pool[self._lowest[index]] in self._names:
                self._lowest[index] += 1
            if self._lowest[index] >= end:
                raise NoServiceAddress(f"every address for services in {pool} is taken")
            chosen.append(pool[self._lowest[index]])
        return tuple(chosen)

    def _read(self) -> None:
        """Believe the store."""
        found: dict[str, dict[int, IPAddress]] = {}
        for row in self._store.service_addresses():
            found.setdefault(row.service, {})[row.family] = row.address
        self._services, self._names, self._foreign = {}, {}, {}
        self._lowest = [1 for _ in self._pools]
        for name, by_family in found.items():
            addresses = tuple(by_family[family] for family in sorted(by_family))
            if self._is_ours(addresses) and len(self._services) < MAX_SERVICES:
                self._know(name, addresses)
            else:
                self._foreign[name] = addresses
                self._names.update((address, name) for address in addresses)

    def _is_ours(self, addresses: tuple[IPAddress, ...]) -> bool:
        return len(addresses) == len(self._pools) and all(
            address in pool and 0 < int(address) - int(pool.network_address) < _half(pool)
            for address, pool in zip(addresses, self._pools, strict=True)
        )

    def _know(self, name: str, addresses: tuple[IPAddress, ...]) -> None:
        self._services[name] = addresses
        self._names.update((address, name) for address in addresses)


def _half(pool: Network) -> int:
    """Below this offset are the services, from it on the offers."""
    return max(2, pool.num_addresses // 2)


class _OfferAddresses:
    """The upper half of one pool."""

    def __init__(self, pool: Network) -> None:
        size = pool.num_addresses
        is_large = pool.version == 6 and size > 4 * _ANYCAST_TAIL
        self._pool = pool
        self._next = size - (_ANYCAST_TAIL if is_large else 1) - 1
        self._rested: deque[IPAddress] = deque()

    def take(self) -> IPAddress:
        # Addresses that were never given come first, but not without end: the freed are few, then.
        if self._next >= _half(self._pool) and len(self._rested) < 2 * MAX_SERVICES:
            self._next -= 1
            return self._pool[self._next + 1]
        if not self._rested:
            raise NoServiceAddress(f"every address for offers in {self._pool} is taken")
        return self._rested.popleft()

    def give_back(self, address: IPAddress) -> None:
        self._rested.append(address)
