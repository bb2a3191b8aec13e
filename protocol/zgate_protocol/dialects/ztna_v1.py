"""``ztna-v1``: IP packets in raw QUIC datagrams, under an ALPN of its own; no HTTP.

    gateway -> client   [0x01, IPv4 (4), port (2)]       where the gateway sees it; IPv4 only
    client -> gateway   [0x10, length, service]          register as an agent
                        [0x11, length, service]          register as a connector
    gateway -> client   [0x12, 0x00, length, service]    registered
                        [0x13, code, length, service]    refused: 0x01 invalid, 0x02 not authorized
    agent -> gateway    [0x2F, length, service, packet]  an IP packet for that service
    both                an IP packet (its first nibble is 4 or 6), for the agent's only service,
                        or between gateway and connector, or back to the agent

Lengths are one byte; a service's name has 1 to 255 bytes of UTF-8 without control characters.
"""

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address
from typing import Final

from zgate_protocol.connect_ip import ConnectIpSession, Role
from zgate_protocol.events import RequestReceived
from zgate_protocol.limits import DEFAULT_LIMITS, Limits
from zgate_protocol.service_capsule import ServiceCapsule, service_name_problem
from zgate_protocol.uri_template import Scope

ALPN: Final = "ztna-v1"

_SEEN_AT: Final = 0x01
_REGISTER_AGENT: Final = 0x10
_REGISTER_CONNECTOR: Final = 0x11
_REGISTERED: Final = 0x12
_REFUSED: Final = 0x13
_DATA: Final = 0x2F
_OK: Final = 0x00


class RefusalCode(IntEnum):
    """Why a registration was refused."""

    INVALID = 0x01
    NOT_AUTHORIZED = 0x02


@dataclass(frozen=True, slots=True)
class Registration:
    """The client wants to reach a service, or (``is_connector``) to serve it."""

    service: str
    is_connector: bool


@dataclass(frozen=True, slots=True)
class InvalidRegistration:
    """A registration under a name that no service can have: refuse it, INVALID."""

    name: bytes


@dataclass(frozen=True, slots=True)
class ServicePacket:
    """An IP packet, not looked at, for a service."""

    service: str
    packet: bytes


@dataclass(frozen=True, slots=True)
class PlainPacket:
    """An IP packet, not looked at, that names no service."""

    packet: bytes


Message = Registration | InvalidRegistration | ServicePacket | PlainPacket


def parse_datagram(data: bytes) -> Message | None:
    """Return what a client's datagram says; None if it is none of this protocol's."""
    if not data:
        return None
    kind = data[0]
    if kind >> 4 in (4, 6):
        return PlainPacket(data)
    if kind not in (_REGISTER_AGENT, _REGISTER_CONNECTOR, _DATA) or len(data) < 2:
        return None
    end = 2 + data[1]
    if len(data) < end:
        return None
    raw, rest = data[2:end], data[end:]
    name = _name_of(raw)
    if kind == _DATA:
        return ServicePacket(name, rest) if name is not None and rest else None
    if rest:
        return None
    if name is None:
        return InvalidRegistration(raw)
    return Registration(name, is_connector=kind == _REGISTER_CONNECTOR)


def _name_of(raw: bytes) -> str | None:
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        return None
    return name if service_name_problem(name) is None else None


def encode_seen_at(address: IPv4Address, port: int) -> bytes:
    """Return the datagram that tells a client its address."""
    return bytes((_SEEN_AT,)) + address.packed + port.to_bytes(2, "big")


def encode_registered(service: str) -> bytes:
    """Return the datagram that accepts a registration."""
    raw = service.encode()
    return bytes((_REGISTERED, _OK, len(raw))) + raw


def encode_refused(code: RefusalCode, name: bytes) -> bytes:
    """Return the datagram that refuses a registration; ``name`` is what was asked for."""
    return bytes((_REFUSED, code, len(name))) + name


class ZtnaSession(ConnectIpSession):
    """The gateway's side of a connection in this dialect: an RFC session's gate, and no request.

    A packet is given to ``unwrap`` behind a context ID of 0, as RFC 9484 has it, after its
    addresses were exchanged for those that the gateway knows.
    """

    needs_datagrams = False

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        """See ConnectIpSession; there is no stream."""
        super().__init__(Role.PROXY, 0, limits=limits)
        self.wrap_prefix = b""

    def begin(self) -> None:
        """The session is granted; say what it holds (``assign``) and may reach (``advertise``)."""
        self._requested(RequestReceived(Scope(), "", "", capsule_protocol=False))
        self.accept()

    def send_capsule(self, capsule: ServiceCapsule) -> bytes:  # noqa: ARG002
        """There is no stream for capsules."""
        return b""
