"""Addresses of a ztna-v1 client, which knows none of the gateway's.

    agent      A -> D           it chose both              V -> S    its virtual IP, the service's
               D -> A       <-  what it used last for S    S -> V
    connector  V -> S       <-                             V -> O    the address of its offer
               S -> V           or from any address,       O -> V
                                if it has one offer
               S -> X           X is nobody's address      O -> V    of who registered last for S

The kernel's policy, flows and counters see the right-hand side only. Ports stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address

from zgate_protocol.address_translation import translate_addresses
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.errors import PacketError
from zgate_protocol.icmp import invoking_packet, is_icmp_error
from zgate_protocol.ip_header import (
    check_packet,
    is_host_only,
    is_link_local,
    is_multicast,
)
from zgate_protocol.ip_range import IpAddress, RouteTable

_BROADCAST = bytes([255] * 4)


class Translation:
    """What is exchanged for what, on one connection.

    `ours` holds the virtual IPs of clients, be they connected or not, and of services.
    """

    def __init__(self, ours: RouteTable | None = None) -> None:
        self._ours = ours or RouteTable()
        self._own: dict[int, bytes] = {}
        self._reached: dict[str, dict[int, bytes]] = {}
        # The service's virtual IP -> what becomes of the addresses on the way to the agent.
        self._to_agent: dict[bytes, dict[bytes, bytes]] = {}
        self._served: dict[str, dict[bytes, bytes]] = {}
        self._to_connector: dict[bytes, bytes] = {}
        self._from_connector: dict[bytes, bytes] = {}
        # By service that is served: the virtual IPs of the agent that registered last, by version.
        self._agents: dict[str, dict[int, bytes]] = {}

    def set_own(self, addresses: Iterable[IpAddress]) -> None:
        """The client's virtual IPs."""
        self._own = {address.version: address.packed for address in addresses}

    def reach(self, service: str, addresses: Iterable[IpAddress]) -> None:
        """The virtual IPs of a service that the client may reach."""
        self._reached[service] = {address.version: address.packed for address in addresses}

    @property
    def services(self) -> frozenset[str]:
        """The services that the client may reach."""
        return frozenset(self._reached)

    @property
    def reached(self) -> tuple[bytes, ...]:
        """All their virtual IPs."""
        return tuple(packed for one in self._reached.values() for packed in one.values())

    def serve(self, offers: Mapping[str, Mapping[bytes, bytes]]) -> None:
        """All that the client serves: by service, the virtual IP of each offer's address."""
        self._served = {name: dict(pairs) for name, pairs in offers.items()}
        self._to_connector = {k: v for pairs in offers.values() for k, v in pairs.items()}
        self._from_connector = {vip: offer for offer, vip in self._to_connector.items()}
        self._agents = {name: agent for name, agent in self._agents.items() if name in offers}

    def answer_to(self, service: str, addresses: Iterable[IpAddress]) -> None:
        """The virtual IPs of the agent that registered last for a service; none: there is none."""
        self._agents.pop(service, None)
        if service in self._served:
            self._agents[service] = {address.version: address.packed for address in addresses}

    # From the client.

    def from_client(self, packet: bytes, service: str | None) -> bytes | DropReason:
        """The packet as the kernel is to see it; ``service`` if the client has named one."""
        reason = check_packet(packet)
        if reason:
            return reason
        try:
            if self._is_served(packet, service):
                return self._from_the_connector(packet, service)
            return self._from_the_agent(packet, service)
        except PacketError as error:
            return error.reason

    def _is_served(self, packet: bytes, service: str | None) -> bool:
        """Whether it is the connector that speaks, of a client that may be both."""
        if service is not None:
            return service in self._served and service not in self._reached
        return bool(self._served) and (not self._reached or _source(packet) in self._from_connector)

    def _from_the_connector(self, packet: bytes, service: str | None) -> bytes | DropReason:
        table = dict(self._from_connector)
        source = _source(packet)
        if source not in table:
            # A backend that answers as itself, or an error of a router before it.
            offers = self._served[service] if service is not None else self._to_connector
            mine = [offer for offer in offers if len(offer) == len(source)]
            if len(mine) != 1:
                return DropReason.SOURCE_NOT_ASSIGNED
            table[source] = mine[0]
        destination = _destination(packet)
        agent = self._agent_of(table[source])
        if agent is not None and destination not in table and self._is_nobodys(destination):
            table[destination] = agent
        return translate_addresses(packet, table)

    def _agent_of(self, offer: bytes) -> bytes | None:
        """The virtual IP of the offer's version of who registered last for its service."""
        for name, agent in self._agents.items():
            if offer in self._served[name]:
                return agent.get(4 if len(offer) == 4 else 6)
        return None

    def _is_nobodys(self, destination: bytes) -> bool:
        """Whether the connector has made the address up.

        One of the clients' is not: what is on its way to who has just left is for nobody else.
        """
        if self._ours.holds(destination):
            return False
        one = ip_address(destination)
        is_local = one.is_loopback or one.is_link_local or one.is_unspecified
        return not (is_local or one.is_multicast or destination == _BROADCAST)

    def _from_the_agent(self, packet: bytes, service: str | None) -> bytes | DropReason:
        source, destination = _source(packet), _destination(packet)
        # What its kernel says to its link (MLD, router solicitations) is for no service, and
        # answers must not go to where that came from.
        if is_link_local(source) or is_link_local(destination):
            return DropReason.LINK_LOCAL
        if is_host_only(source) or is_multicast(destination):
            return DropReason.DESTINATION_NOT_ROUTED
        if service is None and len(self._reached) == 1:
            (service,) = self._reached
        version = packet[0] >> 4
        vip = self._reached.get(service or "", {}).get(version)
        own = self._own.get(version)
        if vip is None or own is None:
            return DropReason.DESTINATION_NOT_ROUTED
        if source == destination:
            return DropReason.SOURCE_NOT_ASSIGNED
        # An error may come from a router, about what the agent itself has used.
        known = {client: ours for ours, client in self._to_agent.get(vip, {}).items()}
        if not is_icmp_error(packet):
            self._to_agent[vip] = {own: source, vip: destination}
        return translate_addresses(packet, {**known, source: own, destination: vip})

    # To the client.

    def to_client(self, packet: bytes) -> bytes | DropReason:
        """The packet as the client knows it; it has passed the gate."""
        destination = _destination(packet)
        if destination in self._to_connector:
            return translate_addresses(packet, self._to_connector)
        table = self._to_agent.get(_source(packet))
        if table is None and (about := invoking_packet(packet)) is not None:
            table = self._to_agent.get(about.destination)
        if table is None:
            # The client has never sent there, so that there is no address to come from.
            return DropReason.DESTINATION_NOT_ASSIGNED
        return translate_addresses(packet, table)


def _source(packet: bytes) -> bytes:
    return packet[12:16] if packet[0] >> 4 == 4 else packet[8:24]


def _destination(packet: bytes) -> bytes:
    return packet[16:20] if packet[0] >> 4 == 4 else packet[24:40]
