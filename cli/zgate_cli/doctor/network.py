"""Links, ports, sysctls, and what other people's firewall rules do to the gateway's packets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any

from zgate_gateway.net.firewall import TABLE

from zgate_cli.answers import Finding
from zgate_cli.doctor.host import Context
from zgate_cli.doctor.nft_walk import Drop, Packet, Ruleset
from zgate_cli.findings import fail, ok, skip, warn

_UDP_HEADERS_BYTES = 48
#: RFC 9484 section 7.2, with the outer headers.
_MIN_LINK_MTU_BYTES = 1331 + _UDP_HEADERS_BYTES


def check_network(context: Context) -> Iterator[Finding]:
    """All that is between a client's packet and where it wants to go."""
    yield from _uplink(context)
    yield _addresses(context)
    yield _tun_name(context)
    yield _pools(context)
    yield _udp_port(context)
    yield from _forwarding(context)
    yield _conntrack(context)
    yield from _nftables(context)


def _uplink(context: Context) -> Iterator[Finding]:
    title, uplinks = "uplink", context.uplinks
    links = {one["ifname"]: one for one in context.host.run_json("ip", "-j", "link") or []}
    missing = [one for one in uplinks if one not in links]
    if missing and links:
        yield fail(
            "uplink", title, f"there is no interface {missing[0]}", "correct uplink.interface"
        )
        return
    if not uplinks:
        yield fail(
            "uplink", title, "there is no default route",
            "give the host one, or set uplink.interface where it leads elsewhere",
        )  # fmt: skip
        return
    down = [one for one in uplinks if "UP" not in links.get(one, {}).get("flags", ["UP"])]
    if down:
        yield fail("uplink", title, f"{down[0]} is down", f"ip link set {down[0]} up")
        return
    yield ok("uplink", title, ", ".join(uplinks))
    for name in uplinks:
        mtu = links.get(name, {}).get("mtu", 1500)
        if mtu < _MIN_LINK_MTU_BYTES:
            yield fail(
                "uplink_mtu", f"mtu of {name}", f"{mtu}: no IPv6 packet fits the tunnel",
                f"raise it to {_MIN_LINK_MTU_BYTES} at least, better to 1500", mtu_bytes=mtu,
            )  # fmt: skip
        elif mtu < 1500:
            yield warn(
                "uplink_mtu", f"mtu of {name}", f"{mtu}: packets in the tunnel are smaller, too",
                "raise it to 1500 if the link can", mtu_bytes=mtu,
            )  # fmt: skip
        else:
            yield ok("uplink_mtu", f"mtu of {name}", str(mtu), mtu_bytes=mtu)


def _addresses(context: Context) -> Finding:
    """The gateway's address is one of the host's; where it listens at all of them, each will do."""
    title, address = "addresses", context.settings.listen.address
    if address.is_unspecified:
        return ok("addresses", title, "all: answers leave from the one that was dialled")
    links = context.host.run_json("ip", "-j", "addr") or []
    held = {one.get("local") for link in links for one in link.get("addr_info", [])}
    if held and str(address) not in held:
        # A standby gateway may wait for an address that another one has now.
        judge = fail if context.status is None else warn
        return judge(
            "addresses", title, f"no interface has {address}: nobody reaches the gateway there",
            "set listen.address to an address of this host, or to ::",
        )  # fmt: skip
    return ok("addresses", title, f"the gateway listens at {address}")


def _tun_name(context: Context) -> Finding:
    name, title = context.settings.tun.name, "tun interface"
    links = {one["ifname"] for one in context.host.run_json("ip", "-j", "link") or []}
    if context.status is not None:
        if name in links:
            return ok("tun_interface", title, f"{name} is there")
        return skip(
            "tun_interface", title, f"{name} is not here: the gateway has another network",
            "run zgatectl doctor there: nsenter, or ip netns exec, or podman exec",
        )  # fmt: skip
    if name in links:
        return fail(
            "tun_interface", title, f"{name} is taken, and no gateway answers",
            f"end who has it, or set tun.name; ip -d link show {name} says more",
        )  # fmt: skip
    return ok("tun_interface", title, f"{name} is free")


