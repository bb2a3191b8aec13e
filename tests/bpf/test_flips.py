"""A thousand changes of policy under traffic: no packet in between is judged by neither or both.

What leaves the programs is received on the other side of the TUN by sockets in its namespace.
"""

import socket
import threading
import time

import pytest
from bpf_support import packets as p
from bpf_support.device import GATEWAY4, Device, device, with_udp_checksum
from bpf_support.policies import allow, compiled, deny
from bpf_support.world import ALICE, ALICE4
from zgate_lab.waiting import SLOWNESS
from zgate_protocol.drop_reason import DropReason as Reason

__all__ = ["Device", "device"]

FLIPS = int(1_000 / SLOWNESS)
BOTH, NEITHER, FIRST, SECOND = 5000, 5001, 5002, 5003
GATEWAY = f"{GATEWAY4}/32"
GAP_S = 0.002


def udp(*ports):
    return allow(GATEWAY, protocol=p.UDP, ports=ports)


POLICIES = (
    (deny(GATEWAY, protocol=p.UDP, ports=(NEITHER, NEITHER)), udp(BOTH, BOTH), udp(FIRST, FIRST)),
    (udp(SECOND, SECOND), udp(BOTH, BOTH)),
)


class Traffic(threading.Thread):
    """Numbered packets to each port, one after the other, until told to stop."""

    def __init__(self, device):
        super().__init__()
        self.device = device
        self.rounds = 0
        self.enough = threading.Event()

    def run(self):
        while not self.enough.is_set():
            number = self.rounds.to_bytes(4)
            for port in (BOTH, NEITHER, FIRST, SECOND):
                # Half on a known flow, half on new ones.
                source = 4000 if self.rounds % 2 else 10_000 + self.rounds % 40_000
                self.device.write(with_udp_checksum(ALICE4, GATEWAY4, source, port, number))
            self.rounds += 1
            time.sleep(GAP_S)


#: Not in Python's socket module.
SO_RCVBUFFORCE = 33


class Receivers:
    """What arrived at each port."""

    def __init__(self, namespace):
        self.sockets = {}
        with namespace.entered():
            for port in (BOTH, NEITHER, FIRST, SECOND):
                made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                made.bind((GATEWAY4, port))
                # Room for all that comes while nobody reads.
                made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
                made.setblocking(False)
                self.sockets[port] = made
        self.numbers = {port: [] for port in self.sockets}

    def drain(self):
        for port, receiver in self.sockets.items():
            while True:
                try:
                    self.numbers[port].append(int.from_bytes(receiver.recv(100)))
                except BlockingIOError:
                    break

    def close(self):
        for receiver in self.sockets.values():
            receiver.close()


@pytest.mark.timeout(120)
def test_thousand_flips_under_traffic(device):
    kernel = device.world.kernel
    receivers = Receivers(device.namespace)
    traffic = Traffic(device)
    policies = [compiled(rules) for rules in POLICIES]
    old = []
    try:
        for revision in range(1, FLIPS + 1):
            generation = kernel.begin(revision)
            generation.assign(ALICE, generation.add_policy(policies[revision % 2]))
            generation.verify()
            generation.activate()
            if revision == 1:
                traffic.start()
            # Whatever was told so far may be the old revision's, nothing from here on.
            device.world.events()
            time.sleep(GAP_S)
            old += [event for event in device.world.events() if event.revision != revision]
            receivers.drain()
    finally:
        traffic.enough.set()
        traffic.join()
    receivers.drain()
    sent = list(range(traffic.rounds))
    assert len(sent) > FLIPS
    assert receivers.numbers[BOTH] == sent
    assert receivers.numbers[NEITHER] == []
    assert 0 < len(receivers.numbers[FIRST]) < len(sent)
    assert 0 < len(receivers.numbers[SECOND]) < len(sent)
    assert old == []
    assert device.world.drops(Reason.INTERNAL) == device.world.drops(Reason.NO_POLICY) == 0
    receivers.close()
