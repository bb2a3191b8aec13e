"""What the configuration says of services, against a name server that answers for real."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import cast

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from zgate_agent import known_services
from zgate_agent.config import KnownService
from zgate_agent.known_services import compare
from zgate_protocol.dns_capsule import DnsAssign

NAMES = DnsAssign((ip_address("127.0.0.1"),), ("zgate.internal",))
KNOWN = {("pacs", "A"): "10.101.0.1", ("pacs", "AAAA"): "fd7a::1"}


class Responder(asyncio.DatagramProtocol):
    """Knows one service."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        answer = dns.message.make_response(query)
        (question,) = query.question
        name = question.name.to_text().partition(".")[0]
        kind = dns.rdatatype.to_text(question.rdtype)
        if (name, kind) in KNOWN:
            rows = dns.rrset.from_text(question.name, 5, "IN", kind, KNOWN[name, kind])
            answer.answer.append(rows)
        elif name == "broken":
            answer.set_rcode(dns.rcode.SERVFAIL)
        else:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        self.transport.sendto(answer.to_wire(), addr)


@asynccontextmanager
async def responder() -> AsyncIterator[int]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Responder, local_addr=("127.0.0.1", 0))
    yield transport.get_extra_info("sockname")[1]
    transport.close()


def service(name: str, virtual_ip: str | None) -> KnownService:
    return KnownService.model_validate({"id": name, "virtualIp": virtual_ip})


@pytest.mark.parametrize(
    ("name", "virtual_ip", "note"),
    [
        ("pacs", "10.101.0.1", ""),
        ("pacs", "fd7a::1", ""),
        (
            "pacs",
            "10.101.0.9",
            "service pacs: the configuration says 10.101.0.9, the gateway says 10.101.0.1",
        ),
        ("other", "10.101.0.9", "service other: the gateway knows none that we may reach"),
        ("broken", "10.101.0.9", ""),
        ("pacs", None, ""),
        ("No Label", "10.101.0.9", ""),
    ],
)
async def test_differences(name: str, virtual_ip: str | None, note: str) -> None:
    async with responder() as port:
        notes = await compare([service(name, virtual_ip)], NAMES, port=port)
    assert notes == ([note] if note else [])


async def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_services, "_TIMEOUT_S", 0.05)
    monkeypatch.setattr(known_services, "_PAUSE_S", 0.01)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        (note,) = await compare([service("pacs", "10.101.0.1")], NAMES, port=port)
    assert note == "service pacs: the gateway's name server 127.0.0.1 does not answer"


async def test_without_names_nothing_is_compared() -> None:
    assert await compare([service("pacs", "10.101.0.1")], DnsAssign((), ())) == []
