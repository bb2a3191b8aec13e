"""What is answered to which question, and that no bytes get anything else out of it."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zgate_gateway.dns.zone import (
    MAX_UDP_BYTES,
    NEGATIVE_TTL_S,
    PLAIN_UDP_BYTES,
    TTL_S,
    Outcome,
    Zone,
)

ZONE = Zone("zgate.internal")
SERVICES = {
    "pacs": (ip_address("10.101.0.1"), ip_address("fd7a:7a67:6174:66::1")),
    "only-4": (ip_address("10.101.0.2"),),
    "Not A Label": (ip_address("10.101.0.3"),),
}


def addresses(name: str) -> Any:
    return SERVICES.get(name, ())


def ask(
    name: str, kind: str = "A", rdclass: str = "IN", **query: Any
) -> tuple[Outcome, dns.message.Message]:
    asked = dns.message.make_query(name, kind, rdclass, **query)
    outcome, data = ZONE.answer(asked.to_wire(), addresses)
    assert data is not None
    answer = dns.message.from_wire(data)
    assert asked.is_response(answer)
    assert not answer.flags & dns.flags.RA
    assert answer.flags & dns.flags.RD == asked.flags & dns.flags.RD
    return outcome, answer


def texts(answer: dns.message.Message) -> list[str]:
    return [f"{one.ttl} {one.rdtype.name} {item}" for one in answer.answer for item in one]


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("pacs.zgate.internal", "A", ["A 10.101.0.1"]),
        ("pacs.zgate.internal", "AAAA", ["AAAA fd7a:7a67:6174:66::1"]),
        ("PACS.Zgate.INTERNAL", "A", ["A 10.101.0.1"]),
        ("pacs.zgate.internal", "ANY", ["A 10.101.0.1", "AAAA fd7a:7a67:6174:66::1"]),
        ("only-4.zgate.internal", "A", ["A 10.101.0.2"]),
    ],
)
def test_services_have_their_virtual_ips(name: str, kind: str, expected: list[str]) -> None:
    outcome, answer = ask(name, kind)
    assert outcome is Outcome.ANSWERED
    assert answer.rcode() == dns.rcode.NOERROR and answer.flags & dns.flags.AA
    assert texts(answer) == [f"{TTL_S} {one}" for one in expected]
    # The name as it was asked, letter by letter (0x20): some resolvers compare.
    assert answer.answer[0].name.to_text() == f"{name}."


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("pacs.zgate.internal", "MX"),
        ("pacs.zgate.internal", "HTTPS"),
        ("pacs.zgate.internal", "TYPE65280"),
        ("pacs.zgate.internal", "SOA"),
        ("only-4.zgate.internal", "AAAA"),
        ("zgate.internal", "A"),
        ("zgate.internal", "NS"),
    ],
)
def test_other_types_are_no_data(name: str, kind: str) -> None:
    outcome, answer = ask(name, kind)
    assert (outcome, answer.rcode(), answer.answer) == (Outcome.NO_DATA, dns.rcode.NOERROR, [])
    assert_negative(answer)


@pytest.mark.parametrize(
    "name",
    [
        "wiki.zgate.internal",
        "x.pacs.zgate.internal",
        "pacs.pacs.zgate.internal",
        "not\\032a\\032label.zgate.internal",
        "*.zgate.internal",
        "p\\195\\164cs.zgate.internal",
        "\\000.zgate.internal",
        "a" * 63 + ".zgate.internal",
    ],
)
def test_what_is_not_there_is_told_so_for_a_short_time(name: str) -> None:
    outcome, answer = ask(name)
    assert (outcome, answer.rcode()) == (Outcome.NO_NAME, dns.rcode.NXDOMAIN)
    assert_negative(answer)


def assert_negative(answer: dns.message.Message) -> None:
    (soa,) = answer.authority
    assert (soa.rdtype, soa.name.to_text()) == (dns.rdatatype.SOA, "zgate.internal.")
    assert soa.ttl == soa[0].minimum == NEGATIVE_TTL_S  # RFC 2308 section 5: the lesser counts
    assert answer.flags & dns.flags.AA


@pytest.mark.parametrize("kind", ["SOA", "ANY"])
def test_the_zone_has_its_soa(kind: str) -> None:
    outcome, answer = ask("zgate.internal", kind)
    assert outcome is Outcome.ANSWERED and answer.answer[0].rdtype is dns.rdatatype.SOA


@pytest.mark.parametrize(
    ("name", "rdclass"),
    [
        ("example.com", "IN"),
        ("internal", "IN"),
        (".", "IN"),
        ("xzgate.internal", "IN"),
        ("zgate.internal.example", "IN"),
        ("pacs.zgate.internal", "CH"),
        ("pacs.zgate.internal", "ANY"),
    ],
)
def test_nothing_is_looked_up_for_anybody(name: str, rdclass: str) -> None:
    outcome, answer = ask(name, "A", rdclass)
    assert (outcome, answer.rcode()) == (Outcome.REFUSED, dns.rcode.REFUSED)
    assert not answer.answer and not answer.authority and not answer.flags & dns.flags.AA


def test_edns_is_answered_with_edns() -> None:
    _, plain = ask("pacs.zgate.internal", use_edns=False)
    assert plain.edns == -1
    _, answer = ask("pacs.zgate.internal", use_edns=0, payload=4096, want_dnssec=True)
    assert (answer.edns, answer.payload) == (0, MAX_UDP_BYTES)
    outcome, answer = ask("pacs.zgate.internal", use_edns=1)
    assert (outcome, answer.rcode()) == (Outcome.BAD_VERSION, dns.rcode.BADVERS)
    assert (answer.edns, answer.answer) == (0, [])
    cookie = dns.edns.GenericOption(10, b"12345678")
    assert ask("pacs.zgate.internal", use_edns=0, options=[cookie])[0] is Outcome.ANSWERED


def test_an_answer_that_does_not_fit_is_cut_and_says_so() -> None:
    many = tuple(ip_address(0x0A65_0000 + n) for n in range(1, 60))
    asked = dns.message.make_query("many.zgate.internal", "A", use_edns=False).to_wire()
    _, data = ZONE.answer(asked, lambda _: many)
    assert data is not None and len(data) <= PLAIN_UDP_BYTES
    cut = dns.message.from_wire(data)
    assert cut.flags & dns.flags.TC and not cut.answer and len(cut.question) == 1
    for payload in (0, 511, 512):  # RFC 6891 section 6.2.3: less than 512 means 512
        asked = dns.message.make_query("many.zgate.internal", "A", payload=payload).to_wire()
        _, data = ZONE.answer(asked, lambda _: many)
        assert data is not None and len(data) <= PLAIN_UDP_BYTES
    _, data = ZONE.answer(asked, lambda _: many, max_bytes=65_535)
    assert data is not None
    assert len(dns.message.from_wire(data).answer[0]) == len(many)


# Bytes.

QUERY = dns.message.make_query("pacs.zgate.internal", "A", use_edns=0).to_wire()
HEADER = struct.Struct("!6H")


def assert_sane(data: bytes) -> Outcome:
    """An answer to these bytes, if any, has their number, says QR, and can be read."""
    outcome, answer = ZONE.answer(data, addresses)
    if answer is None:
        assert outcome is Outcome.NOT_A_QUERY
        assert len(data) < HEADER.size or data[2] & 0x80
        return outcome
    assert answer[:2] == data[:2] and answer[2] & 0x80
    assert len(answer) <= MAX_UDP_BYTES
    dns.message.from_wire(answer)
    return outcome


def test_every_truncation() -> None:
    outcomes = {assert_sane(QUERY[:length]) for length in range(len(QUERY))}
    assert outcomes == {Outcome.NOT_A_QUERY, Outcome.MALFORMED}


@pytest.mark.parametrize(
    ("header", "outcome"),
    [
        ((7, 0x8000, 1, 0, 0, 0), Outcome.NOT_A_QUERY),
        ((7, 0x2800, 1, 0, 0, 0), Outcome.NOT_IMPLEMENTED),  # UPDATE
        ((7, 0x2000, 1, 0, 0, 0), Outcome.NOT_IMPLEMENTED),  # NOTIFY
        ((7, 0x0100, 0, 0, 0, 0), Outcome.MALFORMED),
        ((7, 0x0100, 2, 0, 0, 0), Outcome.MALFORMED),
        ((7, 0x0100, 1, 1, 0, 0), Outcome.MALFORMED),
        ((7, 0x0100, 1, 0, 1, 0), Outcome.MALFORMED),
        ((7, 0x0100, 1, 0, 0, 3), Outcome.MALFORMED),
        ((7, 0x0100, 1, 0, 0, 65_535), Outcome.MALFORMED),
    ],
)
def test_headers(header: tuple[int, ...], outcome: Outcome) -> None:
    question = QUERY[12:38]
    assert assert_sane(HEADER.pack(*header) + question) is outcome


@pytest.mark.parametrize(
    "rest",
    [
        b"\xc0\x0c\x00\x01\x00\x01",  # a name that points to itself
        b"\x01a\xc0\x0c\x00\x01\x00\x01",
        b"\x40\x00\x00\x01\x00\x01",
        b"\x3f" * 300,
        b"\x04pacs\x05zgate\x08internal\x00\x00\x01\x00\x01trailing",
    ],
)
def test_names_that_are_none(rest: bytes) -> None:
    assert assert_sane(HEADER.pack(7, 0x0100, 1, 0, 0, 0) + rest) is Outcome.MALFORMED


@settings(max_examples=1500)
@given(st.binary(max_size=600))
def test_any_bytes(data: bytes) -> None:
    assert_sane(data)


@settings(max_examples=1500)
@given(st.binary(max_size=300), st.integers(0, 0xFFFF), st.integers(0, 3))
def test_any_bytes_behind_a_header_of_a_query(rest: bytes, number: int, additional: int) -> None:
    assert_sane(HEADER.pack(number, 0x0100, 1, 0, 0, additional) + rest)


@settings(max_examples=1500)
@given(st.data())
def test_queries_with_bytes_changed(data: st.DataObject) -> None:
    names = st.sampled_from(["pacs.zgate.internal", "zgate.internal", "a.b.c.d.zgate.internal"])
    options = [dns.edns.GenericOption(12, bytes(20)), dns.edns.ECSOption("192.0.2.0", 24)]
    asked = dns.message.make_query(data.draw(names), "A", use_edns=0, options=options)
    changed = bytearray(asked.to_wire())
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(changed) - 1))
        changed[place] = data.draw(st.integers(0, 255))
    assert_sane(bytes(changed))
