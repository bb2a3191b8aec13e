"""What the kernel finds in compiled tables, found in Python: the same lookups, step by step.

For questions before a policy is in any kernel. It reads what the compiler made, not the rules it
was made of, so that a mistake of the compiler shows here as it would in the kernel.
"""

from __future__ import annotations

from zgate_bpf.tables import NO_RULE, Action, CompiledPolicy

from zgate_gateway.policy.services import LAST_PORT, PORT_SPACE_BITS, IpAddress


class Tables:
    """The tables of one policy, indexed for lookups."""

    def __init__(self, policy: CompiledPolicy) -> None:
        self._policy = policy
        self._lists = {
            (item.network.version, item.network.prefixlen, int(item.network.network_address)): (
                item.service_list
            )
            for item in policy.destinations
        }
        self._bits = {
            family: sorted({bits for version, bits, _ in self._lists if version == family})[::-1]
            for family in (4, 6)
        }
        self._services = [
            {(entry.protocol, entry.port, entry.port_bits): entry.rule for entry in item.entries}
            for item in policy.lists
        ]

    def rule(self, destination: IpAddress, protocol: int, port: int) -> int | None:
        """Return the index of the rule that decides; ``port`` is type and code for ICMP."""
        best, current = NO_RULE, self._list_of(destination)
        while current is not None:
            best = min(best, self._service(current, protocol, port))
            current = self._policy.lists[current].parent
        return None if best == NO_RULE else best

    def action(self, destination: IpAddress, protocol: int, port: int) -> Action:
        """Return what becomes of the packet."""
        rule = self.rule(destination, protocol, port)
        return self._policy.default_action if rule is None else self._policy.rules[rule]

    def _list_of(self, destination: IpAddress) -> int | None:
        family, address = destination.version, int(destination)
        for bits in self._bits[family]:
            shift = destination.max_prefixlen - bits
            found = self._lists.get((family, bits, address >> shift << shift))
            if found is not None:
                return found
        return None

    def _service(self, position: int, protocol: int, port: int) -> int:
        services = self._services[position]
        for bits in range(PORT_SPACE_BITS, -1, -1):
            found = services.get((protocol, port & ~(LAST_PORT >> bits), bits))
            if found is not None:
                return found
        return services.get((None, 0, 0), NO_RULE)
