"""A client with limits: its packets, what it was charged, and what it should have been."""

import struct
import time
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import count

from zgate_bpf import layouts
from zgate_bpf.kernel_policy import UNLIMITED
from zgate_bpf.limits import COST_SHIFT, FLOW_BURST_NS
from zgate_bpf.maps import index_key
from zgate_bpf.tables import Action
from zgate_lab.waiting import SLOWNESS

from bpf_support import packets as p
from bpf_support.policies import compiled
from bpf_support.world import ALICE4, ALICE6, SERVER4

# Limiters are never reset, so every test has an index of its own.
_indexes = count(100)
EVERYTHING = compiled([], default=Action.ALLOW)
WAIT_S = 10.0 * SLOWNESS
_CLOCK_MONOTONIC_COARSE = 6  # include/uapi/linux/time.h; Python has no name for it


def now_ns():
    """The clock that the program reads."""
    return time.clock_gettime_ns(_CLOCK_MONOTONIC_COARSE)


@dataclass
class Due:
    """A client's limiter, as it lies in the kernel."""

    up_ns: int
    down_ns: int
    flows_ns: int
    told_ns: int


class LimitedClient:
    """Alice under an index that no test had before."""

    def __init__(self, world, limits=UNLIMITED, policy=EVERYTHING):
        self.world = world
        self.kernel = world.kernel
        self.index = next(_indexes)
        self.kernel.reset_counters(self.index)
        for address in (ALICE4, ALICE6):
            self.kernel.set_client(ip_address(address), self.index)
        self.policy(limits, policy)

    def policy(self, limits, policy=EVERYTHING):
        """A new revision; gives its generation."""
        generation = self.begin(limits, policy)
        generation.verify()
        generation.activate()
        self.world.generation = generation
        return generation

    def begin(self, limits, policy=EVERYTHING):
        self.world.revision += 1
        generation = self.kernel.begin(self.world.revision)
        generation.assign(self.index, generation.add_policy(policy), limits)
        return generation

    @property
    def due(self):
        return Due(*layouts.LIMITER.unpack(self.kernel._limiters.lookup(index_key(self.index))))

    def set_due(self, **changes):
        """Make the client owe something, without the packets that it would take."""
        due = Due(**{**vars(self.due), **changes})
        value = layouts.LIMITER.pack(due.up_ns, due.down_ns, due.flows_ns, due.told_ns)
        self.kernel._limiters.update(index_key(self.index), value)

    @property
    def counters(self):
        return self.kernel.counters(self.index)

    def exhaust(self, run):
        """Repeat until a packet does not pass; gives that verdict."""
        end = time.monotonic() + WAIT_S
        while (verdict := run()).passed:
            assert time.monotonic() < end, "no limit"
        return verdict

    def waits(self, run):
        """Repeat until a packet passes; gives that verdict."""
        end = time.monotonic() + WAIT_S
        while not (verdict := run()).passed:
            assert time.monotonic() < end, "never passed"
            time.sleep(0.002)
        return verdict


class Meter:
    """GCRA in plain words: one limit of the reference."""

    def __init__(self, burst_ns):
        self.burst_ns = burst_ns
        self.due_ns = 0

    def takes(self, cost_ns, now_ns):
        """Whether there is room for as much; charges it if so."""
        from_ns = max(self.due_ns, now_ns)
        if self.due_ns > now_ns and from_ns + cost_ns > now_ns + self.burst_ns:
            return False
        self.due_ns = from_ns + cost_ns
        return True


def bytes_cost_ns(limits, size):
    return size * limits.byte_cost >> COST_SHIFT


def meters(limits):
    return Meter(limits.burst_ns), Meter(limits.burst_ns), Meter(FLOW_BURST_NS)


def udp_up(port=4000, size=100, client=ALICE4, server=SERVER4, to=53):
    """A UDP packet of `size` bytes."""
    header = 28 if ip_address(client).version == 4 else 48
    return p.ip(client, server, p.UDP, p.udp(port, to, bytes(size - header)))


def udp_down(port=4000, size=100, client=ALICE4, server=SERVER4):
    header = 28 if ip_address(client).version == 4 else 48
    return p.ip(server, client, p.UDP, p.udp(53, port, bytes(size - header)))


def big(packet_bytes):
    """Segments that make a packet of 40 header bytes so large on the wire, and the packet."""
    packet = p.ipv4(ALICE4, SERVER4, p.TCP, p.tcp(4000, 443, p.ACK, bytes(1000)))
    segments = (packet_bytes - len(packet)) // 40 + 1
    return packet, segments, len(packet) + (segments - 1) * 40


def addresses(first, how_many):
    """So many destinations, as bytes."""
    start = int(ip_address(first))
    return (struct.pack("!I", start + number) for number in range(how_many))
