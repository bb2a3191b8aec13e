"""Asking the loaded program itself: one packet in, its verdict out (BPF_PROG_TEST_RUN)."""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass

from zgate_protocol.drop_reason import DropReason

from zgate_bpf import syscalls
from zgate_bpf.errors import BpfError
from zgate_bpf.layouts import DRY_RUN_MARK, VerdictFlag

ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_IPV6 = 0x86DD

_TC_ACT_OK = 0

# Where members of struct __sk_buff lie (include/uapi/linux/bpf.h: part of the kernel's ABI).
_CONTEXT_BYTES = 192
_MARK = 8
_CONTROL_BLOCK = 48
_GSO_SEGS = 164
_GSO_SIZE = 176

_ETHERNET_BYTES = 14


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the program says of a packet.

    :ivar reason: ``NONE`` if it passed.
    :ivar client_index: ``NO_CLIENT`` if the address belongs to none.
    :ivar rule: global number, see ``Generation.rule_of``; ``NO_RULE`` when none decided.
    :ivar revision: of the policy set that judged; 0 when it did not come to that.
    :ivar known_flow: the flow table had it.
    :ivar related: it is an ICMP error about a known flow.
    :ivar new_flow: it opens a flow.
    :ivar judged: the policy was asked, not only the flow table.
    :ivar chosen: its flow, to a service, was given to an offer now.
    :ivar handed_on: it is counted as dropped, but goes into the TUN, where its reader answers it.
    :ivar no_offer: a dry run up found that the packet may pass to a service that nobody offers,
        or a network that nobody leads to: ``NO_BACKEND`` is what would become of it.
    :ivar mark: the packet's mark afterwards, ``PASS_MARK`` is what the firewall looks for;
        a dry run sets none.
    :ivar packet: as the program left it.
    :ivar duration_ns: of one run, the mean of all repetitions.
    """

    passed: bool
    reason: DropReason
    client_index: int
    rule: int
    revision: int
    known_flow: bool
    related: bool
    new_flow: bool
    judged: bool
    mark: int
    duration_ns: int
    chosen: bool = False
    handed_on: bool = False
    no_offer: bool = False
    packet: bytes = b""


def run_packet(
    program_fd: int,
    packet: bytes,
    *,
    dry_run: bool,
    repeat: int = 1,
    gso_segs: int = 0,
    gso_size: int = 0,
    ethertype: int | None = None,
) -> Verdict:
    """Run a loaded policy program on an IP packet.

    The kernel wants an Ethernet header before it and shows it to the program, which knows a
    test run by its device and skips the header: what runs is what is attached.

    Raises:
        ValueError: the kernel runs no test on a packet of this size (on recent kernels less
            than an IP header, everywhere more than some 3,500 bytes).
    """
    context = bytearray(_CONTEXT_BYTES)
    struct.pack_into("=I", context, _MARK, DRY_RUN_MARK if dry_run else 0)
    struct.pack_into("=I", context, _GSO_SEGS, gso_segs)
    struct.pack_into("=I", context, _GSO_SIZE, gso_size)
    frame = bytes(_ETHERNET_BYTES - 2) + struct.pack("!H", ethertype or _ethertype(packet)) + packet
    try:
        run = syscalls.program_test_run(program_fd, frame, bytes(context), repeat=repeat)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise ValueError(f"the kernel tests no packet of {len(packet)} bytes") from error
        raise
    return _verdict(run)


def _ethertype(packet: bytes) -> int:
    return ETHERTYPE_IPV6 if packet[:1] and packet[0] >> 4 == 6 else ETHERTYPE_IPV4


def _verdict(run: syscalls.TestRun) -> Verdict:
    word, client_index, rule, revision = struct.unpack_from("=4I", run.context, _CONTROL_BLOCK)
    (mark,) = struct.unpack_from("=I", run.context, _MARK)
    reason, flags = DropReason(word & 0xFF), VerdictFlag(word >> 8)
    passed = run.result == _TC_ACT_OK
    # A packet that nobody takes is counted as dropped; in the TUN somebody answers it.
    if passed != (reason is DropReason.NONE) and reason is not DropReason.NO_BACKEND:
        raise BpfError(f"the program returned {run.result} and gave the reason {reason.name}")
    return Verdict(
        passed=reason is DropReason.NONE,
        reason=reason,
        client_index=client_index,
        rule=rule,
        revision=revision,
        known_flow=VerdictFlag.KNOWN_FLOW in flags,
        related=VerdictFlag.RELATED in flags,
        new_flow=VerdictFlag.NEW_FLOW in flags,
        judged=VerdictFlag.JUDGED in flags,
        chosen=VerdictFlag.CHOSEN in flags,
        handed_on=passed and reason is not DropReason.NONE,
        no_offer=VerdictFlag.NO_OFFER in flags,
        mark=mark,
        packet=run.data[_ETHERNET_BYTES:],
        duration_ns=run.duration_ns,
    )
