"""Virtual IPs: the same client, the same address; never the reserved ones; a full pool says so."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from zgate_control.store import Lease, LeaseConflict, Store, StoreError
from zgate_gateway.pool import AddressPool, PoolExhausted

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "zgate.db") as opened:
        yield opened


def pool_of(store: Store, network: str, reclaim_after_s: float = 3600.0) -> AddressPool:
    return AddressPool(ip_network(network), store, reclaim_after_s=reclaim_after_s)


@pytest.mark.parametrize("network", ["10.100.0.0/16", "fd7a:7a67:6174:65::/64"])
def test_the_same_client_gets_the_same_address_over_a_restart(store: Store, network: str) -> None:
    pool = pool_of(store, network)
    first = {name: pool.acquire(name, NOW).address for name in ("a", "b", "c")}
    assert len(set(first.values())) == 3
    for name in first:
        pool.release(name, NOW)
    again = pool_of(store, network)
    assert {name: again.acquire(name, NOW).address for name in ("c", "a", "b")} == first
    assert again.acquire("d", NOW).address not in first.values()


def test_network_gateway_and_broadcast_are_never_given(store: Store) -> None:
    pool = pool_of(store, "10.1.2.0/28")
    assert str(pool.gateway) == "10.1.2.1"
    given = {pool.acquire(f"c{number}", NOW).address for number in range(pool.capacity)}
    assert given == {ip_address(f"10.1.2.{host}") for host in range(2, 15)}
    with pytest.raises(PoolExhausted, match=r"all 13 addresses of 10\.1\.2\.0/28"):
        pool.acquire("one too many", NOW)


@pytest.mark.parametrize("host", ["10.1.2.0", "10.1.2.1", "10.1.2.15", "10.1.3.4", "fd00::5"])
def test_asking_for_a_reserved_or_foreign_address_gives_another_one(
    store: Store, host: str
) -> None:
    pool = pool_of(store, "10.1.2.0/28")
    wanted = ip_address(host)
    assert not pool.may_give(wanted)
    lease = pool.acquire("a", NOW, wanted)
    assert lease.address != wanted and pool.may_give(lease.address)


def test_ipv6_anycast_addresses_are_kept_free(store: Store) -> None:
    pool = pool_of(store, "fd00::/64")
    assert pool.capacity == 2**64 - 2 - 128
    assert not pool.may_give(ip_address("fd00::"))
    assert not pool.may_give(ip_address("fd00::ffff:ffff:ffff:ff80"))
    assert pool.may_give(ip_address("fd00::ffff:ffff:ffff:ff7f"))
    assert pool_of(store, "fd00::/120").capacity == 253


@pytest.mark.parametrize("network", ["10.0.0.0/31", "10.0.0.0/32", "fd00::/127", "fd00::/128"])
def test_a_network_without_room_is_refused(store: Store, network: str) -> None:
    with pytest.raises(ValueError, match="no room"):
        pool_of(store, network)


def test_the_smallest_pool_holds_one_client(store: Store) -> None:
    pool = pool_of(store, "10.0.0.0/30")
    assert str(pool.acquire("a", NOW).address) == "10.0.0.2"
    with pytest.raises(PoolExhausted):
        pool.acquire("b", NOW)


def test_a_requested_address_is_honoured_once_if_it_is_free(store: Store) -> None:
    pool = pool_of(store, "10.0.0.0/24")
    wanted = ip_address("10.0.0.77")
    assert pool.acquire("a", NOW, wanted).address == wanted
    assert pool.acquire("b", NOW, wanted).address != wanted
    # A lease does not move: who is known by an address keeps it.
    assert pool.acquire("a", NOW, ip_address("10.0.0.78")).address == wanted
    given = {pool.acquire(f"c{number}", NOW).address for number in range(200)}
    assert wanted not in given


def test_a_full_pool_takes_the_address_that_was_unused_longest(store: Store) -> None:
    pool = pool_of(store, "10.0.0.0/29", reclaim_after_s=3600)
    held = {name: pool.acquire(name, NOW).address for name in "abcde"}
    pool.release("c", NOW + HOUR)
    pool.release("a", NOW + 2 * HOUR)
    with pytest.raises(PoolExhausted, match="away for 3600 s"):
        pool.acquire("x", NOW + 2 * HOUR - timedelta(seconds=1))
    assert pool.acquire("x", NOW + 2 * HOUR).address == held["c"]
    with pytest.raises(PoolExhausted):
        pool.acquire("y", NOW + 2 * HOUR)
    assert pool.acquire("y", NOW + 3 * HOUR).address == held["a"]
    with pytest.raises(PoolExhausted):  # everybody else is connected
        pool.acquire("c", NOW + 1000 * HOUR)
    assert {lease.client for lease in store.leases(4)} == set("xybde")


def test_a_client_that_came_back_is_no_longer_unused(store: Store) -> None:
    pool = pool_of(store, "10.0.0.0/29", reclaim_after_s=60)
    held = {name: pool.acquire(name, NOW).address for name in "abcde"}
    for name in "ab":
        pool.release(name, NOW)
    pool.acquire("a", NOW + HOUR)
    assert pool.acquire("x", NOW + 2 * HOUR).address == held["b"]
    with pytest.raises(PoolExhausted):
        pool.acquire("y", NOW + 2 * HOUR)


def test_two_sessions_of_one_client_count_until_the_last_ends(store: Store) -> None:
    pool = pool_of(store, "10.0.0.0/30", reclaim_after_s=0)
    pool.acquire("a", NOW)
    pool.acquire("a", NOW)  # the newer session replaces the older, which ends after it
    pool.release("a", NOW)
    assert pool.connected == 1
    with pytest.raises(PoolExhausted):
        pool.acquire("b", NOW + HOUR)
    pool.release("a", NOW)
    pool.release("a", NOW)
    assert (pool.connected, pool.leased) == (0, 1)
    assert pool.acquire("b", NOW + HOUR).client == "b"


def test_after_a_kill_the_last_touch_counts(store: Store) -> None:
    pool = pool_of(store, "10.0.0.0/30", reclaim_after_s=3600)
    pool.acquire("a", NOW)
    pool.touch_connected(NOW + HOUR)
    killed = pool_of(store, "10.0.0.0/30", reclaim_after_s=3600)
    with pytest.raises(PoolExhausted):
        killed.acquire("b", NOW + HOUR * 1.5)
    assert killed.acquire("b", NOW + HOUR * 2).client == "b"


def test_forget_frees_the_address(store: Store) -> None:
    pool = pool_of(store, "10.0.0.0/30")
    lease = pool.acquire("a", NOW)
    assert pool.lease_of("a") == lease and pool.leases() == [lease]
    assert pool.forget("a") and not pool.forget("a")
    assert pool.lease_of("a") is None and store.leases(4) == []
    pool.release("a", NOW)
    assert pool.acquire("b", NOW).address == lease.address


def test_a_new_pool_replaces_leases_of_the_old_one(store: Store) -> None:
    pool_of(store, "10.0.0.0/24").acquire("a", NOW)
    pool_of(store, "10.0.0.0/24").acquire("b", NOW)
    moved = pool_of(store, "10.9.0.0/24")
    assert moved.leased == 0
    lease = moved.acquire("a", NOW)
    assert lease.address in moved.network
    assert {found.address for found in store.leases(4)} == {lease.address, ip_address("10.0.0.3")}
    assert pool_of(store, "10.9.0.0/24").acquire("a", NOW).address == lease.address


def test_families_are_apart(store: Store) -> None:
    four, six = pool_of(store, "10.0.0.0/24"), pool_of(store, "fd00::/64")
    assert (four.acquire("a", NOW).family, six.acquire("a", NOW).family) == (4, 6)
    assert (four.leased, six.leased) == (1, 1)
    six.forget("a")
    assert pool_of(store, "10.0.0.0/24").leased == 1


# --- what is written when -------------------------------------------------------------------------


class CountingStore:
    """A store that counts its transactions that write."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.calls.append(name)
        return getattr(self._store, name)


