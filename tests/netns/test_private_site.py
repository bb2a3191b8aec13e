"""Private networks behind NATs: they reach the gateway, and nobody reaches them."""

from collections.abc import Iterator

import pytest
from zgate_lab.capture import Capture
from zgate_lab.echo import UdpClient, UdpEcho
from zgate_lab.internet import Internet
from zgate_lab.private_site import LAN_IPV4, LAN_IPV6, PrivateSite, add_private_sites
from zgate_lab.traffic import answers

PORT = 5001

Made = tuple[Internet, tuple[PrivateSite, PrivateSite]]


@pytest.fixture(scope="module")
def made() -> Iterator[Made]:
    with Internet.open() as internet:
        yield internet, add_private_sites(internet)


def test_everybody_inside_reaches_the_gateway_and_the_backend(made: Made) -> None:
    internet, sites = made
    for site in sites:
        for host in (site.connector, site.backend):
            assert answers(host.namespace.name, internet.gateway.ipv4)
            assert answers(host.namespace.name, internet.gateway.ipv6)
        assert answers(site.connector.namespace.name, site.backend.ipv4)
        assert answers(site.connector.namespace.name, site.backend.ipv6)


def test_the_gateway_sees_the_nat_and_answers_through_it(made: Made) -> None:
    internet, sites = made
    for site in sites:
        with UdpEcho(internet.gateway, PORT) as echo:
            for address, seen in (
                (internet.gateway.ipv4, site.outside.ipv4),
                (internet.gateway.ipv6, site.outside.ipv6),
            ):
                with UdpClient(site.connector.namespace.name, address, PORT) as client:
                    assert client.ask(b"hello") == b"hello"
                assert echo.received[-1][0] == str(seen)


def test_nothing_comes_in_even_for_who_knows_the_way(made: Made) -> None:
    internet, (site, _) = made
    outside = internet.isp
    outside.ip(
        f"route add {LAN_IPV4} via {site.outside.ipv4}",
        f"route add {LAN_IPV6} via {site.outside.ipv6}",
    )
    try:
        with Capture(site.nat, "lan") as inside:
            for address in (site.outside.ipv4, site.outside.ipv6):
                assert not answers(outside.name, address)
            for address in (site.backend.ipv4, site.connector.ipv6):
                assert not answers(outside.name, address)
            assert answers(site.backend.namespace.name, internet.gateway.ipv4)
        assert {str(one.source) for one in inside.packets if one.protocol == 1} == {
            str(site.backend.ipv4),
            str(internet.gateway.ipv4),
        }
    finally:
        outside.ip(f"route del {LAN_IPV4}", f"route del {LAN_IPV6}")


def test_a_cut_is_silent_and_can_be_mended(made: Made) -> None:
    internet, (site, other) = made
    site.cut()
    try:
        assert not answers(site.connector.namespace.name, internet.gateway.ipv4)
        assert answers(site.connector.namespace.name, site.backend.ipv4)
        assert answers(other.connector.namespace.name, internet.gateway.ipv4)
    finally:
        site.mend()
    assert answers(site.connector.namespace.name, internet.gateway.ipv4)
