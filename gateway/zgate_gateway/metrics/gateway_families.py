"""The gateway itself: its state, sessions, handshakes, policy, certificates, pools and logs."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from zgate_gateway.metrics.families import complete, counters, gauges
from zgate_gateway.metrics.snapshot import (
    HANDSHAKE_RESULTS,
    POLICY_LOAD_RESULTS,
    PREVIOUS_SESSIONS,
    RETRY_TOKEN_RESULTS,
    MetricsSnapshot,
)


def state_families(now: MetricsSnapshot) -> Iterator[Metric]:
    """Whether it works, since when, and what stands in its way."""
    yield InfoMetricFamily(
        "zgate_build",
        "Version and packet engine",
        {"version": now.version, "engine": now.engine_name},
    )
    yield GaugeMetricFamily("zgate_ready", "1 while new sessions are taken", int(now.ready))
    checks = {name: int(good) for name, good in now.checks.items()}
    yield gauges("zgate_ready_check", "1 if what new sessions need is there", "check", checks)
    yield GaugeMetricFamily("zgate_start_time_seconds", "Unix time of start", now.started_at_s)
    yield GaugeMetricFamily(
        "zgate_uptime_seconds", "Time since start, whatever the wall clock did", now.uptime_s
    )
    yield GaugeMetricFamily("zgate_draining", "1 while it drains", int(now.drain is not None))
    deadline = GaugeMetricFamily(
        "zgate_drain_deadline_timestamp_seconds",
        "Unix time at which sessions are closed",
        labels=[],
    )
    left = GaugeMetricFamily(
        "zgate_drain_sessions_left",
        "Sessions that have not gone yet, connectors not counted",
        labels=[],
    )
    if now.drain is not None:
        deadline.add_metric([], now.drain.deadline_at_s)
        left.add_metric([], now.drain.sessions_left)
    yield from (deadline, left)
    alerts = {name: int(lasts) for name, lasts in now.alerts.items()}
    yield gauges("zgate_alert", "1 while somebody has to look at it", "name", alerts)


def session_families(now: MetricsSnapshot) -> Iterator[Metric]:
    """Who came, who did not get in, and why."""
    yield GaugeMetricFamily("zgate_sessions", "Sessions that are up", now.sessions)
    yield GaugeMetricFamily("zgate_sessions_max", "Sessions that may be up", now.sessions_max)
    yield CounterMetricFamily(
        "zgate_sessions_established", "Sessions established since start", now.sessions_total
    )
    yield counters(
        "zgate_sessions_refused", "Sessions refused, by reason", "reason", now.sessions_refused
    )
    yield counters(
        "zgate_reconnects",
        "Sessions of clients whose session before was still up, or had ended within a minute",
        "previous",
        complete(now.reconnects, PREVIOUS_SESSIONS),
    )
    yield counters(
        "zgate_handshakes",
        "QUIC handshakes, by what became of them",
        "result",
        complete(now.handshakes, HANDSHAKE_RESULTS),
    )
    yield counters(
        "zgate_retry_tokens",
        "Tokens by which new clients prove their address",
        "result",
        complete(now.retry_tokens, RETRY_TOKEN_RESULTS),
    )
    yield GaugeMetricFamily(
        "zgate_retry_active",
        "1 while new clients have to prove their address",
        int(now.retry_active),
    )


def policy_families(now: MetricsSnapshot) -> Iterator[Metric]:
    """Which policy is in force, and how often another was tried."""
    yield GaugeMetricFamily("zgate_policy_revision", "Revision in force", now.policy_revision)
    yield GaugeMetricFamily("zgate_policy_rules", "Rules of the revision", now.policy_rules)
    yield counters(
        "zgate_policy_loads",
        "Policies that were to be put in force, by what became of them",
        "result",
        complete(now.policy_loads, POLICY_LOAD_RESULTS),
    )
    loaded = GaugeMetricFamily(
        "zgate_policy_loaded_timestamp_seconds", "Unix time of the last load", labels=[]
    )
    if now.policy_loaded_at_s is not None:
        loaded.add_metric([], now.policy_loaded_at_s)
    yield loaded


def certificate_families(now: MetricsSnapshot) -> Iterator[Metric]:
    """Until when what clients and gateway prove themselves by is good."""
    yield gauges(
        "zgate_certificate_expiry_timestamp_seconds",
        "Unix time at which a certificate or revocation list is no longer good",
        "certificate",
        now.expiries,
    )


def pool_families(now: MetricsSnapshot) -> Iterator[Metric]:
    """Virtual IPs."""
    levels = now.pools.items()
    yield gauges(
        "zgate_pool_addresses",
        "Addresses that clients can hold",
        "family",
        {family: level.capacity for family, level in levels},
    )
    yield gauges(
        "zgate_pool_leased",
        "Addresses that belong to a client",
        "family",
        {family: level.leased for family, level in levels},
    )
    yield gauges(
        "zgate_pool_connected",
        "Addresses of connected clients",
        "family",
        {family: level.connected for family, level in levels},
    )


def log_families(now: MetricsSnapshot) -> Iterator[Metric]:
    """What the audit log has, and what it lacks."""
    yield CounterMetricFamily(
        "zgate_events_lost", "Kernel events lost to a full ring", now.events_lost
    )
    yield CounterMetricFamily(
        "zgate_events_suppressed", "Kernel events left out by rate limits", now.events_suppressed
    )
    yield CounterMetricFamily("zgate_audit_written", "Audit records written", now.audit_written)
    yield CounterMetricFamily(
        "zgate_audit_lost", "Audit records that could not be written", now.audit_lost
    )
