"""One rule, ready to be compiled and explained: what it matches, and where it is written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from zgate_bpf.tables import Action

from zgate_gateway.policy.model import ActionName, RuleModel, RuleType
from zgate_gateway.policy.service_names import Services, addresses_of, network_of
from zgate_gateway.policy.services import IpAddress, IpNetwork, Service, services_of

EVERYWHERE: tuple[IpNetwork, ...] = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of a client or a group.

    :ivar id: as written; unique among the rules of one client or one group.
    :ivar destinations: sorted, without repetition; both families' whole space for type `default`;
        for type `service` the virtual IPs of the services that it was bound to.
    :ivar services_ipv4: what it matches of packets to IPv4 destinations; empty: nothing.
    :ivar services_ipv6: the same for IPv6.
    :ivar protocols: as written, for people; empty: any. So are ``ports`` and ``icmp_types``.
    :ivar service_names: of type `service`: the names and patterns, as written.
    :ivar not_before: it holds from then on; None: it always has. In UTC, as is the next.
    :ivar expires_at: it holds until just before then; None: for good.
    :ivar path: where it is in the file: ``clients.alice.rules[0]``.
    :ivar line: line in the file, from 1.
    :ivar meaning: equal for rules that do the same to the same packets, whatever their names.
    """

    id: str
    type: RuleType
    action: Action
    destinations: tuple[IpNetwork, ...]
    services_ipv4: tuple[Service, ...]
    services_ipv6: tuple[Service, ...]
    protocols: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    icmp_types: tuple[str, ...] = ()
    service_names: tuple[str, ...] = ()
    not_before: datetime | None = None
    expires_at: datetime | None = None
    path: str = ""
    line: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False)
    meaning: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        matched = (
            int(self.action),
            self.destinations,
            self.services_ipv4,
            self.services_ipv6,
            *((self.not_before, self.expires_at) if self.is_temporary else ()),
        )
        object.__setattr__(self, "meaning", hashlib.sha256(repr(matched).encode()).digest())

    @classmethod
    def from_model(cls, model: RuleModel, path: str, line: int) -> Rule:
        """Make a rule of what the file says; one about services is bound to none yet."""
        destinations = EVERYWHERE if model.type is RuleType.DEFAULT else ()
        if model.destinations is not None:
            destinations = in_order(model.destinations)
        keys = model.protocols, model.ports, model.icmp_types
        return cls(
            id=model.id,
            type=model.type,
            action=Action.ALLOW if model.action is ActionName.ALLOW else Action.DENY,
            destinations=destinations,
            services_ipv4=services_of(*keys, family=4),
            services_ipv6=services_of(*keys, family=6),
            protocols=tuple(model.protocols or ()),
            ports=tuple(map(str, model.ports or ())),
            icmp_types=tuple(map(str, model.icmp_types or ())),
            service_names=tuple(dict.fromkeys(model.services or ())),
            not_before=model.not_before,
            expires_at=model.expires_at,
            path=path,
            line=line,
            metadata=model.metadata,
        )

    @property
    def is_temporary(self) -> bool:
        """Whether there is a time at which it does not hold."""
        return self.not_before is not None or self.expires_at is not None

    def is_expired(self, at: datetime) -> bool:
        """Whether it holds no more."""
        return self.expires_at is not None and self.expires_at <= at

    def holds(self, at: datetime) -> bool:
        """Whether it holds at that time."""
        has_begun = self.not_before is None or self.not_before <= at
        return has_begun and not self.is_expired(at)

    def dormant(self) -> Rule:
        """Return the rule as it is while it does not hold: in its place, and matching nothing."""
        return replace(self, services_ipv4=(), services_ipv6=(), not_before=None, expires_at=None)

    def bound_to(self, services: Services) -> Rule:
        """Return the rule with the virtual IPs that its services have now."""
        if self.type is not RuleType.SERVICE:
            return self
        addresses = addresses_of(self.service_names, services)
        destinations = in_order(map(network_of, addresses))
        return (
            self if destinations == self.destinations else replace(self, destinations=destinations)
        )

    def services(self, family: int) -> tuple[Service, ...]:
        """What it matches of packets to destinations of family 4 or 6."""
        return self.services_ipv4 if family == 4 else self.services_ipv6

    def matches(self, destination: IpAddress, protocol: int, port: int) -> bool:
        """Whether it matches a packet; ``port`` is ``type << 8 | code`` for ICMP."""
        return any(
            service.contains(protocol, port) for service in self.services(destination.version)
        ) and any(destination in network for network in self.destinations)


def first_match(
    rules: Sequence[Rule],
    destination: IpAddress,
    protocol: int,
    port: int,
    at: datetime | None = None,
) -> int | None:
    """Return the index of the first rule that matches, by asking one after the other.

    ``at`` leaves out rules that do not hold then; without it all are asked.

    This is what "first match" means; the compiled tables must agree with it.
    """
    for index, rule in enumerate(rules):
        if (at is None or rule.holds(at)) and rule.matches(destination, protocol, port):
            return index
    return None


def time_text(time: datetime) -> str:
    """``2026-12-05T17:00:00Z``."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def in_order(networks: Iterable[IpNetwork]) -> tuple[IpNetwork, ...]:
    """Return networks as a rule holds them: sorted, each once."""
    return tuple(sorted(set(networks), key=_network_order))


def _network_order(network: IpNetwork) -> tuple[int, int, int]:
    return network.version, int(network.network_address), network.prefixlen
