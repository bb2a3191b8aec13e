"""Random policies and random packets, from one seeded generator, close enough to collide."""

from ipaddress import ip_address, ip_network

from bpf_support import packets as p
from bpf_support.reference import RefRule
from bpf_support.world import ALICE4, ALICE6, BOB4, BOB6, OTHER4, OTHER6, SERVER4, SERVER6

CLIENTS = [ALICE4, ALICE6, BOB4, BOB6]
REMOTES = {
    4: [SERVER4, OTHER4, "10.20.0.6", "10.20.1.5", "8.8.8.8", "169.254.1.1", BOB4],
    6: [SERVER6, OTHER6, "2001:db8::6", "2001:db8:0:1::5", "fe80::1", "ff02::1", BOB6],
}
PORTS = [0, 1, 22, 53, 80, 443, 8000, 8050, 8100, 65535]
PROTOCOLS = [p.TCP, p.UDP, p.ICMP, p.ICMPV6, p.SCTP, p.ESP, None]
EXTENSIONS = [
    p.options_header(),
    p.options_header(p.DESTINATION_OPTIONS),
    p.options_header(p.DESTINATION_OPTIONS, 2),
    p.routing_header(),
    p.routing_header(1),
    p.authentication_header(),
    p.fragment_header(),
]


class Generator:
    """Everything random in one round; the same generator of numbers gives the same round."""

    identifications = (1, 2, 3, 4)

    def __init__(self, random):
        self.random = random

    def rules(self):
        return [self.rule() for _ in range(self.random.choice([0, 1, 3, 10, 40]))]

    def rule(self):
        random = self.random
        networks = {self.network() for _ in range(random.choice([1, 1, 2, 3]))}
        protocol = random.choice(PROTOCOLS)
        first, last = 0, 0xFFFF
        if protocol in (p.TCP, p.UDP, p.SCTP) and random.random() < 0.7:
            first, last = sorted((random.choice(PORTS), random.choice(PORTS)))
        elif protocol in (p.ICMP, p.ICMPV6) and random.random() < 0.7:
            first = random.choice([0, 3, 8, 13, 128, 129]) << 8
            last = first | 0xFF
        return RefRule(random.random() < 0.6, tuple(networks), protocol, first, last)

    def network(self):
        version = self.random.choice([4, 6])
        address = ip_address(self.random.choice(REMOTES[version]))
        bits = address.max_prefixlen
        length = self.random.choice([0, bits // 4, bits // 2, bits * 3 // 4, bits - 1, bits])
        return ip_network((address, length), strict=False)

    def packet(self, up):
        """Mostly valid; one in four is bent somewhere."""
        packet = self.valid(up)
        if self.random.random() < 0.25:
            packet = self.bent(packet)
        return packet

    def addresses(self, up):
        client = self.random.choice([*CLIENTS, ALICE4, ALICE6, ALICE4, ALICE6])
        remote = self.random.choice(REMOTES[ip_address(client).version])
        return (client, remote) if up else (remote, client)

    def valid(self, up):
        source, destination = self.addresses(up)
        protocol, body = self.upper(source, destination, up)
        return self.wrapped(source, destination, protocol, body)

    def upper(self, source, destination, up):
        random = self.random
        kind = random.choice(["tcp", "udp", "udp", "icmp", "icmp", "sctp", "other", "error"])
        ours, theirs = random.choice([1000, 1001]), random.choice(PORTS)
        ports = (ours, theirs) if up else (theirs, ours)
        if kind == "tcp":
            flags = random.choice([p.SYN, p.ACK, p.ACK, p.FIN | p.ACK, p.RST, p.SYN | p.ACK])
            return p.TCP, p.tcp(*ports, flags, words=random.choice([5, 5, 8]))
        if kind == "udp":
            return p.UDP, p.udp(*ports)
        if kind == "sctp":
            return p.SCTP, p.sctp(*ports)
        if kind == "other":
            return random.choice([p.ESP, p.ICMPV6, p.ICMP, 47, p.NO_NEXT]), bytes(12)
        icmp, request, reply = p.echo_types(ip_address(source).version)
        if kind == "icmp":
            number = random.choice([request, reply, request if up else reply, 13, 5])
            code = random.choice([0, 0, 0, 1])
            return icmp, p.icmp(number, code, random.choice([7, 8]))
        quoted = self.quoted(source, destination, up)
        return icmp, p.icmp(random.choice([1, 2, 3, 11]), 0, 0, quoted)

    def quoted(self, source, destination, up):
        """What went the other way, or something like it."""
        random = self.random
        there = self.valid(not up) if random.random() < 0.3 else None
        if there is None:
            protocol, body = p.UDP, None
            ours, theirs = random.choice([1000, 1001]), random.choice(PORTS)
            body = p.udp(*((theirs, ours) if up else (ours, theirs)))
            there = self.wrapped(destination, source, protocol, body)
        return there[: random.choice([len(there), len(there), 28, 48, 30])]

    def wrapped(self, source, destination, protocol, body):
        random = self.random
        if ip_address(source).version == 4:
            return p.ipv4(source, destination, protocol, body, **self.ipv4_extras())
        headers = random.sample(EXTENSIONS, random.choice([0, 0, 0, 1, 2]))
        if random.random() < 0.2:
            offset = random.choice([0, 0, 1, 5])
            more = random.random() < 0.7
            headers.append(p.fragment_header(offset, more, random.choice(self.identifications)))
        first, rest = p.chain(*headers, upper=protocol, payload=body)
        return p.ipv6(source, destination, first, rest)

    def ipv4_extras(self):
        random = self.random
        extras = {"identification": random.choice(self.identifications)}
        if random.random() < 0.2:
            extras["options"] = random.choice(
                [
                    b"\x01" * 4,
                    b"\x94\x04\x00\x00",
                    b"\x83\x03\x04\x00",
                    b"\x00" * 8,
                    b"\x44\x28\1\1",
                ]
            )
        if random.random() < 0.2:
            extras |= {"offset": random.choice([0, 0, 1, 5, 8191]), "more": random.random() < 0.7}
        return extras

    def bent(self, packet):
        random = self.random
        bent = bytearray(packet)
        for _ in range(random.choice([1, 1, 2, 4])):
            # Headers come first: that is where it hurts.
            at = min(int(random.expovariate(1 / 20)), len(bent) - 1)
            bent[at] = random.choice([0, 1, 0xFF, bent[at] ^ 1 << random.randrange(8)])
        cut = random.randrange(len(bent)) if random.random() < 0.3 else len(bent)
        return bytes(bent[:cut]) + bytes(random.choice([0, 0, 0, 6]))
