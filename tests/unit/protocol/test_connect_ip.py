"""Two sessions, client and proxy, talking to each other in memory."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from zgate_protocol.capsule import AddressRequest, AssignedAddress, DatagramCapsule
from zgate_protocol.connect_ip import ConnectIpSession, Role
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.errors import H3Error, LocalError
from zgate_protocol.events import (
    AddressesAssigned,
    AddressesRequested,
    DatagramReceived,
    Established,
    PeerClosed,
    Refused,
    RequestReceived,
    RequestRefused,
    RoutesAdvertised,
    StreamAborted,
)
from zgate_protocol.http_message import Header, build_request, build_success
from zgate_protocol.ip_range import EVERYTHING, IpRange, ranges_of
from zgate_protocol.uri_template import Scope, UriTemplate, default_template

ANY_V4, ANY_V6 = ip_network("0.0.0.0/32"), ip_network("::/128")
CLIENT, CLIENT6 = ip_network("10.100.0.5/32"), ip_network("fd00::5/128")
GATEWAY = [ip_address("10.100.0.1"), ip_address("fd00::1")]
TEMPLATE = default_template("gateway.example")
STREAM_ID = 4


class Pair:
    """A client's and a proxy's session of one request."""

    def __init__(self, scope: Scope | None = None) -> None:
        self.client = ConnectIpSession(Role.CLIENT, STREAM_ID)
        self.proxy = ConnectIpSession(Role.PROXY, STREAM_ID, own_addresses=GATEWAY)
        self.headers = self.client.request("gateway.example", TEMPLATE.expand(scope or Scope()))
        self.received = self.proxy.receive_headers(self.headers)

    def establish(self, routes: tuple[IpRange, ...] = EVERYTHING) -> "Pair":
        self.client.receive_headers(self.proxy.accept())
        self.proxy.receive_data(self.client.request_addresses([ANY_V4, ANY_V6]))
        entries = [AssignedAddress(1, CLIENT), AssignedAddress(2, CLIENT6)]
        self.client.receive_data(self.proxy.assign(entries))
        self.client.receive_data(self.proxy.advertise(routes))
        return self


def up(source: str = "10.100.0.5", destination: str = "192.0.2.7") -> bytes:
    return bytes(IP(src=source, dst=destination) / UDP())


def down(source: str = "192.0.2.7", destination: str = "10.100.0.5") -> bytes:
    return bytes(IP(src=source, dst=destination) / UDP())


def test_a_whole_session() -> None:
    pair = Pair()
    path = "/.well-known/masque/ip/*/*/"
    assert pair.received == [RequestReceived(Scope(), "gateway.example", path, True)]
    assert pair.client.receive_headers(pair.proxy.accept()) == [Established(200, True)]
    assert pair.proxy.is_open
    assert pair.client.is_open

    (asked,) = pair.proxy.receive_data(pair.client.request_addresses([ANY_V4, ANY_V6]))
    assert asked == AddressesRequested((AssignedAddress(1, ANY_V4), AssignedAddress(2, ANY_V6)))
    entries = (AssignedAddress(1, CLIENT), AssignedAddress(2, CLIENT6))
    given_now = pair.client.receive_data(pair.proxy.assign(entries))
    assert given_now == [AddressesAssigned(entries, ())]
    routes = pair.client.receive_data(pair.proxy.advertise(EVERYTHING))
    assert routes == [RoutesAdvertised(EVERYTHING)]

    assert pair.client.check_outgoing(up()) is DropReason.NONE
    assert pair.proxy.unwrap(b"\0" + up()) == up()
    assert pair.proxy.check_outgoing(down()) is DropReason.NONE
    assert pair.client.unwrap(b"\0" + down()) == down()
    v6 = bytes(IPv6(src="fd00::5", dst="2001:db8::7") / UDP())
    assert pair.client.check_outgoing(v6) is DropReason.NONE
    assert pair.proxy.unwrap(b"\0" + v6) == v6

    assert pair.proxy.receive_data(b"", fin=True) == [PeerClosed()]
    assert pair.proxy.is_closed
    assert pair.proxy.unwrap(b"\0" + up()) is DropReason.SESSION_CLOSED


def test_the_wrap_prefix() -> None:
    assert ConnectIpSession(Role.CLIENT, 44).wrap_prefix == b"\x0b\x00"
    assert ConnectIpSession(Role.CLIENT, 400).wrap_prefix == b"\x40\x64\x00"


def test_no_packet_before_addresses_and_routes() -> None:
    pair = Pair()
    assert pair.proxy.unwrap(b"\0" + up()) is DropReason.NO_SESSION
    pair.client.receive_headers(pair.proxy.accept())
    assert pair.proxy.unwrap(b"\0" + up()) is DropReason.SOURCE_NOT_ASSIGNED
    assert pair.client.check_outgoing(up()) is DropReason.SOURCE_NOT_ASSIGNED
    pair.proxy.assign([AssignedAddress(0, CLIENT)])
    assert pair.proxy.unwrap(b"\0" + up()) is DropReason.DESTINATION_NOT_ROUTED


def test_an_address_that_is_taken_away_is_gone_at_once() -> None:
    pair = Pair().establish()
    assert pair.proxy.unwrap(b"\0" + up()) == up()
    pair.client.receive_data(pair.proxy.assign([AssignedAddress(0, CLIENT6)]))
    assert pair.proxy.unwrap(b"\0" + up()) is DropReason.SOURCE_NOT_ASSIGNED
    assert pair.client.check_outgoing(up()) is DropReason.SOURCE_NOT_ASSIGNED


def test_routes_are_replaced() -> None:
    pair = Pair().establish()
    assert pair.client.check_outgoing(up()) is DropReason.NONE
    pair.client.receive_data(pair.proxy.advertise(ranges_of([ip_network("10.20.0.0/16")])))
    assert pair.client.check_outgoing(up()) is DropReason.DESTINATION_NOT_ROUTED
    assert pair.proxy.unwrap(b"\0" + up()) is DropReason.DESTINATION_NOT_ROUTED
    assert pair.client.check_outgoing(up(destination="10.20.0.5")) is DropReason.NONE


def test_the_gateway_itself_is_reachable_in_a_split_tunnel() -> None:
    pair = Pair().establish(ranges_of([ip_network("10.20.0.0/16")]))
    packet = up(destination="10.100.0.1")
    assert pair.proxy.unwrap(b"\0" + packet) == packet


def test_refused_addresses() -> None:
    pair = Pair()
    pair.client.receive_headers(pair.proxy.accept())
    pair.proxy.receive_data(pair.client.request_addresses([ANY_V4, ANY_V6]))
    first, second = pair.proxy.pending_requests
    capsule = pair.proxy.assign([AssignedAddress(first.request_id, CLIENT), second.refusal()])
    assert pair.client.receive_data(capsule) == [
        AddressesAssigned((AssignedAddress(1, CLIENT),), refused_request_ids=(2,))
    ]
    assert pair.proxy.pending_requests == ()
    assert pair.proxy.addresses_given == (AssignedAddress(1, CLIENT),)


def test_an_answer_to_nobodys_request_is_a_bug() -> None:
    pair = Pair()
    pair.proxy.accept()
    with pytest.raises(LocalError, match="request 3"):
        pair.proxy.assign([AssignedAddress(3, CLIENT)])


def test_request_ids_go_on() -> None:
    client = Pair().client
    client.receive_headers(build_success())
    first = client.request_addresses([ANY_V4])
    second = client.request_addresses([ANY_V4])
    assert (first[2], second[2]) == (1, 2)
    with pytest.raises(LocalError):
        client.request_addresses([])


def test_the_client_may_ask_before_the_answer() -> None:
    pair = Pair()
    (asked,) = pair.proxy.receive_data(pair.client.request_addresses([ANY_V4]))
    assert isinstance(asked, AddressesRequested)
    pair.proxy.accept()
    assert pair.proxy.pending_requests == asked.requests


def test_what_a_client_advertises_gives_it_no_right() -> None:
    """A client that spoofs cannot help itself with a capsule."""
    pair = Pair().establish()
    site = ranges_of([ip_network("198.51.100.0/24")])
    from_site = up(source="198.51.100.9")
    assert pair.proxy.receive_data(pair.client.advertise(site)) == [RoutesAdvertised(site)]
    assert pair.client.check_outgoing(from_site) is DropReason.NONE
    assert pair.proxy.unwrap(b"\0" + from_site) is DropReason.SOURCE_NOT_ASSIGNED
    pair.proxy.install_peer_routes(site)
    assert pair.proxy.unwrap(b"\0" + from_site) == from_site
    assert pair.proxy.check_outgoing(down(destination="198.51.100.9")) is DropReason.NONE


def test_what_a_client_assigns_changes_no_route() -> None:
    pair = Pair().establish(ranges_of([ip_network("10.20.0.0/16")]))
    everything = AssignedAddress(0, ip_network("0.0.0.0/0"))
    (event,) = pair.proxy.receive_data(pair.client.assign([everything]))
    assert isinstance(event, AddressesAssigned)
    assert pair.proxy.unwrap(b"\0" + up()) is DropReason.DESTINATION_NOT_ROUTED


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        (Scope(ip_network("10.20.1.0/24")), [IpRange.of(ip_network("10.20.1.0/24"))]),
        (Scope(None, 6), [IpRange.of(ip_network("10.20.0.0/16"), 6)]),
        (Scope(ip_network("2001:db8::/32")), []),
    ],
)
def test_routes_are_narrowed_to_the_scope(scope: Scope, expected: list[IpRange]) -> None:
    pair = Pair(scope)
    pair.client.receive_headers(pair.proxy.accept())
    routes = ranges_of([ip_network("10.20.0.0/16")])
    (event,) = pair.client.receive_data(pair.proxy.advertise(routes))
    assert event == RoutesAdvertised(tuple(expected))


def test_a_hostname_is_resolved_before_the_answer() -> None:
    pair = Pair(Scope("target.example", 132))
    (event,) = pair.received
    assert isinstance(event, RequestReceived)
    assert event.scope.hostname == "target.example"
    with pytest.raises(LocalError, match="not resolved"):
        pair.proxy.accept()
    pair.proxy.accept([ip_network("192.0.2.7/32")])
    pair.proxy.advertise(EVERYTHING)
    assert pair.proxy.routes_given == (IpRange.of(ip_network("192.0.2.7/32"), 132),)


REFUSED: dict[str, tuple[list[Header], int, H3Error]] = {
    "another path": (build_request("a", "/other"), 404, H3Error.NO_ERROR),
    "empty target": (
        build_request("a", "/.well-known/masque/ip//*/"),
        400,
        H3Error.MESSAGE_ERROR,
    ),
    "bad protocol": (
        build_request("a", "/.well-known/masque/ip/*/256/"),
        400,
        H3Error.MESSAGE_ERROR,
    ),
    "extension header": (
        build_request("a", "/.well-known/masque/ip/*/44/"),
        403,
        H3Error.NO_ERROR,
    ),
    "content-length": (
        [*build_request("a", "/.well-known/masque/ip/*/*/"), (b"content-length", b"0")],
        400,
        H3Error.MESSAGE_ERROR,
    ),
    "GET": ([(b":method", b"GET"), (b":path", b"/")], 404, H3Error.NO_ERROR),
}


@pytest.mark.parametrize(("headers", "status", "error"), REFUSED.values(), ids=REFUSED.keys())
def test_requests_that_are_turned_away(headers: list[Header], status: int, error: H3Error) -> None:
    proxy = ConnectIpSession(Role.PROXY, 0)
    (event,) = proxy.receive_headers(headers)
    assert isinstance(event, RequestRefused)
    assert (event.status, event.error_code) == (status, error)
    assert event.headers[0] == (b":status", str(status).encode())
    assert event.headers[1][0] == b"proxy-status"
    assert proxy.is_closed
    assert proxy.receive_data(b"\x01\x00") == []


def test_a_configured_template() -> None:
    template = UriTemplate("https://gateway.example/vpn{?target,ipproto}")
    proxy = ConnectIpSession(Role.PROXY, 0, template=template)
    (event,) = proxy.receive_headers(build_request("gateway.example", "/vpn?ipproto=6"))
    assert isinstance(event, RequestReceived)
    assert event.scope == Scope(None, 6)


def test_the_proxy_refuses() -> None:
    pair = Pair()
    headers = pair.proxy.refuse(503, "zgate; error=connection_limit_reached")
    events = pair.client.receive_headers(headers)
    assert events == [Refused(503, "zgate; error=connection_limit_reached")]
    assert pair.proxy.is_closed
    assert pair.client.is_closed


def test_an_interim_response_changes_nothing() -> None:
    client = Pair().client
    assert client.receive_headers([(b":status", b"103")]) == []
    assert client.receive_headers(build_success()) == [Established(200, True)]


def test_trailers_abort() -> None:
    pair = Pair().establish()
    for session in (pair.client, pair.proxy):
        (event,) = session.receive_headers([(b"x", b"y")])
        assert isinstance(event, StreamAborted)
        assert event.error_code is H3Error.FRAME_UNEXPECTED


def test_a_bad_capsule_ends_the_stream_after_the_good_ones() -> None:
    pair = Pair().establish()
    good = DatagramCapsule(b"\0" + up()).encode()
    assert pair.proxy.receive_data(good) == [DatagramReceived(b"\0" + up())]
    (event,) = pair.proxy.receive_data(b"\x02\x00")
    assert isinstance(event, StreamAborted)
    assert event.error_code is H3Error.MESSAGE_ERROR
    assert pair.proxy.is_closed
    assert pair.proxy.receive_data(good) == []


def test_a_request_id_twice() -> None:
    pair = Pair().establish()
    again = AddressRequest((AssignedAddress(1, ANY_V4),)).encode()
    (event,) = pair.proxy.receive_data(again)
    assert isinstance(event, StreamAborted)


@pytest.mark.parametrize("mtu_bytes", [1279, 576, 0])
def test_a_tunnel_too_small_for_ipv6(mtu_bytes: int) -> None:
    session = Pair().establish().proxy
    assert session.check_link_mtu(1280) == []
    (event,) = session.check_link_mtu(mtu_bytes)
    assert isinstance(event, StreamAborted)
    assert session.is_closed
    assert session.check_link_mtu(mtu_bytes) == []


def test_a_small_tunnel_is_enough_for_ipv4() -> None:
    pair = Pair()
    pair.proxy.accept()
    pair.proxy.assign([AssignedAddress(0, CLIENT)])
    assert pair.proxy.check_link_mtu(600) == []


def test_calls_at_the_wrong_time_are_bugs() -> None:
    client, proxy = ConnectIpSession(Role.CLIENT, 0), ConnectIpSession(Role.PROXY, 0)
    for call in (
        lambda: proxy.request("a", "/"),
        client.accept,
        proxy.accept,
        lambda: proxy.refuse(500),
        lambda: proxy.advertise(()),
        lambda: client.assign(()),
        lambda: client.request_addresses([ANY_V4]),
    ):
        with pytest.raises(LocalError, match="not now"):
            call()


def test_sessions_name_themselves() -> None:
    assert repr(Pair().establish().proxy) == "<ConnectIpSession proxy stream 4 open>"


@given(st.lists(st.binary(max_size=40), max_size=8), st.sampled_from(Role))
def test_random_streams_never_surprise(chunks: list[bytes], role: Role) -> None:
    pair = Pair().establish()
    session = pair.client if role is Role.CLIENT else pair.proxy
    for chunk in chunks:
        session.receive_data(chunk)
    session.receive_data(b"", fin=True)
    assert session.is_closed


names = st.sampled_from([b":method", b":protocol", b":scheme", b":authority", b":path", b":status"])
values = st.sampled_from([b"CONNECT", b"connect-ip", b"https", b"a", b"/", b"200", b"", b"\xff"])


@given(st.lists(st.tuples(names, values), max_size=8), st.sampled_from(Role))
def test_random_headers_never_surprise(headers: list[Header], role: Role) -> None:
    session = ConnectIpSession(role, 0)
    if role is Role.CLIENT:
        session.request("a", "/")
    session.receive_headers(headers)
