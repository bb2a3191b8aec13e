"""The tables of services, offers and networks: what they refuse, and what they then still hold."""

from ipaddress import ip_address, ip_network

import pytest
from zgate_bpf.kernel_policy import CapacityError
from zgate_bpf.layouts import (
    CLIENT_KEY,
    NETWORK,
    NETWORK_KEY,
    NO_CLIENT,
    OFFER,
    SERVICE,
    pack_address,
)
from zgate_bpf.maps import index_key
from zgate_bpf.services import MAX_NETWORKS, MAX_OFFERS, MAX_SERVICES, OfferUse, ServiceTables

CLIENTS = 8
ONE = [ip_address("10.101.0.1"), ip_address("fd7b::1")]
OTHER = [ip_address("10.101.0.2"), ip_address("fd7b::2")]
TOP = [ip_address("10.101.255.254"), ip_address("fd7b::ffff")]


@pytest.fixture
def tables():
    made = ServiceTables(CLIENTS)
    yield made
    made.close()


def used(tables):
    return {name: count for name, count, _ in tables.usage()}


def offer(tables, number=0, *, service=1, client=2, addresses=TOP, use=OfferUse.UP, flows=0):
    tables.set_offer(
        number, service=service, client_index=client, addresses=addresses, use=use, open_flows=flows
    )


def endpoints(tables):
    """Addresses that stand for something in the kernel."""
    entries = dict(tables.maps())["endpoints"].items()
    return {CLIENT_KEY.unpack(key) for key, _ in entries}


def keys(*addresses):
    return {(address.version, pack_address(address)) for address in addresses}


def test_service_moves_to_other_addresses(tables):
    tables.set_service(1, ONE)
    assert endpoints(tables) == keys(*ONE)
    tables.set_service(1, [OTHER[0], ONE[1]])
    assert endpoints(tables) == keys(OTHER[0], ONE[1])
    tables.set_service(2, [ONE[0]])
    assert used(tables) == {"endpoints": 3, "services": 2, "offers": 0, "networks": 0}


def test_service_keeps_its_offers_when_it_moves(tables):
    tables.set_service(1, ONE)
    offer(tables, 5)
    tables.set_service(1, OTHER)
    value = dict(tables.maps())["services"].lookup(index_key(1))
    assert SERVICE.unpack(value)[2][:4] == b"\x06\0\0\0"


def test_removed_service_takes_its_offers_along(tables):
    tables.set_service(1, ONE)
    offer(tables, 5)
    tables.remove_service(1)
    tables.remove_service(1)
    assert set(used(tables).values()) == {0}
    assert endpoints(tables) == set()
    maps = dict(tables.maps())
    assert not any(maps["services"].lookup(index_key(1)))
    assert not any(maps["offers"].lookup(index_key(5)))
    with pytest.raises(ValueError, match="offer 5 is not set"):
        tables.use_offer(5, OfferUse.UP, 0)


def test_offer_is_set_used_and_removed(tables):
    tables.set_service(1, ONE)
    offer(tables, 5, use=OfferUse.KEEP, flows=7)
    assert tables.open_flows(5) == 7
    tables.use_offer(5, OfferUse.UP, 9)
    assert tables.open_flows(5) == 9
    value = dict(tables.maps())["offers"].lookup(index_key(5))
    assert OFFER.unpack(value)[:4] == (2, 2, OfferUse.UP, 9)
    tables.remove_offer(5)
    tables.remove_offer(5)
    assert tables.open_flows(5) == 0
    assert endpoints(tables) == keys(*ONE)


def test_offer_set_again_is_another(tables):
    tables.set_service(1, ONE)
    tables.set_service(2, OTHER)
    offer(tables, 5)
    again = [ip_address("10.101.255.1"), ip_address("fd7b::fff1")]
    offer(tables, 5, service=2, addresses=again, client=3)
    assert endpoints(tables) == keys(*ONE, *OTHER, *again)
    services = dict(tables.maps())["services"]
    lists = [SERVICE.unpack(services.lookup(index_key(n)))[2][:2] for n in (1, 2)]
    assert lists == [b"\0\0", b"\x06\0"]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda t: t.set_service(3, [ONE[0], OTHER[0]]), "one address for each family"),
        (lambda t: t.set_service(3, [TOP[0]]), "10.101.255.254 is offer 0 already"),
        (lambda t: t.set_service(3, ONE), "10.101.0.1 is service 1 already"),
        (lambda t: t.set_service(3, [ip_address("0.0.0.0")]), "0.0.0.0 is no address"),
        (lambda t: t.set_service(-1, []), "numbered from 0"),
        (lambda t: offer(t, 1, addresses=ONE), "10.101.0.1 is service 1 already"),
        (lambda t: offer(t, 1), "10.101.255.254 is offer 0 already"),
        (lambda t: offer(t, 1, service=9, addresses=OTHER), "service 9 is not set"),
        (lambda t: offer(t, 1, client=CLIENTS, addresses=OTHER), "client index 8 is beyond 8"),
        (lambda t: offer(t, 1, addresses=OTHER[:1]), "IPv6"),
        (lambda t: offer(t, -1, addresses=OTHER), "numbered from 0"),
        (lambda t: t.use_offer(9, OfferUse.UP, 0), "offer 9 is not set"),
        (lambda t: t.set_network(ip_network("10.0.0.0/8"), -1), "client index -1"),
        (lambda t: t.set_own_addresses(ONE), "10.101.0.1 is service 1 already"),
    ],
)
def test_what_makes_no_sense_changes_nothing(tables, call, text):
    tables.set_service(1, ONE)
    offer(tables)
    before = endpoints(tables), used(tables)
    with pytest.raises(ValueError, match=text):
        call(tables)
    assert (endpoints(tables), used(tables)) == before


