"""The nftables table, with real packets: a client behind the TUN, the site and the devices."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

import pytest
from zgate_gateway.net.errors import NetError
from zgate_gateway.net.firewall import (
    COUNTERS,
    Firewall,
    FirewallSettings,
    remove_table,
    table_exists,
)
from zgate_gateway.net.netstate import GatewayNetwork, NetworkSettings
from zgate_lab.internet import Host, Internet
from zgate_lab.lab import Lab, Namespace
from zgate_lab.tiny_bpf import TinyProgram
from zgate_lab.traffic import https_get, ping, send_udp
from zgate_lab.waiting import wait_until

Load = Callable[[TinyProgram], int]
PORT = 5000
ETH_P_ALL = 3


@contextmanager
def opened(
    internet: Internet,
    settings: NetworkSettings,
    load: Load,
    program: TinyProgram = TinyProgram.PASS,
) -> Iterator[GatewayNetwork]:
    """The gateway's network, with the same tiny program in both directions."""
    network = GatewayNetwork(settings)
    with internet.gateway.namespace.entered():
        network.open(load(program), load(program))
    yield network
    with internet.gateway.namespace.entered():
        network.close()


def dropped(internet: Internet, network: GatewayNetwork, counter: str) -> int:
    with internet.gateway.namespace.entered():
        return network.counters()[counter].packets


@contextmanager
def udp_receiver(host: Host | Namespace) -> Iterator[socket.socket]:
    """A non-blocking socket on PORT of a host, both families."""
    namespace = host.namespace if isinstance(host, Host) else host
    with namespace.entered():
        receiver = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with receiver:
        receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        receiver.bind(("::", PORT))
        receiver.setblocking(False)
        yield receiver


def received(receiver: socket.socket) -> list[str]:
    """Senders of what has arrived, as plain addresses."""
    senders = []
    while True:
        try:
            _, address = receiver.recvfrom(65535)
        except BlockingIOError:
            return senders
        sender = IPv6Address(address[0])
        senders.append(str(sender.ipv4_mapped or sender))


def client_of(settings: NetworkSettings, version: int) -> IPv4Address | IPv6Address:
    return settings.ipv4_pool[2] if version == 4 else settings.ipv6_pool[2]


def address_of(host: Host, version: int) -> IPv4Address | IPv6Address:
    return host.ipv4 if version == 4 else host.ipv6


def lead_site_to_gateway(internet: Internet) -> None:
    """Give the site default routes to the gateway, so that it can send what it should not."""
    internet.site.ip("route add default via 10.9.0.1", "route add ::/0 via fd00:9::1")


both_families = pytest.mark.parametrize("version", [4, 6])


@both_families
def test_what_the_program_passed_is_masqueraded(
    internet: Internet, client: Namespace, settings: NetworkSettings, load: Load, version: int
) -> None:
    web = internet.start_web_server(internet.office)
    with opened(internet, settings, load) as network:
        url = web.url_ipv4 if version == 4 else web.url_ipv6
        answer = https_get(client.name, url, web.certificate_file)
        assert answer.status == 200, answer.error
        (request,) = web.requests()
        assert request.client == str(address_of(internet.gateway_inside, version))
        assert ping(client.name, address_of(internet.office, version)).lost == 0
        assert dropped(internet, network, "masqueraded") >= 2


@both_families
def test_what_the_program_did_not_pass_goes_nowhere(
    internet: Internet, client: Namespace, settings: NetworkSettings, load: Load, version: int
) -> None:
    with (
        opened(internet, settings, load, TinyProgram.PASS_UNMARKED) as network,
        udp_receiver(internet.office) as office,
    ):
        send_udp(client.name, address_of(internet.office, version), PORT, [b"x"] * 5, count=5)
        wait_until(lambda: dropped(internet, network, "forward_not_passed") == 5, 5.0, "five drops")
        # Nor to the gateway itself, by its address in the pool or any other.
        own = settings.ipv4_pool[1] if version == 4 else settings.ipv6_pool[1]
        assert ping(client.name, own, timeout_s=0.2).received == 0
        inside = address_of(internet.gateway_inside, version)
        assert ping(client.name, inside, timeout_s=0.2).received == 0
        assert dropped(internet, network, "input_not_passed") == 6
        assert received(office) == []


def test_what_the_program_drops_does_not_even_reach_the_table(
    internet: Internet, client: Namespace, settings: NetworkSettings, load: Load
) -> None:
    with opened(internet, settings, load, TinyProgram.DROP) as network:
        assert ping(client.name, internet.office.ipv4, timeout_s=0.2).received == 0
        assert dropped(internet, network, "forward_not_passed") == 0
        assert dropped(internet, network, "masqueraded") == 0


