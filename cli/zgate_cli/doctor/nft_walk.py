"""Would a packet pass the host's other nftables rules? Told from their listing, rule by rule.

The answer is yes, no or perhaps: a rule that looks at something that is not known here (a set's
content, a limit, an extension of iptables) may match or not, and both ways are followed.

Chains of one hook run by priority, and each has its say: the packet passes if all let it pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

Json = dict[str, Any]
IpAddress = IPv4Address | IPv6Address
_MAX_DEPTH = 16
_L4 = {"udp": 17, "tcp": 6, "icmp": 1, "icmpv6": 58, "ipv6-icmp": 58}


@dataclass(frozen=True, slots=True)
class Packet:
    """What is known of it; None: anything."""

    title: str
    hook: str
    iif: str | None = None
    oif: str | None = None
    source: IpAddress | None = None
    destination: IpAddress | None = None
    protocol: str | None = None
    dport: int | None = None
    state: str = "new"
    version: int = 4


@dataclass(frozen=True, slots=True)
class Drop:
    """A chain that drops it, or may."""

    table: str
    chain: str
    is_certain: bool
    why: str


@dataclass(slots=True)
class _Outcomes:
    """What may become of a packet: `drops` say where."""

    passes: bool = False
    goes_on: bool = False
    drops: list[str] = field(default_factory=list)


class Ruleset:
    """The listing of ``nft -j list ruleset``."""

    def __init__(self, listing: Json) -> None:
        self._chains: dict[tuple[str, str, str], Json] = {}
        self._rules: dict[tuple[str, str, str], list[Json]] = {}
        for entry in listing.get("nftables", []):
            if "chain" in entry:
                chain = entry["chain"]
                self._chains[chain["family"], chain["table"], chain["name"]] = chain
            elif "rule" in entry:
                rule = entry["rule"]
                place = rule["family"], rule["table"], rule["chain"]
                self._rules.setdefault(place, []).append(rule)

    def drops(self, packet: Packet, *, but: str) -> list[Drop]:
        """The base chains at which the packet ends, or may end; those of table `but` left out."""
        found = []
        for place, chain in self._chains.items():
            family, table, name = place
            wanted = chain.get("hook") == packet.hook and chain.get("type") == "filter"
            families = {"inet", "ip" if packet.version == 4 else "ip6"}
            if not wanted or family not in families or table == but:
                continue
            outcomes = self._walk(place, packet, 0)
            if outcomes.goes_on:
                if chain.get("policy", "accept") == "drop":
                    outcomes.drops.append("its policy is drop")
                else:
                    outcomes.passes = True
            if outcomes.drops:
                certain = not outcomes.passes
                found.append(Drop(f"{family} {table}", name, certain, outcomes.drops[0]))
        return found

    def has_chain(self, name: str) -> bool:
        """Whether a table has a chain of this name."""
        return any(place[2] == name for place in self._chains)

    def hook_of(self, table: str, chain: str) -> str | None:
        """Where a base chain hangs; None: it is none. `table` is family and name."""
        family, _, name = table.partition(" ")
        found = self._chains.get((family, name, chain))
        return None if found is None else found.get("hook")

    def _walk(self, place: tuple[str, str, str], packet: Packet, depth: int) -> _Outcomes:
        """Go through a chain's rules; `goes_on` if the end may be reached."""
        outcomes = _Outcomes()
        if depth > _MAX_DEPTH:
            outcomes.passes = outcomes.goes_on = True
            return outcomes
        for rule in self._rules.get(place, []):
            matched = _matches(rule.get("expr", []), packet)
            if matched is False:
                continue
            ends = self._apply(rule, place, packet, depth, outcomes)
            if ends and matched is True:
                return outcomes
        outcomes.goes_on = True
        return outcomes

    def _apply(
        self,
        rule: Json,
        place: tuple[str, str, str],
        packet: Packet,
        depth: int,
        outcomes: _Outcomes,
    ) -> bool:
        """Do what a rule does; whether a packet that matches never gets to the next one."""
        for one in rule.get("expr", []):
            if "accept" in one:
                outcomes.passes = True
                return True
            if "drop" in one or "reject" in one:
                what = "drop" if "drop" in one else "reject"
                outcomes.drops.append(f"rule with handle {rule.get('handle')} says {what}")
                return True
            if "return" in one:
                outcomes.goes_on = True
                return True
            if "queue" in one or "vmap" in one:  # somebody else decides
                outcomes.passes = True
                outcomes.drops.append(f"rule with handle {rule.get('handle')} may drop it")
                return "queue" in one
            for verb in ("jump", "goto"):
                if verb in one:
                    inner = self._walk((*place[:2], one[verb]["target"]), packet, depth + 1)
                    outcomes.passes |= inner.passes
                    outcomes.drops += inner.drops
                    if verb == "goto":
                        outcomes.goes_on |= inner.goes_on
                        return True
                    return not inner.goes_on
        return False


