"""Proxying IP in HTTP (RFC 9484): one test (or a few) per row of the conformance table."""

from ipaddress import ip_address, ip_network

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from zgate_protocol.capsule import (
    AddressAssign,
    AddressRequest,
    AssignedAddress,
    RouteAdvertisement,
)
from zgate_protocol.connect_ip import ConnectIpSession, Role
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.errors import H3Error, LocalError, PacketError
from zgate_protocol.events import (
    AddressesAssigned,
    Established,
    Refused,
    RequestReceived,
    RequestRefused,
    RoutesAdvertised,
    StreamAborted,
)
from zgate_protocol.http_datagram import ContextIds, datagram_prefix
from zgate_protocol.http_message import Header, build_request, build_success
from zgate_protocol.icmp import (
    IcmpError,
    answer_echo,
    build_icmp_error,
    build_probe,
    error_for_drop,
    is_probe_reply,
)
from zgate_protocol.ip_header import decrement_hop_limit
from zgate_protocol.ip_range import EVERYTHING, IpRange, check_ranges, ranges_of
from zgate_protocol.structured_field import ProxyError, build_proxy_status
from zgate_protocol.uri_template import Scope, TemplateError, UriTemplate, default_template

PATH = "/.well-known/masque/ip/*/*/"
ANY_V4, ANY_V6 = ip_network("0.0.0.0/32"), ip_network("::/128")
CLIENT, CLIENT6 = ip_network("10.100.0.5/32"), ip_network("fd00::5/128")
SOURCES = (ip_address("10.100.0.1").packed, ip_address("fd00::1").packed)


def open_proxy(path: str = PATH, *, routes: tuple[IpRange, ...] = EVERYTHING) -> ConnectIpSession:
    session = ConnectIpSession(Role.PROXY, 0)
    (event,) = session.receive_headers(build_request("gateway.example", path))
    assert isinstance(event, RequestReceived)
    session.accept()
    session.assign([AssignedAddress(0, CLIENT), AssignedAddress(0, CLIENT6)])
    session.advertise(routes)
    return session


def open_client(*, routes: tuple[IpRange, ...] = EVERYTHING) -> ConnectIpSession:
    session = ConnectIpSession(Role.CLIENT, 0)
    session.request("gateway.example", PATH)
    session.receive_headers(build_success())
    addresses = (AssignedAddress(0, CLIENT), AssignedAddress(0, CLIENT6))
    session.receive_data(AddressAssign(addresses).encode())
    session.receive_data(RouteAdvertisement(routes).encode())
    return session


def sent(source: str, destination: str, upper: object = None) -> bytes:
    kind = IPv6 if ":" in source else IP
    return bytes(kind(src=source, dst=destination) / (upper or UDP()))


def refusal_of(path: str) -> RequestRefused:
    session = ConnectIpSession(Role.PROXY, 0)
    (event,) = session.receive_headers(build_request("gateway.example", path))
    assert isinstance(event, RequestRefused)
    return event


def abort_of(session: ConnectIpSession, data: bytes) -> StreamAborted:
    event = session.receive_data(data)[-1]
    assert isinstance(event, StreamAborted)
    assert session.is_closed
    return event


# Section 3.


def test_9484_s3_the_well_known_path_is_served() -> None:
    template = default_template("gateway.example:443")
    assert template.expand(Scope()) == "/.well-known/masque/ip/*/*/"
    session = ConnectIpSession(Role.PROXY, 0)
    (event,) = session.receive_headers(build_request("gateway.example:443", PATH))
    assert isinstance(event, RequestReceived)
    assert refusal_of("/.well-known/masque/udp/*/*/").status == 404


@pytest.mark.parametrize(
    "text",
    [
        "https://a/{target:3}",
        "https://a/{target*}",
        "https://a/{+target}",
        "https://a/{#target}",
        "https://a/x{.target}",
        "https://a/x{/target}",
        "https://a/x{;target}",
        "https://{target}/x",
        "/x/{target}",
        "https://a",
        "https://a/\u00e9{target}",
    ],
)
def test_9484_s3_templates_beyond_level_3_or_with_forbidden_operators_are_refused(
    text: str,
) -> None:
    with pytest.raises(TemplateError):
        UriTemplate(text)


