"""The agent's hold on a host's network: programmed, repaired, moved, taken back, cleaned up."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest
from zgate_agent.config import Mode
from zgate_agent.plan import NetworkPlan, make_plan
from zgate_agent.routing import Router
from zgate_agent.rtnl import RoutingError, TunGone
from zgate_datapath.tun import Tun
from zgate_host.netwatch import NetWatch
from zgate_lab.lab import Lab, Namespace, Port
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.icmp import error_for_drop
from zgate_protocol.ip_range import EVERYTHING

TUN = "agent0"
GATEWAY, GATEWAY6 = ip_address("203.0.113.10"), ip_address("2001:db8:f::10")
ROUTER, ROUTER6 = "198.18.1.1", "2001:db8:1::1"
FULL = make_plan(
    addresses=[ip_interface("10.100.0.2/32"), ip_interface("fd7a::2/128")],
    advertised=EVERYTHING,
    mtu_bytes=1400,
    mode=Mode.FULL,
    own_routes=None,
    gateway=GATEWAY,
).with_pins([GATEWAY, GATEWAY6])


@dataclass
class Device:
    """A host with a router, and an agent's TUN."""

    namespace: Namespace
    router: Router
    leftovers_file: Path
    tun: Tun

    def state(self) -> str:
        """Links, addresses and routes, but for the TUN itself, which the agent's process holds."""
        return "\n".join(
            self.namespace.run("ip", *command.split()).stdout
            for command in ("route show table all", "-6 route show table all", f"addr show {TUN}")
        )

    def way_to(self, address: object) -> str:
        """What the kernel says about a destination."""
        result = self.namespace.run("ip", "route", "get", str(address), check=False)
        return (result.stdout + result.stderr).strip()


@pytest.fixture
def namespace(lab: Lab) -> Namespace:
    device, isp = lab.add_namespace("device"), lab.add_namespace("isp", router=True)
    for interface, net in (("eth0", 1), ("wlan0", 2)):
        own = (ip_interface(f"198.18.{net}.2/24"), ip_interface(f"2001:db8:{net}::2/64"))
        other = (ip_interface(f"198.18.{net}.1/24"), ip_interface(f"2001:db8:{net}::1/64"))
        lab.connect(Port(device, interface, own), Port(isp, f"device{net}", other))
    device.ip(
        f"route add default via {ROUTER} dev eth0 metric 100",
        f"route add default via {ROUTER6} dev eth0 metric 100",
    )
    return device


@pytest.fixture
def device(namespace: Namespace, tmp_path: Path) -> Iterator[Device]:
    """The test runs inside the device's namespace."""
    file = tmp_path / "network.json"
    with namespace.entered(), closing(Tun.open(TUN)) as tun:
        router = Router(TUN, file)
        router.prepare()
        yield Device(namespace, router, file, tun)


def test_a_full_tunnel_takes_everything_but_the_gateway(device: Device) -> None:
    assert device.router.apply(FULL) == FULL
    for address in ("192.0.2.1", "8.8.8.8", "2001:4860::1", "fd00:20::5"):
        assert f"dev {TUN}" in device.way_to(address)
    assert f"via {ROUTER} dev eth0" in device.way_to(GATEWAY)
    assert f"via {ROUTER6} dev eth0" in device.way_to(GATEWAY6)
    assert "src 10.100.0.2" in device.way_to("8.8.8.8")
    assert "from fd7a::2" in device.way_to("fd00:20::5") or "src fd7a::2" in device.way_to(
        "fd00:20::5"
    )


def test_the_default_routes_are_never_touched(device: Device) -> None:
    def defaults() -> str:
        show = ("route", "show", "default"), ("-6", "route", "show", "default")
        return "".join(device.namespace.run("ip", *one).stdout for one in show)

    before = defaults()
    device.router.apply(FULL)
    assert defaults() == before
    device.router.withdraw()
    assert defaults() == before


def test_the_link_is_as_planned_and_has_no_address_of_its_own(device: Device) -> None:
    device.router.apply(FULL)
    (link,) = json.loads(device.namespace.run("ip", "-j", "addr", "show", TUN).stdout)
    assert link["mtu"] == 1400
    assert "UP" in link["flags"]
    assert {one["local"] for one in link["addr_info"]} == {"10.100.0.2", "fd7a::2"}


