"""Capsules about services, and what the gateway tells its peer about the network.

Types of our own, in the space that RFC 9297 section 5.4 leaves to whoever needs one. A peer
that does not know them skips them; a malformed one ends the session.

    0x267A6701 OBSERVED_ADDRESS  gateway -> peer       { Sequence (i), Address, Port (16) }
    0x267A6702 REGISTER          connector -> gateway  { Revision (i), Services }
    0x267A6703 REGISTERED        gateway -> connector  { Revision (i), Answers }
    0x267A6704 OFFER_STATE       connector -> gateway  { Statuses }
    0x267A6705 DRAIN             gateway -> peer       { Deadline in ms (i) }

    Services   { Count (i), { Text: name, Ports } ... }
    Ports      { Count (i), { Protocol (8), First (16), Last (16) } ... }
    Answers    { Count (i), { Kind (8), Text: name, Code (8), Text: why,
                              Service Addresses, Offer Addresses } ... }
    Statuses   { Count (i), { Text: name, Health (8), Open (i), Total (i), Up (i), Down (i),
                              Text: why } ... }
    Text       { Length (i), UTF-8 (..) }         Addresses { Count (i), Address ... }
    Address    { Version (8), Address (32..128) }

REGISTER is the full list and replaces the earlier one; OFFER_STATE comes at every change and
each second, and is the connector's sign of life. DRAIN tells a connector that it gets no new flows,
and any other client that the gateway is to stop. DNS_ASSIGN is in ``dns_capsule``.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from zgate_protocol.dns_capsule import DNS_ASSIGN, DnsAssign, parse_dns_assign
from zgate_protocol.errors import MalformedCapsule
from zgate_protocol.ip_range import IpAddress
from zgate_protocol.limits import Limits
from zgate_protocol.varint import encode_varint
from zgate_protocol.wire import (
    FieldReader,
    encode_address,
    encode_capsule,
    encode_list,
    encode_text,
)

TCP: Final = 6
UDP: Final = 17
MAX_NAME_BYTES: Final = 255
MAX_TEXT_BYTES: Final = 255
_MAX_PORT: Final = 0xFFFF
_MAX_ADDRESSES_PER_ANSWER: Final = 16
_DNS_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class ServiceCapsuleType(IntEnum):
    """The capsule types that are ours."""

    OBSERVED_ADDRESS = 0x267A6701
    REGISTER = 0x267A6702
    REGISTERED = 0x267A6703
    OFFER_STATE = 0x267A6704
    DRAIN = 0x267A6705


class OfferKind(IntEnum):
    """What an answer is about."""

    SERVICE = 0
    ROUTE = 1


class RegistrationCode(IntEnum):
    """Why a registration was refused; 0 means that it was not."""

    ACCEPTED = 0
    NOT_AUTHORIZED = 1
    """Neither the certificate nor the policy lets this connector offer it."""
    INVALID = 2
    """The name, the ports or the network cannot be offered by anybody."""
    NO_ADDRESS = 3
    """The service pool is empty."""
    OVERLAP = 4
    """The network overlaps an address of the gateway's own or another connector's route."""
    LIMIT = 5
    """More than this connector, or the gateway, may hold."""
    INTERNAL = 6
    """The gateway could not do it now; its log says why."""


class Health(IntEnum):
    """Whether a service's backend answers."""

    DOWN = 0
    UP = 1


def service_name_problem(name: str) -> str | None:
    """Say why ``name`` cannot be a service's name; None if it can.

    1 to 255 bytes of UTF-8 without control characters. Only a name that ``is_dns_label``
    accepts is answered by the DNS responder.
    """
    try:
        length_bytes = len(name.encode())
    except UnicodeEncodeError:
        return "the name is not UTF-8"
    if not length_bytes:
        return "the name is empty"
    if length_bytes > MAX_NAME_BYTES:
        return f"the name has {length_bytes} bytes, more than {MAX_NAME_BYTES}"
    if any(ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 for character in name):
        return "the name has control characters"
    return None


def is_dns_label(name: str) -> bool:
    """Say whether a service's name can be asked for by DNS: lower-case [a-z0-9-]{1,63}."""
    return _DNS_LABEL.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class ServicePorts:
    """Ports of one transport protocol, the ends included."""

    protocol: int
    """6 (TCP) or 17 (UDP)."""
    first: int
    last: int

    def encode(self) -> bytes:
        """Return the entry's bytes."""
        ends = self.first.to_bytes(2, "big") + self.last.to_bytes(2, "big")
        return bytes((self.protocol,)) + ends


