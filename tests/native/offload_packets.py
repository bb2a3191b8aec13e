"""Packets for the offloads' tests, made by hand: scapy would tidy up what must stay odd."""

import struct
from dataclasses import dataclass, field, replace

from hypothesis import strategies as st

from .offload_support import TCP, UDP, with_right_checksums

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
TIMESTAMPS = bytes.fromhex("0101080a0102030405060708")
SACK = bytes.fromhex("0101050a000000010000000a")
NOPS = b"\1\1\1\1"
V4_ADDRESSES = bytes([10, 0, 0, 1, 10, 0, 0, 2])
V6_ADDRESSES = bytes.fromhex("fd000000000000000000000000000001fd000000000000000000000000000002")
DESTINATION_OPTIONS = bytes([60, 0, 1, 4, 0, 0, 0, 0])
LONGER_OPTIONS = bytes([60, 1, 1, 12]) + bytes(12)


@dataclass(frozen=True)
class Packet:
    """One TCP or UDP packet; ``bytes`` gives it right checksums unless ``wrong`` says otherwise."""

    payload: bytes = b""
    version: int = 4
    protocol: int = TCP
    ports: tuple[int, int] = (1000, 2000)
    addresses: bytes = b""
    tos: int = 0
    ttl: int = 64
    ip_id: int = 1
    fragment: int = 0x4000
    ip_options: bytes = b""
    flow_label: int = 0
    extensions: tuple[bytes, ...] = ()  # each begins with its own protocol number
    sequence: int = 1
    acknowledgement: int = 2
    flags: int = ACK
    reserved: int = 0
    window: int = 500
    urgent: int = 0
    options: bytes = b""
    wrong: int = field(default=0)  # added to the upper layer's checksum

    def __bytes__(self) -> bytes:
        packet = with_right_checksums(self._header(len(self._upper())) + self._upper())
        if self.wrong:
            at = len(packet) - len(self._upper()) + (16 if self.protocol == TCP else 6)
            value = (int.from_bytes(packet[at : at + 2], "big") + self.wrong) & 0xFFFF
            packet = packet[:at] + value.to_bytes(2, "big") + packet[at + 2 :]
        return packet

    def _upper(self) -> bytes:
        ports = struct.pack("!HH", *self.ports)
        if self.protocol == UDP:
            return ports + struct.pack("!HH", 8 + len(self.payload), 0) + self.payload
        return (
            ports
            + struct.pack(
                "!IIBBHHH",
                self.sequence,
                self.acknowledgement,
                (5 + len(self.options) // 4) << 4 | self.reserved,
                self.flags,
                self.window,
                0,
                self.urgent,
            )
            + self.options
            + self.payload
        )

    def _header(self, upper_bytes: int) -> bytes:
        if self.version == 4:
            length = 20 + len(self.ip_options)
            return (
                struct.pack(
                    "!BBHHHBBH",
                    0x40 | length // 4,
                    self.tos,
                    length + upper_bytes,
                    self.ip_id,
                    self.fragment,
                    self.ttl,
                    self.protocol,
                    0,
                )
                + (self.addresses or V4_ADDRESSES)
                + self.ip_options
            )
        chain = [header[0] for header in self.extensions] + [self.protocol]
        extensions = b"".join(
            bytes([following]) + header[1:]
            for header, following in zip(self.extensions, chain[1:], strict=True)
        )
        return (
            struct.pack(
                "!IHBB",
                6 << 28 | self.tos << 20 | self.flow_label,
                len(extensions) + upper_bytes,
                chain[0],
                self.ttl,
            )
            + (self.addresses or V6_ADDRESSES)
            + extensions
        )


def expected_segments(packet: Packet, gso_bytes: int) -> list[bytes]:
    """What a network card must make of a super-packet."""
    pieces = [
        packet.payload[at : at + gso_bytes] for at in range(0, len(packet.payload), gso_bytes)
    ] or [b""]
    segments = []
    for index, piece in enumerate(pieces):
        flags = packet.flags
        if index > 0:
            flags &= ~CWR
        if index < len(pieces) - 1:
            flags &= ~(FIN | PSH)
        segments.append(
            bytes(
                replace(
                    packet,
                    payload=piece,
                    flags=flags,
                    sequence=(packet.sequence + index * gso_bytes) % 2**32,
                    ip_id=(packet.ip_id + index) % 2**16,
                )
            )
        )
    return segments


@st.composite
def super_packets(draw: st.DrawFn) -> tuple[Packet, int]:
    """A packet as large as a TUN gives them, and its segments' payload size."""
    version = draw(st.sampled_from([4, 6]))
    protocol = draw(st.sampled_from([TCP, UDP]))
    gso_bytes = draw(st.integers(1, 1460))
    payload_bytes = draw(st.integers(0, min(64000, 70 * gso_bytes)))
    seed = draw(st.binary(min_size=1, max_size=7))
    return (
        Packet(
            payload=(seed * (payload_bytes // len(seed) + 1))[:payload_bytes],
            version=version,
            protocol=protocol,
            tos=draw(st.integers(0, 255)),
            ttl=draw(st.integers(1, 255)),
            ip_id=draw(st.sampled_from([0, 1, 0x7FFF, 0xFFF0, 0xFFFF])),
            fragment=draw(st.sampled_from([0, 0x4000])),
            ip_options=draw(st.sampled_from([b"", NOPS, NOPS * 10])) if version == 4 else b"",
            flow_label=draw(st.integers(0, 0xFFFFF)),
            extensions=draw(
                st.sampled_from([(), (DESTINATION_OPTIONS,), (LONGER_OPTIONS, DESTINATION_OPTIONS)])
            )
            if version == 6
            else (),
            sequence=draw(st.integers(0, 2**32 - 1)),
            acknowledgement=draw(st.integers(0, 2**32 - 1)),
            flags=draw(st.integers(0, 255)),
            reserved=draw(st.integers(0, 15)),
            window=draw(st.integers(0, 65535)),
            urgent=draw(st.integers(0, 65535)),
            options=draw(st.sampled_from([b"", TIMESTAMPS, SACK, NOPS * 10])),
        ),
        gso_bytes,
    )