def test_numbers_that_do_not_fit(tables):
    tables.set_service(MAX_SERVICES - 1, ONE)
    offer(tables, MAX_OFFERS - 1, service=MAX_SERVICES - 1)
    with pytest.raises(CapacityError, match="services: 4097 needed, 4096 fit"):
        tables.set_service(MAX_SERVICES, OTHER)
    with pytest.raises(CapacityError, match="offers: 16385 needed, 16384 fit"):
        offer(tables, MAX_OFFERS, service=MAX_SERVICES - 1, addresses=OTHER)


def test_seventeenth_offer_of_a_service(tables):
    tables.set_service(1, ONE)
    for number in range(16):
        two = [ip_address(f"10.101.200.{number}"), ip_address(f"fd7b:1::{number}")]
        offer(tables, number, addresses=two)
    with pytest.raises(CapacityError, match="offers of one service: 17 needed, 16 fit"):
        offer(tables, 16)
    offer(tables, 3)  # in the place of one that is there
    assert used(tables)["offers"] == 16


def test_service_with_a_family_that_its_offers_lack(tables):
    tables.set_service(1, ONE[:1])
    offer(tables, 5, addresses=TOP[:1])
    with pytest.raises(ValueError, match="IPv6"):
        tables.set_service(1, ONE)
    assert endpoints(tables) == keys(ONE[0], TOP[0])


def test_networks_that_do_not_fit(tables):
    networks = [ip_network((0x0A000000 + (n << 8), 24)) for n in range(MAX_NETWORKS + 1)]
    for network in networks[:-1]:
        tables.set_network(network, 1)
    tables.set_network(networks[0], 2)
    with pytest.raises(CapacityError, match="networks: 4097 needed, 4096 fit"):
        tables.set_network(networks[-1], 1)
    tables.remove_network(networks[5])
    tables.remove_network(networks[5])
    tables.set_network(networks[-1], 1)
    assert used(tables)["networks"] == MAX_NETWORKS


def networks(tables):
    """What the kernel has of them, and the client index of each."""
    entries = dict(tables.maps())["networks"].items()
    return {(NETWORK_KEY.unpack(key)[0] - 32): NETWORK.unpack(value)[0] for key, value in entries}


def test_network_without_a_connector_is_not_inside_one_with(tables):
    wide, middle, narrow = map(ip_network, ("10.16.0.0/12", "10.20.0.0/16", "10.20.0.0/24"))
    tables.set_network(narrow, None)
    assert networks(tables) == {24: NO_CLIENT}
    tables.set_network(wide, 1)
    assert networks(tables) == {12: 1}
    tables.set_network(middle, 2)
    tables.set_network(wide, None)
    assert networks(tables) == {12: NO_CLIENT, 16: 2}
    tables.set_network(middle, None)
    assert networks(tables) == {12: NO_CLIENT, 16: NO_CLIENT, 24: NO_CLIENT}
    tables.set_network(ip_network("::/0"), 3)
    assert networks(tables)[24] == NO_CLIENT, "another family's"
    tables.remove_network(ip_network("::/0"))
    tables.set_network(wide, 1)
    tables.set_network(narrow, 2)
    assert networks(tables) == {12: 1, 24: 2}
    assert used(tables)["networks"] == 3
    for network in (wide, middle, narrow):
        tables.remove_network(network)
    assert (networks(tables), used(tables)["networks"]) == ({}, 0)


def test_everything_at_once_fits(tables):
    """No combination of what each table takes is too much for the table of addresses."""
    capacity = {name: fits for name, _, fits in tables.usage()}
    assert capacity["endpoints"] == 2 * (MAX_SERVICES + MAX_OFFERS) + 2
    assert dict(tables.maps())["endpoints"].max_entries == capacity["endpoints"]