def test_who_comes_and_goes_costs_the_store_nothing(store: Store) -> None:
    counting = CountingStore(store)
    pool = AddressPool(ip_network("10.0.0.0/24"), counting)  # type: ignore[arg-type]
    pool.acquire("a", NOW)
    counting.calls.clear()
    for minute in range(25):
        pool.release("a", NOW + timedelta(minutes=minute))
        pool.acquire("a", NOW + timedelta(minutes=minute))
    assert counting.calls == []
    pool.acquire("a", NOW + HOUR)  # somebody else may have it by now
    assert counting.calls == ["renew_lease"]


def test_who_has_gone_is_written_with_the_time_of_it(store: Store) -> None:
    pool = pool_of(store, "10.0.0.0/24")
    for name in "abc":
        pool.acquire(name, NOW)
    pool.release("a", NOW + timedelta(seconds=5))
    pool.release("b", NOW + timedelta(seconds=7))
    pool.acquire("b", NOW + timedelta(seconds=8))
    assert {lease.last_seen_at for lease in store.leases(4)} == {NOW}
    pool.touch_connected(NOW + timedelta(seconds=60))
    seen = {lease.client: (lease.last_seen_at - NOW).seconds for lease in store.leases(4)}
    assert seen == {"a": 5, "b": 60, "c": 60}
    assert {lease.client: (lease.last_seen_at - NOW).seconds for lease in pool.leases()} == seen


