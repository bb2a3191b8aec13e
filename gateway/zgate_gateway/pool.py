"""The address pools: which virtual IP a client holds, one pool per family.

The rules, in the order in which they apply to a client that connects:

1. A client that has a lease gets its own address again, whatever it asks for. Leases live in the
   store, so this holds over restarts and for as long as nobody else needs the address.
2. A client without one gets the address that it asked for, if that address is free.
3. Otherwise it gets the next address that was never given, or else the one freed longest ago.
4. In a full pool it takes over the address of the client that has been away longest, if that one
   has been away for at least ``reclaim_after_s``. The old lease is gone then.
5. Else :class:`PoolExhausted`.

Never given: the network address, the gateway's (the first host), and the broadcast address. In
IPv6 the first is the subnet-router anycast address (RFC 4291 section 2.6.1), and the last 128 are
reserved anycast addresses (RFC 2526), left out where the pool is large enough.

When a lease was last used is not written at once: a client that has its lease comes and goes
without a word to the store, and `touch_connected` writes what is new, every minute. Leases
themselves are written before they are given.

Every step takes constant time whatever the size of the pool; only losing a race to another gateway
on the same store reads the leases again. The pool is safe to use from several threads.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from ipaddress import IPv4Network, IPv6Network

from zgate_control.store import IPAddress, Lease, LeaseConflict, Store, StoreError

#: The first address that a client may hold: after the network address and the gateway.
_FIRST_OFFSET = 2
_ANYCAST_TAIL = 128
#: Losing this many races in a row to another gateway is no race.
_MAX_ATTEMPTS = 64
#: Another gateway takes over a lease only when nobody has been seen for `reclaim_after_s`, by the
#: store. Within this part of it since we last wrote there, it is surely still ours.
_SURELY_OURS = 0.5
#: Owner of an address that is taken out of the free ones, but not yet in the store.
_PENDING = ""


class PoolExhausted(Exception):
    """Every address is leased, and no lease is old enough to be taken over."""


class AddressPool:
    """The addresses of one family. ``gateway`` is the gateway's own address in it.

    ``store_failures`` counts writes that failed without harm to a session (a lease's time of last
    use); ``last_store_failure`` says why.
    """

    def __init__(
        self,
        network: IPv4Network | IPv6Network,
        store: Store,
        *,
        reclaim_after_s: float = 3600.0,
    ) -> None:
        """Load the leases of ``network``; raises ValueError if it cannot hold a single client."""
        size = network.num_addresses
        tail = _ANYCAST_TAIL if network.version == 6 and size > 4 * _ANYCAST_TAIL else 1
        if size <= _FIRST_OFFSET + tail:
            raise ValueError(
                f"{network} has no room for the gateway and a client: use a /30 or more"
            )
        self.network = network
        self.gateway: IPAddress = network[1]
        self.capacity = size - _FIRST_OFFSET - tail
        self.store_failures = 0
        self.last_store_failure: str | None = None
        self._end_offset = size - tail
        self._store = store
        self._reclaim_after = timedelta(seconds=reclaim_after_s)
        self._lock = threading.RLock()
        self._leases: dict[str, Lease] = {}
        self._owners: dict[int, str] = {}
        self._connected: Counter[str] = Counter()
        self._idle: OrderedDict[str, None] = OrderedDict()  # the longest unused first
        self._written: dict[str, datetime] = {}  # as far as we know, what the store says
        self._unwritten: set[str] = set()  # who has gone since we wrote
        self._freed: OrderedDict[int, None] = OrderedDict()  # freed longest ago first
        self._cursor = _FIRST_OFFSET
        self._learn(store.leases(self.family))

    @property
    def family(self) -> int:
        """4 or 6."""
        return self.network.version

    @property
    def leased(self) -> int:
        """How many addresses belong to a client, connected or not."""
        return len(self._leases)

    @property
    def connected(self) -> int:
        """How many clients hold their address in a session now."""
        return len(self._connected)

    def acquire(self, client: str, now: datetime, requested: IPAddress | None = None) -> Lease:
        """Give a client that connects its address, and count it as connected until released.

        ``requested`` is honoured as the module says; an address of the wrong family, out of the
        pool, reserved or taken is no error. Raises :class:`PoolExhausted`, and :class:`StoreError`
        if a *new* lease cannot be kept: what a restart would forget is not given.
        """
        with self._lock:
            lease = self._renew(client, now) or self._new_lease(client, now, requested)
            self._idle.pop(client, None)
            self._connected[client] += 1
            return lease

    def release(self, client: str, now: datetime) -> None:
        """Note that a session of the client ended; its lease is kept. One call per ``acquire``."""
        with self._lock:
            if client not in self._connected:
                return
            self._connected[client] -= 1
            if self._connected[client] > 0:
                return
            del self._connected[client]
            if client in self._leases:
                self._leases[client] = replace(self._leases[client], last_seen_at=now)
                self._unwritten.add(client)
                self._idle[client] = None

    def touch_connected(self, now: datetime) -> None:
        """Note in the store who is connected, and who was. Call it every minute, and at the end.

        It is what the next start, or another gateway on the same store, goes by.
        """
        with self._lock:
            for client in self._connected:
                if client in self._leases:
                    self._leases[client] = replace(self._leases[client], last_seen_at=now)
            gone = {
                client: self._leases[client].last_seen_at
                for client in self._unwritten - self._connected.keys()
                if client in self._leases
            }
            try:
                self._store.touch_leases(self.family, self._connected, now)
                self._store.note_leases_seen(self.family, gone)
            except StoreError as error:
                self._failed(error)
                return
            self._written.update(dict.fromkeys(self._connected, now), **gone)
            self._unwritten.clear()

    def forget(self, client: str) -> bool:
        """Give up a client's lease for good, as for a revoked one. False if it has none.

        Raises :class:`StoreError`; then nothing has changed.
        """
        with self._lock:
            if client not in self._leases:
                return False
            self._store.remove_lease(client, self.family)
            self._drop(client)
            return True

    def lease_of(self, client: str) -> Lease | None:
        """Return the client's lease, connected or not."""
        with self._lock:
            return self._leases.get(client)

    def leases(self) -> list[Lease]:
        """Return every lease of this pool, by address."""
        with self._lock:
            return sorted(self._leases.values(), key=lambda lease: int(lease.address))

    def may_give(self, address: IPAddress) -> bool:
        """Whether an address is one that clients can hold; it may be taken."""
        if address not in self.network:
            return False
        return _FIRST_OFFSET <= self._offset(address) < self._end_offset

    # --- a client that has a lease ----------------------------------------------------------------

    def _renew(self, client: str, now: datetime) -> Lease | None:
        """Return the client's lease if it still has one; a store that fails takes none away."""
        lease = self._leases.get(client)
        if lease is None:
            return None
        lease = replace(lease, last_seen_at=now)
        if not self._is_surely_ours(client, now):
            try:
                if not self._store.renew_lease(lease):
                    self._drop(client)  # another gateway took it over while the client was away
                    return None
                self._written[client] = now
            except StoreError as error:
                self._failed(error)
        self._leases[client] = lease
        return lease

    def _is_surely_ours(self, client: str, now: datetime) -> bool:
        written = self._written.get(client)
        return (
            written is not None
            and written <= now
            and now - written < self._reclaim_after * _SURELY_OURS
        )

    def _failed(self, error: StoreError) -> None:
        self.store_failures += 1
        self.last_store_failure = str(error)

    # --- a client that needs one ------------------------------------------------------------------

    def _new_lease(self, client: str, now: datetime, requested: IPAddress | None) -> Lease:
        for _ in range(_MAX_ATTEMPTS):
            offset = self._choose(requested, now)
            lease = Lease(client, self.network[offset], created_at=now, last_seen_at=now)
            self._owners[offset] = _PENDING
            try:
                self._store.add_lease(lease)
            except LeaseConflict:
                # Another gateway was first, or the client's lease is of an earlier pool.
                self._free(offset)
                self._learn(self._store.leases(self.family), replacing=client)
                known = self._renew(client, now)
                if known is not None:
                    return known
            except StoreError:
                self._free(offset)
                raise
            else:
                self._keep(lease)
                return lease
        raise PoolExhausted(f"{self.network}: lost {_MAX_ATTEMPTS} addresses in a row to others")

    def _choose(self, requested: IPAddress | None, now: datetime) -> int:
        """Return the offset of a free address, by the rules 2 to 5 of the module."""
        if requested is not None and self.may_give(requested):
            wanted = self._offset(requested)
            if wanted not in self._owners:
                self._freed.pop(wanted, None)
                return wanted
        while self._cursor < self._end_offset:
            self._cursor += 1
            if self._cursor - 1 not in self._owners:
                self._freed.pop(self._cursor - 1, None)
                return self._cursor - 1
        if self._freed:
            return self._freed.popitem(last=False)[0]
        return self._reclaim(now)

    def _reclaim(self, now: datetime) -> int:
        """Take the address of the client that has been away longest."""
        limit = now - self._reclaim_after
        while self._idle:
            client = next(iter(self._idle))
            lease = self._leases[client]
            if lease.last_seen_at > limit:
                break
            if self._store.remove_lease(client, self.family, unseen_since=limit):
                self._drop(client)
                offset = self._offset(lease.address)
                self._freed.pop(offset, None)
                return offset
            self._reread(client)
        raise PoolExhausted(
            f"all {self.capacity} addresses of {self.network} are leased, and no client has been "
            f"away for {self._reclaim_after.total_seconds():.0f} s"
        )

    def _reread(self, client: str) -> None:
        """Believe the store: another gateway has seen this client, or taken over its lease."""
        lease = self._store.lease_of(client, self.family)
        if lease is None or lease.address != self._leases[client].address:
            self._drop(client)
        else:
            self._leases[client] = lease
            self._written[client] = lease.last_seen_at
            self._idle.move_to_end(client)

    def _learn(self, leases: Sequence[Lease], *, replacing: str | None = None) -> None:
        """Take over leases that this pool does not know yet.

        Those of an earlier pool are left alone until their client (``replacing``) comes back.
        """
        for lease in leases:
            if not self.may_give(lease.address):
                if lease.client == replacing:
                    self._store.remove_lease(lease.client, self.family)
                continue
            known = self._leases.get(lease.client)
            if known is not None and known.address == lease.address:
                continue
            if known is not None:
                self._drop(lease.client)
            self._keep(lease)
            if lease.client not in self._connected:
                self._idle[lease.client] = None

    # --- bookkeeping ------------------------------------------------------------------------------

    def _keep(self, lease: Lease) -> None:
        offset = self._offset(lease.address)
        self._leases[lease.client] = lease
        self._written[lease.client] = lease.last_seen_at
        self._owners[offset] = lease.client
        self._freed.pop(offset, None)

    def _drop(self, client: str) -> None:
        offset = self._offset(self._leases.pop(client).address)
        self._idle.pop(client, None)
        self._written.pop(client, None)
        self._unwritten.discard(client)
        if self._owners[offset] == client:
            self._free(offset)

    def _free(self, offset: int) -> None:
        del self._owners[offset]
        self._freed[offset] = None

    def _offset(self, address: IPAddress) -> int:
        return int(address) - int(self.network.network_address)
