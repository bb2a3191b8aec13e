"""Services with offers by two connectors; packets with checksums by scapy, who judges them."""

from ipaddress import ip_address

from scapy.compat import raw
from scapy.config import conf
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.sctp import SCTP
from zgate_bpf import layouts
from zgate_bpf.services import OfferUse

from bpf_support.world import ALICE4, ALICE6, BOB4, BOB6, World

conf.verb = 0

PACS, ECHO = 7, 8
FIRST, SECOND = 20, 21  # offers of PACS
ECHOS = 30  # the one offer of ECHO
LEFT, RIGHT = 100, 101  # the connectors' client indices
VIPS = {4: "10.101.0.1", 6: "fd7b::1"}
ECHO_VIPS = {4: "10.101.0.2", 6: "fd7b::2"}
OFFERS = {
    FIRST: {4: "10.101.255.254", 6: "fd7b::ffff:fffe"},
    SECOND: {4: "10.101.255.253", 6: "fd7b::ffff:fffd"},
    ECHOS: {4: "10.101.255.252", 6: "fd7b::ffff:fffc"},
}
CONNECTOR = {FIRST: LEFT, SECOND: RIGHT, ECHOS: RIGHT}
ALICES, BOBS = {4: ALICE4, 6: ALICE6}, {4: BOB4, 6: BOB6}
GATEWAYS = {4: "10.100.0.1", 6: "fd7a::1"}
KINDS = ("tcp", "udp", "ping")


def addresses(by_family):
    return [ip_address(address) for address in by_family.values()]


class ServiceWorld:
    """Two services, three offers, two connectors; `world` has the clients."""

    def __init__(self, world: World):
        self.world = world
        self.kernel = world.kernel
        self.services = world.kernel.services
        for index in (LEFT, RIGHT):
            self.kernel.reset_counters(index)
        self.services.set_service(PACS, addresses(VIPS))
        self.services.set_service(ECHO, addresses(ECHO_VIPS))

    def offer(self, *offers, use=OfferUse.UP, open_flows=0):
        for offer in offers:
            self.services.set_offer(
                offer,
                service=ECHO if offer == ECHOS else PACS,
                client_index=CONNECTOR[offer],
                addresses=addresses(OFFERS[offer]),
                use=use,
                open_flows=open_flows,
            )

    def open(self, packet):
        """From the client through the kernel to the connector: both programs."""
        up = self.world.up(packet)
        assert up.passed, up.reason
        assert up.packet == packet
        return self.world.down(packet)

    def offer_of(self, family, client_port=4000):
        """The offer that a flow of Alice's has."""
        (found,) = [
            flow.offer
            for flow in self.kernel.flows()
            if str(flow.client) == ALICES[family] and flow.client_port == client_port
        ]
        return found

    def clear(self):
        for service in (PACS, ECHO):
            self.services.remove_service(service)
        self.services.set_own_addresses([])


def write_backend(services, backend):
    """What every flow says of its offer."""
    flows = services.kernel._flows
    for key, value in list(flows.items()):
        flows.update(key, layouts.FLOW.pack(*layouts.FLOW.unpack(value)[:-1], backend))


# Packets by scapy.


def ip(source, destination, **fields):
    if ip_address(source).version == 4:
        return IP(src=source, dst=destination, id=77, **fields)
    return IPv6(src=source, dst=destination)


def sent(kind, client, remote, *, port=104, client_port=4000, data=b"question"):
    """What a client sends: finished, with all checksums."""
    return raw(ip(client, remote) / asked(client, kind, port, client_port) / data)


def answer(kind, remote, client, *, port=104, client_port=4000, data=b"an answer"):
    return raw(ip(remote, client) / answered(client, kind, port, client_port) / data)


def asked(client, kind, port, client_port):
    if kind == "tcp":
        return TCP(sport=client_port, dport=port, flags="S", seq=5)
    if kind == "udp":
        return UDP(sport=client_port, dport=port)
    if ip_address(client).version == 4:
        return ICMP(type=8, id=client_port, seq=1)
    return ICMPv6EchoRequest(id=client_port, seq=1)


def answered(client, kind, port, client_port):
    if kind == "tcp":
        return TCP(sport=port, dport=client_port, flags="SA", seq=9, ack=6)
    if kind == "udp":
        return UDP(sport=port, dport=client_port)
    if ip_address(client).version == 4:
        return ICMP(type=0, id=client_port, seq=1)
    return ICMPv6EchoReply(id=client_port, seq=1)


def unreachable(source, destination, quoted):
    """An ICMP error (port unreachable) that quotes a packet."""
    if ip_address(source).version == 4:
        return raw(ip(source, destination) / ICMP(type=3, code=3) / quoted)
    return raw(ip(source, destination) / ICMPv6DestUnreach(code=4) / quoted)


def unrelated_sctp():
    """To port 53, of a protocol that no names are asked by."""
    return SCTP(sport=4000, dport=53)
