"""/metrics says what the snapshot says, and nothing twice."""

from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from zgate_gateway.metrics.snapshot import MetricsSnapshot
from zgate_gateway.metrics.text import render
from zgate_protocol.drop_reason import DropReason

CLIENT = 'client=odd"name\\\n'
OFFER = ("connector=site-a", "service=pacs")
#: What the snapshot `full` says, by subject.
DAEMON = {
    ("zgate_build_info", "engine=python", "version=0.1.0"): 1,
    ("zgate_ready",): 1,
    ("zgate_ready_check", "check=bpf"): 1,
    ("zgate_ready_check", "check=store"): 0,
    ("zgate_start_time_seconds",): 1000.5,
    ("zgate_uptime_seconds",): 77.25,
    ("zgate_draining",): 1,
    ("zgate_drain_deadline_timestamp_seconds",): 2000.5,
    ("zgate_drain_sessions_left",): 2,
    ("zgate_alert", "name=map_flows"): 1,
    ("zgate_alert", "name=disk_full"): 0,
    ("zgate_certificate_expiry_timestamp_seconds", "certificate=gateway"): 3000.5,
    ("zgate_certificate_expiry_timestamp_seconds", "certificate=crl"): 3001,
}
SESSIONS = {
    ("zgate_sessions",): 2,
    ("zgate_sessions_max",): 9,
    ("zgate_sessions_established_total",): 7,
    ("zgate_sessions_refused_total", "reason=EXPIRED"): 3,
    ("zgate_reconnects_total", "previous=up"): 31,
    ("zgate_reconnects_total", "previous=ended"): 0,
    ("zgate_handshakes_total", "result=completed"): 32,
    ("zgate_handshakes_total", "result=refused"): 0,
    ("zgate_handshakes_total", "result=timed_out"): 33,
    ("zgate_handshakes_total", "result=failed"): 0,
    ("zgate_retry_tokens_total", "result=issued"): 34,
    ("zgate_retry_tokens_total", "result=accepted"): 0,
    ("zgate_retry_tokens_total", "result=refused"): 0,
    ("zgate_retry_active",): 1,
    ("zgate_pool_addresses", "family=ipv4"): 65533,
    ("zgate_pool_addresses", "family=ipv6"): float(2**64 - 130),
    ("zgate_pool_leased", "family=ipv4"): 10,
    ("zgate_pool_leased", "family=ipv6"): 11,
    ("zgate_pool_connected", "family=ipv4"): 2,
    ("zgate_pool_connected", "family=ipv6"): 3,
}
POLICY_AND_AUDIT = {
    ("zgate_policy_revision",): 4,
    ("zgate_policy_rules",): 12,
    ("zgate_policy_loads_total", "result=loaded"): 2,
    ("zgate_policy_loads_total", "result=unchanged"): 0,
    ("zgate_policy_loads_total", "result=refused"): 1,
    ("zgate_policy_loaded_timestamp_seconds",): 1001,
    ("zgate_events_lost_total",): 8,
    ("zgate_events_suppressed_total",): 9,
    ("zgate_audit_written_total",): 10,
    ("zgate_audit_lost_total",): 11,
}
TRAFFIC = {
    **{("zgate_drops_total", f"reason={one.name}"): 0.0 for one in DropReason if one},
    ("zgate_drops_total", "reason=POLICY_RULE"): 5,
    ("zgate_drops_total", "reason=NO_CLIENT"): 6,
    ("zgate_packets_total", "direction=up"): 51,
    ("zgate_packets_total", "direction=down"): 53,
    ("zgate_bytes_total", "direction=up"): 52,
    ("zgate_bytes_total", "direction=down"): 54,
    ("zgate_flows_total",): 57,
    ("zgate_client_packets_total", CLIENT, "direction=up"): 1,
    ("zgate_client_packets_total", CLIENT, "direction=down"): 2,
    ("zgate_client_bytes_total", CLIENT, "direction=up"): 100,
    ("zgate_client_bytes_total", CLIENT, "direction=down"): 200,
    ("zgate_client_dropped_packets_total", CLIENT, "direction=up"): 3,
    ("zgate_client_dropped_packets_total", CLIENT, "direction=down"): 4,
    ("zgate_clients_left_out",): 6,
    ("zgate_kernel_map_entries", "map=flows"): 17,
    ("zgate_kernel_map_size", "map=flows"): 262144,
    ("zgate_edge_info", "interface=eth0", "mode=native"): 1,
    ("zgate_edge_packets_total", "reason=INITIAL", "verdict=pass"): 13,
    ("zgate_edge_packets_total", "reason=FIXED_BIT", "verdict=drop"): 14,
}
PROCESSES = {
    ("zgate_worker_up", "worker=0"): 1,
    ("zgate_worker_up", "worker=1"): 0,
    ("zgate_worker_sessions", "worker=0"): 2,
    ("zgate_worker_sessions", "worker=1"): 0,
    ("zgate_worker_restarts_total", "worker=0"): 1,
    ("zgate_worker_restarts_total", "worker=1"): 3,
    ("zgate_misdirected_packets_total", "worker=0"): 0,
    ("zgate_misdirected_packets_total", "worker=1"): 0,
    ("zgate_worker_events_total", "event=resets_sent", "worker=0"): 12,
    ("zgate_process_cpu_seconds_total", "process=supervisor"): 1.5,
    ("zgate_process_resident_memory_bytes", "process=supervisor"): 4096,
    ("zgate_process_open_fds", "process=supervisor"): 20,
    ("zgate_event_loop_lag_seconds", "process=supervisor"): 0.25,
}
SERVICES = {
    ("zgate_services", "state=up"): 3,
    ("zgate_services", "state=gone"): 1,
    ("zgate_connectors",): 2,
    ("zgate_connectors_silent",): 1,
    ("zgate_connectors_drained",): 1,
    ("zgate_offers", "state=up"): 4,
    ("zgate_offers", "state=gone"): 0,
    ("zgate_networks", "led_by=nobody"): 1,
    ("zgate_registrations_refused_total", "code=overlap"): 5,
    ("zgate_offer_open_flows", *OFFER): 6,
    ("zgate_offer_flows_total", *OFFER): 7,
    ("zgate_offer_bytes_total", OFFER[0], "direction=up", OFFER[1]): 8,
    ("zgate_offer_bytes_total", OFFER[0], "direction=down", OFFER[1]): 9,
    ("zgate_dns_up",): 1,
    ("zgate_dns_queries_total", "outcome=answered"): 21,
    ("zgate_dns_queries_total", "outcome=no_name"): 22,
}