# Section 4.1.


@pytest.mark.parametrize("values", ["10.0.0.1%2F8/*", "*/256", "a%20b/*", "/17", "*/", "fe80::1/*"])
def test_9484_s4_1_invalid_target_or_ipproto_is_a_malformed_request(values: str) -> None:
    event = refusal_of(f"/.well-known/masque/ip/{values}/")
    assert event.status == 400
    assert event.error_code is H3Error.MESSAGE_ERROR


def test_9484_s4_1_hostname_is_resolved_before_the_reply() -> None:
    session = ConnectIpSession(Role.PROXY, 0)
    path = "/.well-known/masque/ip/target.example/132/"
    (event,) = session.receive_headers(build_request("gateway.example", path))
    assert isinstance(event, RequestReceived)
    assert event.scope.hostname == "target.example"
    with pytest.raises(LocalError):
        session.accept()
    session.accept([ip_network("192.0.2.7/32"), ip_network("2001:db8::7/128")])
    session.advertise(EVERYTHING)
    assert session.routes_given == (
        IpRange.of(ip_network("192.0.2.7/32"), 132),
        IpRange.of(ip_network("2001:db8::7/128"), 132),
    )


def test_9484_s4_1_failed_resolution_is_told_in_proxy_status() -> None:
    session = ConnectIpSession(Role.PROXY, 0)
    session.receive_headers(build_request("a", "/.well-known/masque/ip/no.example/*/"))
    status = build_proxy_status("zgate", ProxyError.DNS_ERROR, parameters={"rcode": "NXDOMAIN"})
    assert session.refuse(502, status) == [
        (b":status", b"502"),
        (b"proxy-status", b'zgate; error=dns_error; rcode="NXDOMAIN"'),
    ]


def test_9484_s4_1_addresses_and_routes_last_as_long_as_the_stream() -> None:
    session = open_proxy()
    packet = sent("10.100.0.5", "192.0.2.7")
    assert session.unwrap(b"\0" + packet) == packet
    session.receive_data(b"", fin=True)
    assert session.unwrap(b"\0" + packet) is DropReason.SESSION_CLOSED
    assert session.check_outgoing(sent("192.0.2.7", "10.100.0.5")) is DropReason.SESSION_CLOSED


# Sections 4.4 and 4.5.


def test_9484_s4_4_the_request_has_the_pseudo_headers_of_extended_connect() -> None:
    headers = ConnectIpSession(Role.CLIENT, 0).request("gateway.example", PATH)
    assert headers[:5] == [
        (b":method", b"CONNECT"),
        (b":protocol", b"connect-ip"),
        (b":scheme", b"https"),
        (b":authority", b"gateway.example"),
        (b":path", PATH.encode()),
    ]


@pytest.mark.parametrize("name", [b":scheme", b":path", b":authority"])
@pytest.mark.parametrize("value", [b"", None])
def test_9484_s4_4_empty_or_missing_scheme_path_or_authority_is_malformed(
    name: bytes, value: bytes | None
) -> None:
    good = build_request("gateway.example", PATH)
    headers: list[Header] = [header for header in good if header[0] != name]
    if value is not None:
        headers.insert(0, (name, value))
    (event,) = ConnectIpSession(Role.PROXY, 0).receive_headers(headers)
    assert isinstance(event, RequestRefused)
    assert event.error_code is H3Error.MESSAGE_ERROR


@pytest.mark.parametrize("status", [300, 301, 307, 400, 403, 404, 500, 503])
def test_9484_s4_5_any_final_status_but_2xx_is_failure(status: int) -> None:
    client = ConnectIpSession(Role.CLIENT, 0)
    client.request("gateway.example", PATH)
    headers = [(b":status", str(status).encode()), (b"location", b"https://elsewhere/")]
    assert client.receive_headers(headers) == [Refused(status, "")]
    assert client.is_closed


@pytest.mark.parametrize("status", [200, 201, 202, 299])
def test_9484_s4_5_every_2xx_is_success(status: int) -> None:
    client = ConnectIpSession(Role.CLIENT, 0)
    client.request("gateway.example", PATH)
    events = client.receive_headers([(b":status", str(status).encode())])
    assert events == [Established(status, capsule_protocol=False)]


