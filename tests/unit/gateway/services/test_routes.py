"""Networks behind connectors: entitlement, overlap, replicas, failover."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import ip_network

import pytest
from zgate_gateway.net.errors import NetError
from zgate_gateway.net.links import RouteTaken
from zgate_gateway.services import connectors as connectors_module
from zgate_gateway.services import routes as routes_module

from .conftest import FakePolicy, World

NET = "10.20.0.0/16"


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.005)


async def test_a_network_is_led_to_its_connector(world: World) -> None:
    session = world.session(worker=1)
    assert world.lead(session, NET, "fd20:0:1::/48") == {
        NET: "ACCEPTED",
        "fd20:0:1::/48": "ACCEPTED",
    }
    assert world.granted(session) == ((), (NET, "fd20:0:1::/48"))
    assert world.tables.networks == {ip_network(NET): 11, ip_network("fd20:0:1::/48"): 11}
    assert world.owners.owners == {NET: 1, "fd20:0:1::/48": 1}
    assert world.host.routes == {NET, "fd20:0:1::/48"}
    assert world.network_changes == 2
    assert [str(one) for one in world.routes.networks()] == [NET, "fd20:0:1::/48"]
    assert world.answers(session)[0].text == "active: a"


async def test_the_route_comes_last(world: World) -> None:
    world.lead(world.session(), NET)
    assert [line.split()[0] for line in world.log] == [
        "assign", "set_network", "add_route", "grant", "answer",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("network", "code", "text"),
    [
        ("10.40.0.0/16", "NOT_AUTHORIZED", "does not let a lead there"),
        ("10.16.0.0/12", "NOT_AUTHORIZED", "does not let a lead there"),
        ("0.0.0.0/0", "NOT_AUTHORIZED", "does not let a lead there"),
        ("10.100.5.0/24", "OVERLAP", "10.100.0.0/16, a pool of the gateway's own"),
        ("10.101.0.1/32", "OVERLAP", "10.101.0.0/24, a pool of the gateway's own"),
        ("10.100.0.0/15", "OVERLAP", "a pool of the gateway's own"),
        ("192.0.2.128/25", "OVERLAP", "192.0.2.0/24 on the gateway's interface eth0"),
        ("224.0.0.0/24", "INVALID", "no network that packets are routed to"),
        ("127.0.0.0/8", "INVALID", "no network that packets are routed to"),
        ("fe80::/64", "INVALID", "no network that packets are routed to"),
    ],
)
async def test_what_nobody_may_lead_to(world: World, network: str, code: str, text: str) -> None:
    session = world.session()
    assert world.lead(session, network, NET) == {network: code, NET: "ACCEPTED"}
    assert text in world.answers(session)[0].text
    assert world.host.routes == {NET}
    assert world.connectors.refused == {code.lower(): 1}


async def test_a_part_of_a_network_that_another_leads_to_is_refused(world: World) -> None:
    one, other = world.session("a"), world.session("b")
    world.lead(one, NET)
    assert world.lead(other, "10.20.1.0/24", "10.30.0.0/16") == {
        "10.20.1.0/24": "OVERLAP",
        "10.30.0.0/16": "ACCEPTED",
    }
    assert "10.20.0.0/16, to which a leads" in world.answers(other)[0].text
    # Its own networks may lie within each other: the longest prefix wins.
    assert world.lead(one, NET, "10.20.2.0/24") == {NET: "ACCEPTED", "10.20.2.0/24": "ACCEPTED"}


async def test_a_replica_stands_by_and_takes_over_at_once(world: World) -> None:
    one, other = world.session("a"), world.session("b", worker=1)
    world.lead(one, NET)
    assert world.lead(other, NET) == {NET: "ACCEPTED"}
    assert world.answers(other)[0].text == "active: a"
    assert world.granted(other) == ((), ())
    world.log.clear()
    world.connectors.ended(one, "kicked")
    assert world.log[:3] == [f"assign {NET} 1", f"set_network {NET} 12", "grant s2"]
    assert world.granted(other) == ((), (NET,))
    assert world.host.routes == {NET}
    assert (NET, "a", "b") in world.told.words
    await until(lambda: world.answers(other)[0].text == "active: b")


async def test_silence_hands_over_and_hearing_does_not_hand_back(world: World) -> None:
    one, other = world.session("a"), world.session("b", worker=1)
    world.lead(one, NET)
    world.lead(other, NET)
    world.connectors.silent(one, True)
    assert world.owners.owners == {NET: 1}
    assert (world.granted(one), world.granted(other)) == (((), ()), ((), (NET,)))
    world.connectors.silent(one, False)
    assert world.owners.owners == {NET: 1}
    world.connectors.silent(other, True)
    assert world.owners.owners == {NET: 0}
    assert world.tables.networks == {ip_network(NET): 11}
    assert world.granted(one) == ((), (NET,))


async def test_nobody_is_active_while_all_are_silent_and_the_route_stays(world: World) -> None:
    session = world.session()
    world.lead(session, NET)
    world.connectors.silent(session, True)
    assert (world.tables.networks, world.owners.owners) == ({ip_network(NET): None}, {})
    assert world.host.routes == {NET}
    assert world.told.words[-2:] == [(NET, "a", None), ("a", "silent")]
    world.connectors.silent(session, False)
    assert world.tables.networks == {ip_network(NET): 11}


async def test_a_drained_one_yields_and_stays_only_if_nobody_else_is_there(world: World) -> None:
    one, other = world.session("a"), world.session("b", worker=1)
    world.lead(one, NET)
    world.connectors.drain("a", None)
    assert world.owners.owners == {NET: 0}
    world.lead(other, NET)
    assert world.owners.owners == {NET: 1}
    world.connectors.ended(other, "kicked")
    assert world.owners.owners == {NET: 0}
    again = world.session("b", worker=1)
    world.lead(again, NET)
    assert world.owners.owners == {NET: 1}
    world.connectors.undrain("a")
    world.lead(world.session("a"), NET)
    assert world.owners.owners == {NET: 1}


async def test_a_drain_that_is_over_leaves_nobody(world: World) -> None:
    session = world.session()
    world.lead(session, NET)
    world.connectors.drain("a", 0.01)
    await until(lambda: world.tables.networks == {ip_network(NET): None})
    assert world.host.routes == {NET}
    # It may come back; it leads nowhere before that is undone.
    world.connectors.ended(session, "kicked")
    world.routes.forget_vanished(lambda _: True)
    assert (world.tables.networks, world.host.routes) == ({}, set())
    session = world.session()
    world.lead(session, NET)
    assert (world.tables.networks, world.host.routes) == ({ip_network(NET): None}, {NET})
    world.connectors.ended(session, "kicked")
    world.connectors.undrain("a")
    world.lead(world.session("a"), NET)
    assert world.tables.networks == {ip_network(NET): 11}


async def test_a_network_whose_connector_vanished_is_led_nowhere_else(world: World) -> None:
    session = world.session()
    world.lead(session, NET)
    world.log.clear()
    world.connectors.ended(session, "silent for too long")
    assert world.host.routes == {NET}
    assert (world.tables.networks, world.owners.owners) == ({ip_network(NET): None}, {})
    # The kernel first; there is no moment at which it does not know the network.
    assert world.log == [f"set_network {NET} None", f"release {NET} 0"]
    again = world.session()
    assert world.lead(again, NET) == {NET: "ACCEPTED"}
    assert world.tables.networks == {ip_network(NET): 11}
    assert world.network_changes == 1


async def test_a_connector_that_comes_back_does_not_make_its_networks_go_first(
    world: World,
) -> None:
    """Its services are listed before its networks; agents are told nothing meanwhile."""
    session = world.session()
    world.lead(session, NET)
    world.connectors.ended(session, "restarted")
    again = world.session()
    world.offer(again)
    assert world.host.routes == {NET}
    assert world.lead(again, NET) == {NET: "ACCEPTED"}
    assert world.network_changes == 1
    # And one that leads nowhere any more says so.
    world.connectors.ended(again, "restarted")
    last = world.session()
    world.offer(last)
    world.lead(last)
    assert world.host.routes == set()


async def test_a_network_that_is_taken_back_is_routed_no_more(world: World) -> None:
    session = world.session()
    world.lead(session, NET, "10.30.0.0/16")
    world.log.clear()
    assert world.lead(session, "10.30.0.0/16") == {"10.30.0.0/16": "ACCEPTED"}
    assert world.log[:4] == [
        f"set_network {NET} None", f"release {NET} 0", f"remove_route {NET}",
        f"remove_network {NET}",
    ]  # fmt: skip
    assert world.tables.networks == {ip_network("10.30.0.0/16"): 11}
    assert ("a", "ROUTE", NET, "withdrawn") in world.told.words
    world.connectors.ended(session, "restarted with another configuration")
    again = world.session()
    world.lead(again, "10.20.7.0/24")
    assert world.host.routes == {"10.20.7.0/24"}


async def test_a_client_that_leads_nowhere_is_no_connector(world: World) -> None:
    session = world.session()
    world.connectors.routes_offered(session, [])
    assert world.connectors.by_session == {}
    assert world.log == []


async def test_what_the_policy_takes_is_gone_also_when_the_connector_is(world: World) -> None:
    here, gone = world.session("a"), world.session("b")
    world.lead(here, NET)
    world.lead(gone, "10.30.0.0/16")
    world.connectors.ended(gone, "kicked")
    world.connectors.upkeep()
    assert world.host.routes == {NET, "10.30.0.0/16"}
    world.policy = FakePolicy()
    world.connectors.upkeep()
    assert world.codes(here) == {NET: "NOT_AUTHORIZED"}
    assert (world.host.routes, world.tables.networks, world.owners.owners) == (set(), {}, {})
    assert world.granted(here) == ((), ())


async def test_a_route_that_the_host_has_is_not_taken(world: World) -> None:
    world.host.error = RouteTaken("the gateway's host has a route to it")
    session = world.session()
    assert world.lead(session, NET) == {NET: "OVERLAP"}
    assert (world.tables.networks, world.owners.owners, world.routes.networks()) == ({}, {}, ())


@pytest.mark.parametrize("step", ["set_network", "assign", "add_route"])
async def test_a_failure_leaves_nothing_half_done_and_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr(connectors_module, "_RETRY_S", 0.01)
    world.tables.fails, world.owners.fails = {step}, step == "assign"
    world.host.error = NetError("no buffer space") if step == "add_route" else None
    session = world.session()
    assert world.lead(session, NET) == {NET: "INTERNAL"}
    assert (world.tables.networks, world.host.routes) == ({}, set())
    assert world.granted(session) == ((), ())
    world.tables.fails, world.owners.fails, world.host.error = set(), False, None
    await until(lambda: world.codes(session) == {NET: "ACCEPTED"})
    assert world.owners.owners == {NET: 0}


async def test_a_failover_that_the_kernel_refuses_leaves_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connectors_module, "_RETRY_S", 0.01)
    one, other = world.session("a"), world.session("b", worker=1)
    world.lead(one, NET)
    world.lead(other, NET)
    world.tables.fails = {"set_network"}
    world.connectors.ended(one, "kicked")
    assert world.tables.networks == {}
    world.tables.fails = set()
    await until(lambda: world.tables.networks == {ip_network(NET): 12})
    assert world.granted(other) == ((), (NET,))


async def test_a_kernel_that_cannot_be_told_that_nobody_leads_there_sends_there_no_more(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    session = world.session()
    world.lead(session, NET)
    world.tables.fails = {"set_network"}
    world.connectors.ended(session, "silent for too long")
    assert (world.tables.networks, world.owners.owners) == ({}, {})
    assert world.host.routes == {NET}
    assert (NET, "a", None) in world.told.words
    assert "not told that nobody is there" in caplog.text


async def test_a_replica_that_cannot_take_over_costs_nobody_for_long(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connectors_module, "_RETRY_S", 0.01)
    one, other = world.session("a"), world.session("b", worker=1)
    world.lead(one, NET)
    world.connectors.drain("a", None)
    world.owners.fails = True
    assert world.lead(other, NET) == {NET: "INTERNAL"}
    assert (world.tables.networks, world.owners.owners) == ({ip_network(NET): None}, {})
    assert world.granted(one) == ((), ())
    world.connectors.ended(other, "kicked")
    world.owners.fails = False
    await until(lambda: world.granted(one) == ((), (NET,)))
    assert world.owners.owners == {NET: 0}


async def test_a_route_that_cannot_be_taken_back_is_found_again(world: World) -> None:
    session = world.session()
    world.lead(session, NET)
    world.host.error = NetError("no buffer space")
    assert world.lead(session) == {}
    assert (world.tables.networks, world.host.routes) == ({ip_network(NET): None}, {NET})
    assert world.lead(session, NET) == {NET: "ACCEPTED"}
    assert world.tables.networks == {ip_network(NET): 11}


async def test_more_networks_than_agents_take_are_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes_module, "MAX_NETWORKS", 2)
    one, other = world.session("a"), world.session("b")
    networks = [f"10.20.{third}.0/24" for third in range(3)]
    assert list(world.lead(one, *networks).values()) == ["ACCEPTED", "ACCEPTED", "LIMIT"]
    world.connectors.ended(one, "kicked")
    # Those that nobody leads to any more make room.
    assert world.lead(other, "10.30.0.0/16") == {"10.30.0.0/16": "ACCEPTED"}
    assert world.host.routes == {"10.30.0.0/16"}


async def test_one_connector_leads_to_so_many_networks_and_no_more(world: World) -> None:
    session = world.session()
    networks = [f"10.20.{third}.0/24" for third in range(65)]
    assert list(world.lead(session, *networks).values()) == ["ACCEPTED"] * 64 + ["LIMIT"]
    assert list(world.lead(session, *networks[1:]).values()) == ["ACCEPTED"] * 64
