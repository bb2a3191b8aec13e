"""The policy file: its format and what every key means.

::

    version: "1.0"
    metadata: {name: zgate-policy}      # optional, free-form; `name` is text
    default_action: deny                # optional; deny when absent
    clients:
      alice:                            # the Common Name of the client's certificate
        description: "Radiology"        # optional
        rules:
          - id: allow-dns
            type: ip_cidr
            action: allow
            destinations: [8.8.8.8/32, 2001:4860:4860::/48]
            protocols: [udp, tcp]       # optional; any when absent
            ports: [53, 8000-8100]      # optional; any when absent
            not_before: 2026-12-01T08:00:00+01:00   # optional; from then on
            expires_at: 2026-12-05T18:00:00+01:00   # optional; until just before then
            metadata: {reason: "DNS"}   # optional, free-form
          - {id: imaging, type: service, action: allow, services: [pacs, "echo-*"], ports: [104]}
          - {id: rest, type: default, action: deny}
        limits: {bandwidth_mbit: 50, new_flows_per_s: 200}   # optional, and so is each of both
    groups:                             # an OU entry of the client's certificate
      staff: {rules: [...], limits: {...}}
    default_limits: {new_flows_per_s: 500}   # optional; for whoever has no other
    connectors:                         # the Common Name of a connector's certificate
      site-a: {services: [pacs, "echo-*"], routes: [10.20.0.0/16]}
    connector_groups:                   # an OU entry of it
      branch: {services: [printer]}

**Order.** A client's rules are its own, then those of its groups in the order in which its
certificate names them. The first rule that matches decides; if none does, ``default_action`` does.
A client that the file does not name has its groups' rules only. A client's own rule of type
``default`` therefore leaves nothing for its groups to decide.

**What a rule matches** is what a client sends, by destination, protocol and port; replies need no
rule. Every key that is there must match; a list matches if one of its entries does. An empty list
is a mistake, not "any" and not "none": leave the key out.

``type``
    ``ip_cidr`` needs ``destinations``, ``service`` needs ``services``. ``default`` matches
    everything of both address families and takes none of the keys below.
``destinations``
    CIDRs or addresses, of either family or both. Host bits set (``10.0.0.1/8``) are a mistake, and
    the message names the network that was probably meant. ``0.0.0.0/0`` is IPv4 only, ``::/0`` IPv6
    only.
``services``
    Services that connectors offer, by name; the rule matches what is sent to their virtual IPs, of
    both families. ``*`` in a name stands for any characters, so that ``"echo-*"`` means every
    service whose name begins with ``echo-``, and ``"*"`` all of them. A service that is named here
    in full has its virtual IPs from the moment in which the policy is in force, whether a connector
    offers it or not; a name with ``*`` means the services that the gateway knows, and a service
    that it gets to know later comes under the rule by itself. As long as there is none the rule
    matches nothing. A rule of type ``ip_cidr`` or ``default`` whose destinations hold a service's
    virtual IP matches what is sent to it as well.
``protocols``
    ``tcp``, ``udp``, ``sctp``, ``icmp`` (ICMP to IPv4 destinations and ICMPv6 to IPv6 ones),
    ``icmpv6`` (ICMPv6 to IPv6 destinations), ``any``, or an IP protocol number from 0 to 255, which
    means that number in both families. IPv6 extension headers are not protocols: the header after
    them is the packet's protocol.
``ports``
    Destination ports: numbers and ranges (``8000-8100``, both ends included). Only with protocols
    that have ports: tcp, udp, sctp. Without ``protocols`` they mean tcp and udp.
``icmp_types``
    Types of ICMP messages: a number (``8``), a number with a code (``"3/4"``), or a name that means
    the right number in each family: ``echo-request``, ``echo-reply``, ``destination-unreachable``,
    ``time-exceeded``, ``parameter-problem``. Only with ICMP protocols. Without ``protocols`` they
    mean ``icmp``. Errors about an allowed flow need no rule.
``not_before``, ``expires_at``
    When the rule holds, in a rule of any type: from ``not_before`` on, and before ``expires_at``.
    RFC 3339 timestamps whose offset from UTC is written (``2026-12-05T18:00:00+01:00``, or ``Z``).
    At any other time the rule is as if it were not there. The kernel keeps to it by itself, open
    flows included; no reload is needed, and the revision stays.
``id``
    Unique among a client's own rules, and among a group's. Verdicts and logs name rules by it.

**Limits.** ``limits`` bounds what a client may do, whatever its rules allow:

``bandwidth_mbit``
    Million bits of IP packets per second, in each direction by itself. What is beyond is dropped.
``new_flows_per_s``
    New flows that the client may open per second; a packet that would open one more is dropped.
    Flows that are open do not notice.

Each of the two is looked for by itself: in the client's own ``limits``, then in those of its
groups in the order of its certificate, then in ``default_limits``; the first that says it holds.
Said nowhere, it is unlimited. Each client has a budget of its own; a group's is not shared.

**Connectors.** A connector may offer what its certificate names (``connector.pacs.zgate``), and
what the policy gives it here, by its own name and by those of its groups, all together:

``services``
    Names as in rules, ``*`` included.
``routes``
    Networks that it may advertise, whole or in part.

A certificate that names services for an agent (``agent.pacs.zgate``) narrows its holder: of the
rules that allow, what reaches the virtual IPs of other services or no service at all is left out,
and where no rule decides the packet is dropped, whatever ``default_action`` says.

**Tests.** ``tests`` says what must come out of the rules, and a file of which one test fails is not
loaded::

    tests:
      - {client: alice, destination: 8.8.8.8, protocol: udp, port: 53, expect: allow}
      - {client: bob, groups: [staff], destination: "fd00:20::5", protocol: icmp,
         expect: deny, rule: rest}

      - {client: alice, service: pacs, protocol: tcp, port: 104, expect: allow}

``client`` and ``groups`` are a certificate's name and OUs; the file need not name them. ``service``
in place of ``destination`` is a service by its full name: the answer must be the same for its
virtual IPs of both families. It need not exist; it is tried at free addresses of the service pools.
``protocol`` is one of the above but ``any``; ``icmp`` and ``icmpv6`` mean an echo request.
``port`` belongs to tcp, udp and sctp, which need it. ``rule`` is the id of the rule that must be
the one that decides; without it any may. ``at`` is the time for which the test asks, a timestamp as
above; without it the answer must be the expected one at every time, so that a file whose tests pass
today is not refused tomorrow.

Unknown keys are mistakes, in the free-form ``metadata`` excepted.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, model_validator
from pydantic.functional_validators import AfterValidator
from zgate_bpf.limits import MAX_BANDWIDTH_MBIT, MAX_NEW_FLOWS_PER_S
from zgate_config import StrictModel, expected, misfit
from zgate_config.types import IpAddress, IpNetwork, Port, Text
from zgate_identity.names import name_problem
from zgate_protocol.service_capsule import service_name_problem

from zgate_gateway.policy.service_names import is_pattern
from zgate_gateway.policy.services import (
    ICMP_NAMES,
    ICMP_PROTOCOLS,
    PORT_PROTOCOLS,
    PROTOCOL_NUMBERS,
    IcmpType,
    PortRange,
    Protocol,
)

_PORT_RANGE = re.compile(r"(0|[1-9][0-9]{0,4})(?:-(0|[1-9][0-9]{0,4}))?\Z")
_ICMP_TYPE = re.compile(r"(0|[1-9][0-9]{0,2})(?:/(0|[1-9][0-9]{0,2}))?\Z")
_NUMBER = re.compile(r"(0|[1-9][0-9]{0,2})\Z")
_TIMESTAMP = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,6})?([Zz]|[+-]\d\d:\d\d)\Z", re.ASCII
)
_MAX_PORT = 0xFFFF
_MAX_NUMBER = 0xFF


class RuleType(StrEnum):
    """What kind of destination a rule names."""

    IP_CIDR = "ip_cidr"
    SERVICE = "service"
    DEFAULT = "default"


class ActionName(StrEnum):
    """What a rule does with the packets that it matches."""

    ALLOW = "allow"
    DENY = "deny"


def _protocol(value: object) -> Protocol:
    is_protocol = isinstance(value, int | str) and not isinstance(value, bool)
    text = str(value).lower() if is_protocol else ""
    if text in PROTOCOL_NUMBERS or (_NUMBER.match(text) and int(text) <= _MAX_NUMBER):
        return Protocol(text)
    raise expected(f"a protocol: {', '.join(PROTOCOL_NUMBERS)}, or a number from 0 to 255")


def _port_range(value: object) -> PortRange:
    is_port = isinstance(value, int | str) and not isinstance(value, bool)
    match = _PORT_RANGE.match(str(value)) if is_port else None
    if match is not None:
        first = int(match[1])
        last = int(match[2]) if match[2] else first
        if first <= last <= _MAX_PORT:
            return PortRange(first, last)
    raise expected("a port or a range of ports such as 443 or 8000-8100 (0 to 65535)")


def _icmp_type(value: object) -> IcmpType:
    if isinstance(value, str) and value.lower() in ICMP_NAMES:
        return IcmpType(name=value.lower())
    is_type = isinstance(value, int | str) and not isinstance(value, bool)
    match = _ICMP_TYPE.match(str(value)) if is_type else None
    if match is not None:
        number, code = int(match[1]), int(match[2]) if match[2] else None
        if number <= _MAX_NUMBER and (code is None or code <= _MAX_NUMBER):
            return IcmpType(number=number, code=code)
    raise expected(f'an ICMP type: {", ".join(ICMP_NAMES)}, a number, or "type/code"')


def _timestamp(value: object) -> datetime:
    """RFC 3339, with an offset; the answer is in UTC."""
    if isinstance(value, str) and _TIMESTAMP.match(value):
        try:
            return datetime.fromisoformat(value.upper()).astimezone(UTC)
        except (ValueError, OverflowError):  # there is no such day, or it is not in our calendar
            pass
    raise expected(
        "a timestamp with its offset from UTC, such as 2026-12-05T18:00:00+01:00 or ...Z"
    )


def _version(value: object) -> str:
    if value in ("1.0", 1.0) and not isinstance(value, bool | int):
        return "1.0"
    raise expected('the version "1.0"')


def _name(value: str) -> str:
    problem = name_problem(value)
    if problem:
        raise expected(f"a name as a certificate can hold it (this one {problem})")
    return value


def _service_pattern(value: str) -> str:
    problem = service_name_problem(value)
    if problem:
        raise expected(f'a service\'s name such as pacs or "echo-*" ({problem})')
    return value


def _service_name(value: str) -> str:
    if is_pattern(value):
        raise expected("the name of one service, without *")
    return _service_pattern(value)


Name = Annotated[str, AfterValidator(_name)]
ServicePattern = Annotated[str, AfterValidator(_service_pattern)]
ServiceName = Annotated[str, AfterValidator(_service_name)]
Timestamp = Annotated[datetime, PlainValidator(_timestamp)]


class RuleModel(StrictModel):
    """One rule as written."""

    id: Text
    type: RuleType
    action: ActionName
    destinations: Annotated[tuple[IpNetwork, ...], Field(min_length=1)] | None = None
    services: Annotated[tuple[ServicePattern, ...], Field(min_length=1)] | None = None
    protocols: (
        Annotated[tuple[Annotated[Protocol, PlainValidator(_protocol)], ...], Field(min_length=1)]
        | None
    ) = None
    ports: (
        Annotated[
            tuple[Annotated[PortRange, PlainValidator(_port_range)], ...], Field(min_length=1)
        ]
        | None
    ) = None
    icmp_types: (
        Annotated[tuple[Annotated[IcmpType, PlainValidator(_icmp_type)], ...], Field(min_length=1)]
        | None
    ) = None
    not_before: Timestamp | None = None
    expires_at: Timestamp | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _begins_before_it_ends(self) -> RuleModel:
        begins, ends = self.not_before, self.expires_at
        if begins is not None and ends is not None and begins >= ends:
            raise misfit("expires_at", "a time after not_before")
        return self

    @model_validator(mode="after")
    def _keys_fit_the_type(self) -> RuleModel:
        for type_, key, what in _NAMED_BY:
            if self.type is type_ and getattr(self, key) is None:
                raise misfit(key, f"a list of {what} (type {type_} needs one)")
            if self.type not in {type_, RuleType.DEFAULT} and getattr(self, key) is not None:
                raise misfit(key, f"no such key in a rule of type {self.type}")
        if self.type is not RuleType.DEFAULT:
            return self
        for key in ("destinations", "services", "protocols", "ports", "icmp_types"):
            if getattr(self, key) is not None:
                raise misfit(key, "no such key in a rule of type default, which matches everything")
        return self

    @model_validator(mode="after")
    def _protocols_fit(self) -> RuleModel:
        if self.ports is not None and self.icmp_types is not None:
            raise misfit("icmp_types", "ports or icmp_types, not both in one rule", "both")
        for index, protocol in enumerate(self.protocols or ()):
            key = f"protocols[{index}]"
            if self.ports is not None and protocol not in PORT_PROTOCOLS:
                raise misfit("protocols", f"{_PORT_TEXT} beside ports", f'"{protocol}" in {key}')
            if self.icmp_types is not None and protocol not in ICMP_PROTOCOLS:
                raise misfit(
                    "protocols", f"{_ICMP_TEXT} beside icmp_types", f'"{protocol}" in {key}'
                )
        return self


_NAMED_BY = (
    (RuleType.IP_CIDR, "destinations", "CIDRs"),
    (RuleType.SERVICE, "services", "services' names"),
)
_PORT_TEXT = "only protocols that have ports (tcp, udp, sctp)"
_ICMP_TEXT = "only ICMP protocols (icmp, icmpv6)"


class LimitsModel(StrictModel):
    """What a client may do per second, whatever its rules allow."""

    bandwidth_mbit: Annotated[int, Field(ge=1, le=MAX_BANDWIDTH_MBIT)] | None = None
    new_flows_per_s: Annotated[int, Field(ge=1, le=MAX_NEW_FLOWS_PER_S)] | None = None

    @model_validator(mode="after")
    def _limit_something(self) -> LimitsModel:
        if self.bandwidth_mbit is None and self.new_flows_per_s is None:
            raise expected("bandwidth_mbit, new_flows_per_s or both")
        return self


class SubjectModel(StrictModel):
    """A client's or a group's rules and limits."""

    description: str = ""
    rules: tuple[RuleModel, ...] = ()
    limits: LimitsModel | None = None


class MetadataModel(StrictModel, extra="allow"):
    """What the file says about itself; any key is fine."""

    name: str = ""


class PolicyTestModel(StrictModel):
    """A packet, and what must become of it."""

    __test__ = False  # pytest: not a test of ours

    client: Name
    groups: tuple[Name, ...] = ()
    destination: IpAddress | None = None
    service: ServiceName | None = None
    protocol: Annotated[Protocol, PlainValidator(_protocol)]
    port: Port | None = None
    expect: ActionName
    rule: Text | None = None
    at: Timestamp | None = None

    @model_validator(mode="after")
    def _is_one_packet(self) -> PolicyTestModel:
        if (self.destination is None) is (self.service is None):
            got = "neither" if self.service is None else "both"
            raise misfit("destination", "either a destination or a service", got)
        if self.protocol == "any":
            raise misfit("protocol", "one protocol: a test is about one packet", '"any"')
        family = self.destination.version if self.destination is not None else None
        if self.protocol == "icmpv6" and family == 4:
            raise misfit("protocol", "icmp: there is no ICMPv6 to an IPv4 address", '"icmpv6"')
        if self.protocol in PORT_PROTOCOLS and self.port is None:
            raise misfit("port", "a port (0 to 65535): this protocol has ports")
        if self.protocol not in PORT_PROTOCOLS and self.port is not None:
            raise misfit("port", f"no port beside a protocol that has none ({self.protocol})")
        return self


class ConnectorModel(StrictModel):
    """What a connector, or a group of them, may offer."""

    description: str = ""
    services: tuple[ServicePattern, ...] = ()
    routes: tuple[IpNetwork, ...] = ()


class PolicyModel(StrictModel):
    """The whole file."""

    version: Annotated[Literal["1.0"], PlainValidator(_version)]
    metadata: MetadataModel = MetadataModel()
    default_action: ActionName = ActionName.DENY
    clients: dict[Name, SubjectModel] = Field(default_factory=dict)
    groups: dict[Name, SubjectModel] = Field(default_factory=dict)
    default_limits: LimitsModel | None = None
    connectors: dict[Name, ConnectorModel] = Field(default_factory=dict)
    connector_groups: dict[Name, ConnectorModel] = Field(default_factory=dict)
    tests: tuple[PolicyTestModel, ...] = ()