# Section 4.6.


@pytest.mark.parametrize(
    ("target", "encoded"),
    [("2001:db8::42/128", "2001%3Adb8%3A%3A42"), ("10.0.0.0/8", "10.0.0.0%2F8")],
)
def test_9484_s4_6_colons_and_the_slash_are_percent_encoded(target: str, encoded: str) -> None:
    path = default_template("a").expand(Scope(ip_network(target)))
    assert path == f"/.well-known/masque/ip/{encoded}/*/"


@pytest.mark.parametrize("raw", ["2001:db8::42", "10.0.0.1%2F8", "2001%3Adb8%3A%3A1%2F32"])
def test_9484_s4_6_raw_colons_and_host_bits_are_malformed(raw: str) -> None:
    assert refusal_of(f"/.well-known/masque/ip/{raw}/*/").error_code is H3Error.MESSAGE_ERROR


@pytest.mark.parametrize("raw", ["256", "-1", "0x6", "tcp", "1000", ""])
def test_9484_s4_6_ipproto_is_0_to_255_or_wildcard(raw: str) -> None:
    assert refusal_of(f"/.well-known/masque/ip/*/{raw}/").error_code is H3Error.MESSAGE_ERROR
    assert default_template("a").match("/.well-known/masque/ip/*/255/") == Scope(None, 255)
    assert default_template("a").match("/.well-known/masque/ip/*/*/") == Scope()


def test_9484_s4_6_the_scope_is_enforced_in_both_directions() -> None:
    session = open_proxy("/.well-known/masque/ip/192.0.2.0%2F24/17/")
    inside, other_protocol = (sent("10.100.0.5", "192.0.2.7", u) for u in (UDP(), TCP()))
    assert session.unwrap(b"\0" + inside) == inside
    assert session.unwrap(b"\0" + other_protocol) is DropReason.PROTOCOL_OUT_OF_SCOPE
    outside = sent("10.100.0.5", "198.51.100.1")
    assert session.unwrap(b"\0" + outside) is DropReason.DESTINATION_NOT_ROUTED
    assert session.check_outgoing(sent("192.0.2.7", "10.100.0.5")) is DropReason.NONE
    tcp_back = sent("192.0.2.7", "10.100.0.5", TCP())
    assert session.check_outgoing(tcp_back) is DropReason.PROTOCOL_OUT_OF_SCOPE
    stranger = sent("198.51.100.1", "10.100.0.5")
    assert session.check_outgoing(stranger) is DropReason.SOURCE_NOT_ASSIGNED


def test_9484_s4_6_icmp_is_always_allowed() -> None:
    session = open_proxy("/.well-known/masque/ip/*/6/")
    for echo in (
        sent("10.100.0.5", "192.0.2.7", ICMP()),
        sent("fd00::5", "2001:db8::7", ICMPv6EchoRequest()),
    ):
        assert session.unwrap(b"\0" + echo) == echo
    assert session.check_outgoing(sent("192.0.2.7", "10.100.0.5", ICMP())) is DropReason.NONE
    # ICMP is a protocol of one version: 58 over IPv4 is nothing special.
    strange = bytes(IP(src="10.100.0.5", dst="192.0.2.7", proto=58) / bytes(8))
    assert session.unwrap(b"\0" + strange) is DropReason.PROTOCOL_OUT_OF_SCOPE


# Section 4.7.1.


def test_9484_s4_7_1_address_assign_is_the_full_list() -> None:
    session = open_client()
    both, one = sent("10.100.0.5", "192.0.2.7"), sent("fd00::5", "2001:db8::7")
    assert session.check_outgoing(both) is DropReason.NONE
    session.receive_data(AddressAssign((AssignedAddress(0, CLIENT6),)).encode())
    assert session.check_outgoing(both) is DropReason.SOURCE_NOT_ASSIGNED
    assert session.check_outgoing(one) is DropReason.NONE


def test_9484_s4_7_1_an_empty_list_removes_all() -> None:
    client, proxy = open_client(), open_proxy()
    packet = sent("10.100.0.5", "192.0.2.7")
    assert client.receive_data(proxy.assign([])) == [AddressesAssigned((), ())]
    assert client.check_outgoing(packet) is DropReason.SOURCE_NOT_ASSIGNED
    assert proxy.unwrap(b"\0" + packet) is DropReason.SOURCE_NOT_ASSIGNED


