"""Services as the configuration knows them, compared with what the gateway's responder says."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import dns.asyncquery
import dns.exception
import dns.message
import dns.rcode
import dns.rdatatype
from zgate_protocol.dns_capsule import DnsAssign
from zgate_protocol.ip_range import IpAddress
from zgate_protocol.service_capsule import is_dns_label

from zgate_agent.config import KnownService

_TIMEOUT_S = 2.0
_ATTEMPTS = 3
_PAUSE_S = 0.5


async def compare(
    services: Sequence[KnownService], names: DnsAssign, *, port: int = 53
) -> list[str]:
    """What differs, in one line each; nothing if the gateway answers no names.

    Asks through the tunnel, so the routes must be there.
    """
    if not names.servers or not names.domains:
        return []
    domain, server = names.domains[0], names.servers[0]
    notes = []
    for service in services:
        if service.virtual_ip is None or not is_dns_label(service.id):
            continue
        note = await _compare_one(service.id, service.virtual_ip, domain, server, port)
        if note:
            notes.append(note)
    return notes


async def _compare_one(
    name: str, expected: IpAddress, domain: str, server: IpAddress, port: int
) -> str:
    kind = dns.rdatatype.A if expected.version == 4 else dns.rdatatype.AAAA
    query = dns.message.make_query(f"{name}.{domain}", kind)
    for _ in range(_ATTEMPTS):
        try:
            answer = await dns.asyncquery.udp(query, str(server), timeout=_TIMEOUT_S, port=port)
        except (dns.exception.DNSException, OSError):
            await asyncio.sleep(_PAUSE_S)
            continue
        if answer.rcode() == dns.rcode.NXDOMAIN:
            return f"service {name}: the gateway knows none that we may reach"
        found = sorted(
            str(record) for rrset in answer.answer for record in rrset if record.rdtype == kind
        )
        if answer.rcode() != dns.rcode.NOERROR or str(expected) in found:
            return ""
        says = ", ".join(found) or "no address of this kind"
        return f"service {name}: the configuration says {expected}, the gateway says {says}"
    return f"service {name}: the gateway's name server {server} does not answer"