@dataclass(frozen=True, slots=True)
class OfferedService:
    """A service, and the ports that this connector serves of it."""

    name: str
    ports: tuple[ServicePorts, ...]

    def encode(self) -> bytes:
        """Return the entry's bytes."""
        return _encode_name(self.name) + encode_list([item.encode() for item in self.ports])


@dataclass(frozen=True, slots=True)
class Register:
    """Everything that the connector offers; replaces what it offered before."""

    revision: int
    """The connector's own count of its lists; comes back in the answer."""
    services: tuple[OfferedService, ...]

    def encode(self) -> bytes:
        """Return the capsule's bytes."""
        services = encode_list([service.encode() for service in self.services])
        return encode_capsule(ServiceCapsuleType.REGISTER, encode_varint(self.revision) + services)


@dataclass(frozen=True, slots=True)
class RegistrationAnswer:
    """What became of one service or one route."""

    kind: OfferKind
    name: str
    """The service's name, or the network, such as "10.20.0.0/16"."""
    code: RegistrationCode
    text: str
    """Why, for a person to read; cut at 255 bytes."""
    service_addresses: tuple[IpAddress, ...] = ()
    """What agents use: the service's virtual IPs."""
    offer_addresses: tuple[IpAddress, ...] = ()
    """What this connector serves: packets for the service arrive with these destinations."""

    @property
    def is_accepted(self) -> bool:
        """Whether the offer stands."""
        return self.code is RegistrationCode.ACCEPTED

    def encode(self) -> bytes:
        """Return the entry's bytes."""
        return b"".join(
            (
                bytes((self.kind,)),
                _encode_name(self.name),
                bytes((self.code,)),
                encode_text(self.text, MAX_TEXT_BYTES),
                encode_list([encode_address(item) for item in self.service_addresses]),
                encode_list([encode_address(item) for item in self.offer_addresses]),
            )
        )


@dataclass(frozen=True, slots=True)
class Registered:
    """The answers to a REGISTER, and to the last ROUTE_ADVERTISEMENT."""

    revision: int
    """The revision of the REGISTER that is answered; 0 if there was none."""
    answers: tuple[RegistrationAnswer, ...]

    def encode(self) -> bytes:
        """Return the capsule's bytes."""
        answers = encode_list([answer.encode() for answer in self.answers])
        return encode_capsule(ServiceCapsuleType.REGISTERED, encode_varint(self.revision) + answers)


@dataclass(frozen=True, slots=True)
class OfferStatus:
    """How one offered service does; counts since the session began."""

    name: str
    health: Health
    open_flows: int
    total_flows: int
    bytes_up: int
    """From agents to the backend."""
    bytes_down: int
    reason: str
    """Why it is down, for a person to read; empty when it is up."""

    def encode(self) -> bytes:
        """Return the entry's bytes."""
        counts = (self.open_flows, self.total_flows, self.bytes_up, self.bytes_down)
        return b"".join(
            (
                _encode_name(self.name),
                bytes((self.health,)),
                *(encode_varint(count) for count in counts),
                encode_text(self.reason, MAX_TEXT_BYTES),
            )
        )


@dataclass(frozen=True, slots=True)
class OfferState:
    """How all offered services do, at every change and each second."""

    statuses: tuple[OfferStatus, ...]

    def encode(self) -> bytes:
        """Return the capsule's bytes."""
        value = encode_list([status.encode() for status in self.statuses])
        return encode_capsule(ServiceCapsuleType.OFFER_STATE, value)


@dataclass(frozen=True, slots=True)
class Drain:
    """The gateway sends no new flows; those that are open have until the deadline."""

    deadline_ms: int
    """From now on; 0 means no deadline."""

    def encode(self) -> bytes:
        """Return the capsule's bytes."""
        return encode_capsule(ServiceCapsuleType.DRAIN, encode_varint(self.deadline_ms))


