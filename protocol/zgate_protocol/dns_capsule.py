"""DNS_ASSIGN, by draft-ietf-masque-connect-ip-dns-06 (12 April 2026), section 3.

    0x1ACE79EC DNS_ASSIGN { DNS Configuration ... }

    DNS Configuration { Nameserver Count (i), Nameserver ..., Internal Domain Count (i), Domain ...,
                        Search Domain Count (i), Domain ... }
    Nameserver        { Service Priority (16), IPv4 Address Count (i), IPv4 Address (32) ...,
                        IPv6 Address Count (i), IPv6 Address (128) ..., Domain,
                        Service Parameters Length (i), Service Parameters (..) }
    Domain            { Domain Length (i), Domain Name (..) }

We send one configuration with one nameserver of unencrypted DNS on port 53. Of what a peer
sends, the first configuration is used that has such a nameserver; all of them are checked.
The draft's PREF64 capsule is not known here, and is skipped.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from zgate_protocol.errors import MalformedCapsule
from zgate_protocol.ip_range import IpAddress
from zgate_protocol.limits import Limits
from zgate_protocol.varint import encode_varint
from zgate_protocol.wire import FieldReader, encode_bytes, encode_capsule, encode_list

DNS_ASSIGN: Final = 0x1ACE79EC
_PRIORITY: Final = 1
_DNS_PORT: Final = 53
_MAX_DOMAIN_BYTES: Final = 253
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
# Keys of service parameters (RFC 9460 section 14.3.2).
_NO_DEFAULT_ALPN: Final = 2
_PORT: Final = 3
_ADDRESS_HINTS: Final = (4, 6)


@dataclass(frozen=True, slots=True)
class DnsAssign:
    """Which names are asked from which servers; replaces the earlier one, empty takes it away."""

    servers: tuple[IpAddress, ...]
    domains: tuple[str, ...]
    """Only these, with all that is below them, go to these servers; "" is every name.

    Lower case, without a dot at the end."""

    def encode(self) -> bytes:
        """Return the capsule's bytes."""
        if not self.servers:
            return encode_capsule(DNS_ASSIGN, b"")
        v4 = [item.packed for item in self.servers if item.version == 4]
        v6 = [item.packed for item in self.servers if item.version == 6]
        nameserver = _PRIORITY.to_bytes(2, "big") + encode_list(v4) + encode_list(v6)
        nameserver += encode_bytes(b"") + encode_varint(0)
        domains = encode_list([encode_bytes(domain.encode("ascii")) for domain in self.domains])
        return encode_capsule(DNS_ASSIGN, encode_list([nameserver]) + domains + encode_list([]))


def parse_dns_assign(reader: FieldReader, limits: Limits) -> DnsAssign:
    """Take the whole value; MalformedCapsule if it breaks a rule of the draft."""
    used = DnsAssign((), ())
    while not reader.is_empty:
        found = _take_configuration(reader, limits)
        if found.servers and not used.servers:
            used = found
    return used


def _take_configuration(reader: FieldReader, limits: Limits) -> DnsAssign:
    nameservers = reader.list_of(lambda: _take_nameserver(reader, limits), limits.max_dns_entries)
    domains = reader.list_of(lambda: _take_domain(reader), limits.max_dns_entries)
    reader.list_of(lambda: _take_domain(reader), limits.max_dns_entries)
    in_order = sorted(nameservers, key=lambda item: item[0])
    return DnsAssign(tuple(server for _, servers in in_order for server in servers), domains)


def _take_nameserver(reader: FieldReader, limits: Limits) -> tuple[int, tuple[IpAddress, ...]]:
    """Return the priority, and the addresses that answer unencrypted DNS on port 53."""
    priority = reader.number(2)
    if priority == 0:
        raise MalformedCapsule("a nameserver of service priority 0")
    v4 = reader.list_of(lambda: IPv4Address(reader.take(4)), limits.max_dns_entries)
    v6 = reader.list_of(lambda: IPv6Address(reader.take(16)), limits.max_dns_entries)
    _take_domain(reader)
    parameters = _parameters(reader.take(reader.varint()))
    if _NO_DEFAULT_ALPN in parameters:
        return priority, ()
    if not v4 and not v6:
        raise MalformedCapsule("a nameserver of unencrypted DNS without an address")
    port = parameters.get(_PORT)
    if port is not None and port != _DNS_PORT.to_bytes(2, "big"):
        return priority, ()
    return priority, (*v4, *v6)


def _parameters(value: bytes) -> dict[int, bytes]:
    """Return service parameters by their key (RFC 9460 section 2.2)."""
    reader = FieldReader(value)
    parameters: dict[int, bytes] = {}
    last_key = -1
    while not reader.is_empty:
        key = reader.number(2)
        if key <= last_key:
            raise MalformedCapsule(f"service parameter {key} after {last_key}")
        if key in _ADDRESS_HINTS:
            raise MalformedCapsule("a nameserver with address hints")
        parameters[key] = reader.take(reader.number(2))
        last_key = key
    return parameters


def _take_domain(reader: FieldReader) -> str:
    name = reader.text(_MAX_DOMAIN_BYTES + 1).lower().removesuffix(".")
    labels = name.split(".") if name else []
    if len(name) > _MAX_DOMAIN_BYTES or not all(_LABEL.fullmatch(label) for label in labels):
        raise MalformedCapsule(f"{name!r} is no domain name")
    return name