@both_families
def test_a_client_reaches_the_gateway_itself_when_passed(
    internet: Internet, client: Namespace, settings: NetworkSettings, load: Load, version: int
) -> None:
    with opened(internet, settings, load):
        own = settings.ipv4_pool[1] if version == 4 else settings.ipv6_pool[1]
        assert ping(client.name, own).lost == 0


@both_families
def test_a_client_reaches_another_unmasqueraded_when_passed(
    internet: Internet, client: Namespace, settings: NetworkSettings, load: Load, version: int
) -> None:
    other = settings.ipv4_pool[3] if version == 4 else settings.ipv6_pool[3]
    with client.entered():
        sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
    with sniffer, opened(internet, settings, load):
        sniffer.setblocking(False)
        send_udp(client.name, other, PORT, [b"x"], count=1)

        def came_back() -> bool:
            with contextlib.suppress(BlockingIOError):
                packet, (_, _, kind, *_) = sniffer.recvfrom(2000)
                addresses = client_of(settings, version).packed + other.packed
                return kind != socket.PACKET_OUTGOING and addresses in packet
            return False

        wait_until(came_back, 5.0, "the packet to come out of the TUN again")


@both_families
def test_nobody_outside_begins_a_conversation_with_a_client(
    internet: Internet, client: Namespace, settings: NetworkSettings, load: Load, version: int
) -> None:
    lead_site_to_gateway(internet)
    with (
        opened(internet, settings, load) as network,
        udp_receiver(client) as receiver,
    ):
        target = client_of(settings, version)
        send_udp(internet.office.namespace.name, target, PORT, [b"x"] * 3, count=3)
        wait_until(lambda: dropped(internet, network, "unsolicited") == 3, 5.0, "three drops")
        assert received(receiver) == []


@both_families
def test_nobody_outside_borrows_a_clients_address(
    internet: Internet, tun: int, settings: NetworkSettings, load: Load, version: int
) -> None:
    lead_site_to_gateway(internet)
    borrowed = client_of(settings, version)
    internet.office.namespace.ip(f"addr add {borrowed}/{borrowed.max_prefixlen} dev lo")
    with opened(internet, settings, load) as network:
        # Of the device's own prefix, so the packet would be forwarded to it.
        for interface in ("all", "inside"):
            internet.gateway.namespace.sysctl(f"net.ipv4.conf.{interface}.rp_filter", 0)
        internet.office.namespace.run(
            "ping", "-c", "2", "-i", "0.05", "-W", "0.1", "-I", str(borrowed),
            str(address_of(internet.device1, version)), check=False,
        )  # fmt: skip
        wait_until(lambda: dropped(internet, network, "pool_spoofed") == 2, 5.0, "two drops")


@both_families
def test_nobody_outside_borrows_a_services_address(
    internet: Internet, tun: int, settings: NetworkSettings, load: Load, version: int
) -> None:
    pools = IPv4Network("10.101.0.0/16"), IPv6Network("fd7b::/64")
    settings = replace(settings, service_pools=pools)
    lead_site_to_gateway(internet)
    borrowed = pools[0 if version == 4 else 1][1]
    internet.office.namespace.ip(f"addr add {borrowed}/{borrowed.max_prefixlen} dev lo")
    with opened(internet, settings, load) as network:
        for interface in ("all", "inside"):
            internet.gateway.namespace.sysctl(f"net.ipv4.conf.{interface}.rp_filter", 0)
        internet.office.namespace.run(
            "ping", "-c", "2", "-i", "0.05", "-W", "0.1", "-I", str(borrowed),
            str(address_of(internet.device1, version)), check=False,
        )  # fmt: skip
        wait_until(lambda: dropped(internet, network, "pool_spoofed") == 2, 5.0, "two drops")


@both_families
def test_nobody_outside_borrows_an_address_behind_a_connector(
    internet: Internet, tun: int, settings: NetworkSettings, load: Load, version: int
) -> None:
    """As long as somebody leads there, and no longer."""
    lead_site_to_gateway(internet)
    behind = ip_network("10.20.0.0/16" if version == 4 else "fd20::/48")
    borrowed = behind[5]
    internet.office.namespace.ip(f"addr add {borrowed}/{borrowed.max_prefixlen} dev lo")
    device = address_of(internet.device1, version)

    def borrow() -> None:
        internet.office.namespace.run(
            "ping", "-c", "2", "-i", "0.05", "-W", "0.1", "-I", str(borrowed), str(device),
            check=False,
        )  # fmt: skip

    with opened(internet, settings, load) as network:
        for interface in ("all", "inside"):
            internet.gateway.namespace.sysctl(f"net.ipv4.conf.{interface}.rp_filter", 0)
        with internet.gateway.namespace.entered():
            network.add_route(behind)
        borrow()
        wait_until(lambda: dropped(internet, network, "pool_spoofed") == 2, 5.0, "two drops")
        with internet.gateway.namespace.entered():
            network.remove_route(behind)
            network.verify()
        borrow()
        wait_until(lambda: dropped(internet, network, "pool_spoofed") == 2, 5.0, "two drops")


