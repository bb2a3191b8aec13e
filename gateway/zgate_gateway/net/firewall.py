"""The gateway's nftables table, `inet zgate`: its own, and nothing but its own.

    input       what clients send to the gateway itself, only if the BPF program passed it
    forward     from the TUN: only what the program passed; to the TUN: only answers, or what came
                from the TUN; from elsewhere: nothing with an address of a client, a service or a
                network behind a connector, and, where the host did not forward before the
                gateway came, nothing at all
    clamp       TCP's MSS, to the MTU of the way, both directions
    masquerade  from the pools to everywhere but the TUN, or to the named uplink

The whole table is replaced in one transaction. Tables of others are never touched, and an `accept`
here ends nobody else's chain: a host firewall that drops forwarded traffic still drops it.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from typing import Any

from zgate_bpf.tables import PASS_MARK, PASS_MASK

from zgate_gateway.net.errors import NetError

FAMILY = "inet"
TABLE = "zgate"
#: What stays between two lives of a gateway, see `Firewall.hold`.
HOLD_TABLE = "zgate_hold"
COUNTERS = (
    "input_not_passed",
    "forward_not_passed",
    "pool_spoofed",
    "unsolicited",
    "not_forwarded",
    "masqueraded",
)

#: Networks behind connectors, by family.
NETWORK_SETS = {4: "networks_ipv4", 6: "networks_ipv6"}

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class FirewallSettings:
    """What the table is made from."""

    tun_name: str
    ipv4_pool: IPv4Network
    ipv6_pool: IPv6Network
    masquerade: bool = True
    uplink: str | None = None  # masquerade to this interface only; None: to all but the TUN
    # The host forwarded nothing of this family before the gateway made it a router: it goes on
    # forwarding nothing that has nothing to do with the tunnel.
    only_tunnel_ipv4: bool = False
    only_tunnel_ipv6: bool = False
    # Of services: nobody outside borrows their addresses either.
    service_pools: tuple[IPv4Network | IPv6Network, ...] = ()


@dataclass(frozen=True, slots=True)
class RuleCounter:
    """How often a rule of the table matched."""

    packets: int
    bytes: int


class Firewall:
    """The table, from a set of settings."""

    def __init__(self, settings: FirewallSettings):
        self._settings = settings
        self._listing: list[Json] | None = None

    def install(self) -> None:
        """Put the table in place of an earlier one, atomically, and read it back."""
        commands = [
            # Adding before deleting makes the deletion succeed with and without an old table.
            {"add": {"table": _table()}},
            {"delete": {"table": _table()}},
            *({"add": one} for one in table_content(self._settings)),
            {"add": {"table": _hold_table()}},
            {"delete": {"table": _hold_table()}},
        ]
        _run(commands, "cannot install the nftables table")
        listing = _read_listing()
        if _comments(listing) != _comments(table_content(self._settings)):
            raise NetError("the nftables table read back is not the one that was installed")
        self._listing = listing

    def verify(self) -> None:
        """Raise NetError unless the table is, rule by rule, what was read back when installed."""
        if self._listing is None:
            raise NetError("the nftables table has not been installed")
        if _read_listing() != self._listing:
            raise NetError(
                f"the nftables table {FAMILY} {TABLE} was changed by somebody else:"
                " restart the gateway to put it back"
            )

    def set_networks(self, networks: Iterable[IPv4Network | IPv6Network]) -> None:
        """These are behind connectors, and no others: nobody outside borrows their addresses."""
        wanted = set(networks)
        commands: list[Json] = []
        for version, name in NETWORK_SETS.items():
            commands.append({"flush": {"set": {**_table_member(), "name": name}}})
            # One within another would be refused.
            merged = _merged(one for one in wanted if one.version == version)
            if merged:
                elements = [_prefix(one) for one in merged]
                commands.append(
                    {"add": {"element": {**_table_member(), "name": name, "elem": elements}}}
                )
        _run(commands, "cannot fill the sets of networks of the nftables table")

    def counters(self) -> dict[str, RuleCounter]:
        """Read the counters of the drops and of the masquerade, by name (COUNTERS)."""
        found = (one["counter"] for one in _read_table() if "counter" in one)
        return {one["name"]: RuleCounter(one["packets"], one["bytes"]) for one in found}

    def remove(self) -> None:
        """Remove the table; it is no error when it is gone already."""
        remove_table()
        self._listing = None

    def hold(self) -> None:
        """Remove the table, and leave in its place what open connections need to survive that.

        They are masqueraded: without a rule that translates, the kernel would take a server's next
        packet for its own, and reset the connection. So address translation stays switched on, for
        the connections that it knows, and what it translates is dropped until the next gateway
        takes it over. The table touches nothing else, and the next start removes it.
        """
        settings = self._settings
        commands = [
            {"add": {"table": _hold_table()}},
            {"delete": {"table": _hold_table()}},
            *({"add": one} for one in hold_content(settings)),
            {"delete": {"table": _table()}},
        ]
        _run(commands, "cannot put the nftables table for the time between in place of")
        self._listing = None


def hold_content(settings: FirewallSettings) -> list[Json]:
    """The table that stays, in the order in which its objects are added."""
    member = {"family": FAMILY, "table": HOLD_TABLE}

    def chain(name: str, kind: str, hook: str, priority: int) -> Json:
        hooked = {"type": kind, "hook": hook, "prio": priority, "policy": "accept"}
        return {"chain": {**member, "name": name, **hooked}}

    content: list[Json] = [{"table": _hold_table()}, chain("forward", "filter", "forward", 0)]
    for pool in (settings.ipv4_pool, settings.ipv6_pool):
        held = _match("==", _destination_address(pool.version), _prefix(pool))
        # Both are dropped: but only a rule that asks for it has the kernel track connections.
        for comment, more in (("held", [_answers()]), ("others", [])):
            expressions = [held, *more, {"drop": None}]
            rule = {**member, "chain": "forward", "expr": expressions}
            content.append({"rule": {**rule, "comment": f"{comment}-ipv{pool.version}"}})
    content.append(chain("translation", "nat", "postrouting", 100))
    return content


def remove_table() -> bool:
    """Remove the table, whoever left it; tell whether there was one."""
    existed = table_exists()
    if existed:
        _run(
            [{"add": {"table": _table()}}, {"delete": {"table": _table()}}],
            "cannot remove the nftables table",
        )
    return existed


def table_exists() -> bool:
    """Tell whether a table of ours is in the kernel."""
    tables = _run([{"list": {"tables": {"family": FAMILY}}}], "cannot list the nftables tables")
    return any(one.get("table", {}).get("name") == TABLE for one in tables)


# -- the content


def table_content(settings: FirewallSettings) -> list[Json]:
    """Return the table's objects in the order in which they are added."""
    content: list[Json] = [{"table": _table()}]
    content += [{"counter": {**_table_member(), "name": name}} for name in COUNTERS]
    content += [
        {"set": {**_table_member(), "name": name, "type": f"ipv{version}_addr",
                 "flags": ["interval"]}}
        for version, name in NETWORK_SETS.items()
    ]  # fmt: skip
    content += _input_chain(settings)
    content += _forward_chain(settings)
    content += _clamp_chain(settings)
    if settings.masquerade:
        content += _masquerade_chain(settings)
    return content


