"""The whole run: rounds over the peers, one running at a time, what fails written down."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from zgate_lab.errors import LabError

from bench import facts, report
from bench.errors import BenchError
from bench.hosts import Hosts
from bench.measure import Turn
from bench.peers.bare import Bare
from bench.peers.openvpn import OpenVpn
from bench.peers.peer import Peer, check_programs
from bench.peers.plain import Plain
from bench.peers.wireguard_go import WireGuardGo
from bench.peers.zgate import NullCipherZgate, Zgate
from bench.results import PeerResults, Results, SectionResults, Settings
from bench.sections.account import ACCOUNT
from bench.sections.connectors import CONNECTORS
from bench.sections.flood import FLOOD
from bench.sections.limits import LIMITS
from bench.sections.offloads import OFFLOADS
from bench.sections.section import Record, Section
from bench.sections.sessions import SESSIONS
from bench.sections.wan import WAN
from bench.sections.workers import WORKERS_SECTION

PEERS: tuple[type[Peer], ...] = (Plain, OpenVpn, WireGuardGo, Zgate, NullCipherZgate, Bare)
SECTIONS: tuple[Section, ...] = (
    OFFLOADS,
    WAN,
    WORKERS_SECTION,
    CONNECTORS,
    SESSIONS,
    FLOOD,
    LIMITS,
    ACCOUNT,
)
COMMON_PROGRAMS = {
    "iperf3": "iperf3",
    "ping": "iputils-ping",
    "ip": "iproute2",
    "ss": "iproute2",
    "ethtool": "ethtool",
}


@dataclass(slots=True)
class Runner:
    """Runs the rounds. Interleaved: what disturbs the machine for a while disturbs every peer."""

    console: Console
    settings: Settings
    results: Results
    hints: dict[str, dict[int, float]] = field(default_factory=dict)

    def run(self, hosts: Hosts, peers: Sequence[Peer]) -> None:
        """All rounds; what they find is in `results`."""
        for number in range(1, self.settings.rounds + 1):
            for peer, found in zip(peers, self.results.peers, strict=True):
                label = f"round {number}/{self.settings.rounds}  {peer.title:12}"
                self._take_turn(hosts, peer, found, label)

    def _take_turn(self, hosts: Hosts, peer: Peer, found: PeerResults, label: str) -> None:
        start_s = time.monotonic()
        with self.console.status(f"{label} starting") as status:
            turn = Turn(
                hosts,
                peer,
                self.settings.tcp_seconds,
                self.hints.setdefault(peer.name, {}),
                lambda step: status.update(f"{label} {step}"),
                steps=self.settings.steps,
            )
            try:
                with peer.running():
                    found.version = peer.version()
                    turn.run()
            except (BenchError, LabError, OSError) as error:
                found.failures.append(str(error))
                text = f"✘ {label} {error}"
                self.console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
                return
            finally:
                # What was measured before a failure counts too.
                if turn.sample:
                    found.samples.append(turn.sample)
                found.generator_limited_rounds.update(turn.generator_limited_bytes)
        took_s = time.monotonic() - start_s
        line = f"{label} {took_s:3.0f} s  {report.one_line(turn.sample)}"
        self.console.print(line, highlight=False, soft_wrap=True)


def run_bench(
    console: Console,
    settings: Settings,
    kinds: Sequence[type[Peer]],
    command: str,
    sections: Sequence[Section] = (),
) -> Results:
    """Check that all programs are there, build the hosts, run, remove the hosts."""
    programs = dict(COMMON_PROGRAMS)
    for kind in kinds:
        programs |= kind.programs
    for section in sections:
        programs |= section.programs
    check_programs(programs)
    found = [PeerResults(kind.name, kind.title) for kind in kinds]
    results = Results(settings, facts.collect(command), found, is_busy=facts.is_busy())
    if kinds:
        with Hosts.open(offloads=settings.offloads) as hosts:
            Runner(console, settings, results).run(hosts, [kind(hosts) for kind in kinds])
    for section in sections:
        results.sections.append(run_section(console, settings, section))
    return results


def run_section(console: Console, settings: Settings, section: Section) -> SectionResults:
    """Run one section; a failure is its own, and what was measured before it counts."""
    start_s = time.monotonic()
    found = SectionResults(section.name, section.title)
    with console.status(section.title) as status:
        record = Record(found, settings, lambda step: status.update(f"{section.title}: {step}"))
        try:
            section.measure(record)
        except (BenchError, LabError, OSError) as error:
            found.failure = str(error)
            text = f"✘ {section.title}: {error}"
            console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
    took_s = time.monotonic() - start_s
    said = ", ".join(report.section_lines(found))
    console.print(f"{took_s:3.0f} s  {said}", markup=False, highlight=False, soft_wrap=True)
    return found
