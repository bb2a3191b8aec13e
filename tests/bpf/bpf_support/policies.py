"""Policies for tests, from rules in plain words to what the kernel takes."""

from ipaddress import ip_network

from zgate_bpf.tables import Action, CompiledPolicy
from zgate_gateway.policy.compiler import compile_policy
from zgate_gateway.policy.model import RuleType
from zgate_gateway.policy.rules import Rule
from zgate_gateway.policy.services import ANY_PROTOCOL, Service

from bpf_support.reference import RefRule


def allow(*networks, protocol=None, ports=(0, 0xFFFF)):
    return RefRule(True, tuple(map(ip_network, networks)), protocol, *ports)


def deny(*networks, protocol=None, ports=(0, 0xFFFF)):
    return RefRule(False, tuple(map(ip_network, networks)), protocol, *ports)


def compiled(rules, *, default=Action.DENY) -> CompiledPolicy:
    """Through the gateway's own compiler."""
    return compile_policy([_rule(index, rule) for index, rule in enumerate(rules)], default)


def _rule(index, rule):
    protocol = ANY_PROTOCOL if rule.protocol is None else rule.protocol
    service = (Service(protocol, rule.first, rule.last),)
    return Rule(
        id=f"rule-{index}",
        type=RuleType.IP_CIDR,
        action=Action.ALLOW if rule.allow else Action.DENY,
        destinations=tuple(sorted(rule.networks, key=lambda n: (n.version, n))),
        services_ipv4=service,
        services_ipv6=service,
    )
