"""A connector's status as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

from prometheus_client.core import InfoMetricFamily, Metric
from zgate_host.metrics_port import counter, gauge

from zgate_connector.status import ConnectorStatus, State

_GATEWAY = ["gateway"]
_SERVICE = ["gateway", "service"]


def families(status: ConnectorStatus) -> Iterator[Metric]:
    """All of them. Those of a session begin at zero with each; docs/metrics.md has them."""
    build = {"version": version("zgate"), "engine": status.engine}
    yield InfoMetricFamily("zgate_connector_build", "Version and packet engine", build)
    yield from _sessions(status)
    yield from _services(status)


def _sessions(status: ConnectorStatus) -> Iterator[Metric]:
    gateways = status.gateways
    yield gauge(
        "zgate_connector_state",
        "1 for the state that the session with a gateway is in",
        ["gateway", "state"],
        [
            ((one.gateway, str(state)), int(state is one.state))
            for one in gateways
            for state in State
        ],
    )
    yield counter(
        "zgate_connector_reconnects",
        "Sessions after the first",
        _GATEWAY,
        [((one.gateway,), one.reconnects) for one in gateways],
    )
    yield counter(
        "zgate_connector_failed_attempts",
        "Attempts at an address of a gateway that gave no session",
        _GATEWAY,
        [((one.gateway,), one.failures) for one in gateways],
    )
    yield gauge(
        "zgate_connector_rtt_seconds",
        "Round trip to the gateway, smoothed",
        _GATEWAY,
        [
            ((one.gateway,), rtt_s)
            for one in gateways
            if one.state is State.CONNECTED and (rtt_s := one.counters.get("smoothed_rtt_s"))
        ],
    )
    yield gauge(
        "zgate_connector_draining",
        "1 while the gateway gives it no new flows",
        _GATEWAY,
        [((one.gateway,), int(one.is_draining)) for one in gateways],
    )
    yield gauge(
        "zgate_connector_offers_refused",
        "Services and networks that the gateway does not take",
        _GATEWAY,
        [((one.gateway,), sum(not a.is_accepted for a in one.answers)) for one in gateways],
    )
    yield counter(
        "zgate_connector_drops",
        "Packets of the session dropped by the connector, by reason",
        ["gateway", "reason"],
        [((one.gateway, reason), n) for one in gateways for reason, n in one.drops.items()],
    )


def _services(status: ConnectorStatus) -> Iterator[Metric]:
    services = [(one.gateway, service) for one in status.gateways for service in one.services]
    yield gauge(
        "zgate_connector_service_up",
        "1 if the backend answers its health check",
        _SERVICE,
        [((gateway, one.name), int(one.health == "up")) for gateway, one in services],
    )
    yield gauge(
        "zgate_connector_service_open_flows",
        "Flows that are open",
        _SERVICE,
        [((gateway, one.name), one.open_flows) for gateway, one in services],
    )
    yield counter(
        "zgate_connector_service_flows",
        "Flows of the session",
        _SERVICE,
        [((gateway, one.name), one.total_flows) for gateway, one in services],
    )
    octets = {"up": "bytes_up", "down": "bytes_down"}
    yield counter(
        "zgate_connector_service_bytes",
        "Bytes of the session; up is to the backend",
        [*_SERVICE, "direction"],
        [
            ((gateway, one.name, direction), getattr(one, name))
            for gateway, one in services
            for direction, name in octets.items()
        ],
    )
