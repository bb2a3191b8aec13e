"""The datagrams of ztna-v1, byte by byte as the dialect's text has them."""

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_protocol.dialects.ztna_v1 import (
    ALPN,
    InvalidRegistration,
    Message,
    PlainPacket,
    RefusalCode,
    Registration,
    ServicePacket,
    encode_refused,
    encode_registered,
    encode_seen_at,
    parse_datagram,
)
from zgate_protocol.service_capsule import service_name_problem


def test_the_name_of_the_protocol() -> None:
    assert ALPN == "ztna-v1"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x10\x04pacs", Registration("pacs", is_connector=False)),
        (b"\x11\x04pacs", Registration("pacs", is_connector=True)),
        (b"\x10\x02\xc3\xa9", Registration("é", is_connector=False)),
        (b"\x11\xff" + b"x" * 255, Registration("x" * 255, is_connector=True)),
        (b"\x2f\x04pacs\x45rest", ServicePacket("pacs", b"\x45rest")),
        (b"\x45\x00", PlainPacket(b"\x45\x00")),
        (b"\x60\x00", PlainPacket(b"\x60\x00")),
    ],
)
def test_what_clients_send(data: bytes, message: Message) -> None:
    assert parse_datagram(data) == message


@pytest.mark.parametrize("name", [b"", b"a\nb", b"\x7f", b"\xff", b"\xc2\x85"])
@pytest.mark.parametrize("kind", [b"\x10", b"\x11"])
def test_names_that_are_none_can_be_refused(kind: bytes, name: bytes) -> None:
    data = kind + bytes((len(name),)) + name
    assert parse_datagram(data) == InvalidRegistration(name)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x10",
        b"\x10\x05pacs",
        b"\x10\x03pacs",
        b"\x11\x04pac",
        b"\x2f\x04pacs",
        b"\x2f\x00\x45",
        b"\x2f\x01\xff\x45",
        b"\x2f",
        b"\x01\x0a\0\0\1\0\1",
        b"\x12\x00\x04pacs",
        b"\x30",
        b"\x50\0",
        b"\xff" * 20,
    ],
)
def test_what_is_none_of_it(data: bytes) -> None:
    assert parse_datagram(data) is None


def test_what_the_gateway_says() -> None:
    assert encode_seen_at(IPv4Address("192.0.2.7"), 4433) == b"\x01\xc0\x00\x02\x07\x11\x51"
    assert encode_registered("pacs") == b"\x12\x00\x04pacs"
    assert encode_refused(RefusalCode.INVALID, b"") == b"\x13\x01\x00"
    assert encode_refused(RefusalCode.NOT_AUTHORIZED, b"pacs") == b"\x13\x02\x04pacs"


@given(st.one_of(st.binary(max_size=300), st.binary(max_size=40).map(lambda d: b"\x2f" + d)))
def test_random_datagrams(data: bytes) -> None:
    message = parse_datagram(data)
    match message:
        case Registration(service):
            assert service_name_problem(service) is None
        case ServicePacket(service, packet):
            assert service_name_problem(service) is None
            assert data.endswith(packet)
        case PlainPacket(packet):
            assert packet == data
