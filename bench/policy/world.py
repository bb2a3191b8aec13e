"""Policies of many sizes but one shape, and packets that ask every part of them."""

from __future__ import annotations

import random
import struct
from ipaddress import IPv4Address, IPv4Network

from zgate_bpf.tables import Action, CompiledPolicy
from zgate_gateway.policy.compiler import compile_policy
from zgate_gateway.policy.model import RuleType
from zgate_gateway.policy.rules import Rule
from zgate_gateway.policy.services import TCP, UDP, Service

CLIENT = IPv4Address("10.100.0.1")
_SEED = 9484
# Many hosts, fewer networks: as in the policies of offices.
_LENGTHS = (32, 32, 32, 32, 28, 24, 24, 20, 16)
_ETHERTYPE_IPV4 = 0x0800


def make_rules(count: int) -> list[Rule]:
    """So many rules, each for a network of its own; the last one denies everything."""
    choose = random.Random(_SEED)
    networks: dict[IPv4Network, None] = {}
    while len(networks) < count - 1:
        address = choose.getrandbits(24) | 10 << 24
        length = choose.choice(_LENGTHS)
        networks[IPv4Network((address, length), strict=False)] = None
    rules = [
        _rule(index, network, Action.DENY if index % 5 == 4 else Action.ALLOW, choose)
        for index, network in enumerate(networks)
    ]
    last = _rule(count - 1, IPv4Network("0.0.0.0/0"), Action.DENY, choose)
    return [*rules, last]


def _rule(index: int, network: IPv4Network, action: Action, choose: random.Random) -> Rule:
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


def make_packets(rules: list[Rule], count: int) -> list[bytes]:
    """TCP packets that rules allow, spread over the policy."""
    allowed = [rule for rule in rules if rule.action is Action.ALLOW]
    chosen = random.Random(_SEED).choices(allowed, k=count)
    return [_packet(rule.destinations[0], rule.services_ipv4[0].first) for rule in chosen]


def _packet(network: object, port: int) -> bytes:
    assert isinstance(network, IPv4Network)
    tcp = struct.pack("!HHIIBBHHH", 4000, port, 1, 0, 5 << 4, 0x02, 1000, 0, 0)
    header = struct.pack(
        "!BBHHHBBH4s4s",
        0x45,
        0,
        20 + len(tcp),
        1,
        0,
        64,
        TCP,
        0,
        CLIENT.packed,
        network[-1].packed,
    )
    return header + tcp


def frame(packet: bytes) -> bytes:
    """As the kernel's test run wants it: with an Ethernet header."""
    return bytes(12) + struct.pack("!H", _ETHERTYPE_IPV4) + packet