def test_9484_s4_7_1_unprompted_assignments_use_request_id_0() -> None:
    proxy = open_proxy()
    assert proxy.assign([AssignedAddress(0, CLIENT)])[2] == 0
    with pytest.raises(LocalError):
        proxy.assign([AssignedAddress(1, CLIENT)])


def test_9484_s4_7_1_any_source_within_an_assigned_prefix_is_allowed() -> None:
    proxy = open_proxy()
    proxy.assign([AssignedAddress(0, ip_network("10.100.8.0/24"))])
    inside, outside = sent("10.100.8.200", "192.0.2.7"), sent("10.100.9.1", "192.0.2.7")
    assert proxy.unwrap(b"\0" + inside) == inside
    assert proxy.unwrap(b"\0" + outside) is DropReason.SOURCE_NOT_ASSIGNED


@pytest.mark.parametrize("capsule", ["0107 00 05 0a000001 20", "0107 00 04 0a000001 21"])
def test_9484_s4_7_1_malformed_fields_abort_the_stream(capsule: str) -> None:
    assert abort_of(open_client(), bytes.fromhex(capsule)).error_code is H3Error.MESSAGE_ERROR


def test_9484_s4_7_1_host_bits_abort_the_stream() -> None:
    abort_of(open_client(), bytes.fromhex("0107 00 04 0a000001 08"))


# Section 4.7.2.


def test_9484_s4_7_2_request_ids_are_not_zero_and_never_reused() -> None:
    client = open_client()
    found = []
    for _ in range(70):
        capsule = client.request_addresses([ANY_V4])
        (event,) = open_proxy().receive_data(capsule)
        found += [entry.request_id for entry in event.requests]  # type: ignore[union-attr]
    assert found == list(range(1, 71))


def test_9484_s4_7_2_a_zero_or_reused_request_id_aborts_the_stream() -> None:
    abort_of(open_proxy(), bytes.fromhex("0207 00 04 00000000 20"))
    session = open_proxy()
    request = AddressRequest((AssignedAddress(7, ANY_V4),)).encode()
    session.receive_data(request)
    session.assign([AssignedAddress(7, CLIENT)])
    abort_of(session, request)


def test_9484_s4_7_2_a_request_without_entries_aborts_the_stream() -> None:
    abort_of(open_proxy(), b"\x02\x00")
    with pytest.raises(LocalError):
        open_client().request_addresses([])


@pytest.mark.parametrize(
    ("wanted", "refused"), [("10.9.0.0/24", "0.0.0.0/32"), ("2001:db8::/64", "::/128")]
)
def test_9484_s4_7_2_refusal_is_the_all_zero_address(wanted: str, refused: str) -> None:
    client, proxy = open_client(), open_proxy()
    proxy.receive_data(client.request_addresses([ip_network(wanted)]))
    (request,) = proxy.pending_requests
    assert request.refusal() == AssignedAddress(1, ip_network(refused))
    (event,) = client.receive_data(proxy.assign([AssignedAddress(0, CLIENT), request.refusal()]))
    assert event == AddressesAssigned((AssignedAddress(0, CLIENT),), refused_request_ids=(1,))
    zero = sent("0.0.0.0", "192.0.2.7")
    assert client.check_outgoing(zero) is DropReason.SOURCE_NOT_ASSIGNED


def test_9484_s4_7_2_the_answer_carries_the_request_id() -> None:
    client, proxy = open_client(), open_proxy()
    proxy.receive_data(client.request_addresses([ANY_V4, ANY_V6]))
    answer = (AssignedAddress(1, CLIENT), AssignedAddress(2, CLIENT6))
    (event,) = client.receive_data(proxy.assign(answer))
    assert event == AddressesAssigned(answer, ())
    assert proxy.pending_requests == ()


# Section 4.7.3.


def routes_capsule(*ranges: IpRange) -> bytes:
    return RouteAdvertisement(tuple(ranges)).encode()


def route(network: str, protocol: int = 0) -> IpRange:
    return IpRange.of(ip_network(network), protocol)