def test_twice_is_once(device: Device) -> None:
    device.router.apply(FULL)
    before = device.state()
    monitor = device.namespace.spawn("monitor", "ip", "monitor", "all")
    device.router.apply(FULL)
    assert device.state() == before
    device.namespace.ip("addr add 198.18.1.99/24 dev eth0")  # what the monitor shows last
    monitor.wait_for_output("198.18.1.99", 5)
    assert TUN not in monitor.output()
    assert str(GATEWAY) not in monitor.output()


def test_what_the_kernel_learned_of_a_path_is_not_ours(device: Device) -> None:
    """After Packet Too Big the kernel lists a copy of our route for that one destination."""
    device.router.apply(FULL)
    destination = ip_address("fd00:20::5")
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.connect((str(destination), 5001))
        sender.send(bytes(1300))
        sent = [one for one in device.tun.read_batch(16) if one[24:40] == destination.packed]
        error = error_for_drop(DropReason.TOO_BIG, sent[0], (bytes(4), destination.packed), 1290)
        assert error is not None
        assert device.tun.write(error)
    learned = device.namespace.run("ip", "-6", "route", "show", "cache").stdout
    assert f"{destination} " in learned
    assert "mtu 1290" in learned
    smaller = replace(FULL, mtu_bytes=1300)
    assert device.router.apply(smaller) == smaller
    device.router.withdraw()
    assert device.router.plan.routes == ()


def test_everything_is_taken_back(device: Device) -> None:
    device.router.apply(NetworkPlan(mtu_bytes=1400))
    before = device.state()
    device.router.apply(FULL)
    assert device.leftovers_file.exists()
    device.router.withdraw()
    assert device.state() == before
    assert not device.leftovers_file.exists()
    device.router.withdraw()


def test_a_split_tunnel_leaves_the_rest_alone(device: Device) -> None:
    plan = make_plan(
        addresses=FULL.addresses,
        advertised=EVERYTHING,
        mtu_bytes=1400,
        mode=Mode.SPLIT,
        own_routes=[ip_network("10.20.0.0/16"), ip_network("fd00:20::/32")],
        gateway=GATEWAY,
    )
    device.router.apply(plan)
    assert f"dev {TUN}" in device.way_to("10.20.0.5")
    assert f"dev {TUN}" in device.way_to("fd00:20::5")
    assert "dev eth0" in device.way_to("10.21.0.5")
    assert "dev eth0" in device.way_to("fd00:21::5")
    assert str(GATEWAY) not in device.namespace.run("ip", "route").stdout


def test_another_plan_replaces_the_first(device: Device) -> None:
    device.router.apply(FULL)
    other = NetworkPlan(
        mtu_bytes=1300,
        addresses=(ip_interface("10.100.0.9/32"),),
        routes=(ip_network("10.20.0.0/24"),),
    )
    device.router.apply(other)
    assert f"dev {TUN}" in device.way_to("10.20.0.5")
    assert "dev eth0" in device.way_to("8.8.8.8")
    assert "mtu 1300" in device.state()
    for gone in ("10.100.0.2", "fd7a::2", str(GATEWAY), str(GATEWAY6)):
        assert gone not in device.state()


def test_losing_the_last_address_of_a_family_does_not_lose_its_routes(device: Device) -> None:
    device.router.apply(FULL)
    device.router.apply(NetworkPlan(1400, (ip_interface("fd7a::2/128"),), FULL.routes, FULL.pins))
    assert f"dev {TUN}" in device.way_to("8.8.8.8")


@pytest.mark.parametrize(
    "damage",
    [
        f"route del 0.0.0.0/1 dev {TUN}",
        f"route del 8000::/1 dev {TUN}",
        f"addr del 10.100.0.2/32 dev {TUN}",
        f"link set {TUN} mtu 1200",
        f"link set {TUN} down",
        f"route del {GATEWAY} via {ROUTER}",
        f"route del unreachable {GATEWAY6}",
    ],
)
def test_what_somebody_else_undoes_comes_back(device: Device, damage: str) -> None:
    device.router.apply(FULL)
    before = device.state()
    device.namespace.ip(damage)
    assert device.state() != before
    device.router.apply(device.router.plan)
    assert sorted(device.state().splitlines()) == sorted(before.splitlines())


