"""The nftables table inside a chamber: what may come in, and how often.

New TCP connections, new UDP flows and echo requests are counted for each source and destination;
what is too much, or fits no rule, is dropped and counted. A full set drops what is new: nothing
passes because there is no room to count it.

No connection tracking: it would keep a second table of what the sockets know already, and its size
is the host's to set. A UDP flow is new when the set `flows` does not hold it; the relay forgets it
after the same time.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

IpAddress = IPv4Address | IPv6Address

FAMILY = "inet"
TABLE = "zgate_chamber"
#: What the counters say; the names are the same in the table.
COUNTERS = (
    "tcp_flows_limited",
    "udp_flows_limited",
    "echo_limited",
    "echo_unhealthy",
    "not_offered",
)
ECHO_PER_S = 10
MAX_SOURCES = 65536
"""Pairs of source and destination whose new flows are counted, for each protocol."""
MAX_UDP_FLOWS = 65536
_FORGET_S = 10


def table_text(tun_name: str, *, new_flows_per_s: int, udp_idle_timeout_s: int) -> str:
    """The whole table; replaces an earlier one in one transaction."""
    counters = "\n".join(f"\tcounter {name} {{\n\t}}" for name in COUNTERS)
    head = f"add table {FAMILY} {TABLE}\ndelete table {FAMILY} {TABLE}\n"
    return (
        f"{head}table {FAMILY} {TABLE} {{\n{counters}\n"
        f"{_sets(4, udp_idle_timeout_s)}{_sets(6, udp_idle_timeout_s)}"
        f"{_input(new_flows_per_s)}{_elsewhere(tun_name)}}}\n"
    )


def silence_text(addresses: Iterable[IpAddress]) -> str:
    """Let these addresses, and no others, leave echo requests unanswered."""
    lines = []
    wanted = set(addresses)
    for version in (4, 6):
        name = f"{FAMILY} {TABLE} silent{version}"
        lines.append(f"flush set {name}")
        elements = ", ".join(sorted(str(one) for one in wanted if one.version == version))
        if elements:
            lines.append(f"add element {name} {{ {elements} }}")
    return "\n".join(lines) + "\n"


def _sets(version: int, udp_idle_timeout_s: int) -> str:
    kind = f"ipv{version}_addr"
    pairs = "".join(
        _dynamic_set(f"{name}{version}", f"{kind} . {kind}", MAX_SOURCES, _FORGET_S)
        for name in ("tcp_new", "udp_new", "echo_new")
    )
    flow = f"{kind} . inet_service . {kind} . inet_service"
    flows = _dynamic_set(f"flows{version}", flow, MAX_UDP_FLOWS, udp_idle_timeout_s)
    return f"{pairs}{flows}\tset silent{version} {{\n\t\ttype {kind}\n\t}}\n"


def _dynamic_set(name: str, kind: str, size: int, timeout_s: int) -> str:
    return (
        f"\tset {name} {{\n\t\ttype {kind}\n\t\tsize {size}\n"
        f"\t\tflags dynamic,timeout\n\t\ttimeout {timeout_s}s\n\t}}\n"
    )


def _input(per_s: int) -> str:
    # Later fragments have no ports; they are nothing without a first one that passed. (Those of
    # version 4 are put together before they come here.) Protocols are numbers: a host without
    # /etc/protocols, which Debian has in a package of its own, knows no names.
    return f"""\
	chain input {{
		type filter hook input priority 0; policy drop;
		iifname "lo" accept
		frag frag-off != 0 accept
		meta l4proto 6 jump from_tcp
		meta l4proto 17 jump from_udp
		meta l4proto 1 jump from_icmp
		meta l4proto 58 jump from_icmp6
		counter name not_offered
	}}
	chain from_tcp {{
		tcp flags & (fin | syn | rst | ack) != syn accept
{_new("tcp_new", per_s)}\
		counter name tcp_flows_limited drop
	}}
	chain from_udp {{
{_known_udp(4)}{_known_udp(6)}{_new("udp_new", per_s, "update @flows{v} {{ {flow} }} ")}\
		counter name udp_flows_limited drop
	}}
	chain from_icmp {{
		icmp type {{ destination-unreachable, time-exceeded, parameter-problem }} accept
		icmp type != echo-request counter name not_offered drop
		ip daddr @silent4 counter name echo_unhealthy drop
{_new("echo_new", ECHO_PER_S)}\
		counter name echo_limited drop
	}}
	chain from_icmp6 {{
		icmpv6 type {{ destination-unreachable, packet-too-big }} accept
		icmpv6 type {{ time-exceeded, parameter-problem }} accept
		icmpv6 type != echo-request counter name not_offered drop
		ip6 daddr @silent6 counter name echo_unhealthy drop
{_new("echo_new", ECHO_PER_S)}\
		counter name echo_limited drop
	}}
"""


def _new(name: str, per_s: int, also: str = "") -> str:
    lines = []
    for version, ip in ((4, "ip"), (6, "ip6")):
        limit = f"limit rate {per_s}/second burst {per_s} packets"
        pair = f"update @{name}{version} {{ {ip} saddr . {ip} daddr {limit} }}"
        lines.append(f"\t\t{pair} {also.format(v=version, flow=_flow(ip))}accept\n")
    return "".join(lines)


def _known_udp(version: int) -> str:
    flow = _flow("ip" if version == 4 else "ip6")
    return f"\t\t{flow} @flows{version} update @flows{version} {{ {flow} }} accept\n"


def _flow(ip: str) -> str:
    return f"{ip} saddr . udp sport . {ip} daddr . udp dport"


def _elsewhere(tun_name: str) -> str:
    """Nothing is forwarded, and what the kernel says to its neighbours stays inside."""
    return f"""\
	chain forward {{
		type filter hook forward priority 0; policy drop;
	}}
	chain output {{
		type filter hook output priority 0; policy accept;
		oifname "{tun_name}" ip daddr 224.0.0.0/4 drop
		oifname "{tun_name}" ip6 daddr ff00::/8 drop
		oifname "{tun_name}" ip6 saddr fe80::/10 drop
		oifname "{tun_name}" ip6 saddr :: drop
	}}
"""
