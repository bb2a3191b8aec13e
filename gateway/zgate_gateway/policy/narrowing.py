"""Rules for a client whose certificate narrows it to some services (SAN ``agent.S.zgate``).

Nothing is allowed that the rules do not allow; of what they allow only the virtual IPs of these
services stay. Rules keep their places, so that verdicts name them as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from zgate_bpf.tables import Action

from zgate_gateway.policy.model import RuleType
from zgate_gateway.policy.rules import Rule, in_order
from zgate_gateway.policy.service_names import Services, addresses_of, network_of
from zgate_gateway.policy.services import IpAddress


def narrowed(rules: Sequence[Rule], reaches: Sequence[str], services: Services) -> tuple[Rule, ...]:
    """Return the rules, with those that allow cut to the virtual IPs of ``reaches``."""
    reached = addresses_of(reaches, services)
    return tuple(rule if rule.action is Action.DENY else _cut(rule, reached) for rule in rules)


#: In place of a rule of which nothing stays: thousands of copies would take long to make.
_NOTHING = Rule("", RuleType.SERVICE, Action.ALLOW, (), (), ())


def _cut(rule: Rule, reached: Sequence[IpAddress]) -> Rule:
    kept = [one for one in reached if any(one in network for network in rule.destinations)]
    return replace(rule, destinations=in_order(map(network_of, kept))) if kept else _NOTHING