def _input_chain(settings: FirewallSettings) -> Iterator[Json]:
    yield _chain("input", "filter", "input", 0)
    yield _rule(
        "input", "not-passed", _from(settings.tun_name), _not_passed(), *_drop("input_not_passed")
    )


def _forward_chain(settings: FirewallSettings) -> Iterator[Json]:
    name = settings.tun_name
    yield _chain("forward", "filter", "forward", 0)
    yield _rule("forward", "not-passed", _from(name), _not_passed(), *_drop("forward_not_passed"))
    for pool in (settings.ipv4_pool, settings.ipv6_pool):
        comment = f"spoofed-ipv{pool.version}"
        yield _rule("forward", comment, _not_from(name), _source(pool), *_drop("pool_spoofed"))
    for pool in settings.service_pools:
        comment = f"spoofed-services-ipv{pool.version}"
        yield _rule("forward", comment, _not_from(name), _source(pool), *_drop("pool_spoofed"))
    for version, set_name in NETWORK_SETS.items():
        comment = f"spoofed-networks-ipv{version}"
        source = _match("==", _source_address(version), f"@{set_name}")
        yield _rule("forward", comment, _not_from(name), source, *_drop("pool_spoofed"))
    yield _rule("forward", "answers", _not_from(name), _to(name), _answers(), {"accept": None})
    yield _rule("forward", "unsolicited", _not_from(name), _to(name), *_drop("unsolicited"))
    families = (("ipv4", settings.only_tunnel_ipv4), ("ipv6", settings.only_tunnel_ipv6))
    for family, only_tunnel in families:
        if only_tunnel:
            match = _match("==", {"meta": {"key": "nfproto"}}, family)
            comment = f"only-tunnel-{family}"
            yield _rule("forward", comment, match, _not_from(name), *_drop("not_forwarded"))


