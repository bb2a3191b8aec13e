"""A gateway host without a daemon: a TUN, tiny BPF programs, and a client behind the TUN."""

import os
import sys
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from connector_support.site import Site, open_site
from zgate_gateway.net.netstate import NetworkSettings
from zgate_lab.cable import Cable
from zgate_lab.internet import Internet
from zgate_lab.lab import Lab, Namespace
from zgate_lab.tiny_bpf import TinyProgram
from zgate_lab.wan import open_tun


@pytest.fixture
def load() -> Iterator[Callable[[TinyProgram], int]]:
    """Loads tiny programs, and closes them after the test."""
    loaded: list[int] = []

    def load_one(program: TinyProgram) -> int:
        loaded.append(program.load())
        return loaded[-1]

    yield load_one
    for descriptor in loaded:
        os.close(descriptor)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(params=("root", "nobody"))
def site(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Site]:
    """A connector's data part between a device and the connector's host."""
    with open_site(lab, as_nobody=request.param == "nobody") as site:
        yield site


@pytest.fixture
def internet() -> Iterator[Internet]:
    with Internet.open() as internet:
        yield internet


@pytest.fixture
def settings(tmp_path: Path) -> NetworkSettings:
    return NetworkSettings(
        tun_name="zgate0",
        mtu_bytes=1400,
        ipv4_pool=IPv4Network("10.100.0.0/16"),
        ipv6_pool=IPv6Network("fd7a:7a67:6174:65::/64"),
        state_file=tmp_path / "sysctls.json",
    )


@pytest.fixture
def tun(internet: Internet) -> Iterator[int]:
    """The gateway's TUN, open and down."""
    descriptor = open_tun(internet.gateway.namespace.name, "zgate0")
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def client(internet: Internet, tun: int, settings: NetworkSettings) -> Iterator[Namespace]:
    """A host behind the gateway's TUN, which is its only way out: the second host of each pool."""
    namespace = internet.lab.add_namespace("client")
    own_tun = open_tun(namespace.name, "tun0")
    # No link-local address: the kernel would say things of its own with it.
    namespace.sysctl("net.ipv6.conf.tun0.addr_gen_mode", 1)
    namespace.ip(
        f"addr add {settings.ipv4_pool[2]}/32 dev tun0",
        f"addr add {settings.ipv6_pool[2]}/128 dev tun0 nodad",
        "link set tun0 mtu 1500 up",
        "route add default dev tun0",
        "route add ::/0 dev tun0",
    )
    with Cable(own_tun, tun):
        yield namespace
    os.close(own_tun)