@dataclass(frozen=True, slots=True)
class ObservedAddress:
    """The address that the gateway sees the peer's packets come from."""

    sequence: int
    """Rises with every observation of a connection; an older one is not used."""
    address: IpAddress
    port: int

    def encode(self) -> bytes:
        """Return the capsule's bytes."""
        place = encode_address(self.address) + self.port.to_bytes(2, "big")
        return encode_capsule(
            ServiceCapsuleType.OBSERVED_ADDRESS, encode_varint(self.sequence) + place
        )


ServiceCapsule = Register | Registered | OfferState | Drain | ObservedAddress | DnsAssign


def _encode_name(name: str) -> bytes:
    return encode_text(name, MAX_NAME_BYTES)


# Parsers of whole values.


def _take_ports(reader: FieldReader) -> ServicePorts:
    ports = ServicePorts(reader.number(1), reader.number(2), reader.number(2))
    if ports.protocol not in (TCP, UDP):
        raise MalformedCapsule(f"ports of protocol {ports.protocol}, which is neither 6 nor 17")
    if not 1 <= ports.first <= ports.last <= _MAX_PORT:
        raise MalformedCapsule(f"ports {ports.first} to {ports.last}")
    return ports


def _parse_register(reader: FieldReader, limits: Limits) -> Register:
    def take_service() -> OfferedService:
        name = reader.text(MAX_NAME_BYTES)
        ports = reader.list_of(lambda: _take_ports(reader), limits.max_ports_per_service)
        return OfferedService(name, ports)

    return Register(reader.varint(), reader.list_of(take_service, limits.max_services))


def _take_answer(reader: FieldReader) -> RegistrationAnswer:
    kind, name, code = reader.number(1), reader.text(MAX_NAME_BYTES), reader.number(1)
    try:
        known_kind, known_code = OfferKind(kind), RegistrationCode(code)
    except ValueError as error:
        raise MalformedCapsule(str(error)) from None
    text = reader.text(MAX_TEXT_BYTES)
    service_addresses = reader.list_of(reader.address, _MAX_ADDRESSES_PER_ANSWER)
    offer_addresses = reader.list_of(reader.address, _MAX_ADDRESSES_PER_ANSWER)
    return RegistrationAnswer(
        known_kind, name, known_code, text, service_addresses, offer_addresses
    )


def _parse_registered(reader: FieldReader, limits: Limits) -> Registered:
    revision = reader.varint()
    max_answers = limits.max_services + limits.max_routes
    return Registered(revision, reader.list_of(lambda: _take_answer(reader), max_answers))


def _take_status(reader: FieldReader) -> OfferStatus:
    name, health = reader.text(MAX_NAME_BYTES), reader.number(1)
    if health not in (Health.DOWN, Health.UP):
        raise MalformedCapsule(f"health {health} is neither 0 nor 1")
    open_flows, total_flows = reader.varint(), reader.varint()
    bytes_up, bytes_down = reader.varint(), reader.varint()
    reason = reader.text(MAX_TEXT_BYTES)
    return OfferStatus(name, Health(health), open_flows, total_flows, bytes_up, bytes_down, reason)


def _parse_state(reader: FieldReader, limits: Limits) -> OfferState:
    return OfferState(reader.list_of(lambda: _take_status(reader), limits.max_services))


def _parse_drain(reader: FieldReader, _limits: Limits) -> Drain:
    return Drain(reader.varint())


def _parse_observed(reader: FieldReader, _limits: Limits) -> ObservedAddress:
    return ObservedAddress(reader.varint(), reader.address(), reader.number(2))


_PARSERS: Final[dict[int, Callable[[FieldReader, Limits], ServiceCapsule]]] = {
    ServiceCapsuleType.OBSERVED_ADDRESS: _parse_observed,
    ServiceCapsuleType.REGISTER: _parse_register,
    ServiceCapsuleType.REGISTERED: _parse_registered,
    ServiceCapsuleType.OFFER_STATE: _parse_state,
    ServiceCapsuleType.DRAIN: _parse_drain,
    DNS_ASSIGN: parse_dns_assign,
}


def is_service_capsule(capsule_type: int) -> bool:
    """Say whether ``parse_service_capsule`` knows the type."""
    return capsule_type in _PARSERS


def parse_service_capsule(capsule_type: int, value: bytes, limits: Limits) -> ServiceCapsule:
    """Return the capsule of a known type with this whole value; MalformedCapsule if it is none."""
    reader = FieldReader(value)
    capsule = _PARSERS[capsule_type](reader, limits)
    reader.finish()
    return capsule
