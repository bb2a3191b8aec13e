"""Lines that we write by hand are those that prometheus-client would write."""

from __future__ import annotations

import subprocess
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.registry import Collector
from zgate_gateway.metrics.snapshot import ClientTraffic, MetricsSnapshot
from zgate_gateway.metrics.text import render

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"
#: What the library's encoders refuse, identity checks refuse long before (control characters).
NAMES = st.text(
    st.characters(blacklist_categories=("Cs", "Cc")) | st.sampled_from('"\\\n'), min_size=1
)
COUNTS = st.integers(0, 2**53)


class Alone(Collector):
    """One family, by the library alone."""

    def __init__(self, clients: dict[str, ClientTraffic]) -> None:
        self._clients = clients

    def collect(self) -> list[CounterMetricFamily]:
        family = CounterMetricFamily("zgate_client_bytes", "", labels=["client", "direction"])
        for name, traffic in self._clients.items():
            family.add_metric([name, "up"], traffic.up_bytes)
            family.add_metric([name, "down"], traffic.down_bytes)
        return [family]

    def describe(self) -> list[CounterMetricFamily]:
        return []


@pytest.mark.parametrize("accept", ["", OPEN_METRICS])
@given(clients=st.dictionaries(NAMES, st.builds(ClientTraffic, up_bytes=COUNTS), max_size=4))
def test_as_the_library_writes_them(accept: str, clients: dict[str, ClientTraffic]) -> None:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Alone(clients))
    encode, content_type = choose_encoder(accept)
    theirs = encode(registry).decode()
    snapshot = MetricsSnapshot("0", "python", ready=True, started_at_s=1, clients=clients)
    text, ours_type = render(snapshot, accept)
    assert ours_type == content_type
    ours = [line for line in text.decode().split("\n") if line.startswith("zgate_client_bytes_")]

    def keyed(lines: list[str]) -> dict[str, float]:
        pairs = [line.rpartition(" ")[::2] for line in lines]
        return {name: float(value) for name, value in pairs}

    wanted = [line for line in theirs.split("\n") if line.startswith("zgate_client_bytes_")]
    assert keyed(ours) == keyed(wanted)
    assert len(ours) == len(wanted)


@pytest.mark.parametrize(("accept", "parse"), [("", parse_text), (OPEN_METRICS, parse_open)])
def test_both_formats_can_be_read(full: MetricsSnapshot, accept: str, parse: object) -> None:
    text = render(full, accept)[0].decode()
    families = {one.name: one for one in parse(text)}  # type: ignore[operator]
    values = {sample.labels["client"] for sample in families["zgate_client_packets"].samples}
    assert values == {'odd"name\\\n'}
    assert len(families) > 50


def test_prometheus_finds_nothing_to_complain_about(full: MetricsSnapshot) -> None:
    text, _ = render(full)
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, check=False, timeout=60
    )
    assert (done.stdout.decode(), done.stderr.decode(), done.returncode) == ("", "", 0)


def test_ten_thousand_clients_take_no_time() -> None:
    clients = {f"client-{n}": ClientTraffic(n, n, n, n, n, n, n) for n in range(10_000)}
    snapshot = MetricsSnapshot("0", "python", ready=True, started_at_s=1)
    took_s = []
    for _ in range(3):
        began_s = time.process_time()
        text, _ = render(replace(snapshot, clients=clients))
        took_s.append(time.process_time() - began_s)
    # The library alone takes more than a second.
    assert min(took_s) < 0.4
    assert text.count(b"zgate_client_") > 60_000