UNORDERED = {
    "version": (route("::/0"), route("0.0.0.0/0")),
    "protocol": (route("10.0.0.0/8", 17), route("11.0.0.0/8", 6)),
    "address": (route("11.0.0.0/8"), route("10.0.0.0/8")),
    "end equals start": (
        IpRange(ip_address("10.0.0.0"), ip_address("10.0.0.9")),
        IpRange(ip_address("10.0.0.9"), ip_address("10.0.0.10")),
    ),
    "twice": (route("10.0.0.0/8"), route("10.0.0.0/8")),
}


@pytest.mark.parametrize("ranges", UNORDERED.values(), ids=UNORDERED.keys())
def test_9484_s4_7_3_routes_must_be_ordered(ranges: tuple[IpRange, ...]) -> None:
    abort_of(open_client(), routes_capsule(*ranges))


def test_9484_s4_7_3_all_protocols_never_overlap_one() -> None:
    abort_of(open_client(), routes_capsule(route("10.0.0.0/8"), route("10.5.0.0/16", 6)))
    fine = routes_capsule(route("10.0.0.0/8"), route("11.0.0.0/8", 6), route("::/0", 6))
    assert isinstance(open_client().receive_data(fine)[0], RoutesAdvertised)


def test_9484_s4_7_3_what_is_sent_is_in_order() -> None:
    proxy = open_proxy()
    wanted = [route("::/0"), route("10.5.0.0/16", 6), route("10.0.0.0/8"), route("9.0.0.0/8", 6)]
    proxy.advertise(wanted)
    check_ranges(proxy.routes_given)
    assert proxy.routes_given == (route("10.0.0.0/8"), route("9.0.0.0/8", 6), route("::/0"))


def test_9484_s4_7_3_an_advertisement_replaces_the_earlier_one() -> None:
    client = open_client()
    packet = sent("10.100.0.5", "192.0.2.7")
    assert client.check_outgoing(packet) is DropReason.NONE
    client.receive_data(routes_capsule(route("10.20.0.0/16")))
    assert client.check_outgoing(packet) is DropReason.DESTINATION_NOT_ROUTED
    client.receive_data(routes_capsule())
    inside = sent("10.100.0.5", "10.20.0.1")
    assert client.check_outgoing(inside) is DropReason.DESTINATION_NOT_ROUTED


def test_9484_s4_7_3_a_range_that_ends_before_it_starts_aborts_the_stream() -> None:
    abort_of(open_client(), bytes.fromhex("030a 04 0a000002 0a000001 00"))


# Section 4.8.


@pytest.mark.parametrize(
    "chain",
    [
        IPv6ExtHdrHopByHop(),
        IPv6ExtHdrDestOpt(),
        IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt(),
        IPv6ExtHdrFragment(m=1),
    ],
    ids=["hop-by-hop", "destination options", "both", "first fragment"],
)
def test_9484_s4_8_extension_headers_are_walked_for_the_protocol(chain: object) -> None:
    client = open_client(routes=(route("2001:db8::/32", 6),))
    tcp = bytes(IPv6(src="fd00::5", dst="2001:db8::7") / chain / TCP())
    udp = bytes(IPv6(src="fd00::5", dst="2001:db8::7") / chain / UDP())
    assert client.check_outgoing(tcp) is DropReason.NONE
    assert client.check_outgoing(udp) is DropReason.PROTOCOL_OUT_OF_SCOPE


@pytest.mark.parametrize("protocol", [0, 43, 44, 51, 60, 135, 139, 140])
def test_9484_s4_8_a_scope_of_an_extension_header_is_refused(protocol: int) -> None:
    assert refusal_of(f"/.well-known/masque/ip/*/{protocol}/").status == 403


# Sections 5 and 6.


def test_9484_s6_context_0_is_a_whole_ip_packet() -> None:
    proxy = open_proxy()
    packet = sent("10.100.0.5", "192.0.2.7")
    assert proxy.wrap_prefix == datagram_prefix(0) == b"\0\0"
    assert proxy.unwrap(b"\0" + packet) == packet
    assert proxy.unwrap(b"\0" + packet[:-1]) is DropReason.BAD_LENGTH
    assert proxy.unwrap(b"\0") is DropReason.BAD_LENGTH