def _pools(context: Context) -> Finding:
    settings, title = context.settings, "pools"
    pools: list[IPv4Network | IPv6Network] = [
        settings.pool.ipv4,
        settings.pool.ipv6,
        settings.services.ipv4,
        settings.services.ipv6,
    ]
    for family in ("-4", "-6"):
        for route in (
            context.host.run_json("ip", "-j", family, "route", "show", "table", "all") or []
        ):
            device, text = route.get("dev"), route.get("dst", "default")
            if device in {settings.tun.name, "lo"} or text == "default" or "type" in route:
                continue
            network = ip_network(text, strict=False)
            taken = [
                one for one in pools if one.version == network.version and one.overlaps(network)
            ]
            if taken and network.prefixlen:
                return fail(
                    "pools", title, f"{taken[0]} overlaps with {network} on {device}",
                    "choose another network in pool or services: one of the two cannot be reached",
                )  # fmt: skip
    return ok("pools", title, "no other network of this host overlaps with them")


def _udp_port(context: Context) -> Finding:
    port, title = context.settings.listen.port, "udp port"
    holders = _holders_of_port(context, port)
    strangers = sorted({name for name in holders.values() if "zgate" not in name})
    if strangers and (context.status is None or not _is_ours(holders)):
        return fail(
            "udp_port", title, f"{port} is taken by {', '.join(strangers)}",
            "stop that program, or set listen.port (and tell the agents)", port=port,
        )  # fmt: skip
    if context.status is not None and not holders:
        return skip("udp_port", title, f"nobody holds {port} here: the gateway runs elsewhere?")
    text = f"{port} is the gateway's" if holders else f"{port} is free"
    return ok("udp_port", title, text, port=port)


def _is_ours(holders: dict[int, str]) -> bool:
    return any("zgate" in name or "systemd" in name for name in holders.values())


def _holders_of_port(context: Context, port: int) -> dict[int, str]:
    """Process IDs and names of those who have a UDP port; 0 stands for one that is not told."""
    inodes = set()
    for table in ("udp", "udp6"):
        for line in (context.host.read(f"/proc/net/{table}") or "").splitlines()[1:]:
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(fields[9])
    if not inodes:
        return {}
    holders = {}
    for links in Path("/proc").glob("[0-9]*/fd"):
        try:
            names = {str(one.readlink()) for one in links.iterdir()}
        except OSError:
            continue  # another user's, or gone
        if any(f"socket:[{inode}]" in names for inode in inodes):
            command = (context.host.read(links.parent / "cmdline") or "").replace("\0", " ")
            name = context.host.read(links.parent / "comm") or "?"
            holders[int(links.parent.name)] = "zgate" if "zgate" in command else name
    return holders or {0: "a process that is not to be seen from here"}


def _forwarding(context: Context) -> Iterator[Finding]:
    for key, name in (
        ("ipv4/ip_forward", "IPv4"),
        ("ipv6/conf/all/forwarding", "IPv6"),
    ):
        state, title = context.host.number(f"/proc/sys/net/{key}"), f"forwarding {name}"
        sysctl = f"net.{key.replace('/', '.')}"
        if state is None:
            yield skip(f"forwarding_{name.lower()}", title, f"{sysctl} cannot be read")
        elif context.status is None or context.is_elsewhere:
            text = "on" if state else "off; the gateway turns it on while it runs"
            yield ok(f"forwarding_{name.lower()}", title, text)
        elif not state:
            yield fail(
                f"forwarding_{name.lower()}", title, "off, though the gateway runs",
                f"somebody has turned it off: sysctl -w {sysctl}=1, and look in /etc/sysctl.d",
            )  # fmt: skip
        else:
            yield ok(f"forwarding_{name.lower()}", title, "on")
    strict = context.host.number("/proc/sys/net/ipv4/conf/all/rp_filter") == 1
    if strict and len(context.uplinks) > 1:
        yield warn(
            "rp_filter", "reverse path filter", "strict, and there are several uplinks",
            "sysctl -w net.ipv4.conf.all.rp_filter=2: an answer may come in by the other one",
        )  # fmt: skip
    else:
        yield ok("rp_filter", "reverse path filter", "is in nobody's way")


