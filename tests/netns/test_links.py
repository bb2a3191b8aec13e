"""The TUN as a link, in a namespace of its own."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path

import pytest
from zgate_gateway.net.errors import NetError
from zgate_gateway.net.links import (
    Hook,
    RouteTaken,
    TunLink,
    interface_names,
    program_id,
)
from zgate_lab.lab import Lab, Namespace
from zgate_lab.tiny_bpf import TinyProgram
from zgate_lab.wan import open_tun

Load = Callable[[TinyProgram], int]

LINK = TunLink("zgate0", 1400, IPv4Network("10.100.0.0/16"), IPv6Network("fd7a::/64"))


@pytest.fixture
def host(lab: Lab) -> Iterator[Namespace]:
    """A namespace with the TUN open and down; the test runs inside."""
    namespace = lab.add_namespace("host")
    tun = open_tun(namespace.name, LINK.name)
    with namespace.entered():
        yield namespace
    os.close(tun)


@pytest.mark.parametrize("hook", list(Hook))
def test_a_program_is_attached_and_read_back(host: Namespace, load: Load, hook: Hook) -> None:
    program = load(TinyProgram.PASS)
    assert LINK.attached_program(hook) is None
    LINK.attach(hook, program)
    assert LINK.attached_program(hook) == program_id(program)
    other = Hook.EGRESS if hook is Hook.INGRESS else Hook.INGRESS
    assert LINK.attached_program(other) is None
    shown = host.run("tc", "filter", "show", "dev", LINK.name, hook.name.lower()).stdout
    assert f"zgate-{hook.name.lower()} direct-action" in shown


def test_attaching_replaces_what_is_there(host: Namespace, load: Load) -> None:
    first, second = load(TinyProgram.DROP), load(TinyProgram.PASS)
    LINK.attach(Hook.INGRESS, first)
    LINK.attach(Hook.INGRESS, second)
    LINK.verify_attached(Hook.INGRESS, second)
    with pytest.raises(NetError, match="is not what decides at ingress"):
        LINK.verify_attached(Hook.INGRESS, first)


async def test_it_works_in_a_running_event_loop(host: Namespace, load: Load) -> None:
    program = load(TinyProgram.PASS)
    with host.entered():  # a coroutine's thread need not be the fixture's
        LINK.attach(Hook.EGRESS, program)
        LINK.verify_attached(Hook.EGRESS, program)


def test_a_removed_filter_is_noticed(host: Namespace, load: Load) -> None:
    program = load(TinyProgram.PASS)
    LINK.attach(Hook.INGRESS, program)
    host.run("tc", "qdisc", "del", "dev", LINK.name, "clsact")
    with pytest.raises(NetError, match="found none"):
        LINK.verify_attached(Hook.INGRESS, program)


def test_a_file_that_is_no_program_is_refused(host: Namespace) -> None:
    with Path("/dev/null").open() as file, pytest.raises(NetError):
        LINK.attach(Hook.INGRESS, file.fileno())


def test_without_the_tun_the_error_says_so(lab: Lab, load: Load) -> None:
    with (
        lab.add_namespace("empty").entered(),
        pytest.raises(NetError, match="there is no interface zgate0: the TUN must be opened"),
    ):
        LINK.attach(Hook.INGRESS, load(TinyProgram.PASS))


def test_the_link_gets_its_mtu_queue_addresses_and_routes(host: Namespace) -> None:
    LINK.configure()
    shown = host.run("ip", "link", "show", LINK.name).stdout
    assert "mtu 1400" in shown
    assert "qlen 1000" in shown
    assert ",UP" not in shown
    LINK.up()
    LINK.verify()
    assert "10.100.0.0/16 dev zgate0 proto static src 10.100.0.1" in _routes(host, 4)
    assert "fd7a::/64 dev zgate0" in _routes(host, 6)
    assert "src fd7a::1" in _routes(host, 6)
    assert host.run("ip", "route", "get", "10.100.255.254").stdout.startswith(
        "10.100.255.254 dev zgate0 src 10.100.0.1"
    )


def test_configuring_twice_is_like_once(host: Namespace) -> None:
    for _ in range(2):
        LINK.configure()
        LINK.up()
    LINK.verify()


def test_the_link_has_no_link_local_address_and_says_nothing(host: Namespace) -> None:
    LINK.configure()
    LINK.up()
    assert "fe80" not in host.run("ip", "addr", "show", LINK.name).stdout
    assert (
        "broadcast"
        not in host.run("ip", "route", "show", "table", "local", "dev", LINK.name).stdout
    )
    assert host.sysctl(f"net.ipv4.conf.{LINK.name}.rp_filter") == "1"
    assert host.sysctl(f"net.ipv6.conf.{LINK.name}.accept_ra") == "0"


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("link set zgate0 down", "the link is down"),
        ("link set zgate0 mtu 1300", "the MTU is 1300, not 1400"),
        ("addr del 10.100.0.1/32 dev zgate0", "the address 10.100.0.1 is gone"),
        ("addr del fd7a::1/128 dev zgate0", "the address fd7a::1 is gone"),
        ("route del 10.100.0.0/16", "the route to 10.100.0.0/16 is gone"),
        ("route del fd7a::/64", "the route to fd7a::/64 is gone"),
    ],
)
def test_what_others_change_is_noticed(host: Namespace, command: str, problem: str) -> None:
    LINK.configure()
    LINK.up()
    LINK.verify()
    host.ip(command)
    with pytest.raises(NetError, match=problem):
        LINK.verify()


SERVING = replace(LINK, service_pools=(IPv4Network("10.101.0.0/16"), IPv6Network("fd7b::/64")))


def test_the_pools_of_services_are_led_to_the_link(host: Namespace) -> None:
    SERVING.configure()
    SERVING.up()
    SERVING.verify()
    assert "10.101.0.0/16 dev zgate0 proto static src 10.100.0.1" in _routes(host, 4)
    assert "fd7b::/64 dev zgate0" in _routes(host, 6)
    assert "10.101.0.1" not in host.run("ip", "addr", "show", LINK.name).stdout
    host.ip("route del 10.101.0.0/16")
    with pytest.raises(NetError, match=r"the route to 10\.101\.0\.0/16 is gone"):
        SERVING.verify()


@pytest.mark.parametrize("address", ["10.101.7.1/24", "fd7b::7/128"])
def test_a_pool_of_services_that_overlaps_the_hosts_networks_is_refused(
    host: Namespace, address: str
) -> None:
    host.ip("link add other0 type veth peer name other1", f"addr add {address} dev other0")
    with pytest.raises(NetError, match=r"overlaps .* on other0: .*services\.ipv4, services\.ipv6"):
        SERVING.configure()


@pytest.mark.parametrize("network", ["10.20.0.0/16", "fd20::/48"])
def test_a_network_behind_a_connector_is_led_to_the_link_and_back(
    host: Namespace, network: str
) -> None:
    LINK.configure()
    LINK.up()
    version, wanted = (6, ip_network(network)) if ":" in network else (4, ip_network(network))
    LINK.add_route(wanted)
    assert f"{network} dev zgate0" in _routes(host, version)
    source = "fd7a::1" if version == 6 else "10.100.0.1"
    target = str(wanted[9])
    assert f"src {source}" in host.run("ip", "route", "get", target).stdout
    LINK.verify()
    with pytest.raises(RouteTaken):  # once is enough
        LINK.add_route(wanted)
    LINK.remove_route(wanted)
    assert network not in _routes(host, version)
    with pytest.raises(NetError, match=r"cannot take the route of .* back"):
        LINK.remove_route(wanted)


def test_a_route_of_the_hosts_own_is_not_taken(host: Namespace) -> None:
    LINK.configure()
    LINK.up()
    host.ip(
        "link add other0 type veth peer name other1", "link set other0 up", "link set other1 up",
        "addr add 192.0.2.1/24 dev other0", "route add 10.20.0.0/16 via 192.0.2.9",
    )  # fmt: skip
    with pytest.raises(RouteTaken, match=r"host has a route to 10\.20\.0\.0/16"):
        LINK.add_route(ip_network("10.20.0.0/16"))
    assert "10.20.0.0/16 via 192.0.2.9" in _routes(host, 4)
    assert ("other0", ip_network("192.0.2.0/24")) in LINK.other_networks()
    assert "zgate0" not in {name for name, _ in LINK.other_networks()}


@pytest.mark.parametrize("address", ["10.100.7.1/24", "10.0.0.1/8", "fd7a::7/128"])
def test_a_pool_that_overlaps_the_hosts_networks_is_refused(host: Namespace, address: str) -> None:
    host.ip("link add other0 type veth peer name other1", f"addr add {address} dev other0")
    with pytest.raises(NetError, match=r"overlaps .* on other0: choose another pool"):
        LINK.configure()


def test_detaching_leaves_the_link_down_and_bare(host: Namespace, load: Load) -> None:
    LINK.attach(Hook.INGRESS, load(TinyProgram.PASS))
    LINK.attach(Hook.EGRESS, load(TinyProgram.PASS))
    LINK.configure()
    LINK.up()
    LINK.detach()
    assert LINK.attached_program(Hook.INGRESS) is None
    assert LINK.attached_program(Hook.EGRESS) is None
    with pytest.raises(NetError, match="the link is down"):
        LINK.verify()


def test_a_kernel_refusal_is_one_line(host: Namespace) -> None:
    with pytest.raises(NetError, match="cannot configure zgate0") as caught:
        replace(LINK, mtu_bytes=1_000_000).configure()
    assert "\n" not in str(caught.value)


def test_interface_names(host: Namespace) -> None:
    assert interface_names() == {"lo", LINK.name}


def _routes(host: Namespace, version: int) -> str:
    return host.run("ip", f"-{version}", "route", "show").stdout
