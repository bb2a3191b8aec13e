"""Policies of many sizes but one shape, and packets that ask every part of them."""

from __future__ import annotations

import random
import struct
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from zgate_bpf.layouts import IpAddress
from zgate_bpf.tables import Action, CompiledPolicy
from zgate_gateway.policy.compiler import compile_policy
from zgate_gateway.policy.model import RuleType
from zgate_gateway.policy.rules import Rule
from zgate_gateway.policy.services import TCP, UDP, Service

IpNetwork = IPv4Network | IPv6Network

FAMILIES = (4, 6)
CLIENTS: dict[int, IpAddress] = {4: ip_address("10.100.0.1"), 6: ip_address("fd7a::1")}
"""The one without limits, by family."""
LIMITED_CLIENTS: dict[int, IpAddress] = {4: ip_address("10.100.0.2"), 6: ip_address("fd7a::2")}
_SEED = 9484
# Many hosts, fewer networks: as in the policies of offices.
_LENGTHS = {
    4: (32, 32, 32, 32, 28, 24, 24, 20, 16),
    6: (128, 128, 128, 128, 96, 64, 64, 56, 48),
}
_EVERYWHERE = {4: ip_network("10.0.0.0/8"), 6: ip_network("2001:db8::/32")}
_ANYTHING = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
_ETHERTYPES = {4: 0x0800, 6: 0x86DD}


def make_rules(count: int, family: int) -> list[Rule]:
    """So many rules, each for a network of its own; the last one denies everything."""
    choose = random.Random(_SEED)
    around = _EVERYWHERE[family]
    networks: dict[IpNetwork, None] = {}
    while len(networks) < count - 1:
        address = around[choose.getrandbits(around.max_prefixlen - around.prefixlen)]
        length = choose.choice(_LENGTHS[family])
        networks[ip_network((address, length), strict=False)] = None
    rules = [
        _rule(index, network, Action.DENY if index % 5 == 4 else Action.ALLOW, choose)
        for index, network in enumerate(networks)
    ]
    last = _rule(count - 1, _ANYTHING[family], Action.DENY, choose)
    return [*rules, last]


def _rule(index: int, network: IpNetwork, action: Action, choose: random.Random) -> Rule:
    port = choose.choice((22, 80, 443, 3389, 5432))
    services = (Service(TCP, port, port), Service(UDP, 1024, 65535))
    return Rule(
        id=f"rule-{index}",
        type=RuleType.IP_CIDR,
        action=action,
        destinations=(network,),
        services_ipv4=services,
        services_ipv6=services,
    )


def compiled(rules: list[Rule]) -> CompiledPolicy:
    """Through the gateway's own compiler."""
    return compile_policy(rules, Action.DENY)


def make_packets(rules: list[Rule], count: int, client: IpAddress) -> list[bytes]:
    """TCP packets of a client that rules allow, spread over the policy."""
    allowed = [rule for rule in rules if rule.action is Action.ALLOW]
    chosen = random.Random(_SEED).choices(allowed, k=count)
    return [_packet(client, rule.destinations[0], rule.services_ipv4[0].first) for rule in chosen]


def _packet(client: IpAddress, network: IpNetwork, port: int) -> bytes:
    tcp = struct.pack("!HHIIBBHHH", 4000, port, 1, 0, 5 << 4, 0x02, 1000, 0, 0)
    if client.version == 6:
        header = struct.pack("!IHBB", 6 << 28, len(tcp), TCP, 64)
    else:
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 1, 0, 64, TCP, 0)
    return header + client.packed + network[-1].packed + tcp


def frame(packet: bytes) -> bytes:
    """As the kernel's test run wants it: with an Ethernet header."""
    return bytes(12) + struct.pack("!H", _ETHERTYPES[packet[0] >> 4]) + packet