def test_9484_s5_client_contexts_are_even_and_proxy_contexts_odd() -> None:
    client, proxy = ContextIds(is_client=True), ContextIds(is_client=False)
    assert [client.allocate() for _ in range(3)] == [2, 4, 6]
    assert [proxy.allocate() for _ in range(3)] == [1, 3, 5]


@pytest.mark.parametrize("context", ["01", "02", "3f", "7fff", "ffffffffffffffff"])
def test_9484_s6_unknown_contexts_are_dropped(context: str) -> None:
    proxy = open_proxy()
    payload = bytes.fromhex(context) + sent("10.100.0.5", "192.0.2.7")
    assert proxy.unwrap(payload) is DropReason.UNKNOWN_CONTEXT
    assert proxy.is_open


# Section 7.2.


def test_9484_s7_2_the_hop_limit_is_decremented_only_by_who_forwards() -> None:
    """Neither wrapping nor unwrapping touches it; forwarding calls decrement_hop_limit."""
    packet = bytes(IP(src="10.100.0.5", dst="192.0.2.7", ttl=1) / UDP())
    assert open_client().check_outgoing(packet) is DropReason.NONE
    assert open_proxy().unwrap(b"\0" + packet) == packet
    forwarded = bytes(IP(src="10.100.0.5", dst="192.0.2.7", ttl=64) / UDP())
    assert decrement_hop_limit(forwarded) == bytes(
        IP(src="10.100.0.5", dst="192.0.2.7", ttl=63) / UDP()
    )


def test_9484_s7_2_an_expired_hop_limit_is_a_drop_with_time_exceeded() -> None:
    packet = bytes(IPv6(src="fd00::5", dst="2001:db8::7", hlim=1) / UDP())
    with pytest.raises(PacketError) as caught:
        decrement_hop_limit(packet)
    error = error_for_drop(caught.value.reason, packet, SOURCES)
    assert error is not None
    assert (error[40], error[41]) == (3, 0)


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        ("169.254.3.4", "192.0.2.7"),
        ("10.100.0.5", "169.254.3.4"),
        ("10.100.0.5", "224.0.0.5"),
        ("fe80::1", "2001:db8::7"),
        ("fd00::5", "fe80::1"),
        ("fd00::5", "ff02::1"),
    ],
)
def test_9484_s7_2_link_local_is_never_forwarded(source: str, destination: str) -> None:
    packet = sent(source, destination)
    reasons = (DropReason.LINK_LOCAL, DropReason.LINK_LOCAL_PEER)
    assert open_proxy().unwrap(b"\0" + packet) in reasons
    assert open_client().unwrap(b"\0" + packet) in reasons
    assert open_client().check_outgoing(packet) is DropReason.LINK_LOCAL
    assert open_proxy().check_outgoing(packet) is DropReason.LINK_LOCAL


def test_9484_s7_2_the_1280_byte_probe_to_all_nodes_is_answered() -> None:
    probe = build_probe(CLIENT6.network_address.packed, identifier=9, sequence=1)
    assert len(probe) == 1280
    assert open_proxy().unwrap(b"\0" + probe) is DropReason.LINK_LOCAL_PEER
    reply = answer_echo(probe, SOURCES[1])
    assert reply is not None
    assert open_client().unwrap(b"\0" + reply) == reply
    assert is_probe_reply(reply, 9)


@pytest.mark.parametrize("session", [open_proxy, open_client])
def test_9484_s7_2_ipv6_in_less_than_1280_bytes_aborts_the_stream(session: object) -> None:
    stream: ConnectIpSession = session()  # type: ignore[operator]
    assert stream.check_link_mtu(1280) == []
    (event,) = stream.check_link_mtu(1279)
    assert isinstance(event, StreamAborted)
    assert stream.is_closed


# Section 7.2.1.


BAD_PACKETS = {
    "no packet": b"",
    "version": bytes(40),
    "length": sent("10.100.0.5", "192.0.2.7") + b"\0",
    "source": sent("10.100.0.99", "192.0.2.7"),
    "chain": bytes(
        IPv6(src="fd00::5", dst="2001:db8::7") / IPv6ExtHdrDestOpt() / IPv6ExtHdrHopByHop()
    ),
}


