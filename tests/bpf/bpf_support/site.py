"""A client, a gateway and a connector as three namespaces, each with a TUN, and real traffic.

What goes through the tunnel is carried by a thread, TUN to TUN, super-packets whole: the kernels,
the programs and the nftables table are what is there in a real gateway; there is no QUIC.
"""

import os
import select
import struct
import threading
from collections import Counter
from ipaddress import IPv4Network, IPv6Network, ip_address

from zgate_bpf.services import OfferUse
from zgate_datapath.tun import VNET_HEADER_BYTES, Tun
from zgate_gateway.forwarder import IcmpSender
from zgate_gateway.net.firewall import Firewall, FirewallSettings
from zgate_gateway.net.links import Hook, TunLink
from zgate_protocol.icmp import IcmpError, build_icmp_error

from bpf_support.service_world import FIRST, GATEWAYS, LEFT, OFFERS, PACS, VIPS, addresses
from bpf_support.world import ALICE, ALICE4, ALICE6

POOLS = IPv4Network("10.100.0.0/16"), IPv6Network("fd7a::/64")
SERVICE_POOLS = IPv4Network("10.101.0.0/16"), IPv6Network("fd7b::/64")
MTU_BYTES = 1400
READ_BYTES = 70_000
TCP, UDP = 6, 17
NEEDS_CSUM = 1
# Those whose checksum covers the addresses, and where it lies.
CHECKSUM_AT = {TCP: 16, UDP: 6, 58: 2}


class WrongChecksum(AssertionError):
    """A packet that whoever gets it would throw away."""


class Site:
    """The three hosts.

    `passed` counts what was carried, by who got it, family and kind; `last` is the last for each.
    What the gateway's TUN gave for neither of them is in `returned`.
    """

    def __init__(self, lab, kernel):
        self.kernel = kernel
        self.client, self.client_tun = self._host(lab, "client", (ALICE4, ALICE6), SERVICE_POOLS)
        offers = OFFERS[FIRST].values()
        self.connector, self.connector_tun = self._host(lab, "connector", offers, POOLS)
        self.gateway = lab.add_namespace("gateway")
        self.gateway.make_router()
        self.gateway.sysctl("net.ipv4.conf.all.send_redirects", 0)  # as the daemon does
        with self.gateway.entered():
            self.gateway_tun = Tun.open("zgate0", has_vnet_header=True)
            link = TunLink("zgate0", MTU_BYTES, *POOLS, service_pools=SERVICE_POOLS)
            link.attach(Hook.INGRESS, kernel.ingress_fd)
            link.attach(Hook.EGRESS, kernel.egress_fd)
            link.configure()
            Firewall(FirewallSettings("zgate0", *POOLS, service_pools=SERVICE_POOLS)).install()
            link.up()
        self._fill(kernel)
        self.passed = Counter()
        self.last = {}
        self.wrong = []
        self.returned = []
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._carry)
        self._thread.start()

    @staticmethod
    def _host(lab, name, own, reached):
        """A namespace whose TUN has some addresses, and routes."""
        namespace = lab.add_namespace(name)
        namespace.sysctl("net.ipv6.conf.all.disable_ipv6", 0)
        with namespace.entered():
            tun = Tun.open("tun0", has_vnet_header=True)
        namespace.sysctl("net.ipv6.conf.tun0.disable_ipv6", 0)
        namespace.sysctl("net.ipv6.conf.tun0.addr_gen_mode", 1)
        namespace.ip(
            f"link set tun0 mtu {MTU_BYTES} up",
            *(f"addr add {one}{' nodad' if ':' in one else ''} dev tun0" for one in own),
            *(f"route add {one} dev tun0" for one in reached),
        )
        return namespace, tun

    @staticmethod
    def _fill(kernel):
        for address in (ALICE4, ALICE6):
            kernel.set_client(ip_address(address), ALICE)
        kernel.services.set_service(PACS, addresses(VIPS))
        kernel.services.set_offer(
            FIRST,
            service=PACS,
            client_index=LEFT,
            addresses=addresses(OFFERS[FIRST]),
            use=OfferUse.UP,
        )

    def close(self):
        os.write(self._stop_write, b"x")
        self._thread.join()
        for tun in (self.client_tun, self.connector_tun, self.gateway_tun):
            tun.close()
        os.close(self._stop_read)
        os.close(self._stop_write)

    def tell_too_big(self, receiver, family, mtu_bytes):
        """About its last packet, as the daemon does if one does not fit the receiver's path."""
        own = GATEWAYS[family]
        error = build_icmp_error(
            IcmpError.PACKET_TOO_BIG,
            self.last[receiver],
            ip_address(own).packed,
            mtu_bytes=mtu_bytes,
        )
        with self.gateway.entered():
            sender = IcmpSender()
        sender.send(error)
        sender.close()

    # The tunnel.

    def _carry(self):
        fds = [self.client_tun.fd, self.connector_tun.fd, self.gateway_tun.fd, self._stop_read]
        while True:
            for fd in select.select(fds, [], [])[0]:
                if fd == self._stop_read:
                    return
                read = os.read(fd, READ_BYTES)
                try:
                    self._pass_on(fd, read)
                except WrongChecksum as error:
                    self.wrong.append(error)

    def _pass_on(self, fd, read):
        flags, gso, _, _, _, _ = struct.unpack_from("<BBHHHH", read)
        packet = read[VNET_HEADER_BYTES:]
        check(packet, is_partial=bool(flags & NEEDS_CSUM))
        if fd != self.gateway_tun.fd:
            os.write(self.gateway_tun.fd, read)
            return
        destination = packet[16:20] if packet[0] >> 4 == 4 else packet[24:40]
        for name, tun, owned in (
            ("client", self.client_tun, (ALICE4, ALICE6)),
            ("connector", self.connector_tun, OFFERS[FIRST].values()),
        ):
            if destination in [ip_address(one).packed for one in owned]:
                kind = "super-packets" if gso else "packets"
                self.last[name] = packet
                self.passed[name, packet[0] >> 4, kind] += 1
                os.write(tun.fd, read)
                return
        self.returned.append(packet)


def check(packet, *, is_partial):
    """Raise WrongChecksum unless a checksum over addresses is what it must be."""
    if packet[0] >> 4 == 4:
        upper_at, protocol, pair = (packet[0] & 15) * 4, packet[9], packet[12:20]
        if total(packet[:upper_at]) != 0xFFFF:
            raise WrongChecksum(f"header: {packet[:upper_at].hex()}")
        if packet[6] & 0x3F or packet[7]:
            return  # a fragment: of the whole, the receiver knows
    else:
        upper_at, protocol, pair = 40, packet[6], packet[8:40]
    at, upper = CHECKSUM_AT.get(protocol), packet[upper_at:]
    if at is None:
        return
    pseudo = total(pair + struct.pack("!II", len(upper), protocol))
    (found,) = struct.unpack_from("!H", upper, at)
    if is_partial:
        # What the sender leaves to the network card holds the sum of the addresses and the length.
        if found != pseudo:
            raise WrongChecksum(f"partial {found:04x}, not {pseudo:04x}: {packet[:60].hex()}")
    elif (found or protocol != UDP) and total(upper, pseudo) != 0xFFFF:
        raise WrongChecksum(f"whole: {packet[:60].hex()}")


def total(data, start=0):
    """The sum of 16-bit words in one's complement."""
    data += b"\0" * (len(data) % 2)
    found = start + sum(struct.unpack(f"!{len(data) // 2}H", data))
    while found >> 16:
        found = (found & 0xFFFF) + (found >> 16)
    return found
