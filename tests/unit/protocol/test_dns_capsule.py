"""DNS_ASSIGN as draft-ietf-masque-connect-ip-dns-06 lays it out."""

from ipaddress import ip_address

import pytest
from zgate_protocol.capsule import CapsuleDecoder
from zgate_protocol.dns_capsule import DNS_ASSIGN, DnsAssign
from zgate_protocol.errors import MalformedCapsule
from zgate_protocol.wire import encode_bytes, encode_capsule, encode_list

V4, V6 = ip_address("192.0.2.33"), ip_address("2001:db8::1")


def nameserver(
    *, priority: int = 1, v4: int = 1, v6: int = 0, name: bytes = b"", parameters: bytes = b""
) -> bytes:
    addresses = encode_list([V4.packed] * v4) + encode_list([V6.packed] * v6)
    tail = encode_bytes(name) + encode_bytes(parameters)
    return priority.to_bytes(2, "big") + addresses + tail


def configuration(
    servers: list[bytes], domains: tuple[bytes, ...] = (), search: tuple[bytes, ...] = ()
) -> bytes:
    lists = (map(encode_bytes, domains), map(encode_bytes, search))
    return encode_list(servers) + b"".join(encode_list(list(items)) for items in lists)


def parse(value: bytes) -> DnsAssign:
    (capsule,) = CapsuleDecoder().feed(encode_capsule(DNS_ASSIGN, value), fin=True)
    assert isinstance(capsule, DnsAssign)
    return capsule


def test_the_bytes_that_we_send() -> None:
    """One nameserver of priority 1, no authentication domain, no parameters."""
    expected = bytes.fromhex("01 0001 01 c0000221 01 20010db8000000000000000000000001 00 00")
    expected += b"\1\x0ezgate.internal\0"
    assert DnsAssign((V4, V6), ("zgate.internal",)).encode() == encode_capsule(DNS_ASSIGN, expected)


def test_the_split_tunnel_example_of_the_draft() -> None:
    search = (b"internal.corp.example", b"corp.example")
    value = configuration([nameserver(v6=1)], (b"internal.corp.example",), search)
    assert parse(value) == DnsAssign((V4, V6), ("internal.corp.example",))


def test_a_server_of_encrypted_dns_alone_is_not_used() -> None:
    """The draft's full-tunnel example: no address, DNS over HTTPS (alpn, no-default-alpn)."""
    parameters = bytes.fromhex("0001 0003 02 6832 0002 0000")
    doh = nameserver(v4=0, name=b"masque.example.org", parameters=parameters)
    assert parse(configuration([doh], (b"",))).servers == ()


def test_servers_come_by_priority_and_on_port_53() -> None:
    other_port = bytes.fromhex("0003 0002 14e9")
    usual_port = bytes.fromhex("0003 0002 0035")
    servers = [
        nameserver(priority=9, v4=1, parameters=usual_port),
        nameserver(priority=2, v4=0, v6=1),
        nameserver(priority=1, parameters=other_port),
    ]
    assert parse(configuration(servers, (b"x",))).servers == (V6, V4)


def test_the_first_configuration_that_can_be_used_is() -> None:
    doh = nameserver(v4=0, name=b"a.example", parameters=bytes.fromhex("0002 0000"))
    value = configuration([doh], (b"a",)) + configuration([nameserver()], (b"b",))
    value += configuration([nameserver(v6=1)], (b"c",))
    assert parse(value) == DnsAssign((V4,), ("b",))


def test_domains_are_lower_case_without_a_dot() -> None:
    domains = (b"Zgate.Internal.", b"", b"_dns.x")
    assert parse(configuration([nameserver()], domains)).domains == ("zgate.internal", "", "_dns.x")


@pytest.mark.parametrize(
    "value",
    [
        configuration([nameserver(priority=0)]),
        configuration([nameserver(v4=0)]),
        configuration([nameserver(parameters=bytes.fromhex("0004 0004 c0000201"))]),
        configuration([nameserver(parameters=bytes.fromhex("0003 0002 0035 0001 0000"))]),
        configuration([nameserver(parameters=bytes.fromhex("0003 0002 0035 0003 0000"))]),
        configuration([nameserver(parameters=bytes.fromhex("0003 0003 0035"))]),
        configuration([nameserver()], (b"a..b",)),
        configuration([nameserver()], (b"a b",)),
        configuration([nameserver()], (b"x" * 64,)),
        configuration([nameserver()], (b"a", b".".join([b"x" * 60] * 5))),
        configuration([nameserver()], (), ("ö".encode(),)),
        configuration([nameserver()], (b"-rm",)),
    ],
    ids=[
        "priority 0",
        "no address",
        "address hint",
        "keys out of order",
        "a key twice",
        "a parameter that is cut",
        "an empty label",
        "a space",
        "a long label",
        "a long name",
        "not an A-label",
        "a hyphen first",
    ],
)
def test_what_breaks_a_rule_is_malformed(value: bytes) -> None:
    with pytest.raises(MalformedCapsule):
        parse(value)