def test_the_pin_follows_the_physical_path(device: Device) -> None:
    device.router.apply(FULL)
    old = device.router.path_to(GATEWAY)
    device.namespace.ip(
        "route add default via 198.18.2.1 dev wlan0 metric 50",
        "route add default via 2001:db8:2::1 dev wlan0 metric 50",
    )
    device.router.apply(device.router.plan)
    assert "via 198.18.2.1 dev wlan0" in device.way_to(GATEWAY)
    assert "via 2001:db8:2::1 dev wlan0" in device.way_to(GATEWAY6)
    new = device.router.path_to(GATEWAY)
    assert new is not None
    assert new != old
    assert new.source == ip_address("198.18.2.2")


def test_without_a_physical_path_the_gateway_is_unreachable_and_not_in_the_tunnel(
    device: Device,
) -> None:
    device.router.apply(FULL)
    device.namespace.ip("link set eth0 down")
    # Before anybody has noticed: the kernel took the pin away, the backstop holds.
    for address in (GATEWAY, GATEWAY6):
        assert TUN not in device.way_to(address)
        assert device.router.path_to(address) is None
    device.router.apply(device.router.plan)
    assert TUN not in device.way_to(GATEWAY)
    device.namespace.ip("link set eth0 up", f"route add default via {ROUTER} dev eth0")
    device.router.apply(device.router.plan)
    assert f"via {ROUTER} dev eth0" in device.way_to(GATEWAY)
    device.router.withdraw()
    assert str(GATEWAY) not in device.state()


def test_an_administrators_own_host_route_to_the_gateway_survives(device: Device) -> None:
    device.namespace.ip(f"route add {GATEWAY} via 198.18.2.1 dev wlan0 metric 7")
    device.router.apply(FULL)
    assert "dev wlan0" in device.way_to(GATEWAY)
    device.router.withdraw()
    assert "dev wlan0" in device.way_to(GATEWAY)


@pytest.mark.parametrize(
    ("default", "way"),
    [
        (f"default nexthop via {ROUTER} dev eth0 nexthop via 198.18.2.1 dev wlan0", "dev eth0"),
        ("0.0.0.0/0 via inet6 2001:db8:2::1 dev wlan0", "via inet6 2001:db8:2::1 dev wlan0"),
        ("default via 192.0.2.77 dev wlan0 onlink", "via 192.0.2.77 dev wlan0"),
        ("default dev wlan0", "dev wlan0"),
        (f"default via {ROUTER} dev eth0 src 198.18.2.2", "dev eth0 src 198.18.2.2"),
    ],
)
def test_unusual_default_routes_are_followed(device: Device, default: str, way: str) -> None:
    device.namespace.ip(f"route del default via {ROUTER}", f"route add {default}")
    device.router.apply(FULL)
    assert way in device.way_to(GATEWAY)
    device.router.apply(FULL)
    device.router.withdraw()
    assert str(GATEWAY) not in device.state()


def test_without_ipv6_there_is_ipv4(device: Device) -> None:
    device.namespace.sysctl(f"net.ipv6.conf.{TUN}.disable_ipv6", 1)
    applied = device.router.apply(FULL)
    assert {one.version for one in applied.addresses} == {4}
    assert f"dev {TUN}" in device.way_to("8.8.8.8")


def test_without_ipv4_addresses_there_is_ipv6(device: Device) -> None:
    device.namespace.ip("addr flush dev eth0 scope global", "addr flush dev wlan0 scope global")
    device.namespace.ip(
        "addr add 2001:db8:1::2/64 dev eth0 nodad",
        f"route add default via {ROUTER6} dev eth0",
    )
    device.router.apply(FULL)
    assert f"via {ROUTER6} dev eth0" in device.way_to(GATEWAY6)
    assert f"dev {TUN}" in device.way_to("8.8.8.8")
    assert "No route to host" in device.way_to(GATEWAY)


