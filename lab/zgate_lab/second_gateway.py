"""A second gateway of the same authority, beside the first on the far side of the path."""

from __future__ import annotations

from zgate_lab.internet import PATH, Host, Internet, Net, host_addresses
from zgate_lab.lab import Port

UPLINK: Net = ("203.0.114", "2001:db8:e:")


def add_second_gateway(internet: Internet) -> Host:
    """Its host; devices and private networks know the way to it."""
    namespace = internet.lab.add_namespace("gateway2")
    own, other = host_addresses(UPLINK, 10), host_addresses(UPLINK, 1)
    internet.lab.connect(Port(namespace, "uplink", own), Port(internet.transit, "gateway2", other))
    namespace.ip(*(f"route add default via {one.ip} dev uplink" for one in other))
    internet.isp.ip(
        *(
            f"route replace {net} via {via} dev path metric 100"
            for net, via in (
                (own[0].network, host_addresses(PATH, 2)[0].ip),
                (own[1].network, host_addresses(PATH, 2)[1].ip),
            )
        )
    )
    return Host(namespace, "uplink", own[0].ip, own[1].ip)
