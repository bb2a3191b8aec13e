"""A snapshot in which every number is another one."""

import pytest
from zgate_gateway.metrics.snapshot import (
    ClientTraffic,
    DrainLevel,
    MetricsSnapshot,
    OfferTraffic,
    PoolLevel,
    ProcessLoad,
    ServiceLevels,
    WorkerLoad,
)

FULL = MetricsSnapshot(
    version="0.1.0",
    engine_name="python",
    ready=True,
    started_at_s=1000.5,
    uptime_s=77.25,
    checks={"bpf": True, "store": False},
    drain=DrainLevel(2000.5, 2),
    sessions=2,
    sessions_max=9,
    sessions_total=7,
    sessions_refused={"EXPIRED": 3},
    reconnects={"up": 31},
    handshakes={"completed": 32, "timed_out": 33},
    retry_tokens={"issued": 34},
    retry_active=True,
    policy_revision=4,
    policy_rules=12,
    policy_loaded_at_s=1001.0,
    policy_loads={"refused": 1, "loaded": 2},
    expiries={"gateway": 3000.5, "crl": 3001.0},
    pools={"ipv4": PoolLevel(65533, 10, 2), "ipv6": PoolLevel(2**64 - 130, 11, 3)},
    drops={"POLICY_RULE": 5, "NO_CLIENT": 6},
    traffic=ClientTraffic(51, 52, 53, 54, 55, 56, 57),
    clients={'odd"name\\\n': ClientTraffic(1, 100, 2, 200, 3, 4, 5)},
    clients_left_out=6,
    kernel_maps={"flows": (17, 262144)},
    alerts={"map_flows": True, "disk_full": False},
    events_lost=8,
    events_suppressed=9,
    audit_written=10,
    audit_lost=11,
    workers={
        0: WorkerLoad(True, 2, 1, {"resets_sent": 12, "misdirected_packets": 0}),
        1: WorkerLoad(False, 0, 3),
    },
    processes={"supervisor": ProcessLoad(1.5, 4096, 20, 0.25)},
    dns_up=True,
    dns_queries={"answered": 21, "no_name": 22},
    edge_mode="native",
    edge_interface="eth0",
    edge_packets={("pass", "INITIAL"): 13, ("drop", "FIXED_BIT"): 14},
    services=ServiceLevels(
        services={"up": 3, "gone": 1},
        connectors=2,
        silent=1,
        drained=1,
        offers={"up": 4, "gone": 0},
        networks={"nobody": 1},
        refused={"overlap": 5},
        flows={("site-a", "pacs"): OfferTraffic(6, 7, 8, 9)},
    ),
)


@pytest.fixture
def full() -> MetricsSnapshot:
    return FULL
