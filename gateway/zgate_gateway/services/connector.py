"""What is known of one connector, and who is told of what happens to it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from zgate_protocol.icmp import TokenBucket
from zgate_protocol.service_capsule import (
    Health,
    OfferedService,
    OfferKind,
    RegistrationAnswer,
)

from zgate_gateway.admission import IpAddress
from zgate_gateway.registry import SessionRecord
from zgate_gateway.services.authorization import IpNetwork
from zgate_gateway.services.offers import Offer
from zgate_gateway.services.routes import Handover, Holder


@dataclass(frozen=True, slots=True)
class Drain:
    """A connector that gets no new flows, by name: also when it comes back.

    :ivar deadline_at: when it loses those that it has; None: never.
    """

    since: datetime
    deadline_at: datetime | None = None
    is_over: bool = False


@dataclass(eq=False, slots=True)
class Connector:
    """A session that has offered something.

    :ivar revision: of its newest list of services; 0: there was none.
    :ivar wanted, wanted_networks: its newest lists.
    :ivar has_listed_networks: whether the second one has come; the first one comes before it.
    :ivar answers: what became of them.
    :ivar told: revision and answers as the connector knows them; None: it waits for an answer.
    :ivar granted: addresses and networks as its worker knows them.
    :ivar agents: the agent that registered last for each service, as its worker knows it.
    :ivar lists: how often its lists are looked at.
    :ivar later: when they are looked at again.
    """

    session: SessionRecord
    client_index: int
    lists: TokenBucket
    revision: int = 0
    wanted: tuple[OfferedService, ...] = ()
    wanted_networks: tuple[IpNetwork, ...] = ()
    has_listed_networks: bool = False
    offers: dict[str, Offer] = field(default_factory=dict)
    networks: dict[IpNetwork, Holder] = field(default_factory=dict)
    answers: tuple[RegistrationAnswer, ...] = ()
    told: tuple[int, tuple[RegistrationAnswer, ...]] | None = None
    granted: tuple[tuple[IpAddress, ...], tuple[str, ...]] = ((), ())
    agents: dict[str, tuple[IpAddress, ...]] = field(default_factory=dict)
    is_silent: bool = False
    later: asyncio.TimerHandle | None = None

    @property
    def name(self) -> str:
        """The connector's name: its certificate's."""
        return self.session.client

    @property
    def open_flows(self) -> int:
        """Flows to its services, as it reported them."""
        return sum(offer.open_flows for offer in self.offers.values())


class ConnectorListener(Protocol):
    """Who is told: the audit log (`zgate_gateway.services.records`)."""

    def answered(self, session: SessionRecord, answer: RegistrationAnswer) -> None:
        """An offer was accepted or refused, and that is news."""

    def withdrawn(self, session: SessionRecord, kind: OfferKind, name: str, cause: str) -> None:
        """What was accepted is over."""

    def health(self, session: SessionRecord, service: str, health: Health, reason: str) -> None:
        """A service answers, or does not any more."""

    def silent(self, session: SessionRecord, is_silent: bool) -> None:
        """A connector is heard no more, or again."""

    def handed_over(self, handover: Handover) -> None:
        """Somebody else leads to a network."""

    def drained(self, connector: str, deadline_s: float | None, *, is_undone: bool) -> None:
        """An administrator drains a connector, or does not any more."""

    def ended(self, session: SessionRecord) -> None:
        """Nothing more is said of this session."""
