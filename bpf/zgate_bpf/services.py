"""What clients reach through connectors: services, who offers them, and networks.

A service has a virtual IP of each family. Each *offer* of it, which is one connector's, has an
address of each family, too: the program puts it in the place of the virtual IP where a packet
goes to the connector, and the virtual IP in its place where one comes back
(docs/adr/0017-services-in-the-kernel.md). Numbers of services and offers are the caller's to give.

A number of an offer that was removed should rest for a while before it stands for another one:
flows know their offer by it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from zgate_bpf import layouts
from zgate_bpf.errors import CapacityError
from zgate_bpf.layouts import (
    MAX_NETWORKS,
    MAX_OFFERS,
    MAX_SERVICES,
    OFFERS_PER_SERVICE,
    EndpointKind,
    IpAddress,
    OfferUse,
    network_key,
    pack_address,
)
from zgate_bpf.maps import Map, index_key
from zgate_bpf.prefix_search import IpNetwork
from zgate_bpf.syscalls import NO_PREALLOC, MapType

__all__ = ["MAX_NETWORKS", "MAX_OFFERS", "MAX_SERVICES", "OfferUse", "ServiceTables"]

_FAMILIES = 2
_MAX_OWN_ADDRESSES = 2
_MAX_ENDPOINTS = _FAMILIES * (MAX_SERVICES + MAX_OFFERS) + _MAX_OWN_ADDRESSES
_MOST_FLOWS = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class _Service:
    addresses: tuple[IpAddress, ...]
    offers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Offer:
    service: int
    client_index: int
    addresses: tuple[IpAddress, ...]
    use: OfferUse
    open_flows: int

    def packed(self, use: OfferUse) -> bytes:
        return layouts.OFFER.pack(
            self.service + 1,
            self.client_index,
            use,
            min(self.open_flows, _MOST_FLOWS),
            *_by_family(self.addresses),
        )


class ServiceTables:
    """The tables of services, offers and networks; all are empty at first.

    Addresses are one for each family at most, and each stands for one thing only. A client's
    address is the client's, whatever is said of it here.

    Raises:
        OSError: the kernel makes no maps of these sizes.
    """

    def __init__(self, max_clients: int) -> None:
        self._max_clients = max_clients
        self._services: dict[int, _Service] = {}
        self._offers: dict[int, _Offer] = {}
        self._taken: dict[IpAddress, tuple[EndpointKind, int]] = {}
        self._own: tuple[IpAddress, ...] = ()
        self._networks: dict[IpNetwork, int | None] = {}
        size = layouts
        with ExitStack() as undo:

            def made(kind: MapType, name: str, key: int, value: int, most: int) -> Map:
                flags = 0 if kind is MapType.ARRAY else NO_PREALLOC
                table = Map(kind, name, key, value, most, flags=flags)
                undo.callback(table.close)
                return table

            client_key, network = size.CLIENT_KEY.size_bytes, size.NETWORK_KEY.size_bytes
            self._endpoint_map = made(
                MapType.HASH, "zg_endpoints", client_key, size.ENDPOINT.size_bytes, _MAX_ENDPOINTS
            )
            self._service_map = made(
                MapType.ARRAY, "zg_services", 4, size.SERVICE.size_bytes, MAX_SERVICES
            )
            self._offer_map = made(MapType.ARRAY, "zg_offers", 4, size.OFFER.size_bytes, MAX_OFFERS)
            self._network_map = made(
                MapType.LPM_TRIE, "zg_networks", network, size.NETWORK.size_bytes, MAX_NETWORKS
            )
            self._undo = undo.pop_all()

    # Services.

    def set_service(self, service: int, addresses: Sequence[IpAddress]) -> None:
        """A service and its virtual IPs, new or changed; its offers stay.

        Raises:
            ValueError: two addresses of one family, or one that stands for something else, or
                one of a family that an offer has none of.
            CapacityError: the number is MAX_SERVICES or more.
        """
        _check_number("services", service, MAX_SERVICES)
        self._check_addresses(addresses, EndpointKind.SERVICE, service)
        before = self._services.get(service, _Service(()))
        for offer in before.offers:
            _check_families(addresses, self._offers[offer].addresses)
        now = replace(before, addresses=tuple(addresses))
        self._services[service] = now
        self._write_service(service)
        self._name(EndpointKind.SERVICE, service, now.addresses, before.addresses)

    def remove_service(self, service: int) -> None:
        """The service is no more, and no offer of it; nothing if there is none."""
        before = self._services.get(service)
        if before is None:
            return
        self._name(EndpointKind.SERVICE, service, (), before.addresses)
        for offer in before.offers:
            self.remove_offer(offer)
        del self._services[service]
        self._service_map.update(index_key(service), bytes(layouts.SERVICE.size_bytes))

    # Offers.

    def set_offer(
        self,
        offer: int,
        *,
        service: int,
        client_index: int,
        addresses: Sequence[IpAddress],
        use: OfferUse,
        open_flows: int = 0,
    ) -> None:
        """A connector's offer of a service, new or in the place of another of this number.

        `client_index` is the connector's: what passes is counted for it.

        Raises:
            ValueError: no such service or client index; or the addresses, as in `set_service`, or
                because the service has one of a family of which they have none.
            CapacityError: the number is MAX_OFFERS or more, or the service has 16 offers.
        """
        _check_number("offers", offer, MAX_OFFERS)
        if service not in self._services:
            raise ValueError(f"service {service} is not set")
        self._check_client(client_index)
        self._check_addresses(addresses, EndpointKind.OFFER, offer)
        _check_families(self._services[service].addresses, addresses)
        others = [one for one in self._services[service].offers if one != offer]
        if len(others) >= OFFERS_PER_SERVICE:
            raise CapacityError("offers of one service", len(others) + 1, OFFERS_PER_SERVICE)
        self.remove_offer(offer)
        made = _Offer(service, client_index, tuple(addresses), use, open_flows)
        self._offers[offer] = made
        # Whole before it is used: no packet may find half an address.
        self._offer_map.update(index_key(offer), made.packed(OfferUse.GONE))
        self._offer_map.update(index_key(offer), made.packed(use))
        self._name(EndpointKind.OFFER, offer, made.addresses, ())
        self._list_offers(service, (*others, offer))

    def use_offer(self, offer: int, use: OfferUse, open_flows: int) -> None:
        """What may be done with an offer now, and how many flows its connector has open.

        The program adds to `open_flows` those that it gives to the offer, until the next call.

        Raises:
            ValueError: there is no such offer.
        """
        known = self._offers.get(offer)
        if known is None:
            raise ValueError(f"offer {offer} is not set")
        self._offers[offer] = replace(known, use=use, open_flows=open_flows)
        self._offer_map.update(index_key(offer), self._offers[offer].packed(use))

    def remove_offer(self, offer: int) -> None:
        """The connector offers this no more: its flows choose anew; nothing if there is none."""
        known = self._offers.pop(offer, None)
        if known is None:
            return
        self._offer_map.update(index_key(offer), bytes(layouts.OFFER.size_bytes))
        self._name(EndpointKind.OFFER, offer, (), known.addresses)
        others = (one for one in self._services[known.service].offers if one != offer)
        self._list_offers(known.service, tuple(others))

    def open_flows(self, offer: int) -> int:
        """How many flows the program takes an offer to have open: what was reported, and more."""
        value = self._offer_map.lookup(index_key(offer))
        return int(layouts.OFFER.unpack(value)[3]) if value is not None else 0

    # Networks.

    def set_network(self, network: IpNetwork, client_index: int | None) -> None:
        """What lies behind a connector, in the place of who was said to be before it before.

        `None`: behind none now. What a client may send there is handed into the TUN as
        ``NO_BACKEND``, to be answered, unless a connector leads to a shorter prefix around it.

        Raises:
            ValueError: no such client index.
            CapacityError: there are MAX_NETWORKS already.
            OSError: the kernel refused.
        """
        if client_index is not None:
            self._check_client(client_index)
        if network not in self._networks and len(self._networks) >= MAX_NETWORKS:
            raise CapacityError("networks", MAX_NETWORKS + 1, MAX_NETWORKS)
        self._write_network(network, client_index)
        self._networks[network] = client_index
        self._write_inside(network)

    def remove_network(self, network: IpNetwork) -> None:
        """The network is not known any more; nothing if it was not. Raises OSError."""
        self._network_map.delete(network_key(network))
        self._networks.pop(network, None)
        self._write_inside(network)

    def _write_network(self, network: IpNetwork, client_index: int | None) -> None:
        """The longest prefix wins; one without a connector is not to win over one with."""
        if client_index is None and self._is_inside_another(network):
            self._network_map.delete(network_key(network))
            return
        number = layouts.NO_CLIENT if client_index is None else client_index
        self._network_map.update(network_key(network), layouts.NETWORK.pack(number))

    def _write_inside(self, network: IpNetwork) -> None:
        """Those without a connector inside this one, which may have one now, or no more."""
        for inner, client_index in self._networks.items():
            if client_index is None and _is_inside(inner, network):
                self._write_network(inner, None)

    def _is_inside_another(self, network: IpNetwork) -> bool:
        return any(
            client_index is not None and _is_inside(network, outer)
            for outer, client_index in self._networks.items()
        )

    # The gateway.

    def set_own_addresses(self, addresses: Sequence[IpAddress]) -> None:
        """The gateway's own virtual IPs: every client may ask them for names (port 53).

        Raises:
            ValueError: two of one family, or one that stands for something else.
        """
        self._check_addresses(addresses, EndpointKind.GATEWAY, 0)
        before, self._own = self._own, tuple(addresses)
        self._name(EndpointKind.GATEWAY, 0, self._own, before)

    # What the program needs to be loaded, and who asks how full it is.

    def maps(self) -> Iterator[tuple[str, Map]]:
        """The maps, by their names in the program."""
        yield "endpoints", self._endpoint_map
        yield "services", self._service_map
        yield "offers", self._offer_map
        yield "networks", self._network_map

    def usage(self) -> Iterator[tuple[str, int, int]]:
        """Of each map: its name, entries used, entries that fit."""
        yield "endpoints", len(self._taken), _MAX_ENDPOINTS
        yield "services", len(self._services), MAX_SERVICES
        yield "offers", len(self._offers), MAX_OFFERS
        yield "networks", len(self._networks), MAX_NETWORKS

    def close(self) -> None:
        """Give the descriptors back; the kernel keeps what programs use."""
        self._undo.close()

    # Inside.

    def _check_client(self, client_index: int) -> None:
        if not 0 <= client_index < self._max_clients:
            raise ValueError(f"client index {client_index} is beyond {self._max_clients}")

    def _check_addresses(
        self, addresses: Sequence[IpAddress], kind: EndpointKind, number: int
    ) -> None:
        if len({address.version for address in addresses}) != len(addresses):
            raise ValueError(f"{_spell(addresses)}: one address for each family at most")
        for address in addresses:
            if int(address) == 0:
                raise ValueError(f"{address} is no address that packets go to")
            holder = self._taken.get(address, (kind, number))
            if holder != (kind, number):
                raise ValueError(f"{address} is {holder[0].name.lower()} {holder[1]} already")

    def _name(
        self,
        kind: EndpointKind,
        number: int,
        addresses: Iterable[IpAddress],
        before: Iterable[IpAddress],
    ) -> None:
        """These addresses, and none of those before, are this service or offer."""
        now = set(addresses)
        for address in set(before) - now:
            self._endpoint_map.delete(_endpoint_key(address))
            del self._taken[address]
        for address in now:
            self._endpoint_map.update(_endpoint_key(address), layouts.ENDPOINT.pack(kind, number))
            self._taken[address] = kind, number

    def _list_offers(self, service: int, offers: tuple[int, ...]) -> None:
        self._services[service] = replace(self._services[service], offers=offers)
        self._write_service(service)

    def _write_service(self, service: int) -> None:
        known = self._services[service]
        numbers = [offer + 1 for offer in known.offers]
        numbers += [0] * (OFFERS_PER_SERVICE - len(numbers))
        value = layouts.SERVICE.pack(
            *_by_family(known.addresses), struct.pack(f"={OFFERS_PER_SERVICE}H", *numbers)
        )
        self._service_map.update(index_key(service), value)


def _check_number(what: str, number: int, most: int) -> None:
    if number < 0:
        raise ValueError(f"{what} are numbered from 0 on, not {number}")
    if number >= most:
        raise CapacityError(what, number + 1, most)


def _is_inside(inner: IpNetwork, outer: IpNetwork) -> bool:
    if inner.version != outer.version or inner.prefixlen <= outer.prefixlen:
        return False
    return inner.network_address in outer


def _check_families(service: Iterable[IpAddress], offer: Iterable[IpAddress]) -> None:
    """An offer must have an address wherever its service has one."""
    lacking = {one.version for one in service} - {one.version for one in offer}
    if lacking:
        raise ValueError(f"an offer of this service needs an IPv{lacking.pop()} address")


def _by_family(addresses: Iterable[IpAddress]) -> tuple[bytes, bytes]:
    """The IPv4 and the IPv6 address as tables hold them; zeros: there is none."""
    packed = {address.version: pack_address(address) for address in addresses}
    return packed.get(4, bytes(16)), packed.get(6, bytes(16))


def _endpoint_key(address: IpAddress) -> bytes:
    return layouts.CLIENT_KEY.pack(address.version, pack_address(address))


def _spell(addresses: Iterable[IpAddress]) -> str:
    return ", ".join(map(str, addresses))
