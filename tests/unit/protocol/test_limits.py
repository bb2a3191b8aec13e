"""What a peer can make a session hold is bounded."""

from ipaddress import IPv4Address, ip_network

from zgate_protocol.capsule import AddressRequest, AssignedAddress
from zgate_protocol.connect_ip import ConnectIpSession, Role
from zgate_protocol.errors import H3Error
from zgate_protocol.events import StreamAborted
from zgate_protocol.ip_range import EVERYTHING
from zgate_protocol.limits import Limits

REQUEST = [
    (b":method", b"CONNECT"),
    (b":protocol", b"connect-ip"),
    (b":scheme", b"https"),
    (b":authority", b"gateway"),
    (b":path", b"/.well-known/masque/ip/*/*/"),
]


def open_session(limits: Limits) -> ConnectIpSession:
    session = ConnectIpSession(Role.PROXY, 0, limits=limits)
    session.receive_headers(REQUEST)
    session.accept()
    return session


def test_address_requests_in_the_life_of_a_session() -> None:
    session = open_session(Limits(max_address_requests=10))
    for request_id in range(1, 11):
        request = AssignedAddress(request_id, ip_network("0.0.0.0/32"))
        session.receive_data(AddressRequest((request,)).encode())
    request = AssignedAddress(11, ip_network("0.0.0.0/32"))
    (event,) = session.receive_data(AddressRequest((request,)).encode())
    assert isinstance(event, StreamAborted)
    assert event.error_code is H3Error.EXCESSIVE_LOAD


def test_remembered_pairs() -> None:
    session = open_session(Limits(max_cached_pairs=8))
    session.assign([AssignedAddress(0, ip_network("10.0.0.1/32"))])
    session.advertise(EVERYTHING)
    for number in range(100):
        destination = IPv4Address(0x08080000 + number).packed
        head = bytes.fromhex("4500001400000000400000000a000001")
        assert session.unwrap(b"\0" + head + destination) == head + destination
        assert session.gate.cached_pairs <= 8
