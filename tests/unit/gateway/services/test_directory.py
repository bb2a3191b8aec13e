"""Names keep their addresses; offers' addresses rest before they are used again."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path

import pytest
from zgate_control.store import Store, StoreError
from zgate_gateway.services import directory as directory_module
from zgate_gateway.services.directory import (
    NoServiceAddress,
    ServiceDirectory,
    TooManyServices,
    name_problem,
)

V4, V6 = IPv4Network("10.101.0.0/16"), IPv6Network("fd7a:7a67:6174:66::/64")
NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "zgate.db") as opened:
        yield opened


def texts(addresses: tuple[object, ...] | None) -> list[str]:
    return [str(address) for address in addresses or ()]


def test_services_come_from_the_bottom_and_offers_from_the_top(store: Store) -> None:
    directory = ServiceDirectory(store, V4, V6)
    assert texts(directory.ensure("pacs")) == ["10.101.0.1", "fd7a:7a67:6174:66::1"]
    assert texts(directory.ensure("echo")) == ["10.101.0.2", "fd7a:7a67:6174:66::2"]
    assert texts(directory.take_offer_addresses()) == [
        "10.101.255.254",
        "fd7a:7a67:6174:66:ffff:ffff:ffff:ff7f",
    ]
    assert texts(directory.take_offer_addresses())[0] == "10.101.255.253"


def test_a_name_keeps_its_addresses_over_restarts(store: Store) -> None:
    before = ServiceDirectory(store, V4, V6)
    before.ensure_all(["pacs", "echo", "räume"])
    after = ServiceDirectory(store, V4, V6)
    assert after.snapshot() == before.snapshot()
    assert after.names() == ("echo", "pacs", "räume")
    assert after.name_of(ip_address("10.101.0.2")) == "pacs"
    assert after.name_of(ip_address("10.101.0.9")) is None
    assert after.addresses_of("nobody") is None
    assert texts(after.ensure("new"))[0] == "10.101.0.4"


def test_who_wants_to_know_is_told_of_new_names_only(store: Store) -> None:
    directory = ServiceDirectory(store, V4, V6)
    told: list[tuple[str, ...]] = []
    directory.on_change = lambda: told.append(directory.names())
    directory.ensure("pacs")
    directory.ensure("pacs")
    assert told == [("pacs",)]


@pytest.mark.parametrize("name", ["", "a\nb", "echo-*", "*", "x" * 256])
def test_what_is_no_name_gets_nothing(store: Store, name: str) -> None:
    directory = ServiceDirectory(store, V4, V6)
    assert name_problem(name)
    with pytest.raises(ValueError, match="the name"):
        directory.ensure(name)
    assert directory.names() == ()


def test_two_gateways_on_one_store_agree(store: Store) -> None:
    one, other = ServiceDirectory(store, V4, V6), ServiceDirectory(store, V4, V6)
    assert texts(one.ensure("pacs"))[0] == "10.101.0.1"
    assert texts(other.ensure("echo"))[0] == "10.101.0.2"  # .1 was lost to the other
    assert other.addresses_of("pacs") == one.addresses_of("pacs")
    assert one.ensure("echo") == other.ensure("echo")


def test_another_pool_gives_other_addresses(store: Store) -> None:
    ServiceDirectory(store, V4, V6).ensure("pacs")
    moved = ServiceDirectory(store, IPv4Network("10.9.0.0/24"), V6)
    assert moved.addresses_of("pacs") is None
    assert texts(moved.ensure("pacs")) == ["10.9.0.1", "fd7a:7a67:6174:66::1"]
    assert len(store.service_addresses()) == 2


def test_an_address_of_an_earlier_pool_that_is_still_kept_is_not_given_twice(store: Store) -> None:
    store.add_service("old", [ip_address("10.101.0.1")], NOW)
    directory = ServiceDirectory(store, V4, V6)
    assert texts(directory.ensure("new")) == ["10.101.0.2", "fd7a:7a67:6174:66::1"]


def test_a_small_pool_is_used_up_by_halves(store: Store) -> None:
    directory = ServiceDirectory(store, IPv4Network("10.101.0.0/29"), V6)
    for name in "abc":
        directory.ensure(name)
    with pytest.raises(NoServiceAddress, match=r"10\.101\.0\.0/29"):
        directory.ensure("d")
    assert directory.names() == ("a", "b", "c")
    taken = [directory.take_offer_addresses() for _ in range(3)]
    assert [texts(one)[0] for one in taken] == ["10.101.0.6", "10.101.0.5", "10.101.0.4"]
    with pytest.raises(NoServiceAddress):
        directory.take_offer_addresses()
    directory.give_back(taken[1])
    directory.give_back(taken[0])
    assert texts(directory.take_offer_addresses())[0] == "10.101.0.5"  # the one that rested longest


def test_the_smallest_pools_have_one_of_each(store: Store) -> None:
    directory = ServiceDirectory(store, IPv4Network("10.101.0.0/30"), IPv6Network("fd00::/126"))
    assert texts(directory.ensure("a")) == ["10.101.0.1", "fd00::1"]
    assert texts(directory.take_offer_addresses()) == ["10.101.0.2", "fd00::2"]


def test_more_names_than_the_kernel_takes_are_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_module, "MAX_SERVICES", 2)
    directory = ServiceDirectory(store, V4, V6)
    directory.ensure_all(["a", "b"])
    with pytest.raises(TooManyServices):
        directory.ensure("c")
    assert directory.ensure("a")


def test_a_store_that_fails_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = ServiceDirectory(store, V4, V6)
    told: list[None] = []
    directory.on_change = lambda: told.append(None)

    def fails(*_: object) -> None:
        raise StoreError("zgate.db", "the disk is full", "free some space")

    with monkeypatch.context() as patch:
        patch.setattr(store, "add_service", fails)
        with pytest.raises(StoreError):
            directory.ensure("pacs")
    assert (directory.names(), told) == ((), [])
    assert texts(directory.ensure("pacs"))[0] == "10.101.0.1"