def _clamp_chain(settings: FirewallSettings) -> Iterator[Json]:
    flags = {"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, ["syn", "rst"]]}
    syn = {"match": {"op": "==", "left": flags, "right": "syn"}}
    maxseg = {"tcp option": {"name": "maxseg", "field": "size"}}
    clamp = {"mangle": {"key": maxseg, "value": {"rt": {"key": "mtu"}}}}
    yield _chain("clamp", "filter", "forward", -150)
    yield _rule("clamp", "from-tunnel", _from(settings.tun_name), syn, clamp)
    yield _rule("clamp", "to-tunnel", _to(settings.tun_name), syn, clamp)


def _masquerade_chain(settings: FirewallSettings) -> Iterator[Json]:
    out = _to(settings.uplink) if settings.uplink else _not_to(settings.tun_name)
    yield _chain("masquerade", "nat", "postrouting", 100)
    for pool in (settings.ipv4_pool, settings.ipv6_pool):
        comment = f"pool-ipv{pool.version}"
        action = ({"counter": "masqueraded"}, {"masquerade": None})
        yield _rule("masquerade", comment, _source(pool), out, *action)


def _table() -> Json:
    return {"family": FAMILY, "name": TABLE}


def _hold_table() -> Json:
    return {"family": FAMILY, "name": HOLD_TABLE}


def _table_member() -> Json:
    return {"family": FAMILY, "table": TABLE}


def _chain(name: str, kind: str, hook: str, priority: int) -> Json:
    hooked = {"type": kind, "hook": hook, "prio": priority, "policy": "accept"}
    return {"chain": {**_table_member(), "name": name, **hooked}}


def _rule(chain: str, comment: str, *expressions: Json) -> Json:
    return {
        "rule": {**_table_member(), "chain": chain, "comment": comment, "expr": list(expressions)}
    }


def _match(operator: str, left: Json, right: object) -> Json:
    return {"match": {"op": operator, "left": left, "right": right}}


def _from(interface: str) -> Json:
    return _match("==", {"meta": {"key": "iifname"}}, interface)


def _not_from(interface: str) -> Json:
    return _match("!=", {"meta": {"key": "iifname"}}, interface)


def _to(interface: str) -> Json:
    return _match("==", {"meta": {"key": "oifname"}}, interface)


def _not_to(interface: str) -> Json:
    return _match("!=", {"meta": {"key": "oifname"}}, interface)


def _answers() -> Json:
    states = ["established", "related"]
    return {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": states}}


def _not_passed() -> Json:
    return _match("!=", {"&": [{"meta": {"key": "mark"}}, PASS_MASK]}, PASS_MARK)


def _source(pool: IPv4Network | IPv6Network) -> Json:
    return _match("==", _source_address(pool.version), _prefix(pool))


def _source_address(version: int) -> Json:
    return {"payload": {"protocol": "ip" if version == 4 else "ip6", "field": "saddr"}}


def _destination_address(version: int) -> Json:
    return {"payload": {"protocol": "ip" if version == 4 else "ip6", "field": "daddr"}}


def _prefix(network: IPv4Network | IPv6Network) -> Json:
    return {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}}


def _merged(networks: Iterable[IPv4Network | IPv6Network]) -> list[IPv4Network | IPv6Network]:
    """The same addresses in as few networks as can be, of one family."""
    return list(collapse_addresses(networks))  # type: ignore[type-var]


def _drop(counter: str) -> tuple[Json, Json]:
    return {"counter": counter}, {"drop": None}


# -- libnftables


def _run(commands: Iterable[Json], what: str) -> list[Json]:
    """Run commands in one transaction; NetError, beginning with `what`, when it is refused."""
    try:
        import nftables
    except ImportError:
        raise NetError(f"{what}: python3-nftables is missing (apt install it)") from None
    # A context of its own for each call: its socket belongs to the namespace of its birth.
    nft = nftables.Nftables()
    nft.set_json_output(True)
    code, output, error = nft.cmd(json.dumps({"nftables": list(commands)}))
    if code != 0:
        first_line = error.strip().partition("\n")[0] or f"nft error {code}"
        raise NetError(f"{what} {FAMILY} {TABLE}: {first_line}")
    return list(json.loads(output)["nftables"]) if output else []


def _read_table() -> list[Json]:
    return _run([{"list": {"table": _table()}}], "cannot read the nftables table")


def _read_listing() -> list[Json]:
    """The table without what changes by itself (counts) or from one installation to the next."""
    listing = []
    for entry in _read_table():
        for kind, fields in entry.items():
            if kind in {"chain", "rule"}:
                listing.append({kind: {k: v for k, v in fields.items() if k != "handle"}})
    return listing


def _comments(listing: list[Json]) -> list[tuple[str, str]]:
    """Chain and comment of every rule, in order within each chain."""
    rules = (one["rule"] for one in listing if "rule" in one)
    return sorted(
        ((rule["chain"], rule.get("comment", "")) for rule in rules), key=lambda pair: pair[0]
    )
