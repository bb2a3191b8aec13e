"""May this connector offer that? Its certificate says so, or the policy does.

A service may be offered by whoever's certificate names it (`connector.S.zgate`, or `*` in place of
S) and by whom the policy lets (`connectors:`). A network needs the policy: certificates name none.
What neither names is refused, and so is a name that nothing can have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple, Protocol

from zgate_identity.verifier import PeerIdentity
from zgate_protocol.service_capsule import RegistrationCode

from zgate_gateway.services.directory import name_problem

IpNetwork = IPv4Network | IPv6Network

_EVERY_SERVICE = "*"


class Rights(Protocol):
    """What the policy lets a connector do: `zgate_gateway.policy.connectors.ConnectorRights`."""

    def may_offer(self, service: str) -> bool:
        """Whether it may offer a service of that name."""

    def may_advertise(self, network: IpNetwork) -> bool:
        """Whether it may lead to the whole network."""


class Policy(Protocol):
    """The policy in force: `zgate_gateway.policy.policy_set.PolicySet`."""

    @property
    def connectors(self) -> Mapping[str, Rights]:
        """What connectors may do, by name."""

    @property
    def connector_groups(self) -> Mapping[str, Rights]:
        """What connectors may do, by group."""

    def connector_rights(self, name: str, groups: Iterable[str] = ()) -> Rights:
        """What a connector may do, by its name and its groups."""


class Objection(NamedTuple):
    """Why something cannot be offered."""

    code: RegistrationCode
    text: str


def objection_to_service(identity: PeerIdentity, policy: Policy, name: str) -> Objection | None:
    """Why this connector may not offer a service of that name; None: it may."""
    problem = name_problem(name)
    if problem is not None:
        return Objection(RegistrationCode.INVALID, problem)
    if name in identity.offers or _EVERY_SERVICE in identity.offers:
        return None
    if policy.connector_rights(identity.name, identity.groups).may_offer(name):
        return None
    return Objection(
        RegistrationCode.NOT_AUTHORIZED,
        f"neither the certificate of {identity.name} nor the policy lets it offer this service",
    )


def objection_to_network(
    identity: PeerIdentity, policy: Policy, network: IpNetwork
) -> Objection | None:
    """Why this connector may not lead to a network; None: it may."""
    if network.is_multicast or network.is_loopback or network.is_link_local:
        return Objection(RegistrationCode.INVALID, "no network that packets are routed to")
    if policy.connector_rights(identity.name, identity.groups).may_advertise(network):
        return None
    return Objection(
        RegistrationCode.NOT_AUTHORIZED, f"the policy does not let {identity.name} lead there"
    )