def samples(snapshot: MetricsSnapshot) -> dict[tuple[str, ...], float]:
    """By name, and label values in the order of the labels' names."""
    found = {}
    for family in text_string_to_metric_families(render(snapshot)[0].decode()):
        for sample in family.samples:
            labels: dict[str, Any] = sample.labels
            key = (sample.name, *(f"{name}={labels[name]}" for name in sorted(labels)))
            assert key not in found
            found[key] = sample.value
    return found


def test_every_number_of_the_snapshot_is_there(full: MetricsSnapshot) -> None:
    told = {**DAEMON, **SESSIONS, **POLICY_AND_AUDIT, **TRAFFIC, **PROCESSES, **SERVICES}
    assert samples(full) == told


def test_a_gateway_that_just_started() -> None:
    found = samples(MetricsSnapshot("0.1", "native", ready=False, started_at_s=1))
    assert found["zgate_ready",] == 0
    assert found["zgate_draining",] == 0
    assert ("zgate_policy_loaded_timestamp_seconds",) not in found
    assert ("zgate_drain_deadline_timestamp_seconds",) not in found
    # Who alerts on an increase must see the series before the first one.
    assert found["zgate_handshakes_total", "result=failed"] == 0
    assert found["zgate_drops_total", "reason=NO_POLICY"] == 0
