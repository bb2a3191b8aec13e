"""Where the gateway's time goes: nanoseconds for each packet, by step, in four kinds of traffic.

TCP through the engine without QUIC stands beside it: the difference is QUIC's, step by step.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from bench.cpu import cpu_seconds, process_ids
from bench.hosts import SERVER, Hosts
from bench.load.tcp import Direction, run_tcp
from bench.load.udp import probe_udp
from bench.peers.bare import Bare
from bench.peers.peer import Peer
from bench.peers.zgate import Zgate
from bench.profile import PACKAGE, Recording, check_perf
from bench.sections.section import Record, Section

#: A tunnel MTU of 1420 without IPv4 and TCP headers and timestamps.
TCP_SEGMENT_BYTES = 1420 - 20 - 20 - 12
UDP_RATE_PER_S = 60_000.0
#: Steps below this share of the time are summed up.
LEAST_SHARE = 0.01
REST = "everything below 1%"


@dataclass(frozen=True, slots=True)
class Account:
    """One kind of traffic: samples by step, packets carried, the gateway's CPU seconds."""

    samples: Counter[str]
    packets: float
    cpu_s: float

    @property
    def ns_per_packet(self) -> float:
        """All steps together."""
        return self.cpu_s / self.packets * 1e9 if self.packets else 0.0

    def ns_of(self, step: str) -> float:
        """One step's part."""
        total = self.samples.total()
        return self.ns_per_packet * self.samples[step] / total if total else 0.0


def measure(record: Record) -> None:
    """One profile of each kind."""
    check_perf()
    seconds = record.settings.tcp_seconds
    with Hosts.open() as hosts:
        kinds: dict[str, Callable[[], float]] = {
            "TCP up": lambda: _tcp(hosts, Direction.UP, seconds),
            "TCP down": lambda: _tcp(hosts, Direction.DOWN, seconds),
            "UDP 64 up": lambda: _udp(hosts, 64, seconds),
            "UDP 1200 up": lambda: _udp(hosts, 1200, seconds),
        }
        accounts = {}
        for peer, titles in ((Zgate(hosts), list(kinds)), (Bare(hosts), ["TCP up", "TCP down"])):
            with peer.running():
                for title in titles:
                    name = title if isinstance(peer, Zgate) else f"{peer.title}, {title}"
                    record.show(name)
                    accounts[name] = profile(hosts, peer, kinds[title])
    for title, account in accounts.items():
        key = title.lower().replace(",", "").replace(" ", "_")
        record.put(f"{key}_ns_per_packet", account.ns_per_packet)
    head, rows = tabulate(accounts)
    record.table("where the gateway's time goes (ns per packet)", head, rows)


def profile(hosts: Hosts, peer: Peer, run: Callable[[], float]) -> Account:
    """Run traffic, which returns its packets, with perf beside the gateway."""
    assert peer.gateway_process is not None
    pid = peer.gateway_process.pid
    recording = Recording(process_ids(pid), hosts.directory("perf") / "perf.data")
    try:
        before_s = cpu_seconds(pid)
        packets = run()
        used_s = cpu_seconds(pid) - before_s
        return Account(recording.stop(), packets, used_s)
    finally:
        recording.cancel()


def _tcp(hosts: Hosts, direction: Direction, seconds: float) -> float:
    flow = run_tcp(hosts.client, hosts.server, SERVER.ip, direction, seconds)
    return flow.received_bytes / TCP_SEGMENT_BYTES


def _udp(hosts: Hosts, payload_bytes: int, seconds: float) -> float:
    probe = probe_udp(
        sender=hosts.client.name,
        receiver=hosts.server.name,
        target=SERVER.ip,
        payload_bytes=payload_bytes,
        rate_per_s=UDP_RATE_PER_S,
        duration_s=seconds,
    )
    return probe.received


def tabulate(accounts: dict[str, Account]) -> tuple[list[str], list[list[str]]]:
    """A row for each step that matters in any of them, the most expensive first."""
    steps = {step for account in accounts.values() for step in account.samples}

    def share(step: str) -> float:
        return max(one.samples[step] / max(1, one.samples.total()) for one in accounts.values())

    large = sorted((step for step in steps if share(step) >= LEAST_SHARE), key=share, reverse=True)
    rows = [[step, *(_cell(one, one.ns_of(step)) for one in accounts.values())] for step in large]
    small = [sum(one.ns_of(step) for step in steps - set(large)) for one in accounts.values()]
    rows.append([REST, *(_cell(one, ns) for one, ns in zip(accounts.values(), small, strict=True))])
    rows.append(["together", *(f"{one.ns_per_packet:,.0f}" for one in accounts.values())])
    return ["", *accounts], rows


def _cell(account: Account, ns: float) -> str:
    part = ns / account.ns_per_packet if account.ns_per_packet else 0.0
    return f"{ns:,.0f} ({part:.0%})"


ACCOUNT = Section("account", "where the time goes", measure, {"perf": PACKAGE})
