"""/metrics says what the snapshot says, and nothing twice."""

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from zgate_gateway.metrics import (
    ClientTraffic,
    MetricsSnapshot,
    OfferTraffic,
    PoolLevel,
    ServiceLevels,
    WorkerLoad,
    make_registry,
)

FULL = MetricsSnapshot(
    version="0.1.0",
    engine_name="python",
    ready=True,
    started_at_s=1000.5,
    sessions=2,
    sessions_total=7,
    sessions_refused={"EXPIRED": 3},
    policy_revision=4,
    policy_rules=12,
    policy_loaded_at_s=1001.0,
    policy_reload_failures=1,
    pools={"ipv4": PoolLevel(65533, 10, 2), "ipv6": PoolLevel(2**64 - 130, 10, 2)},
    drops={"POLICY_RULE": 5, "NO_CLIENT": 6},
    clients={'odd"name\n': ClientTraffic(1, 100, 2, 200, 3)},
    kernel_maps={"flows": (17, 262144)},
    alerts=["map_flows"],
    events_lost=8,
    events_suppressed=9,
    audit_written=10,
    audit_lost=11,
    workers={
        0: WorkerLoad(True, 2, 1, {"datagrams_sent": 12, "misdirected_packets": 0}),
        1: WorkerLoad(False, 0, 3),
    },
    dns_up=True,
    dns_queries={"answered": 21, "no_name": 22},
    edge_mode="native",
    edge_interface="eth0",
    edge_packets={("pass", "INITIAL"): 13, ("drop", "FIXED_BIT"): 14},
    retry_active=True,
    services=ServiceLevels(
        services=3,
        connectors=2,
        drained=1,
        offers={"up": 4, "gone": 0},
        networks={"nobody": 1},
        refused={"overlap": 5},
        flows={("site-a", "pacs"): OfferTraffic(6, 7, 8, 9)},
    ),
)


def samples(snapshot: MetricsSnapshot) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = generate_latest(make_registry(lambda: snapshot)).decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def test_every_number_of_the_snapshot_is_there() -> None:
    client = ("client", 'odd"name\n')
    offer = ("connector", "site-a"), ("service", "pacs")
    assert samples(FULL) == {
        ("zgate_alert", (("name", "map_flows"),)): 1,
        ("zgate_build_info", (("engine", "python"), ("version", "0.1.0"))): 1,
        ("zgate_ready", ()): 1,
        ("zgate_start_time_seconds", ()): 1000.5,
        ("zgate_sessions", ()): 2,
        ("zgate_sessions_established_total", ()): 7,
        ("zgate_sessions_refused_total", (("reason", "EXPIRED"),)): 3,
        ("zgate_policy_revision", ()): 4,
        ("zgate_policy_rules", ()): 12,
        ("zgate_policy_reload_failures_total", ()): 1,
        ("zgate_policy_loaded_time_seconds", ()): 1001,
        ("zgate_pool_addresses", (("family", "ipv4"),)): 65533,
        ("zgate_pool_addresses", (("family", "ipv6"),)): float(2**64 - 130),
        ("zgate_pool_leased", (("family", "ipv4"),)): 10,
        ("zgate_pool_leased", (("family", "ipv6"),)): 10,
        ("zgate_pool_connected", (("family", "ipv4"),)): 2,
        ("zgate_pool_connected", (("family", "ipv6"),)): 2,
        ("zgate_client_packets_total", (client, ("direction", "up"))): 1,
        ("zgate_client_packets_total", (client, ("direction", "down"))): 2,
        ("zgate_client_bytes_total", (client, ("direction", "up"))): 100,
        ("zgate_client_bytes_total", (client, ("direction", "down"))): 200,
        ("zgate_client_dropped_packets_total", (client,)): 3,
        ("zgate_drops_total", (("reason", "POLICY_RULE"),)): 5,
        ("zgate_drops_total", (("reason", "NO_CLIENT"),)): 6,
        ("zgate_kernel_map_entries", (("map", "flows"),)): 17,
        ("zgate_kernel_map_size", (("map", "flows"),)): 262144,
        ("zgate_engine_total", (("counter", "datagrams_sent"), ("worker", "0"))): 12,
        ("zgate_misdirected_packets_total", (("worker", "0"),)): 0,
        ("zgate_worker_up", (("worker", "0"),)): 1,
        ("zgate_worker_up", (("worker", "1"),)): 0,
        ("zgate_worker_sessions", (("worker", "0"),)): 2,
        ("zgate_worker_sessions", (("worker", "1"),)): 0,
        ("zgate_worker_restarts_total", (("worker", "0"),)): 1,
        ("zgate_worker_restarts_total", (("worker", "1"),)): 3,
        ("zgate_dns_up", ()): 1,
        ("zgate_dns_queries_total", (("outcome", "answered"),)): 21,
        ("zgate_dns_queries_total", (("outcome", "no_name"),)): 22,
        ("zgate_edge_info", (("interface", "eth0"), ("mode", "native"))): 1,
        ("zgate_edge_packets_total", (("reason", "INITIAL"), ("verdict", "pass"))): 13,
        ("zgate_edge_packets_total", (("reason", "FIXED_BIT"), ("verdict", "drop"))): 14,
        ("zgate_retry_active", ()): 1,
        ("zgate_services", ()): 3,
        ("zgate_connectors", ()): 2,
        ("zgate_connectors_drained", ()): 1,
        ("zgate_offers", (("state", "up"),)): 4,
        ("zgate_offers", (("state", "gone"),)): 0,
        ("zgate_networks", (("led_by", "nobody"),)): 1,
        ("zgate_registrations_refused_total", (("code", "overlap"),)): 5,
        ("zgate_offer_open_flows", (offer[0], offer[1])): 6,
        ("zgate_offer_flows_total", (offer[0], offer[1])): 7,
        ("zgate_offer_bytes_total", (offer[0], ("direction", "up"), offer[1])): 8,
        ("zgate_offer_bytes_total", (offer[0], ("direction", "down"), offer[1])): 9,
        ("zgate_events_lost_total", ()): 8,
        ("zgate_events_suppressed_total", ()): 9,
        ("zgate_audit_written_total", ()): 10,
        ("zgate_audit_lost_total", ()): 11,
    }


def test_a_gateway_that_just_started() -> None:
    found = samples(MetricsSnapshot("0.1", "native", ready=False, started_at_s=1))
    assert found["zgate_ready", ()] == 0
    assert ("zgate_policy_loaded_time_seconds", ()) not in found


def test_one_snapshot_per_scrape_and_none_to_register() -> None:
    taken = []

    def snapshot() -> MetricsSnapshot:
        taken.append(1)
        return FULL

    registry = make_registry(snapshot)
    assert len(taken) == 0
    generate_latest(registry)
    assert len(taken) == 1
