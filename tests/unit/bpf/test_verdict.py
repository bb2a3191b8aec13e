import errno
import struct

import pytest
from zgate_bpf import verdict
from zgate_bpf.errors import BpfError
from zgate_bpf.layouts import DRY_RUN_MARK, VerdictFlag
from zgate_bpf.syscalls import TestRun
from zgate_protocol.drop_reason import DropReason

PACKET = b"\x45" + bytes(19)


@pytest.fixture
def kernel(monkeypatch):
    """Stands in for the system call: answers what the test sets, and notes what it was asked."""

    class Kernel:
        result = 0
        words = (0, 7, 3, 9)
        error = None

        def run(self, fd, data, context, *, repeat):
            self.data, self.context, self.repeat = data, context, repeat
            if self.error is not None:
                raise self.error
            answer = bytearray(context)
            struct.pack_into("=4I", answer, 48, *self.words)
            return TestRun(self.result, data, bytes(answer), 123)

    made = Kernel()
    monkeypatch.setattr(verdict.syscalls, "program_test_run", made.run)
    return made


def test_words_become_a_verdict(kernel):
    kernel.words = (VerdictFlag.KNOWN_FLOW << 8, 7, 3, 9)
    found = verdict.run_packet(5, PACKET, dry_run=True, repeat=4, gso_segs=2, gso_size=100)
    assert found.passed
    assert (found.client_index, found.rule, found.revision, found.duration_ns) == (7, 3, 9, 123)
    assert found.known_flow
    assert not found.new_flow
    assert kernel.repeat == 4
    assert struct.unpack_from("=I", kernel.context, 8) == (DRY_RUN_MARK,)
    assert struct.unpack_from("=I", kernel.context, 164) == (2,)
    assert struct.unpack_from("=I", kernel.context, 176) == (100,)


@pytest.mark.parametrize(("first", "ethertype"), [(0x45, 0x0800), (0x60, 0x86DD), (0xF0, 0x0800)])
def test_packet_goes_behind_an_ethernet_header(kernel, first, ethertype):
    packet = bytes([first]) + bytes(39)
    verdict.run_packet(5, packet, dry_run=False)
    assert kernel.data == bytes(12) + struct.pack("!H", ethertype) + packet
    assert struct.unpack_from("=I", kernel.context, 8) == (0,)


@pytest.mark.parametrize(("result", "reason"), [(0, DropReason.NO_CLIENT), (2, DropReason.NONE)])
def test_program_that_contradicts_itself(kernel, result, reason):
    kernel.result, kernel.words = result, (reason, 0, 0, 0)
    with pytest.raises(BpfError, match=reason.name):
        verdict.run_packet(5, PACKET, dry_run=True)


def test_errors_of_the_kernel(kernel):
    kernel.error = OSError(errno.EINVAL, "no")
    with pytest.raises(ValueError, match="20 bytes"):
        verdict.run_packet(5, PACKET, dry_run=True)
    kernel.error = PermissionError(errno.EPERM, "no")
    with pytest.raises(PermissionError):
        verdict.run_packet(5, PACKET, dry_run=True)
