"""What the store holds, as plain values. All times are aware and UTC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address

IPAddress = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Lease:
    """A virtual IP that belongs to a client, connected or not. One per client and family."""

    client: str
    address: IPAddress
    created_at: datetime
    last_seen_at: datetime

    @property
    def family(self) -> int:
        """4 or 6."""
        return self.address.version


@dataclass(frozen=True, slots=True)
class ClientRecord:
    """What the last certificate of a client said, and when it was seen."""

    name: str
    groups: tuple[str, ...]
    certificate_serial: str
    certificate_not_after: datetime
    created_at: datetime
    last_seen_at: datetime


@dataclass(frozen=True, slots=True)
class PolicyRevision:
    """A policy set that was in force from ``loaded_at`` on. Numbers are never used twice.

    ``origin`` is ``start``, ``reload``, ``apply`` or ``rollback``.
    """

    revision: int
    sha256: str
    source: str
    loaded_at: datetime
    clients: int
    groups: int
    rules: int
    origin: str = "reload"


@dataclass(frozen=True, slots=True)
class ServiceAddress:
    """A virtual IP that belongs to a service for good. One per service and family."""

    service: str
    address: IPAddress
    created_at: datetime

    @property
    def family(self) -> int:
        """4 or 6."""
        return self.address.version


@dataclass(frozen=True, slots=True)
class Memory:
    """What a gateway knows of what its store should hold.

    :ivar policies: revisions with their texts, if known, the oldest first.
    """

    leases: Sequence[Lease] = ()
    services: Mapping[str, Sequence[IPAddress]] = field(default_factory=dict)
    clients: Sequence[ClientRecord] = ()
    policies: Sequence[tuple[PolicyRevision, bytes | None]] = ()
