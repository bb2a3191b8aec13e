"""What the policy program should say, written to be read and not to be fast.

It shares nothing with the program, with its tables or with the policy compiler: rules are asked
one after the other, headers are parsed as the RFCs draw them, tables are dictionaries. Time does
not pass here, and so clients have no limits: test_limits.py has a reference for those.
"""

import struct
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from zgate_protocol.drop_reason import DropReason as Reason

ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132
LINK_LOCAL = [IPv4Network("169.254.0.0/16"), IPv4Network("224.0.0.0/24"), IPv6Network("fe80::/10")]


class Dropped(Exception):
    """The packet goes no further."""

    def __init__(self, reason):
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class RefRule:
    """Matches any of these networks with this protocol (None: any) and a port in this range."""

    allow: bool
    networks: tuple
    protocol: int | None = None
    first: int = 0
    last: int = 0xFFFF

    def matches(self, destination, protocol, service):
        if not any(
            destination.version == network.version and destination in network
            for network in self.networks
        ):
            return False
        if self.protocol is None:
            return True
        return protocol == self.protocol and self.first <= service <= self.last


@dataclass(frozen=True)
class Packet:
    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    protocol: int
    ports: tuple = (0, 0)
    service: int = 0
    icmp: str = ""  # "", "request", "reply", "error", "other"
    flags: int = 0
    fragment: str = ""  # "", "first", "later"
    identification: int = 0
    quoted: bytes = b""


@dataclass
class Flow:
    revision: int
    rule: int | None
    service: int
    closed: set = field(default_factory=set)


@dataclass(frozen=True)
class Answer:
    reason: Reason
    rule: int | None = None
    new_flow: bool = False
    known_flow: bool = False
    related: bool = False


class Reference:
    """Clients, one policy for all of them, flows and fragments."""

    def __init__(self):
        self.clients = set()
        self.rules = []
        self.default_allow = False
        self.revision = 0
        self.flows = {}
        self.fragments = {}

    def decide(self, data, up):
        """Judge a packet and remember what has to be remembered."""
        try:
            return self._decide(data, up)
        except Dropped as dropped:
            return Answer(dropped.reason)

    def _decide(self, data, up):
        packet = parse(data, quoted=False)
        for address in (packet.source, packet.destination):
            if is_link_local(address):
                raise Dropped(Reason.LINK_LOCAL)
        client = packet.source if up else packet.destination
        if client not in self.clients:
            raise Dropped(Reason.NO_CLIENT)
        fragment_key = (
            packet.source,
            packet.destination,
            packet.identification,
            packet.protocol if packet.source.version == 4 else None,
        )
        if packet.fragment == "later":
            first = self.fragments.get(fragment_key)
            if first is None:
                raise Dropped(Reason.FRAGMENT_WITHOUT_FIRST)
            packet = replace(first, fragment="later", flags=0)
        answer = self._decide_whole(packet, up)
        if packet.fragment == "first" and answer.reason is Reason.NONE:
            self.fragments[fragment_key] = packet
        return answer

    def _decide_whole(self, packet, up):
        related = self._related(packet, up)
        key = related or flow_key(packet, up)
        flow = self.flows.get(key)
        opening = up and packet.flags & 0x12 == 0x02
        if flow and opening and ("rst" in flow.closed or {"client", "remote"} <= flow.closed):
            flow = None
        if flow is None and not up:
            raise Dropped(Reason.UNSOLICITED)
        if flow is not None and flow.revision == self.revision:
            self._note(flow, packet, up, related)
            return Answer(Reason.NONE, flow.rule, known_flow=True, related=bool(related))
        service = flow.service if flow else packet.service
        allow, rule = self._first_match(key[3], key[4], service)
        if not allow:
            self.flows.pop(key, None) if flow else None
            reason = Reason.POLICY_DEFAULT if rule is None else Reason.POLICY_RULE
            return Answer(reason, rule, known_flow=flow is not None, related=bool(related))
        if flow is None:
            flow = self.flows[key] = Flow(self.revision, rule, service)
            self._note(flow, packet, up, related)
            return Answer(Reason.NONE, rule, new_flow=True)
        flow.revision, flow.rule = self.revision, rule
        self._note(flow, packet, up, related)
        return Answer(Reason.NONE, rule, known_flow=True, related=bool(related))

    def _first_match(self, destination, protocol, service):
        for index, rule in enumerate(self.rules):
            if rule.matches(destination, protocol, service):
                return rule.allow, index
        return self.default_allow, None

    def _note(self, flow, packet, up, related):
        if related:
            return
        if packet.flags & 0x01:
            flow.closed.add("client" if up else "remote")
        if packet.flags & 0x04:
            flow.closed.add("rst")

    def _related(self, packet, up):
        """The key of the flow that an ICMP error is about."""
        if packet.icmp != "error":
            return None
        try:
            quoted = parse(packet.quoted, quoted=True, version=packet.source.version)
        except Dropped:
            return None
        if quoted.fragment == "later" or quoted.icmp == "error":
            return None
        if up and quoted.source != packet.destination:
            return None
        client = packet.source if up else packet.destination
        key = flow_key(quoted, not up)
        return key if key and key[0] == client and key in self.flows else None


def flow_key(packet, up):
    """Client, client's port, remote's port, remote, protocol; None: belongs to no flow."""
    if up:
        ports = packet.ports
        if packet.icmp in ("reply", "error", "other"):
            ports = (packet.service, "no reply")
        return (packet.source, *ports, packet.destination, packet.protocol)
    if packet.icmp not in ("", "reply"):
        return None
    return (packet.destination, *packet.ports[::-1], packet.source, packet.protocol)


