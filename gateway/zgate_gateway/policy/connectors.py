"""What the policy lets connectors offer, beside what their certificates do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from zgate_gateway.policy.model import ConnectorModel
from zgate_gateway.policy.service_names import matches
from zgate_gateway.policy.services import IpNetwork


@dataclass(frozen=True, slots=True)
class ConnectorRights:
    """What a connector may offer.

    :ivar services: names or patterns, as written.
    :ivar routes: networks; what lies inside one of them may be advertised.
    """

    services: tuple[str, ...] = ()
    routes: tuple[IpNetwork, ...] = ()

    @classmethod
    def from_model(cls, model: ConnectorModel) -> ConnectorRights:
        """Return what the file says."""
        return cls(model.services, tuple(dict.fromkeys(model.routes)))

    def may_offer(self, service: str) -> bool:
        """Whether a service of that name is among them."""
        return any(matches(pattern, service) for pattern in self.services)

    def may_advertise(self, network: IpNetwork) -> bool:
        """Whether the whole network lies inside one of the routes."""
        return any(
            route.version == network.version
            and route.prefixlen <= network.prefixlen
            and network.network_address in route
            for route in self.routes
        )


_Rights = Mapping[str, ConnectorRights]


def rights_of(models: Mapping[str, ConnectorModel]) -> dict[str, ConnectorRights]:
    """Return the rights that the file gives, by name."""
    return {name: ConnectorRights.from_model(model) for name, model in models.items()}


@dataclass(frozen=True, slots=True)
class RightsChange:
    """What a connector, or a group of them, may offer from now on, and what it might before.

    :ivar kind: ``connector`` or ``connector group``.
    """

    kind: str
    name: str
    before: ConnectorRights
    after: ConnectorRights


def changed_rights(kind: str, before: _Rights, after: _Rights) -> Iterator[RightsChange]:
    """Return where two policies give different rights; their order means nothing."""
    for name in sorted(before.keys() | after.keys()):
        old, new = (given.get(name, ConnectorRights()) for given in (before, after))
        if set(old.services) != set(new.services) or set(old.routes) != set(new.routes):
            yield RightsChange(kind, name, old, new)


def joined(rights: Iterable[ConnectorRights]) -> ConnectorRights:
    """Return everything that one of them gives."""
    given = tuple(rights)
    return ConnectorRights(
        tuple(dict.fromkeys(name for one in given for name in one.services)),
        tuple(dict.fromkeys(route for one in given for route in one.routes)),
    )
