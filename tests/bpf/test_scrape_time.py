"""A scrape of ten thousand clients out of the kernel's own tables: 200 ms, and nobody waits."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import Any

import pytest
from zgate_bpf.kernel_policy import KernelPolicy
from zgate_bpf.layouts import COUNTERS
from zgate_gateway.edge import EdgeState
from zgate_gateway.kernel import Kernel
from zgate_gateway.loop_lag import LoopLag
from zgate_gateway.metrics.source import MetricsSource
from zgate_gateway.metrics.text import render
from zgate_gateway.policy.policy_set import PolicySet
from zgate_gateway.problems import Problems
from zgate_gateway.readiness import Readiness

CLIENTS, MAX_CLIENTS = 10_000, 65_536
LIMIT_S, LATE_S = 0.2, 0.05
SCRAPES = 7


class Crew:
    """Workers that have answered."""

    retry_active = False

    async def refresh(self, _only: object) -> None:
        pass

    def states(self) -> list[Any]:
        return []

    def drops(self) -> Counter[str]:
        # A worker that ends meanwhile would be missed: its counts move in two steps.
        assert threading.current_thread() is threading.main_thread(), "not in the event loop"
        return Counter()

    certificates_refused = handshakes = retry_tokens = drops


@pytest.fixture(scope="module")
def gateway() -> Iterator[Any]:
    """Real tables with 10,000 clients, whose numbers lie apart as after years; and little else."""
    with KernelPolicy(max_clients=MAX_CLIENTS, max_flows=1024) as programs:
        kernel = Kernel(programs, max_clients=MAX_CLIENTS)
        kernel.load_policy(PolicySet.empty(), 1)
        kernel._free.rotate(-MAX_CLIENTS // 3)
        sessions = {}
        for number in range(CLIENTS):
            name = f"device-{number:05}.hospital.example"
            kernel.add_client(name, (), [IPv4Address("10.64.0.0") + number])
            kernel._free.rotate(-5)
            worker = SimpleNamespace(index=number % 2)
            sessions[name] = SimpleNamespace(worker=worker)
            index = kernel.client_index(name)
            programs._counters.update_cpus(index, COUNTERS.pack(*range(number, number + 7)))
        now = datetime.now(UTC)
        connectors = SimpleNamespace(
            by_session={},
            drains={},
            refused={},
            directory=SimpleNamespace(snapshot=dict),
            routes=SimpleNamespace(routes={}),
        )
        yield SimpleNamespace(
            version="0",
            engine_name="native",
            state="ready",
            started_at=now,
            started_s=time.monotonic(),
            config=SimpleNamespace(
                sessions=SimpleNamespace(max=MAX_CLIENTS),
                metrics=SimpleNamespace(per_client="auto"),
            ),
            kernel=kernel,
            policy=SimpleNamespace(loaded_at=now, loads={}),
            sessions=SimpleNamespace(
                by_client=sessions, by_id=sessions, established_total=1, refused={}, reconnects={}
            ),
            certificates=SimpleNamespace(expiries=dict),
            pools=[],
            problems=Problems(),
            alerts=SimpleNamespace(usage=programs.map_usage()),
            audit=SimpleNamespace(written=1, lost=0),
            crew=Crew(),
            loop_lag=LoopLag(),
            edge=SimpleNamespace(state=EdgeState),
            dns=SimpleNamespace(problem=None, counters={}),
            services=SimpleNamespace(connectors=connectors),
            network=SimpleNamespace(verify_programs=lambda: None),
            store=SimpleNamespace(check=lambda: None),
            drain=SimpleNamespace(state=None),
        )


async def scrape(source: MetricsSource) -> tuple[bytes, float, float]:
    """As `zgate_gateway.api.app` does it: the text, how long it took, how late the loop was."""
    loop, lag = asyncio.get_running_loop(), LoopLag()
    watching = loop.create_task(lag.watch(0.002))
    await asyncio.sleep(0)
    began_s = time.perf_counter()
    snapshot = await source.take()
    text, _ = await asyncio.to_thread(render, snapshot, "")
    took_s = time.perf_counter() - began_s
    await asyncio.sleep(0.005)
    watching.cancel()
    return text, took_s, lag.worst_s(loop.time())


@pytest.mark.parametrize("setting", ["auto", "all", "none"])
def test_in_time(gateway: Any, setting: str) -> None:
    gateway.config.metrics.per_client = setting

    async def measure() -> list[tuple[bytes, float, float]]:
        source = MetricsSource(gateway, Readiness(gateway))
        return [await scrape(source) for _ in range(SCRAPES)]

    found = asyncio.run(measure())
    # The best of some: the machine of the tests has other things to do as well.
    took_s, late_s = (min(one[at] for one in found) for at in (1, 2))
    print(f"{setting}: {took_s * 1000:.0f} ms, the loop late by {late_s * 1000:.0f} ms")
    assert took_s < LIMIT_S
    assert late_s < LATE_S
    text = found[-1][0]
    count = {"auto": 100, "all": CLIENTS, "none": 0}[setting]
    assert text.count(b"zgate_client_bytes_total{") == 2 * count
    assert f"zgate_clients_left_out {float(CLIENTS - count)}".encode() in text


def test_the_numbers_are_those_of_the_kernel(gateway: Any) -> None:
    gateway.config.metrics.per_client = "all"
    source = MetricsSource(gateway, Readiness(gateway))
    snapshot = asyncio.run(source.take())
    kernel = gateway.kernel
    for name in list(kernel.numbers())[:: CLIENTS // 50]:
        counted = kernel.counters(name)
        found = snapshot.clients[name]
        assert (found.up_bytes, found.down_packets) == (counted.up_bytes, counted.down_packets)
    assert snapshot.traffic.up_bytes == sum(one.up_bytes for one in snapshot.clients.values())
