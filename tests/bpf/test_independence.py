"""Verdicts need nobody: the process that loaded the programs is stopped, packets go on."""

import multiprocessing
import os
import signal
import socket
import time
from ipaddress import ip_address

import pytest
from bpf_support.device import (
    GATEWAY4,
    SMALL,
    WAIT_S,
    Device,
    attach,
    bring_up,
    open_tun,
    with_udp_checksum,
)
from bpf_support.policies import allow
from bpf_support.world import ALICE, ALICE4, OTHER4, World
from zgate_bpf.kernel_policy import KernelPolicy
from zgate_lab.lab import Lab

STOPPED_S = 10.0
GAP_S = 0.01
ALLOWED, DENIED = 5000, 5001


def load_and_hold(namespace, ready):
    """What the daemon is to the kernel: it loads, attaches, and holds the descriptors."""
    with KernelPolicy(capacity=SMALL) as kernel:
        attach(namespace, kernel)
        world = World(kernel, 0)
        kernel.set_client(ip_address(ALICE4), ALICE)
        world.policy(allow(f"{GATEWAY4}/32", protocol=17, ports=(ALLOWED, ALLOWED)))
        ready.set()
        signal.pause()


def receiver(namespace, port):
    with namespace.entered():
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((GATEWAY4, port))
    made.settimeout(WAIT_S)
    return made


@pytest.mark.timeout(60)
def test_verdicts_stay_right_while_the_loader_is_stopped():
    """This process holds the TUN too, and writes into it while the loader cannot run."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    with Lab() as lab:
        namespace, fd = open_tun(lab)
        loader = context.Process(target=load_and_hold, args=(namespace, ready))
        loader.start()
        try:
            assert ready.wait(6 * WAIT_S)
            bring_up(namespace)
            os.kill(loader.pid, signal.SIGSTOP)
            with receiver(namespace, ALLOWED) as passes, receiver(namespace, DENIED) as denied:
                write_and_watch(Device(fd, namespace, None), passes, denied)
            assert is_stopped(loader.pid)
        finally:
            os.kill(loader.pid, signal.SIGKILL)
            loader.join()
            os.close(fd)


def write_and_watch(device, passes, denied):
    end = time.monotonic() + STOPPED_S
    sent = 0
    while time.monotonic() < end:
        number = sent.to_bytes(4)
        for client, port in ((ALICE4, DENIED), (OTHER4, ALLOWED), (ALICE4, ALLOWED)):
            # New flows all the time: each is judged by the policy.
            packet = with_udp_checksum(client, GATEWAY4, 10_000 + sent, port, number)
            device.write(packet)
        data, sender = passes.recvfrom(100)
        assert (data, sender) == (number, (ALICE4, 10_000 + sent))
        passes.sendto(b"answer", sender)
        assert device.read().endswith(b"answer")
        passes.sendto(b"unasked", (ALICE4, 9))
        sent += 1
        time.sleep(GAP_S)
    assert sent > 100
    denied.setblocking(False)
    with pytest.raises(BlockingIOError):
        denied.recv(100)
    passes.setblocking(False)
    with pytest.raises(BlockingIOError):
        passes.recv(100)


def is_stopped(pid):
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
        return file.read().rsplit(")", 1)[1].split()[0] == "T"
