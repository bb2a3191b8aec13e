"""What a policy changes in flows, in the API's words: services by name, not by virtual IP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from zgate_bpf.tables import Action

from zgate_gateway.policy import diff
from zgate_gateway.policy.service_names import Services
from zgate_gateway.policy.services import IpAddress, IpNetwork

from .schemas import FlowChange, VerdictAction

_Names = Mapping[IpAddress, str]


def told_changes(changes: Iterable[diff.FlowChange], services: Services) -> list[FlowChange]:
    """Return changes as people read them.

    A service has a virtual IP of each family: what changes alike for both is told once, and what
    changes for one of them names the family.
    """
    names = {address: name for name, addresses in services.items() for address in addresses}
    told: dict[str, tuple[FlowChange, list[diff.FlowChange]]] = {}
    for change in changes:
        text = _told(change, names, "")
        told.setdefault(text.model_dump_json(), (text, []))[1].append(change)
    return [
        text if len(alike) > 1 else _told(alike[0], names, f" (IPv{alike[0].family})")
        for text, alike in told.values()
    ]


def _told(change: diff.FlowChange, names: _Names, suffix: str) -> FlowChange:
    return FlowChange(
        action=VerdictAction.ALLOW if change.action is Action.ALLOW else VerdictAction.DENY,
        destinations=[
            text for network in change.networks for text in _labels(network, names, suffix)
        ],
        services=[span.text(change.family) for span in change.services],
        since=change.since,
        until=change.until,
    )


def _labels(network: IpNetwork, names: _Names, suffix: str) -> Iterator[str]:
    """Services, if it holds nothing else; the network otherwise."""
    if network.num_addresses > len(names) or any(one not in names for one in network):
        yield str(network)
        return
    yield from (f"service {names[one]}{suffix}" for one in network)