def is_link_local(address):
    if address.version == 6 and address.is_multicast:
        return address.packed[1] & 0xF <= 2
    return any(address.version == net.version and address in net for net in LINK_LOCAL)


def parse(data, *, quoted, version=None):
    """Headers to a Packet; `quoted`: from an ICMP error, which cuts it off somewhere."""
    if not data:
        raise Dropped(Reason.MALFORMED)
    if version is not None and data[0] >> 4 != version:
        raise Dropped(Reason.MALFORMED)
    if data[0] >> 4 == 6:
        return parse_ipv6(data, quoted)
    if data[0] >> 4 == 4:
        return parse_ipv4(data, quoted)
    raise Dropped(Reason.MALFORMED)


def parse_ipv4(data, quoted):
    if len(data) < 20:
        raise Dropped(Reason.MALFORMED)
    header_length = (data[0] & 15) * 4
    total, identification, fragment = struct.unpack_from("!HHH", data, 2)
    if header_length < 20 or total < header_length or (total > len(data) and not quoted):
        raise Dropped(Reason.MALFORMED)
    data = data[:total]
    if header_length > len(data):
        raise Dropped(Reason.MALFORMED)
    if not quoted:
        check_options(data[20:header_length])
    offset = (fragment & 0x1FFF) * 8
    if offset + total > 0xFFFF:
        raise Dropped(Reason.MALFORMED)
    packet = Packet(
        IPv4Address(data[12:16]),
        IPv4Address(data[16:20]),
        data[9],
        fragment="later" if offset else "first" if fragment & 0x2000 else "",
        identification=identification,
    )
    return parse_upper(packet, data[header_length:], quoted)


def check_options(options):
    """No source routes: loose 131, strict 137."""
    while options and options[0] != 0:
        if options[0] == 1:
            options = options[1:]
            continue
        if options[0] in (131, 137) or len(options) < 2:
            raise Dropped(Reason.MALFORMED)
        if not 2 <= options[1] <= len(options):
            raise Dropped(Reason.MALFORMED)
        options = options[options[1] :]


def parse_ipv6(data, quoted):
    if len(data) < 40:
        raise Dropped(Reason.MALFORMED)
    (length,) = struct.unpack_from("!H", data, 4)
    if 40 + length > len(data) and not quoted:
        raise Dropped(Reason.MALFORMED)
    packet = Packet(IPv6Address(data[8:24]), IPv6Address(data[24:40]), data[6])
    rest = data[40 : 40 + length]
    fragments = 0
    for position in range(9):
        number = packet.protocol
        if packet.fragment == "later":
            return packet
        if number in (135, 139, 140, 253, 254):
            raise Dropped(Reason.UNKNOWN_NEXT_HEADER)
        if number not in (0, 43, 44, 51, 60):
            return parse_upper(packet, rest, quoted)
        if position == 8:
            break
        if len(rest) < 8 or (number == 0 and position > 0):
            raise Dropped(Reason.MALFORMED)
        if number == 43 and rest[3] > 0:
            raise Dropped(Reason.UNKNOWN_NEXT_HEADER)
        size = {44: 8, 51: (rest[1] + 2) * 4}.get(number, (rest[1] + 1) * 8)
        if number == 44:
            fragments += 1
            if fragments > 1:
                raise Dropped(Reason.MALFORMED)
            offset, identification = struct.unpack_from("!HI", rest, 2)
            kind = "later" if offset & 0xFFF8 else "first" if offset & 1 else ""
            packet = replace(packet, fragment=kind, identification=identification)
        if size > len(rest):
            raise Dropped(Reason.MALFORMED)
        packet, rest = replace(packet, protocol=rest[0]), rest[size:]
    raise Dropped(Reason.UNKNOWN_NEXT_HEADER)


def parse_upper(packet, data, quoted):
    if packet.fragment == "later":
        return packet
    own_icmp = ICMP if packet.source.version == 4 else ICMPV6
    if packet.protocol not in (own_icmp, TCP, UDP, SCTP):
        return packet
    if len(data) < 8:
        raise Dropped(Reason.MALFORMED)
    if packet.protocol == own_icmp:
        return parse_icmp(packet, data)
    ports = struct.unpack_from("!HH", data)
    packet = replace(packet, ports=ports, service=ports[1])
    if quoted:
        return packet
    if packet.protocol == TCP:
        if len(data) < 20 or not 20 <= (data[12] >> 4) * 4 <= len(data):
            raise Dropped(Reason.MALFORMED)
        return replace(packet, flags=data[13])
    if packet.protocol == UDP:
        (length,) = struct.unpack_from("!H", data, 4)
        if length < 8 or (length > len(data) and not packet.fragment):
            raise Dropped(Reason.MALFORMED)
    return packet


def parse_icmp(packet, data):
    kind, code, _, identifier = struct.unpack_from("!BBHH", data)
    request, reply, errors = (
        (8, 0, (3, 11, 12)) if packet.protocol == ICMP else (128, 129, range(1, 5))
    )
    packet = replace(packet, service=kind << 8 | code, icmp="other")
    if (kind, code) == (request, 0):
        return replace(packet, icmp="request", ports=(identifier, 0))
    if (kind, code) == (reply, 0):
        return replace(packet, icmp="reply", ports=(0, identifier))
    if kind in errors:
        if packet.fragment:
            raise Dropped(Reason.MALFORMED)
        return replace(packet, icmp="error", quoted=data[8:])
    return packet
