"""The flood's frames are what they say. That they arrive is seen by the edge's end-to-end tests."""

import random
from ipaddress import IPv4Address

import pytest
from aioquic.buffer import Buffer
from aioquic.quic.packet import QuicPacketType, pull_quic_header
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from zgate_lab import flood
from zgate_lab.errors import LabError
from zgate_lab.flood import KINDS, Flood, main, make_frames

TARGET = IPv4Address("203.0.113.10")


class Refusing:
    def send(self, count):
        raise LabError("no")


class Counting:
    def __init__(self):
        self.sent = 0

    def send(self, count):
        self.sent += count


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_udp_to_the_port_and_fit_a_link(kind):
    for frame in make_frames([kind], TARGET, 443, bytes(6), 50):
        packet = Ether(frame)
        assert packet[IP].dst == str(TARGET) and packet[UDP].dport == 443
        assert packet[IP].len == len(frame) - 14 <= 1500
        checksum = packet[IP].chksum
        del packet[IP].chksum
        assert Ether(bytes(packet))[IP].chksum == checksum


def test_header_checksum_holds_for_every_source():
    """The generator changes the source's low half and the identification together."""
    frame = bytearray(make_frames(["noise"], TARGET, 443, bytes(6), 1)[0])
    for low in (0, 1, 0x1234, 0xFFFF):
        frame[28:30] = low.to_bytes(2)
        frame[18:20] = (low ^ 0xFFFF).to_bytes(2)
        words = [int.from_bytes(frame[at : at + 2]) for at in range(14, 34, 2)]
        total = sum(words)
        assert ((total & 0xFFFF) + (total >> 16)) in (0xFFFF, 0x1FFFE)


def test_initials_are_well_formed():
    payload = KINDS["initials"](random.Random(1))
    header = pull_quic_header(Buffer(data=payload), host_cid_length=8)
    assert header.packet_type is QuicPacketType.INITIAL
    assert header.packet_length == len(payload) == 1200


def test_rate_is_kept():
    counting = Counting()
    result = Flood(counting, 50_000, 0.5).run()
    assert result.packets == counting.sent
    # A machine that is busy makes it send less, never more.
    assert 0 < result.packets <= 26_000


def test_refusal_is_an_error():
    with pytest.raises(LabError):
        Flood(Refusing(), 50_000, 0.5).run()


@pytest.mark.parametrize(
    "words", [["--rate", "0"], ["--seconds", "1000"], ["--kinds", "nonsense"]], ids=str
)
def test_it_is_bounded(words, capsys):
    with pytest.raises(SystemExit):
        main(["lo", "02:00:00:00:00:01", "192.0.2.1", *words])
    assert "error" in capsys.readouterr().err
    assert flood.MAX_SECONDS <= 120