def _conntrack(context: Context) -> Finding:
    title, folder = "conntrack", "/proc/sys/net/netfilter"
    count = context.host.number(f"{folder}/nf_conntrack_count")
    most = context.host.number(f"{folder}/nf_conntrack_max")
    if count is None or not most:
        return skip("conntrack", title, "is not in use yet, or not to be seen")
    text = f"{count} of {most} entries"
    values = {"entries": count, "entries_max": most}
    fix = f"sysctl -w net.netfilter.nf_conntrack_max={most * 2}, and find out who opens so many"
    if count > most * 0.95:
        return fail("conntrack", title, f"{text}: new flows are dropped", fix, **values)
    if count > most * 0.8:
        return warn("conntrack", title, text, fix, **values)
    return ok("conntrack", title, text, **values)


# nftables.


def packets_of(context: Context) -> list[Packet]:
    """Those that must pass: to the UDP port, from a client to the site, the answer to it."""
    settings, tun = context.settings, context.settings.tun.name
    uplink = context.uplinks[0] if context.uplinks else None
    packets = []
    for version, pool in ((4, settings.pool.ipv4), (6, settings.pool.ipv6)):
        client = pool.network_address + 2
        packets += [
            Packet(
                "packets to the gateway's UDP port", "input", iif=uplink, protocol="udp",
                dport=settings.listen.port, version=version,
            ),
            Packet(
                "clients' packets to the site", "forward", iif=tun, oif=uplink, source=client,
                version=version,
            ),
            Packet(
                "answers to clients", "forward", iif=uplink, oif=tun, destination=client,
                state="established", version=version,
            ),
        ]  # fmt: skip
    return packets


def _nftables(context: Context) -> Iterator[Finding]:
    title = "nftables"
    ran = context.host.run("nft", "-j", "list", "ruleset")
    listing = context.host.run_json("nft", "-j", "list", "ruleset")
    if not isinstance(listing, dict):
        if context.host.is_root:
            yield fail("nftables", title, f"not to be listed: {ran.error}", "apt install nftables")
        else:
            yield skip("nftables", title, "only root can list the rules", "run it as root")
        return
    yield from judge(context, Ruleset(listing), listing)


def judge(context: Context, rules: Ruleset, listing: dict[str, Any]) -> Iterator[Finding]:
    """What the rules of others do to the packets that must pass, and whether ours are there."""
    found: dict[tuple[str, str], tuple[Drop, list[str]]] = {}
    for packet in packets_of(context):
        for drop in rules.drops(packet, but=TABLE):
            known, titles = found.setdefault((drop.table, drop.chain), (drop, []))
            what = f"{packet.title} (IPv{packet.version})"
            titles.append(what)
            if drop.is_certain and not known.is_certain:
                found[drop.table, drop.chain] = (drop, titles)
    for (table, chain), (drop, titles) in found.items():
        name = re.sub(r"\W+", "_", f"nftables_{table}_{chain}".lower())
        verb = "drops" if drop.is_certain else "may drop"
        text = f"table {table}, chain {chain} {verb} {', '.join(titles)}: {drop.why}"
        make = fail if drop.is_certain else warn
        yield make(name, "nftables", text, _cure(context, table, chain, rules))
    if not found:
        yield ok("nftables", "nftables", "no other table is in the way of the gateway's packets")
    if context.status is None or context.is_elsewhere:
        return
    if not any(one.get("table", {}).get("name") == TABLE for one in listing.get("nftables", [])):
        yield fail(
            "nftables_own", "nftables", f"the gateway's own table inet {TABLE} is not there",
            "somebody has flushed the rules: restart the gateway, and let the firewall's service "
            "delete its own tables only",
        )  # fmt: skip


def _cure(context: Context, table: str, chain: str, rules: Ruleset) -> str:
    tun, port = context.settings.tun.name, context.settings.listen.port
    if chain.lower() == "forward" and rules.has_chain("DOCKER-USER"):
        return (
            f"docker drops what it does not know: iptables -I DOCKER-USER -i {tun} -j ACCEPT; "
            f"iptables -I DOCKER-USER -o {tun} -j ACCEPT (ip6tables too), at every start"
        )
    if rules.hook_of(table, chain) == "input":
        return f"nft insert rule {table} {chain} udp dport {port} accept, in the firewall's file"
    return (
        f"nft insert rule {table} {chain} iifname {tun} accept; "
        f"nft insert rule {table} {chain} oifname {tun} accept, in the firewall's file: zgate's "
        "own table decides what passes"
    )