def test_networks_behind_connectors_may_lie_within_each_other(
    host: Namespace, firewall: Firewall
) -> None:
    firewall.install()
    networks = ["10.20.0.0/16", "10.20.7.0/24", "10.21.0.0/16", "fd20::/48", "192.0.2.7/32"]
    firewall.set_networks(map(ip_network, networks))
    shown = host.run("nft", "list", "set", "inet", "zgate", "networks_ipv4").stdout
    assert "10.20.0.0/15" in shown and "192.0.2.7" in shown and "10.20.7.0" not in shown
    assert "fd20::/48" in host.run("nft", "list", "set", "inet", "zgate", "networks_ipv6").stdout
    firewall.verify()
    firewall.set_networks([])
    for version in (4, 6):
        name = f"networks_ipv{version}"
        assert "elements" not in host.run("nft", "list", "set", "inet", "zgate", name).stdout


@both_families
@pytest.mark.parametrize("was_router", [False, True])
def test_a_host_that_was_no_router_becomes_none_for_others(
    internet: Internet,
    tun: int,
    settings: NetworkSettings,
    load: Load,
    version: int,
    was_router: bool,
) -> None:
    lead_site_to_gateway(internet)
    if was_router:
        internet.gateway.namespace.make_router()
    with (
        opened(internet, settings, load) as network,
        udp_receiver(internet.device1) as receiver,
    ):
        target = address_of(internet.device1, version)
        send_udp(internet.office.namespace.name, target, PORT, [b"x"] * 3, count=3)
        if was_router:
            wait_until(lambda: received(receiver), 5.0, "a packet from the office")
            assert dropped(internet, network, "not_forwarded") == 0
        else:
            wait_until(lambda: dropped(internet, network, "not_forwarded") == 3, 5.0, "drops")
            assert received(receiver) == []


@both_families
def test_masquerade_may_be_for_one_uplink_only(
    internet: Internet, client: Namespace, settings: NetworkSettings, load: Load, version: int
) -> None:
    with (
        opened(internet, replace(settings, uplink="uplink"), load),
        udp_receiver(internet.office) as office,
        udp_receiver(internet.device1) as device,
    ):
        send_udp(client.name, address_of(internet.device1, version), PORT, [b"x"], count=1)
        send_udp(client.name, address_of(internet.office, version), PORT, [b"x"], count=1)
        senders = wait_until(lambda: received(device), 5.0, "a packet at the device")
        assert senders == [str(address_of(internet.gateway, version))]
        senders = wait_until(lambda: received(office), 5.0, "a packet at the office")
        assert senders == [str(client_of(settings, version))]


@both_families
def test_without_masquerade_the_office_sees_the_client(
    internet: Internet, client: Namespace, settings: NetworkSettings, load: Load, version: int
) -> None:
    lead_site_to_gateway(internet)
    with opened(internet, replace(settings, masquerade=False), load):
        web = internet.start_web_server(internet.office)
        url = web.url_ipv4 if version == 4 else web.url_ipv6
        assert https_get(client.name, url, web.certificate_file).status == 200
        assert web.requests()[0].client == str(client_of(settings, version))