def _matches(expressions: Iterable[Json], packet: Packet) -> bool | None:
    """Whether all conditions of a rule hold; None: that cannot be told."""
    unknown = False
    for one in expressions:
        if "match" in one:
            held = _holds(one["match"], packet)
        elif "xt" in one or "limit" in one or "fib" in one or "socket" in one:
            held = None
        else:
            continue
        if held is False:
            return False
        unknown |= held is None
    return None if unknown else True


def _holds(match: Json, packet: Packet) -> bool | None:
    known = _known(match["left"], packet)
    if known is None:
        return None
    op, right = match.get("op", "=="), match["right"]
    if op not in {"==", "!=", "in"}:
        return None
    found = _is_in(known, right)
    return None if found is None else found != (op == "!=")


def _known(left: Any, packet: Packet) -> Any:
    """What the packet has where a rule looks; None: not known."""
    if not isinstance(left, Mapping):
        return None
    match left:
        case {"meta": {"key": "iifname" | "iif"}}:
            return packet.iif
        case {"meta": {"key": "oifname" | "oif"}}:
            return packet.oif
        case {"meta": {"key": "l4proto"}} | {"payload": {"protocol": "ip", "field": "protocol"}}:
            return packet.protocol
        case {"meta": {"key": "nfproto"}}:
            return "ipv4" if packet.version == 4 else "ipv6"
        case {"ct": {"key": "state"}}:
            return packet.state
        case {"payload": {"protocol": "ip" | "ip6" as family, "field": field_}}:
            if (family == "ip") != (packet.version == 4):
                return "-"  # the other family: no rule of it matches
            return {"saddr": packet.source, "daddr": packet.destination}.get(field_)
        case {"payload": {"protocol": "udp" | "tcp" | "th" as protocol, "field": "dport"}}:
            if protocol != "th" and packet.protocol not in {None, protocol}:
                return "-"
            return packet.dport
    return None


def _is_in(known: Any, right: Any) -> bool | None:
    """Whether a value is what a rule names, or among it."""
    match right:
        case {"set": list(members)} | list(members):
            found = [_is_in(known, one) for one in members]
            return True if True in found else None if None in found else False
        case {"range": [low, high]}:
            return _between(known, low, high)
        case {"prefix": {"addr": address, "len": length}}:
            network = ip_network(f"{address}/{length}", strict=False)
            same = isinstance(known, IPv4Address | IPv6Address) and (
                known.version == network.version
            )
            return known in network if same else False
        case str() if right.startswith("@"):
            return None
        case str() if isinstance(known, IPv4Address | IPv6Address):
            try:
                return known == ip_address(right)
            except ValueError:
                return None
        case str() if right.endswith("*") and isinstance(known, str):
            return known.startswith(right[:-1])
        case str() | int():
            return bool(known == right or _L4.get(str(known)) == right)
    return None


def _between(known: Any, low: Any, high: Any) -> bool | None:
    if isinstance(known, int) and isinstance(low, int) and isinstance(high, int):
        return low <= known <= high
    if isinstance(known, IPv4Address | IPv6Address):
        try:
            first, last = ip_address(low), ip_address(high)
        except ValueError:
            return None
        return known.version == first.version and int(first) <= int(known) <= int(last)
    return False
