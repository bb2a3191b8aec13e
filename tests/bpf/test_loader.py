"""What the kernel says of programs, and what the programs cost it."""

import os
import signal
import struct
import threading

import pytest
from bpf_support.complexity import VERIFIED_INSTRUCTIONS
from zgate_bpf import loader, syscalls
from zgate_bpf.errors import BpfLoadError
from zgate_bpf.kernel_policy import Capacity, KernelPolicy

# The kernel's own limit is 1,000,000. Kernel 6.1 finds fewer equal states than newer ones: it
# counts 561,000 where 6.18 counts 196,000.
MOST_VERIFIED_INSTRUCTIONS = 600_000


def test_programs_are_not_too_complex(kernel, record_property):
    for name, fd in (("zg_ingress", kernel.ingress_fd), ("zg_egress", kernel.egress_fd)):
        verified = syscalls.verified_instructions(fd)
        record_property(VERIFIED_INSTRUCTIONS, f"{name} {verified:,}")
        assert 1000 < verified < MOST_VERIFIED_INSTRUCTIONS


def test_refused_program_shows_the_verifiers_log():
    reads_a_null_pointer = struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x79, 0, 0, 0)
    with pytest.raises(BpfLoadError, match=r"refused program wrong: .*\n(.*\n)*.*R0 invalid mem"):
        loader.load_program(
            reads_a_null_pointer + struct.pack("<BBhi", 0x95, 0, 0, 0), name="wrong"
        )


def test_maps_that_the_kernel_does_not_make():
    with pytest.raises(BpfLoadError, match="BPF maps: "):
        KernelPolicy(capacity=Capacity(max_clients=4, max_flows=64, event_buffer_bytes=1000))


def descriptors():
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names, not paths


def test_everything_is_given_back():
    before = descriptors()
    with KernelPolicy(max_clients=4, max_flows=64) as kernel:
        generation = kernel.begin(1)
        generation.verify()
        generation.activate()
        kernel.begin(2)
        assert len(descriptors()) > len(before)
    assert descriptors() == before
    with pytest.raises(BpfLoadError):
        KernelPolicy(capacity=Capacity(max_clients=4, max_flows=64, event_buffer_bytes=1000))
    assert descriptors() == before


def test_signals_do_not_keep_programs_out(monkeypatch):
    """The kernel's verifier gives up when a signal comes: a frozen or a traced process has them."""
    real, interrupted, signals = syscalls._bpf, [], 3

    def with_signals(command, attributes):
        if command is not syscalls.Command.PROG_LOAD or len(interrupted) >= signals:
            return real(command, attributes)
        me = threading.get_ident()
        done = threading.Event()

        def poke():
            while not done.wait(0.005):
                signal.pthread_kill(me, signal.SIGUSR1)

        thread = threading.Thread(target=poke)
        thread.start()
        try:
            return real(command, attributes)
        except BlockingIOError:
            interrupted.append(command)
            raise
        finally:
            done.set()
            thread.join()

    monkeypatch.setattr(syscalls, "_bpf", with_signals)
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with KernelPolicy(max_clients=4, max_flows=64) as kernel:
            assert kernel.ingress_fd > 0
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(interrupted) >= signals
