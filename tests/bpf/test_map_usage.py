"""How full each map is, and that none is left out."""

from ipaddress import ip_address

import pytest
from bpf_support import packets as p
from bpf_support.policies import allow
from bpf_support.world import ALICE4, ALICE6, BOB4, SERVER4, World
from zgate_bpf.kernel_policy import Capacity, KernelPolicy, MapUsage
from zgate_bpf.layouts import EVENT

FIXED = {"active", "drops", "statistics", "masks", "scratch"}
RECORD_BYTES = EVENT.size_bytes + 8  # with the ring's own header


@pytest.fixture
def small():
    capacity = Capacity(max_clients=4, max_flows=1024, max_fragments=128, event_buffer_bytes=4096)
    with KernelPolicy(capacity=capacity) as kernel:
        yield World(kernel, 0)


def test_every_map_that_can_be_full_is_there(small):
    names = {name for name, _ in small.kernel._maps()}
    assert names >= FIXED
    assert set(small.kernel.map_usage()) == names - FIXED


def test_empty(small):
    usage = small.kernel.map_usage()
    assert {use.used for use in usage.values()} == {0}
    assert all(use.capacity > 0 for use in usage.values())


def test_what_clients_take(small):
    for address, index in ((ALICE4, 1), (ALICE6, 1), (BOB4, 3)):
        small.kernel.set_client(ip_address(address), index)
    usage = small.kernel.map_usage()
    assert usage["clients"] == MapUsage(3, 8)
    for name in ("counters", "gates", "limiters"):
        assert usage[name] == MapUsage(2, 4)
    small.kernel.remove_client(ip_address(BOB4))
    assert small.kernel.map_usage()["limiters"] == MapUsage(1, 4)


def test_what_traffic_takes(small):
    small.kernel.set_client(ip_address(ALICE4), 1)
    small.policy(allow("0.0.0.0/0"))
    for port in range(5):
        small.up(p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(port, 53)))
    small.up(p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(0, 53), identification=9, more=True))
    usage = small.kernel.map_usage()
    assert usage["flows"] == MapUsage(5, 1024)
    assert usage["fragments"] == MapUsage(1, 128)
    small.up(p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(7, 53)))
    assert small.kernel.map_usage(usage)["flows"] == usage["flows"], "not read through again"
    assert small.kernel.map_usage(usage)["events"].used > usage["events"].used
    assert small.kernel.map_usage()["flows"] == MapUsage(6, 1024)
    assert usage["assignments"] == MapUsage(1, 4)
    assert usage["policies"].used == 1
    # Records begin at multiples of 8.
    assert usage["events"] == MapUsage(5 * (-(-RECORD_BYTES // 8) * 8), 4096)
    assert len(small.events()) == 6
    assert small.kernel.map_usage()["events"].used == 0
