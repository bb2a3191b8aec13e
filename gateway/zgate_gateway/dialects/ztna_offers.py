"""What a ztna-v1 connector offers: its registrations one by one are a list for the supervisor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zgate_protocol.dialects.ztna_v1 import RefusalCode
from zgate_protocol.service_capsule import (
    TCP,
    UDP,
    Health,
    OfferedService,
    OfferKind,
    OfferStatus,
    Register,
    Registered,
    RegistrationAnswer,
    RegistrationCode,
    ServicePorts,
)

# Refused ones are remembered, so that nobody is told twice; but not all of them.
_MAX_NAMES = 256
# The dialect says nothing about ports.
_EVERY_PORT = (ServicePorts(TCP, 1, 0xFFFF), ServicePorts(UDP, 1, 0xFFFF))


@dataclass(frozen=True, slots=True)
class OfferNews:
    """What the supervisor's answers mean.

    Attributes:
        served: of every service that is offered now, the virtual IP of each offer's address.
        outcomes: of what has changed: the service's name, and why it was refused (None: it is not).
        statuses: of what is newly offered, for the dialect has no word for health.
    """

    served: Mapping[str, Mapping[bytes, bytes]]
    outcomes: Sequence[tuple[str, RefusalCode | None]]
    statuses: Sequence[OfferStatus]


class ZtnaOffers:
    """The registrations of one connection.

    Attributes:
        names: what is wanted; None: not answered yet, else whether it was accepted.
    """

    def __init__(self) -> None:
        self.names: dict[str, bool | None] = {}
        self._revision = 0

    def is_accepted(self, name: str) -> bool:
        """Whether the service is offered now."""
        return self.names.get(name) is True

    @property
    def count(self) -> int:
        """How many are offered, or may be soon."""
        return sum(accepted is not False for accepted in self.names.values())

    def add(self, name: str) -> Register | None:
        """The list to send, now that this service is wanted too; None: its answer is on its way."""
        if name in self.names and self.names[name] is None:
            return None
        if len(self.names) >= _MAX_NAMES:
            self.names = {one: said for one, said in self.names.items() if said is not False}
        self.names[name] = None
        self._revision += 1
        wanted = [one for one, accepted in self.names.items() if accepted is not False]
        services = tuple(OfferedService(one, _EVERY_PORT) for one in wanted)
        return Register(self._revision, services)

    def answered(self, registered: Registered) -> OfferNews:
        """The supervisor has answered, or has changed its mind."""
        served: dict[str, dict[bytes, bytes]] = {}
        outcomes: list[tuple[str, RefusalCode | None]] = []
        statuses: list[OfferStatus] = []
        for answer in registered.answers:
            if answer.kind is not OfferKind.SERVICE:
                continue
            if answer.is_accepted:
                served[answer.name] = _pairs_of(answer)
            if self.names.get(answer.name) is answer.is_accepted:
                continue
            self.names[answer.name] = answer.is_accepted
            outcomes.append((answer.name, _refusal_of(answer.code)))
            if answer.is_accepted:
                statuses.append(OfferStatus(answer.name, Health.UP, 0, 0, 0, 0, ""))
        return OfferNews(served, outcomes, statuses)


def _pairs_of(answer: RegistrationAnswer) -> dict[bytes, bytes]:
    return {
        offer.packed: service.packed
        for offer in answer.offer_addresses
        for service in answer.service_addresses
        if offer.version == service.version
    }


def _refusal_of(code: RegistrationCode) -> RefusalCode | None:
    """The dialect has two words for all that can be wrong."""
    if code is RegistrationCode.ACCEPTED:
        return None
    is_invalid = code is RegistrationCode.INVALID
    return RefusalCode.INVALID if is_invalid else RefusalCode.NOT_AUTHORIZED