@both_families
def test_both_ends_of_a_tcp_connection_learn_the_tunnels_segment_size(
    internet: Internet, client: Namespace, settings: NetworkSettings, load: Load, version: int
) -> None:
    """The client's own link has 1500 bytes, the office's too; the TUN between has 1400."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with opened(internet, settings, load):
        with internet.office.namespace.entered():
            listener = socket.create_server(("", PORT), family=family)
        with client.entered():
            near = socket.socket(family)
        with listener, near:
            near.settimeout(5)
            near.connect((str(address_of(internet.office, version)), PORT))
            far, _ = listener.accept()
            with far:
                timestamps_bytes = 12
                headers_bytes = 40 if version == 4 else 60
                expected = settings.mtu_bytes - headers_bytes - timestamps_bytes
                for end in (near, far):
                    assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) == expected


def test_no_unpassed_packet_slips_through_while_the_table_is_replaced(
    internet: Internet, client: Namespace, settings: NetworkSettings, load: Load
) -> None:
    with opened(internet, settings, load, TinyProgram.PASS_UNMARKED):
        flood = client.spawn(
            "flood",
            "ping",
            "-n",
            "-q",
            "-i",
            "0.001",
            "-c",
            "2000",
            "-w",
            "2",
            str(internet.office.ipv4),
        )
        firewall = Firewall(FirewallSettings("zgate0", settings.ipv4_pool, settings.ipv6_pool))
        with internet.gateway.namespace.entered():
            while flood.is_running():
                firewall.install()
        flood.wait(1.0)
        assert " 0 received" in flood.output()


# -- the table beside others


@pytest.fixture
def host(lab: Lab) -> Iterator[Namespace]:
    namespace = lab.add_namespace("host")
    with namespace.entered():
        yield namespace


@pytest.fixture
def firewall(settings: NetworkSettings) -> Firewall:
    return Firewall(FirewallSettings("zgate0", settings.ipv4_pool, settings.ipv6_pool))


OTHERS = """
table inet filter {
  chain forward {
    type filter hook forward priority 0; policy drop;
    ct state established accept
  }
}
table ip zgate {
  chain mine {
  }
}
"""


def ruleset(host: Namespace) -> str:
    return host.run("nft", "list", "ruleset").stdout


def test_tables_of_others_stay_as_they_are(host: Namespace, firewall: Firewall) -> None:
    host.run("nft", "-f", "-", stdin=OTHERS)
    before = ruleset(host)
    firewall.install()
    assert ruleset(host).startswith(before)
    assert "table inet zgate" in ruleset(host)
    firewall.install()
    firewall.remove()
    assert ruleset(host) == before


def test_installing_twice_leaves_one_of_everything(host: Namespace, firewall: Firewall) -> None:
    firewall.install()
    once = ruleset(host)
    firewall.install()
    assert ruleset(host) == once
    firewall.verify()


def test_a_refused_table_leaves_the_old_one(host: Namespace, firewall: Firewall) -> None:
    firewall.install()
    before = ruleset(host)
    bad = Firewall(replace(firewall._settings, tun_name="a-name-too-long-for-an-interface"))
    with pytest.raises(NetError, match="cannot install the nftables table") as caught:
        bad.install()
    assert "\n" not in str(caught.value)
    assert ruleset(host) == before


@pytest.mark.parametrize(
    "command",
    [
        "flush chain inet zgate forward",
        "add rule inet zgate forward accept",
        "insert rule inet zgate input accept",
        "delete table inet zgate",
    ],
)
def test_what_others_change_is_noticed(host: Namespace, firewall: Firewall, command: str) -> None:
    firewall.install()
    firewall.verify()
    host.run("nft", *command.split())
    with pytest.raises(NetError, match="inet zgate"):
        firewall.verify()


def test_every_counter_begins_at_zero(host: Namespace, firewall: Firewall) -> None:
    firewall.install()
    counters = firewall.counters()
    assert set(counters) == set(COUNTERS)
    assert not any(counter.packets or counter.bytes for counter in counters.values())


def test_removing_is_idempotent(host: Namespace, firewall: Firewall) -> None:
    assert not table_exists()
    assert not remove_table()
    firewall.install()
    assert table_exists()
    assert remove_table()
    assert not remove_table()
    firewall.remove()
    with pytest.raises(NetError, match="has not been installed"):
        firewall.verify()


MASQUERADING = """
table inet zgate {
  chain forward {
    type filter hook forward priority 0
    ct state established accept
  }
  chain translate {
    type nat hook postrouting priority 100
    oifname inside masquerade
  }
}
"""


def test_what_is_held_for_the_next_gateway(internet: Internet) -> None:
    """A server's packet for a connection that was masqueraded is lost, and not answered."""
    gateway, office = internet.gateway.namespace, internet.office
    internet.isp.ip("route add 10.20.0.0/24 via 198.18.255.2")
    internet.transit.ip(f"route add 10.20.0.0/24 via {internet.gateway.ipv4}")
    gateway.make_router()
    gateway.run("nft", "-f", "-", stdin=MASQUERADING)
    clients = IPv4Network("198.18.1.0/24"), IPv6Network("fd00:1::/64")
    with office.namespace.entered():
        listener = socket.create_server((str(office.ipv4), PORT))
    with internet.device1.namespace.entered():
        client = socket.create_connection((str(office.ipv4), PORT), timeout=5.0)
    server, peer = listener.accept()
    with listener, client, server:
        assert peer[0] == "10.9.0.1", "it is masqueraded"
        with gateway.entered():
            Firewall(FirewallSettings("zgate0", *clients)).hold()
            assert not table_exists()
        assert "zgate_hold" in gateway.run("nft", "list", "tables").stdout
        server.sendall(b"while nobody is there")
        client.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.recv(100)
        with gateway.entered():
            Firewall(FirewallSettings("zgate0", *clients)).install()
        assert gateway.run("nft", "list", "tables").stdout.split() == ["table", "inet", "zgate"]
        gateway.run("nft", "-f", "-", stdin=f"delete table inet zgate\n{MASQUERADING}")
        client.settimeout(10.0)
        assert client.recv(100) == b"while nobody is there"
    with gateway.entered():
        remove_table()