def test_a_plan_that_cannot_be_leaves_nothing_half_done(device: Device) -> None:
    device.router.apply(NetworkPlan(mtu_bytes=1400))
    before = device.state()
    device.router.apply(FULL)
    with pytest.raises(RoutingError, match="cannot set up agent0"):
        # The kernel takes no such MTU, and finds that out after the pins and before the routes.
        device.router.apply(replace(FULL, mtu_bytes=70000))
    assert device.state() == before
    assert not device.leftovers_file.exists()


def test_a_tun_that_was_removed_is_told_and_the_pins_go(device: Device) -> None:
    device.router.apply(FULL)
    device.namespace.ip(f"link del {TUN}")
    with pytest.raises(TunGone, match="agent0 is gone"):
        device.router.apply(FULL)
    assert str(GATEWAY) not in device.namespace.run("ip", "route").stdout
    assert str(GATEWAY6) not in device.namespace.run("ip", "-6", "route").stdout


PROGRAM = """
import sys, time
from pathlib import Path
sys.path.insert(0, {folder!r})
from test_agent_routing import FULL, TUN
from zgate_agent.routing import Router
from zgate_datapath.tun import Tun
tun = Tun.open(TUN)
router = Router(TUN, Path({file!r}))
router.apply(FULL)
print("programmed", flush=True)
time.sleep(60)
"""


def test_what_a_killed_agent_leaves_is_removed_at_the_next_start(
    namespace: Namespace, tmp_path: Path
) -> None:
    file = tmp_path / "network.json"
    script = PROGRAM.format(folder=str(Path(__file__).parent), file=str(file))
    before = routes(namespace)
    process = namespace.spawn("agent", sys.executable, "-c", script)
    process.wait_for_output("programmed", 10)
    assert TUN in routes(namespace)
    process.signal(signal.SIGKILL)
    process.wait(10)
    # The TUN took its routes along; the pins are still there.
    assert TUN not in routes(namespace)
    assert str(GATEWAY) in routes(namespace)
    assert str(GATEWAY6) in routes(namespace)
    # Somebody else's route to the same address is nobody's leftover.
    namespace.ip(f"route add {GATEWAY} via 198.18.2.1 dev wlan0 metric 7")
    with namespace.entered():
        assert Router(TUN, file).clean_up_leftovers() == 4
        assert Router(TUN, file).clean_up_leftovers() == 0
    namespace.ip(f"route del {GATEWAY} via 198.18.2.1 dev wlan0 metric 7")
    assert routes(namespace) == before
    assert not file.exists()


def routes(namespace: Namespace) -> str:
    return "\n".join(
        namespace.run("ip", *family, "route", "show", "table", "main").stdout
        for family in ((), ("-6",))
    )


@pytest.mark.parametrize(
    "change",
    [
        "addr add 198.18.1.77/24 dev eth0",
        "addr del 2001:db8:1::2/64 dev eth0",
        f"route del default via {ROUTER}",
        f"route change default via {ROUTER6} dev eth0 metric 100 mtu 1300",
        "link set eth0 down",
        f"link set {TUN} down",
        f"route del 0.0.0.0/1 dev {TUN}",
        f"link del {TUN}",
    ],
)
def test_changes_are_noticed(device: Device, change: str) -> None:
    device.router.apply(FULL)

    async def body() -> None:
        noticed = asyncio.Event()
        with device.namespace.entered():
            watch = NetWatch(socket.if_nametoindex(TUN), noticed.set)
        with closing(watch):
            await asyncio.to_thread(device.namespace.ip, change)
            await asyncio.wait_for(noticed.wait(), 5)

    asyncio.run(body())


def test_what_the_agent_does_itself_is_not_noticed(device: Device) -> None:
    device.router.apply(NetworkPlan(mtu_bytes=1400))

    async def body() -> None:
        noticed = asyncio.Event()
        with device.namespace.entered():
            watch = NetWatch(socket.if_nametoindex(TUN), noticed.set)
        with closing(watch):
            await asyncio.to_thread(_apply_in, device)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(noticed.wait(), 0.5)

    asyncio.run(body())


def _apply_in(device: Device) -> None:
    with device.namespace.entered():
        device.router.apply(FULL)
