"""Offers: one connector's serving of one service, and what the kernel knows of each.

An offer is made whole or not at all, and it ends in the order that loses least: the kernel gives it
no packet any more, then no worker is named for its addresses, then they rest.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from zgate_bpf.services import MAX_OFFERS, MAX_SERVICES, OfferUse
from zgate_control.store import IPAddress
from zgate_protocol.service_capsule import Health, OfferedService, OfferStatus, ServicePorts

from zgate_gateway.services.directory import ServiceDirectory

logger = logging.getLogger(__name__)

NOT_SAID_YET = "the connector has not said yet how it does"


class KernelServices(Protocol):
    """What is needed of the kernel's tables: `zgate_bpf.services.ServiceTables`."""

    def set_service(self, service: int, addresses: Sequence[IPAddress]) -> None:
        """A service and its virtual IPs."""

    def set_offer(
        self,
        offer: int,
        *,
        service: int,
        client_index: int,
        addresses: Sequence[IPAddress],
        use: OfferUse,
        open_flows: int = 0,
    ) -> None:
        """A connector's offer of a service."""

    def use_offer(self, offer: int, use: OfferUse, open_flows: int) -> None:
        """What may be done with an offer now."""

    def remove_offer(self, offer: int) -> None:
        """The offer is no more."""


class Steering(Protocol):
    """Which worker gets the packets: `zgate_bpf.steering_tables.AddressOwners`."""

    def assign(self, address: IPAddress, owner: int) -> None:
        """Those for this address go to this worker."""

    def release(self, address: IPAddress, owner: int) -> None:
        """They do no more."""


class TooManyOffers(Exception):
    """As many offers are made as the kernel takes."""


@dataclass(eq=False, slots=True)
class Offer:
    """One connector's offer of one service.

    :ivar number, service_number: the kernel's.
    :ivar worker_index: which worker has the connector's session.
    :ivar health: None: the connector has not said yet.
    :ivar changed_at: since when health or use are as they are.
    :ivar status: what the connector said last.
    """

    name: str
    ports: tuple[ServicePorts, ...]
    number: int
    service_number: int
    worker_index: int
    addresses: tuple[IPAddress, ...]
    offered_at: datetime
    changed_at: datetime
    use: OfferUse = OfferUse.KEEP
    status: OfferStatus | None = None

    @property
    def health(self) -> Health | None:
        """Whether the backend answers; None: the connector has not said yet."""
        return self.status.health if self.status is not None else None

    @property
    def reason(self) -> str:
        """Why it is not healthy; empty if it is."""
        return self.status.reason if self.status is not None else NOT_SAID_YET

    @property
    def open_flows(self) -> int:
        """Flows that the connector has open."""
        return self.status.open_flows if self.status is not None else 0


@dataclass(slots=True)
class _Numbers:
    """Numbers from 0 on. A freed one goes to the end: flows know their offer by it."""

    free: deque[int] = field(default_factory=deque)

    @classmethod
    def up_to(cls, most: int) -> _Numbers:
        return cls(deque(range(most)))

    def take(self) -> int | None:
        return self.free.popleft() if self.free else None


class Offers:
    """Makes and ends offers in the kernel's tables."""

    def __init__(
        self, kernel: KernelServices, directory: ServiceDirectory, steering: Steering
    ) -> None:
        self._kernel = kernel
        self._directory = directory
        self._steering = steering
        self._services: dict[str, int] = {}
        self._service_numbers = _Numbers.up_to(MAX_SERVICES)
        self._offer_numbers = _Numbers.up_to(MAX_OFFERS)

    def know_services(self) -> None:
        """Have the kernel know the virtual IPs of all names.

        Raises:
            OSError, RuntimeError, ValueError: the kernel refused; it is tried again next time.
        """
        if len(self._services) == len(self._directory):
            return  # names are never forgotten
        for name, addresses in self._directory.snapshot().items():
            self._know(name, addresses)

    def _know(self, name: str, addresses: Sequence[IPAddress]) -> int:
        number = self._services.get(name)
        if number is not None:
            return number
        number = self._service_numbers.take()
        if number is None:
            raise TooManyOffers(f"the kernel knows {MAX_SERVICES} services, and no more fit")
        try:
            self._kernel.set_service(number, addresses)
        except BaseException:
            self._service_numbers.free.appendleft(number)
            raise
        self._services[name] = number
        return number

    def make(
        self, service: OfferedService, *, client_index: int, worker_index: int, now: datetime
    ) -> Offer:
        """A new offer. It takes no flows before its connector has said that it is healthy.

        Raises:
            NoServiceAddress, TooManyServices, TooManyOffers, zgate_bpf's CapacityError: no room.
            StoreError, OSError, RuntimeError, ValueError: store or kernel refused.
        """
        with ExitStack() as undo:
            service_number = self._know(service.name, self._directory.ensure(service.name))
            number = self._offer_numbers.take()
            if number is None:
                raise TooManyOffers(f"{MAX_OFFERS} offers are made, and no more fit")
            undo.callback(self._offer_numbers.free.append, number)
            addresses = self._directory.take_offer_addresses()
            undo.callback(self._directory.give_back, addresses)
            for address in addresses:
                undo.callback(self._steering.release, address, worker_index)
                self._steering.assign(address, worker_index)
            undo.callback(self._kernel.remove_offer, number)
            self._kernel.set_offer(
                number,
                service=service_number,
                client_index=client_index,
                addresses=addresses,
                use=OfferUse.KEEP,
            )
            undo.pop_all()
        return Offer(
            name=service.name,
            ports=service.ports,
            number=number,
            service_number=service_number,
            worker_index=worker_index,
            addresses=addresses,
            offered_at=now,
            changed_at=now,
        )

    def use(self, offer: Offer, use: OfferUse) -> None:
        """What the kernel may do with the offer from now on.

        If the kernel does not take it, the offer is none any more: no packet goes where nobody
        knows whether somebody is there.

        Raises:
            OSError, RuntimeError, ValueError: the kernel refused.
        """
        if offer.use is not use:
            offer.use, offer.changed_at = use, datetime.now(UTC)
        try:
            self._kernel.use_offer(offer.number, use, offer.open_flows)
        except BaseException:
            self._kernel.remove_offer(offer.number)
            raise

    def end(self, offer: Offer) -> None:
        """The offer is no more. Every step is tried; what fails is logged."""
        offer.use = OfferUse.GONE
        try:
            self._kernel.remove_offer(offer.number)
            for address in offer.addresses:
                self._steering.release(address, offer.worker_index)
        except (OSError, RuntimeError) as error:
            # Number and addresses are not used again: whatever the kernel still has of them
            # leads to a session that has none of it.
            logger.error(
                "offer %(number)d of %(offer)s stays in the kernel: %(error)s",
                {
                    "event": "offer_not_removed",
                    "number": offer.number,
                    "offer": offer.name,
                    "error": error,
                },
            )
            return
        self._directory.give_back(offer.addresses)
        self._offer_numbers.free.append(offer.number)