@pytest.mark.parametrize("packet", BAD_PACKETS.values(), ids=BAD_PACKETS.keys())
def test_9484_s7_2_1_a_bad_packet_is_a_drop_and_no_protocol_error(packet: bytes) -> None:
    session = open_proxy(routes=ranges_of([ip_network("0.0.0.0/0"), ip_network("::/0")], 6))
    reason = session.unwrap(b"\0" + packet)
    assert isinstance(reason, DropReason)
    assert reason
    assert session.is_open


def test_9484_s7_2_1_icmp_code_5_for_a_source_that_is_not_assigned() -> None:
    proxy = open_proxy()
    packet = sent("fd00::99", "2001:db8::7")
    reason = proxy.unwrap(b"\0" + packet)
    assert reason is DropReason.SOURCE_NOT_ASSIGNED
    error = error_for_drop(reason, packet, SOURCES)
    assert error is not None
    assert IPv6(error)[ICMPv6DestUnreach].code == 5


@pytest.mark.parametrize(
    ("destination", "upper", "code"), [("fc00::1", TCP(), 0), ("2001:db8::7", UDP(), 1)]
)
def test_9484_s7_2_1_icmp_code_0_without_a_route_and_1_when_prohibited(
    destination: str, upper: object, code: int
) -> None:
    proxy = open_proxy(routes=(route("2001:db8::/32", 6),))
    packet = sent("fd00::5", destination, upper)
    reason = proxy.unwrap(b"\0" + packet)
    assert isinstance(reason, DropReason)
    error = error_for_drop(reason, packet, SOURCES)
    assert error is not None
    assert IPv6(error)[ICMPv6DestUnreach].code == code
    assert open_client().unwrap(b"\0" + error) == error


def test_9484_s7_2_1_clients_take_icmp_from_outside_their_routes() -> None:
    client = open_client(routes=(route("192.0.2.0/24", 17),))
    error = sent("203.0.113.1", "10.100.0.5", ICMP(type=3, code=1) / IP() / UDP())
    assert client.unwrap(b"\0" + error) == error


# Section 10.1.


def test_9484_s10_1_too_big_is_told_and_never_sent_in_a_capsule() -> None:
    packet = bytes(IPv6(src="2001:db8::7", dst="fd00::5") / UDP() / bytes(1400))
    error = error_for_drop(DropReason.TOO_BIG, packet, SOURCES, mtu_bytes=1380)
    assert error is not None
    assert IPv6(error)[ICMPv6PacketTooBig].mtu == 1380
    # The session has no call that puts a packet into a DATAGRAM capsule.
    session = open_proxy()
    before = dict(vars(session))
    session.check_outgoing(packet)
    assert vars(session) == before


# Section 11.


def test_9484_s11_source_addresses_are_validated() -> None:
    """BCP 38, at both ends, and whatever the client advertises or assigns."""
    proxy, client = open_proxy(), open_client()
    spoofed = sent("203.0.113.5", "192.0.2.7")
    assert client.check_outgoing(spoofed) is DropReason.SOURCE_NOT_ASSIGNED
    proxy.receive_data(RouteAdvertisement(EVERYTHING).encode())
    proxy.receive_data(AddressAssign((AssignedAddress(0, ip_network("0.0.0.0/0")),)).encode())
    assert proxy.unwrap(b"\0" + spoofed) is DropReason.SOURCE_NOT_ASSIGNED


def test_9484_s11_icmp_errors_go_only_to_whose_packet_they_are_about() -> None:
    """Two clients share an address; one is scoped to UDP and one to TCP."""
    udp_client = open_proxy("/.well-known/masque/ip/*/17/")
    tcp_client = open_proxy("/.well-known/masque/ip/*/6/")
    router = ip_address("203.0.113.1").packed
    about_udp = sent("10.100.0.5", "192.0.2.7", UDP())
    error = build_icmp_error(IcmpError.NO_ROUTE, about_udp, router)
    assert error is not None
    assert udp_client.check_outgoing(error) is DropReason.NONE
    assert tcp_client.check_outgoing(error) is DropReason.PROTOCOL_OUT_OF_SCOPE
