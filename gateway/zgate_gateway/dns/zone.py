"""One question in, one answer out: the zone of the services' names. No socket, no clock.

    pacs.zgate.internal A, AAAA    the service's virtual IPs, if the asker may reach it
    pacs.zgate.internal MX, ...    nothing (NODATA)
    zgate.internal SOA             the zone's own
    anything else under it         NXDOMAIN: a service that the asker may not reach is not there
    other names                    REFUSED: nothing is looked up for anybody

RFC 1035, 2308 (negative answers carry the SOA), 6891 (EDNS), 8482 (ANY gets what there is).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
from dns.rdtypes.IN.A import A
from dns.rdtypes.IN.AAAA import AAAA
from zgate_protocol.service_capsule import is_dns_label

IpAddress = IPv4Address | IPv6Address

Addresses = Callable[[str], Sequence[IpAddress]]
"""The virtual IPs of a service that the asker may reach; empty: there is none for it."""

TTL_S = 30
#: Soon a policy may allow, or a connector offer, what was not there a moment ago.
NEGATIVE_TTL_S = 5
#: What a UDP answer may be without fragments on any path (RFC 9715); and without EDNS.
MAX_UDP_BYTES = 1232
PLAIN_UDP_BYTES = 512
MAX_TCP_BYTES = 0xFFFF
_HEADER = struct.Struct("!6H")
_RESPONSE, _OPCODES, _RECURSION_DESIRED = 0x8000, 0x7800, 0x0100
_QUERY = 0
#: OPT is one; a signature (TSIG, SIG(0)) would be another, and gets an answer without one.
_MAX_ADDITIONAL = 2


class Outcome(StrEnum):
    """What became of a query; metric labels."""

    ANSWERED = "answered"
    NO_DATA = "no_data"
    NO_NAME = "no_name"
    REFUSED = "refused"
    MALFORMED = "malformed"
    NOT_IMPLEMENTED = "not_implemented"
    BAD_VERSION = "bad_version"
    NOT_A_QUERY = "not_a_query"
    """Too short for a header, or an answer: it is left without one, so that no two servers talk."""


class Reply(NamedTuple):
    """What to send, if anything."""

    outcome: Outcome
    data: bytes | None


class Zone:
    """The zone under one domain."""

    def __init__(self, domain: str) -> None:
        self.origin = dns.name.from_text(domain)
        # RFC 1035 section 3.3.13. Nobody transfers the zone: only the last number means anything.
        soa = f"{domain}. hostmaster.{domain}. 1 3600 600 86400 {NEGATIVE_TTL_S}"
        self._soa = dns.rrset.from_text(self.origin, NEGATIVE_TTL_S, "IN", "SOA", soa)

    def answer(self, data: bytes, addresses: Addresses, *, max_bytes: int | None = None) -> Reply:
        """Answer a query. Whatever its bytes, this raises nothing of its own.

        ``max_bytes``: what the transport takes; None: what the query says of UDP.
        """
        if len(data) < _HEADER.size:
            return Reply(Outcome.NOT_A_QUERY, None)
        _, flags, questions, answers, authorities, additional = _HEADER.unpack_from(data)
        if flags & _RESPONSE:
            return Reply(Outcome.NOT_A_QUERY, None)
        if flags & _OPCODES != _QUERY:
            return _bare(data, Outcome.NOT_IMPLEMENTED, dns.rcode.NOTIMP)
        if (questions, answers, authorities) != (1, 0, 0) or additional > _MAX_ADDITIONAL:
            return _bare(data, Outcome.MALFORMED, dns.rcode.FORMERR)
        try:
            query = dns.message.from_wire(data, keyring=False)
            response = dns.message.make_response(query, our_payload=MAX_UDP_BYTES, pad=0)
        except Exception:
            # The parser's own exceptions, and what else bytes from a stranger bring about in it.
            return _bare(data, Outcome.MALFORMED, dns.rcode.FORMERR)
        outcome = self._fill(query, response, addresses)
        return Reply(outcome, _to_wire(response, max_bytes or _udp_bytes(query)))

    def _fill(
        self, query: dns.message.Message, response: dns.message.Message, addresses: Addresses
    ) -> Outcome:
        question = query.question[0]
        if query.edns > 0:
            response.set_rcode(dns.rcode.BADVERS)
            return Outcome.BAD_VERSION
        if question.rdclass != dns.rdataclass.IN or not question.name.is_subdomain(self.origin):
            response.set_rcode(dns.rcode.REFUSED)
            return Outcome.REFUSED
        response.flags |= dns.flags.AA
        if question.name == self.origin:
            return self._fill_origin(question.rdtype, response)
        found = self._addresses_of(question.name, addresses)
        if not found:
            response.set_rcode(dns.rcode.NXDOMAIN)
            response.authority.append(self._soa)
            return Outcome.NO_NAME
        response.answer += _records(question.name, question.rdtype, found)
        return self._with_soa_if_empty(response)

    def _fill_origin(self, kind: dns.rdatatype.RdataType, response: dns.message.Message) -> Outcome:
        if kind in {dns.rdatatype.SOA, dns.rdatatype.ANY}:
            response.answer.append(self._soa)
        return self._with_soa_if_empty(response)

    def _with_soa_if_empty(self, response: dns.message.Message) -> Outcome:
        if response.answer:
            return Outcome.ANSWERED
        response.authority.append(self._soa)
        return Outcome.NO_DATA

    def _addresses_of(self, name: dns.name.Name, addresses: Addresses) -> Sequence[IpAddress]:
        labels = name.labels[: -len(self.origin.labels)]
        if len(labels) != 1:
            return ()
        label = labels[0].lower().decode("latin-1")
        return addresses(label) if is_dns_label(label) else ()


def _records(
    name: dns.name.Name, kind: dns.rdatatype.RdataType, addresses: Sequence[IpAddress]
) -> list[dns.rrset.RRset]:
    records = []
    for wanted, family, make in ((dns.rdatatype.A, 4, A), (dns.rdatatype.AAAA, 6, AAAA)):
        held = [str(one) for one in addresses if one.version == family]
        if kind in {wanted, dns.rdatatype.ANY} and held:
            data = [make(dns.rdataclass.IN, wanted, one) for one in held]
            records.append(dns.rrset.from_rdata_list(name, TTL_S, data))
    return records


def _udp_bytes(query: dns.message.Message) -> int:
    if query.edns < 0:
        return PLAIN_UDP_BYTES
    return min(max(query.payload, PLAIN_UDP_BYTES), MAX_UDP_BYTES)


def _to_wire(response: dns.message.Message, max_bytes: int) -> bytes:
    """The answer; without its records and with TC, if it is too large for UDP."""
    try:
        return response.to_wire(max_size=max_bytes)
    except dns.exception.TooBig:
        response.answer.clear()
        response.authority.clear()
        response.flags |= dns.flags.TC
        return response.to_wire(max_size=max_bytes)


def _bare(query: bytes, outcome: Outcome, code: dns.rcode.Rcode) -> Reply:
    """An answer that is a header: to what is not understood any further."""
    number, flags, *_ = _HEADER.unpack_from(query)
    kept = flags & (_OPCODES | _RECURSION_DESIRED)
    return Reply(outcome, _HEADER.pack(number, _RESPONSE | kept | code, 0, 0, 0, 0))
