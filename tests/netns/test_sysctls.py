"""What makes the host a router, and what is left of it afterwards: nothing."""

import contextlib
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from zgate_gateway.net.errors import NetError
from zgate_host.sysctls import Forwarding, Sysctls, read_forwarding
from zgate_lab.internet import Internet
from zgate_lab.lab import Lab, Namespace
from zgate_lab.namespace import command_in
from zgate_lab.waiting import wait_until

NETWORK_SYSCTLS = Path("/proc/sys/net")


@pytest.fixture
def host(lab: Lab) -> Iterator[Namespace]:
    """A host with two interfaces, as different from each other as a host has them."""
    namespace = lab.add_namespace("host")
    namespace.ip("link add eth0 type veth peer name eth1", "link set eth0 up", "link set eth1 up")
    namespace.sysctl("net.ipv4.conf.eth0.forwarding", 1)
    namespace.sysctl("net.ipv4.conf.all.accept_redirects", 0)
    namespace.sysctl("net.ipv6.conf.eth1.forwarding", 1)
    namespace.sysctl("net.ipv6.conf.eth1.accept_ra", 0)
    with namespace.entered():
        yield namespace


@pytest.fixture
def state_file(tmp_path: Path) -> Path:
    return tmp_path / "run" / "sysctls.json"


def snapshot() -> dict[str, str]:
    """Every readable sysctl of the namespace but those that change by themselves."""
    found = {}
    for path in NETWORK_SYSCTLS.glob("ipv[46]/**/*"):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if path.is_file() and "stable_secret" not in path.name:
                found[str(path)] = path.read_text().strip()
    return found


def test_everything_is_put_back(host: Namespace, state_file: Path) -> None:
    before = snapshot()
    sysctls = Sysctls(state_file)
    assert read_forwarding() == Forwarding(is_on_ipv4=False, is_on_ipv6=False)
    sysctls.enable_forwarding("zgate0")
    assert read_forwarding() == Forwarding(is_on_ipv4=True, is_on_ipv6=True)
    assert snapshot() != before
    sysctls.restore()
    assert snapshot() == before
    assert not state_file.exists()
    sysctls.restore()
    assert snapshot() == before


def test_a_host_that_forwards_already_goes_on_forwarding(host: Namespace, state_file: Path) -> None:
    host.make_router()
    before = snapshot()
    sysctls = Sysctls(state_file)
    sysctls.enable_forwarding("zgate0")
    assert snapshot() == before
    sysctls.restore()
    assert snapshot() == before


def test_one_family_may_forward_already(host: Namespace, state_file: Path) -> None:
    host.sysctl("net.ipv4.ip_forward", 1)
    before = snapshot()
    sysctls = Sysctls(state_file)
    sysctls.enable_forwarding("zgate0")
    assert read_forwarding() == Forwarding(is_on_ipv4=True, is_on_ipv6=True)
    sysctls.restore()
    assert snapshot() == before


def test_what_somebody_else_changed_meanwhile_is_left_alone(
    host: Namespace, state_file: Path
) -> None:
    sysctls = Sysctls(state_file)
    sysctls.enable_forwarding("zgate0")
    host.sysctl("net.ipv6.conf.eth0.accept_ra", 0)  # was 2 with the gateway, and 1 before
    sysctls.restore()
    assert host.sysctl("net.ipv6.conf.eth0.accept_ra") == "0"


def test_an_interface_that_is_gone_is_no_trouble(host: Namespace, state_file: Path) -> None:
    sysctls = Sysctls(state_file)
    sysctls.enable_forwarding("zgate0")
    host.ip("link del eth0")
    sysctls.restore()
    assert read_forwarding() == Forwarding(is_on_ipv4=False, is_on_ipv6=False)


def test_forwarding_switched_off_by_somebody_else_is_noticed(
    host: Namespace, state_file: Path
) -> None:
    sysctls = Sysctls(state_file)
    sysctls.enable_forwarding("zgate0")
    sysctls.verify()
    host.sysctl("net.ipv6.conf.all.forwarding", 0)
    with pytest.raises(NetError, match="ipv6/conf/all/forwarding was set to 0"):
        sysctls.verify()


KILLED = """
import os, signal, sys
from pathlib import Path
from zgate_host.sysctls import Sysctls
Sysctls(Path(sys.argv[1])).enable_forwarding("zgate0")
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_gateway(host: Namespace, state_file: Path) -> None:
    """Run a process that enables forwarding and is killed."""
    argv = command_in(host.name, [sys.executable, "-c", KILLED, str(state_file)])
    assert subprocess.run(argv, check=False, timeout=60).returncode == -signal.SIGKILL


def test_after_a_sigkill_the_next_start_puts_everything_back(
    host: Namespace, state_file: Path
) -> None:
    before = snapshot()
    killed_gateway(host, state_file)
    assert read_forwarding() == Forwarding(is_on_ipv4=True, is_on_ipv6=True)
    assert Sysctls(state_file).restore_leftovers() > 2
    assert snapshot() == before
    assert Sysctls(state_file).restore_leftovers() == 0


def test_a_state_file_of_another_namespace_changes_nothing(
    host: Namespace, lab: Lab, state_file: Path
) -> None:
    killed_gateway(host, state_file)
    other = lab.add_namespace("other", router=True)
    with other.entered():
        assert Sysctls(state_file).restore_leftovers() == 0
        assert read_forwarding() == Forwarding(is_on_ipv4=True, is_on_ipv6=True)
    assert not state_file.exists()


def test_a_state_file_from_before_a_reboot_changes_nothing(
    host: Namespace, state_file: Path
) -> None:
    killed_gateway(host, state_file)
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    state_file.write_text(state_file.read_text().replace(boot_id, "another"))
    assert Sysctls(state_file).restore_leftovers() == 0
    assert read_forwarding() == Forwarding(is_on_ipv4=True, is_on_ipv6=True)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"changes": 7}'])
def test_an_unreadable_state_file_is_put_aside(
    host: Namespace, state_file: Path, content: bytes
) -> None:
    state_file.parent.mkdir()
    state_file.write_bytes(content)
    assert Sysctls(state_file).restore_leftovers() == 0
    assert not state_file.exists()
    assert state_file.with_suffix(".unreadable").read_bytes() == content


ROUTER_ADVERTISEMENT = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)


def test_a_default_route_from_a_router_advertisement_survives(
    internet: Internet, state_file: Path
) -> None:
    gateway = internet.gateway.namespace
    gateway.ip("route del ::/0")
    advertise(internet.transit, "gateway")

    def learned() -> bool:
        return "proto ra" in gateway.run("ip", "-6", "route", "show", "default").stdout

    wait_until(learned, 5.0, "the default route from the advertisement")
    assert gateway.sysctl("net.ipv6.conf.uplink.accept_ra") == "1"
    sysctls = Sysctls(state_file)
    with gateway.entered():
        sysctls.enable_forwarding("zgate0")
    assert learned()
    assert gateway.sysctl("net.ipv6.conf.uplink.accept_ra") == "2"
    with gateway.entered():
        sysctls.restore()
    assert gateway.sysctl("net.ipv6.conf.uplink.accept_ra") == "1"


def advertise(router: Namespace, interface: str) -> None:
    """Send one router advertisement to all nodes, from the router's link-local address."""
    with router.entered():
        index = socket.if_nametoindex(interface)
        sender = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    with sender:
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        sender.sendto(ROUTER_ADVERTISEMENT, ("ff02::1", 0, 0, index))
