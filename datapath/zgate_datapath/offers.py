"""What a connector offers through its session, and what a gateway tells whoever holds one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from zgate_protocol import events
from zgate_protocol.connect_ip import ConnectIpSession
from zgate_protocol.dns_capsule import DnsAssign
from zgate_protocol.ip_range import IpNetwork, IpRange
from zgate_protocol.limits import DEFAULT_LIMITS, Limits
from zgate_protocol.service_capsule import ObservedAddress, OfferedService, Register, Registered

# One address of each family for each service, and those of its own.
_LIMITS_OF_OFFERS = replace(
    DEFAULT_LIMITS,
    max_addresses=DEFAULT_LIMITS.max_addresses + 2 * DEFAULT_LIMITS.max_services,
)


@dataclass(frozen=True, slots=True)
class ClientOffers:
    """Everything that a connector offers: named services, and networks behind it."""

    services: tuple[OfferedService, ...] = ()
    networks: tuple[IpNetwork, ...] = ()


def _ignore(_: object) -> None:
    """Nobody asked."""


@dataclass(frozen=True, slots=True)
class Notices:
    """Whom to tell what the gateway says; each may be left out. Called in the loop's thread.

    Attributes:
        on_registered: the answers to what was offered; again whenever the gateway changes its mind.
        on_drain: no new flows come; those that are open have so many milliseconds (0: no limit).
        on_observed: the address that the gateway sees us at; each is newer than the one before.
        on_dns: which names are asked from which servers; replaces the earlier one.
    """

    on_registered: Callable[[Registered], None] = _ignore
    on_drain: Callable[[int], None] = _ignore
    on_observed: Callable[[ObservedAddress], None] = _ignore
    on_dns: Callable[[DnsAssign], None] = _ignore

    def tell(self, event: events.Event) -> None:
        """Pass on an event of the session, if it is one of these."""
        match event:
            case events.RegistrationAnswered(registered):
                self.on_registered(registered)
            case events.DrainAsked(deadline_ms):
                self.on_drain(deadline_ms)
            case events.AddressObserved(observed):
                self.on_observed(observed)
            case events.DnsAssigned(dns):
                self.on_dns(dns)


class Offering:
    """Makes the capsules of what is offered; each list of services has a revision of its own."""

    def __init__(self, offers: ClientOffers | None) -> None:
        self._offers = offers
        self._revision = 0

    @property
    def limits(self) -> Limits:
        """What the gateway may make us hold: who offers is assigned addresses for each offer."""
        return DEFAULT_LIMITS if self._offers is None else _LIMITS_OF_OFFERS

    def replace(self, offers: ClientOffers) -> None:
        """From now on this is offered."""
        self._offers = offers

    def capsules(self, session: ConnectIpSession) -> bytes:
        """The full lists, for an open session; empty if nothing was ever offered."""
        offers = self._offers
        if offers is None:
            return b""
        self._revision += 1
        register = session.send_capsule(Register(self._revision, offers.services))
        return register + session.advertise(IpRange.of(one) for one in offers.networks)
