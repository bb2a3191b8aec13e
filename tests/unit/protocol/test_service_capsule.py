"""Capsules about services: what goes in comes out, and nothing else gets through."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_protocol.capsule import CapsuleDecoder
from zgate_protocol.dns_capsule import DNS_ASSIGN, DnsAssign
from zgate_protocol.errors import H3Error, MalformedCapsule
from zgate_protocol.limits import Limits
from zgate_protocol.service_capsule import (
    Drain,
    Health,
    ObservedAddress,
    OfferedService,
    OfferKind,
    OfferState,
    OfferStatus,
    Register,
    Registered,
    RegistrationAnswer,
    RegistrationCode,
    ServiceCapsule,
    ServiceCapsuleType,
    ServicePorts,
    is_dns_label,
    service_name_problem,
)
from zgate_protocol.varint import MAX_VARINT, encode_varint
from zgate_protocol.wire import encode_capsule

VIPS = (ip_address("10.101.0.1"), ip_address("fd7a:7a67:6174:66::1"))
OFFERS = (ip_address("10.101.255.254"),)
PACS = OfferedService("pacs", (ServicePorts(6, 104, 104), ServicePorts(17, 1, 65535)))
CAPSULES: list[ServiceCapsule] = [
    Register(7, (PACS, OfferedService("écho", ()))),
    Register(0, ()),
    Registered(
        7,
        (
            RegistrationAnswer(
                OfferKind.SERVICE, "pacs", RegistrationCode.ACCEPTED, "", VIPS, OFFERS
            ),
            RegistrationAnswer(
                OfferKind.ROUTE, "10.20.0.0/16", RegistrationCode.OVERLAP, "held by annex"
            ),
        ),
    ),
    OfferState((OfferStatus("pacs", Health.DOWN, 3, 70_000, 1 << 40, MAX_VARINT, "refused"),)),
    OfferState(()),
    Drain(30_000),
    ObservedAddress(1, ip_address("192.0.2.7"), 4433),
    ObservedAddress(MAX_VARINT, ip_address("2001:db8::7"), 65535),
    DnsAssign(VIPS, ("zgate.internal",)),
    DnsAssign((), ()),
]


def decode(data: bytes, limits: Limits | None = None) -> list[object]:
    return list(CapsuleDecoder(limits or Limits()).feed(data, fin=True))


def value_of(capsule: ServiceCapsule) -> bytes:
    """Return what follows type and length, for capsules of less than 64 or 16384 bytes."""
    data = capsule.encode()
    return data[5:] if data[4] < 0x40 else data[6:]


@pytest.mark.parametrize("capsule", CAPSULES, ids=lambda item: type(item).__name__)
def test_round_trip(capsule: ServiceCapsule) -> None:
    assert decode(capsule.encode()) == [capsule]


@pytest.mark.parametrize("capsule", CAPSULES, ids=lambda item: type(item).__name__)
def test_the_pieces_they_come_in_do_not_matter(capsule: ServiceCapsule) -> None:
    decoder = CapsuleDecoder()
    found = [item for byte in capsule.encode() * 2 for item in decoder.feed(bytes((byte,)))]
    assert found == [capsule, capsule]
    assert decoder.buffered_bytes == 0


@pytest.mark.parametrize("capsule", CAPSULES, ids=lambda item: type(item).__name__)
def test_a_value_cut_at_any_byte_is_malformed(capsule: ServiceCapsule) -> None:
    data, value = capsule.encode(), value_of(capsule)
    capsule_type = int.from_bytes(data[:4], "big") & 0x3FFFFFFF
    # An empty DNS_ASSIGN is a whole one.
    first = 1 if isinstance(capsule, DnsAssign) else 0
    for length in range(first, len(value)):
        with pytest.raises(MalformedCapsule):
            decode(encode_capsule(capsule_type, value[:length]))


@pytest.mark.parametrize("capsule", CAPSULES, ids=lambda item: type(item).__name__)
def test_a_stream_that_ends_at_any_byte_of_it_is_malformed(capsule: ServiceCapsule) -> None:
    data = capsule.encode()
    for length in range(1, len(data)):
        with pytest.raises(MalformedCapsule):
            decode(data[:length])


@pytest.mark.parametrize("capsule", CAPSULES[:8], ids=lambda item: type(item).__name__)
def test_bytes_after_the_last_field_are_malformed(capsule: ServiceCapsule) -> None:
    capsule_type = int.from_bytes(capsule.encode()[:4], "big") & 0x3FFFFFFF
    with pytest.raises(MalformedCapsule, match="after the last field"):
        decode(encode_capsule(capsule_type, value_of(capsule) + b"\0"))


@given(st.sampled_from([*ServiceCapsuleType, DNS_ASSIGN]), st.binary(max_size=80))
def test_random_values_are_capsules_or_malformed(capsule_type: int, value: bytes) -> None:
    try:
        (capsule,) = decode(encode_capsule(capsule_type, value))
    except MalformedCapsule:
        return
    assert isinstance(capsule, ServiceCapsule)
    if not isinstance(capsule, DnsAssign):  # whose servers are sent in the order of families
        assert decode(capsule.encode()) == [capsule]


def test_a_type_of_ours_that_is_not_given_out_is_skipped() -> None:
    assert decode(encode_capsule(0x267A6706, b"\xff") + Drain(1).encode()) == [Drain(1)]


# Limits.


def test_an_over_long_capsule_is_refused_by_its_header() -> None:
    header = encode_varint(ServiceCapsuleType.REGISTER) + encode_varint(1001)
    with pytest.raises(MalformedCapsule) as caught:
        CapsuleDecoder(Limits(max_service_capsule_bytes=1000)).feed(header)
    assert caught.value.error_code is H3Error.EXCESSIVE_LOAD


def test_what_is_held_of_a_capsule_is_counted() -> None:
    decoder = CapsuleDecoder()
    decoder.feed(encode_varint(ServiceCapsuleType.REGISTER) + encode_varint(1000) + bytes(500))
    assert decoder.buffered_bytes == 500


def too_many_services() -> bytes:
    return Register(1, tuple(OfferedService(f"s{i}", ()) for i in range(9))).encode()


def too_many_ports() -> bytes:
    ports = tuple(ServicePorts(6, i, i) for i in range(1, 10))
    return Register(1, (OfferedService("s", ports),)).encode()


def too_many_statuses() -> bytes:
    status = OfferStatus("s", Health.UP, 0, 0, 0, 0, "")
    return OfferState((status,) * 9).encode()


def too_long_a_name() -> bytes:
    value = b"\1\1" + encode_varint(256) + b"x" * 256 + b"\0"
    return encode_capsule(ServiceCapsuleType.REGISTER, value)


def too_many_servers() -> bytes:
    return DnsAssign((ip_address("10.0.0.1"),) * 9, ("x",)).encode()


@pytest.mark.parametrize(
    "build",
    [too_many_services, too_many_ports, too_many_statuses, too_long_a_name, too_many_servers],
    ids=lambda build: build.__name__,
)
def test_lists_and_texts_are_bounded(build: object) -> None:
    assert callable(build)
    limits = Limits(max_services=8, max_ports_per_service=8, max_dns_entries=8)
    with pytest.raises(MalformedCapsule) as caught:
        decode(build(), limits)
    assert caught.value.error_code is H3Error.EXCESSIVE_LOAD


def test_a_count_beyond_every_limit_makes_nothing_grow() -> None:
    value = b"\1" + encode_varint(MAX_VARINT)
    with pytest.raises(MalformedCapsule):
        decode(encode_capsule(ServiceCapsuleType.REGISTER, value))


# Rules of single fields.


@pytest.mark.parametrize(
    ("protocol", "first", "last"), [(1, 1, 1), (6, 0, 5), (6, 5, 4), (17, 0, 0), (0, 1, 2)]
)
def test_ports_that_are_none(protocol: int, first: int, last: int) -> None:
    service = OfferedService("s", (ServicePorts(protocol, first, last),))
    with pytest.raises(MalformedCapsule):
        decode(Register(1, (service,)).encode())


def answer_bytes(kind: int, code: int, version: int) -> bytes:
    return bytes((1, 1, kind, 1)) + b"x" + bytes((code, 0, 1, version)) + bytes(4) + b"\0"


@pytest.mark.parametrize(("kind", "code", "version"), [(2, 0, 4), (0, 7, 4), (0, 0, 5)])
def test_answers_with_unknown_numbers(kind: int, code: int, version: int) -> None:
    assert decode(encode_capsule(ServiceCapsuleType.REGISTERED, answer_bytes(0, 0, 4)))
    with pytest.raises(MalformedCapsule):
        value = answer_bytes(kind, code, version)
        decode(encode_capsule(ServiceCapsuleType.REGISTERED, value))


def test_health_is_up_or_down() -> None:
    with pytest.raises(MalformedCapsule):
        decode(encode_capsule(ServiceCapsuleType.OFFER_STATE, b"\1\1s\2\0\0\0\0\0"))


def test_a_name_that_is_not_utf8() -> None:
    with pytest.raises(MalformedCapsule):
        decode(encode_capsule(ServiceCapsuleType.REGISTER, b"\1\1\1\xff\0"))


def test_a_long_reason_is_cut_at_a_character() -> None:
    (state,) = decode(OfferState((OfferStatus("s", Health.DOWN, 0, 0, 0, 0, "é" * 200),)).encode())
    assert isinstance(state, OfferState)
    assert state.statuses[0].reason == "é" * 127


@pytest.mark.parametrize("name", ["pacs", "x" * 255, "Röntgen 1", "*", "é" * 127])
def test_names_that_are_good(name: str) -> None:
    assert service_name_problem(name) is None


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "empty"),
        ("x" * 256, "256 bytes"),
        ("é" * 128, "256 bytes"),
        ("a\nb", "control"),
        ("a\x7fb", "control"),
        ("a\x85b", "control"),
        ("\0", "control"),
        ("\ud800", "UTF-8"),
    ],
)
def test_names_that_are_not(name: str, problem: str) -> None:
    assert problem in (service_name_problem(name) or "")


@pytest.mark.parametrize(
    ("name", "is_label"),
    [
        ("pacs", True),
        ("echo-1", True),
        ("x" * 63, True),
        ("x" * 64, False),
        ("Pacs", False),
        ("a.b", False),
        ("-a", False),
        ("a-", False),
        ("a_b", False),
        ("", False),
        ("a\n", False),
    ],
)
def test_names_that_dns_can_ask_for(name: str, is_label: bool) -> None:
    assert is_dns_label(name) is is_label
