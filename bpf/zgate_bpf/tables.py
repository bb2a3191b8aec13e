"""What a policy looks like once it is compiled: the tables that the kernel looks rules up in.

This module imports nothing privileged, so that the policy compiler and its
tests run anywhere. What a policy means, which is what the kernel finds:

1. destination address -> longest matching :class:`Destination` of the client's policy
   -> a :class:`ServiceList`;
2. (protocol, port) -> longest matching :class:`ServicePrefix` of that list -> a rule index;
3. the same in the list's ``parent``, its parent, and so on (at most
   :data:`MAX_LIST_DEPTH` lists): the lowest rule index of all of them wins;
4. no rule at all: ``default_action``.

The number of rules appears nowhere in it. How the kernel's tables hold this is the business
of :mod:`zgate_bpf.encoding`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Network, IPv6Network

NO_RULE = 0xFFFFFFFF
"""The rule number of a verdict that no rule gave."""

MAX_LIST_DEPTH = 16
"""Service lists visited for one decision: how deep destination prefixes with rules may nest."""

MAX_RULES_PER_POLICY = 65_536
"""Rules one policy can hold, by the width of the kernel's fields."""

PASS_MARK = 0x005A0000
"""Mark on every packet from a client that the program passed; the firewall requires it."""

PASS_MASK = 0x00FF0000
"""The bits of the packet's mark that :data:`PASS_MARK` occupies."""


class Action(IntEnum):
    """What a rule does."""

    DENY = 0
    ALLOW = 1


@dataclass(frozen=True, slots=True)
class ServicePrefix:
    """One prefix of the (protocol, port) space; the longest prefix wins.

    The compiler has resolved first-match order *inside* a list already: where
    two rules overlap, the longer prefix carries the rule that comes first.

    :ivar protocol: IP protocol number; ``None`` is any protocol, then ``port_bits`` is 0.
    :ivar port: destination port, or for ICMP ``type << 8 | code``; bits after
        ``port_bits`` are zero.
    :ivar port_bits: how many leading bits of ``port`` must match, 0 to 16.
    :ivar rule: index into :attr:`CompiledPolicy.rules`; the lower index has priority.
    """

    protocol: int | None
    port: int
    port_bits: int
    rule: int


@dataclass(frozen=True, slots=True)
class ServiceList:
    """The services that rules name for one destination prefix.

    :ivar parent: index of the list of the next shorter destination prefix that
        encloses this one and has rules; ``None`` at the top.
    """

    parent: int | None
    entries: tuple[ServicePrefix, ...]


@dataclass(frozen=True, slots=True)
class Destination:
    """One destination prefix and the list that decides there.

    :ivar service_list: index into :attr:`CompiledPolicy.lists`.
    """

    network: IPv4Network | IPv6Network
    service_list: int


@dataclass(frozen=True, slots=True)
class CompiledPolicy:
    """One client's policy, ready for the kernel; equal ones are shared by clients.

    :ivar rules: action by rule index, in first-match order.
    """

    rules: tuple[Action, ...]
    lists: tuple[ServiceList, ...]
    destinations: tuple[Destination, ...]
    default_action: Action
