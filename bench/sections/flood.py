"""The junk flood beside a TCP flow, with the edge in the driver: `bench.flood` in short."""

from bench.flood import FloodedZgate, Found, measure, prepare
from bench.hosts import Hosts
from bench.sections.section import Record, Section

RATE_PER_S = 500_000
ROUNDS = 2


def measure_section(record: Record) -> None:
    """The edge's native mode only; `python -m bench.flood` has the others beside it."""
    found = Found()
    with Hosts.open() as hosts:
        prepare(hosts)
        peer = FloodedZgate(hosts)
        for number in range(1, min(ROUNDS, record.settings.rounds) + 1):
            record.show(f"round {number}: calm, control, flood, a new client")
            measure(hosts, peer, found, RATE_PER_S, record.settings.tcp_seconds)
    for name, values in found.flows.items():
        for value in values:
            record.put(f"{name}_mbit_per_s", value)
    for value in found.offered:
        record.put("offered_per_s", value)
    for value in found.connect_s:
        record.put("connect_s", value)
    record.note(found.edge)


FLOOD = Section("flood", "junk flood", measure_section)