def test_who_was_seen_later_by_another_gateway_stays_so(store: Store) -> None:
    here, there = pool_of(store, "10.0.0.0/24"), pool_of(store, "10.0.0.0/24")
    here.acquire("a", NOW)
    here.release("a", NOW)
    there.acquire("a", NOW + HOUR)
    here.touch_connected(NOW + 2 * HOUR)
    assert [lease.last_seen_at for lease in store.leases(4)] == [NOW + HOUR]


def test_what_could_not_be_written_is_written_later(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> None:
        raise StoreError("zgate.db", "the disk is full", "free some space")

    pool = pool_of(store, "10.0.0.0/24")
    pool.acquire("a", NOW)
    pool.release("a", NOW + timedelta(seconds=5))
    with monkeypatch.context() as patch:
        patch.setattr(store, "note_leases_seen", fail)
        pool.touch_connected(NOW + timedelta(seconds=60))
    assert pool.store_failures == 1
    pool.touch_connected(NOW + timedelta(seconds=120))
    assert [lease.last_seen_at for lease in store.leases(4)] == [NOW + timedelta(seconds=5)]


def test_a_clock_that_goes_back_is_no_reason_to_believe(store: Store) -> None:
    pool = pool_of(store, "10.0.0.0/29")
    address = pool.acquire("a", NOW + 5 * HOUR).address
    store.remove_lease("a", 4)
    store.add_lease(Lease("b", address, NOW, NOW))
    assert pool.acquire("a", NOW).address != address


# --- a store that fails ---------------------------------------------------------------------------


def test_a_failing_store_keeps_old_clients_and_refuses_new_ones(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = pool_of(store, "10.0.0.0/29")
    old = pool.acquire("a", NOW)

    def fail(*_args: object, **_options: object) -> None:
        raise StoreError("zgate.db", "the disk is full", "free some space")

    with monkeypatch.context() as patch:
        for name in ("add_lease", "renew_lease", "touch_leases"):
            patch.setattr(store, name, fail)
        pool.release("a", NOW)
        assert pool.acquire("a", NOW).address == old.address
        pool.touch_connected(NOW)
        for _ in range(10):
            with pytest.raises(StoreError, match="disk is full"):
                pool.acquire("b", NOW)
    assert pool.store_failures == 1
    assert pool.last_store_failure is not None and "disk is full" in pool.last_store_failure
    given = {pool.acquire(f"c{number}", NOW).address for number in range(4)}
    assert len(given) == 4  # what the failures had taken out is free again


# --- several threads, several gateways ------------------------------------------------------------


def test_many_threads_never_share_an_address(store: Store) -> None:
    pool = pool_of(store, "10.0.0.0/24")
    found: dict[str, set[object]] = {f"c{number}": set() for number in range(40)}
    errors: list[Exception] = []

    def work(start: int) -> None:
        try:
            for step in range(40):
                name = f"c{(start + step) % 40}"
                found[name].add(pool.acquire(name, NOW).address)
                pool.release(name, NOW)
        except Exception as error:
            errors.append(error)

    run_threads(work, 4)
    assert errors == []
    assert all(len(addresses) == 1 for addresses in found.values())
    assert len(set().union(*found.values())) == 40
    assert pool.connected == 0


def test_gateways_on_one_store_never_share_an_address(tmp_path: Path) -> None:
    path = tmp_path / "zgate.db"
    stores = [Store(path, lock_timeout_s=20) for _ in range(3)]
    pools = [pool_of(one, "10.0.0.0/25") for one in stores]
    leases: list[Lease] = []
    errors: list[Exception] = []

    def work(number: int) -> None:
        try:
            leases.extend(pools[number].acquire(f"g{number}-c{n}", NOW) for n in range(41))
        except Exception as error:
            errors.append(error)

    run_threads(work, 3)
    assert errors == []
    assert len({lease.address for lease in leases}) == 123
    # 125 fit: the last two are found as well, then the pool is full for every gateway.
    last = {pools[0].acquire("x", NOW).address, pools[1].acquire("y", NOW).address}
    assert len(last) == 2
    for pool in pools:
        with pytest.raises(PoolExhausted):
            pool.acquire("z", NOW)
    for one in stores:
        one.close()


def test_a_client_keeps_its_address_on_another_gateway(store: Store) -> None:
    here, there = pool_of(store, "10.0.0.0/24"), pool_of(store, "10.0.0.0/24")
    assert here.acquire("a", NOW).address == there.acquire("a", NOW).address


def test_no_gateway_takes_the_address_of_a_client_seen_by_another(store: Store) -> None:
    here = pool_of(store, "10.0.0.0/30")
    here.acquire("a", NOW)
    there = pool_of(store, "10.0.0.0/30")
    here.touch_connected(NOW + 5 * HOUR)
    with pytest.raises(PoolExhausted):
        there.acquire("b", NOW + 5 * HOUR)


def test_a_lease_taken_over_elsewhere_is_not_believed_in(store: Store) -> None:
    here = pool_of(store, "10.0.0.0/29")
    address = here.acquire("a", NOW).address
    here.release("a", NOW)
    store.remove_lease("a", 4)
    store.add_lease(Lease("b", address, NOW, NOW))
    back = NOW + HOUR  # nobody takes over the lease of who was seen within the last hour
    assert here.acquire("a", back).address != address
    assert here.acquire("b", back).address == address


def test_endless_conflicts_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def conflict(_lease: Lease) -> None:
        raise LeaseConflict

    pool = pool_of(store, "10.0.0.0/24")
    monkeypatch.setattr(store, "add_lease", conflict)
    with pytest.raises(PoolExhausted, match="in a row"):
        pool.acquire("a", NOW)


# --- size -----------------------------------------------------------------------------------------


class MemoryStore:
    """As much of a store as the pool uses, and it counts how often it is asked for all leases."""

    def __init__(self) -> None:
        self.held: dict[str, Lease] = {}
        self.readings = 0

    def leases(self, family: int) -> list[Lease]:
        self.readings += 1
        found = [lease for lease in self.held.values() if lease.family == family]
        return sorted(found, key=lambda lease: (lease.last_seen_at, lease.client))

    def lease_of(self, client: str, family: int) -> Lease | None:
        return self.held.get(client)

    def add_lease(self, lease: Lease) -> None:
        self.held[lease.client] = lease

    def renew_lease(self, lease: Lease) -> bool:
        self.held[lease.client] = lease
        return True

    def touch_leases(self, family: int, names: Iterable[str], now: datetime) -> None:
        pass

    def note_leases_seen(self, family: int, seen: Mapping[str, datetime]) -> None:
        pass

    def remove_lease(
        self, client: str, family: int, *, unseen_since: datetime | None = None
    ) -> bool:
        return self.held.pop(client, None) is not None


def test_a_whole_slash_16_is_given_in_one_pass() -> None:
    store = MemoryStore()
    pool = AddressPool(ip_network("10.100.0.0/16"), store)  # type: ignore[arg-type]
    given = {pool.acquire(f"c{number}", NOW).address for number in range(65533)}
    assert len(given) == pool.capacity == 65533
    for number in range(65533):
        pool.release(f"c{number}", NOW)
    for number in range(2000):  # a search through the pool for each would take minutes
        pool.acquire(f"new{number}", NOW + HOUR)
    assert store.readings == 1
    assert pool.leased == 65533


class PoolMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order, the pool keeps its promises."""

    names = st.sampled_from([f"c{number}" for number in range(9)])

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore()
        self.now = NOW
        self.connected: dict[str, int] = {}
        self.restart()

    @rule()
    def restart(self) -> None:
        self.pool = AddressPool(
            ip_network("10.0.0.0/29"),
            self.store,  # type: ignore[arg-type]
            reclaim_after_s=100,
        )
        self.connected = {}

    @rule(name=names, host=st.integers(0, 9))
    def acquire(self, name: str, host: int) -> None:
        before = self.store.held.get(name)
        try:
            lease = self.pool.acquire(name, self.now, ip_address(f"10.0.0.{host}"))
        except PoolExhausted:
            assert before is None and self.pool.leased == 5
            return
        if before is not None:
            assert lease.address == before.address
        self.connected[name] = self.connected.get(name, 0) + 1

    @precondition(lambda self: self.connected)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.connected)))
        self.pool.release(name, self.now)
        self.connected[name] -= 1
        if not self.connected[name]:
            del self.connected[name]

    @rule(name=names)
    def forget(self, name: str) -> None:
        if name not in self.connected:
            self.pool.forget(name)

    @rule(seconds=st.integers(0, 150))
    def wait(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @invariant()
    def promises(self) -> None:
        leases = self.pool.leases()
        assert {lease.client for lease in leases} == set(self.store.held)
        assert len({lease.address for lease in leases}) == len(leases) <= 5
        assert all(2 <= int(lease.address) & 7 <= 6 for lease in leases)
        assert set(self.connected) <= set(self.store.held)
        assert self.pool.connected == len(self.connected)


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def run_threads(work: object, count: int) -> None:
    threads = [threading.Thread(target=work, args=(n,)) for n in range(count)]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
