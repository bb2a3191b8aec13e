"""Frames to the edge program, and what it said of each."""

import struct

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

GATEWAY4, GATEWAY6 = "203.0.113.10", "2001:db8:f::10"
STRANGER4, STRANGER6 = "198.51.100.7", "2001:db8:7::7"
PORT = 443
V1, V2, UNKNOWN_VERSION = 1, 0x6B3343CF, 0x1A2A3A4A
INITIAL, ZERO_RTT, HANDSHAKE, RETRY = 0, 1, 2, 3
MIN_INITIAL_BYTES = 1200
CID = bytes(range(8))
# Without addresses scapy would ask the network for them.
MACS = {"src": "02:00:00:00:00:01", "dst": "02:00:00:00:00:02"}


def short(size=100, first=0x40, cid=CID):
    return (bytes([first]) + cid).ljust(size, b"s")[:size]


def long_header(kind=INITIAL, version=V1, dcid=CID, scid=b"", size=MIN_INITIAL_BYTES, first=0xC0):
    bits = kind if version != V2 else (kind + 1) % 4  # RFC 9369 section 3.2
    head = bytes([first | bits << 4]) + struct.pack("!I", version)
    return (head + bytes([len(dcid)]) + dcid + bytes([len(scid)]) + scid).ljust(size, b"l")


def ip4(payload, *, source=STRANGER4, destination=GATEWAY4, port=PORT, udp=None, **fields):
    upper = UDP(sport=50000, dport=port, **(udp or {}))
    return Ether(**MACS) / IP(src=source, dst=destination, **fields) / upper / Raw(payload)


def ip6(payload, *headers, source=STRANGER6, destination=GATEWAY6, port=PORT):
    packet = Ether(**MACS) / IPv6(src=source, dst=destination)
    for header in headers:
        packet = packet / header
    return packet / UDP(sport=50000, dport=port) / Raw(payload)


class EdgeWorld:
    """A loaded edge program; a test says what it is to do and shows it frames."""

    def __init__(self, program):
        self.program = program

    def says(self, frame, *, repeat=1):
        """What became of the frame; None: not ours. With `repeat`, how often each."""
        before = self.program.counts()
        passed, _ = self.program.run(bytes(frame), repeat=repeat)
        after = self.program.counts()
        changed = {reason: after[reason] - before[reason] for reason in after}
        changed = {reason: count for reason, count in changed.items() if count}
        if repeat > 1:
            return changed
        if not changed:
            assert passed
            return None
        ((reason, count),) = changed.items()
        assert count == 1
        assert passed == reason.passed
        return reason
