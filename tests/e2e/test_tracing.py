"""Traces of real sessions, and a log whose level changes: a gateway in its namespace."""

from __future__ import annotations

import itertools
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from zgate_lab.deployment import Deployment
from zgate_lab.internet import Internet
from zgate_lab.traffic import ping
from zgate_lab.waiting import wait_until

from ..otlp_collector import OtlpCollector, ReceivedSpan  # noqa: TID252

SOON_S = 30.0


@pytest.fixture
def collector(internet: Internet) -> Iterator[OtlpCollector]:
    """Beside the gateway, on its loopback."""
    with internet.gateway.namespace.entered():
        sock = socket.create_server(("127.0.0.1", 0))
    with OtlpCollector(sock) as made:
        yield made


def found(
    collector: OtlpCollector, client: str, result: str = "established"
) -> dict[str, ReceivedSpan]:
    """A client's set-up, once the collector has the whole of it."""

    def there() -> dict[str, ReceivedSpan]:
        for spans in collector.whole():
            attributes = spans["session.setup"].attributes
            if attributes.get("zgate.client") == client and attributes["zgate.result"] == result:
                return spans
        return {}

    return wait_until(there, SOON_S, f"the set-up of {client}, {result}")


def tracing(collector: OtlpCollector) -> dict[str, Any]:
    return {"endpoint": collector.endpoint, "sample_ratio": 1.0}


@pytest.mark.parametrize("engine", ["native", "python"])
def test_a_session_from_its_first_packet_to_its_first_ip_packet(
    deployment: Deployment, collector: OtlpCollector, engine: str
) -> None:
    internet = deployment.internet
    deployment.start_gateway(tracing=tracing(collector), engine=engine)
    session = deployment.start_agent("alice", internet.device1)
    assert ping(internet.device1.namespace.name, internet.office.ipv4).lost == 0
    spans = found(collector, "alice")
    root = spans["session.setup"]
    assert set(spans) == {
        *("session.setup", "handshake", "verify_certificate", "request"),
        *("admission", "admission.leases", "admission.kernel", "first_packet"),
    }
    assert root.attributes["zgate.session_id"] == session["session_id"]
    assert root.attributes["zgate.engine"] == engine
    assert root.attributes["zgate.dialect"] == "connect-ip"
    assert "network.peer.address" not in root.attributes
    assert str(internet.device1.ipv4) not in repr(spans), "no outer address unless configured"
    for name, span in spans.items():
        assert root.began_s <= span.began_s <= span.ended_s <= root.ended_s + 1e-6, name
    order = ["handshake", "request", "first_packet"]
    for earlier, later in itertools.pairwise(order):
        assert spans[earlier].ended_s <= spans[later].began_s + 1e-6
    assert spans["verify_certificate"].duration_s <= spans["handshake"].duration_s


def test_refusals_and_the_logs_level(deployment: Deployment, collector: OtlpCollector) -> None:
    internet = deployment.internet
    gateway = deployment.start_gateway(
        tracing=tracing(collector),
        sessions={"max": 1},
        workers=2,
        log={"level": "warning", "format": "json"},
    )
    deployment.start_agent("alice", internet.device1)
    bob = deployment.spawn_agent("bob", internet.device2)
    refused = found(collector, "bob", "refused")["session.setup"]
    assert refused.is_error
    assert refused.attributes["http.response.status_code"] == 503
    assert "request_refused" not in gateway.output(), "a worker's line, at INFO"

    answer = deployment.ask("log-level", "info", "--for", "1h")
    assert (answer["level"], answer["configured"]) == ("info", "warning")
    gateway.wait_for_output('"event": "request_refused"', SOON_S)
    gateway.signal(signal.SIGHUP)
    wait_until(
        lambda: deployment.ask("log-level")["level"] == "warning", SOON_S, "the configured level"
    )
    assert bob.is_running()

    deployment.revoke("carol")
    gateway.signal(signal.SIGHUP)
    deployment.spawn_agent("carol", internet.device1, tun={"name": "carol0"})

    def revoked() -> list[ReceivedSpan]:
        roots = [one["session.setup"] for one in collector.whole()]
        return [one for one in roots if one.attributes["zgate.result"] == "certificate_refused"]

    [first, *_] = wait_until(revoked, SOON_S, "the refused certificate")
    assert first.attributes["zgate.reason"] == "revoked"


def test_a_collector_that_is_away_keeps_nobody_out(deployment: Deployment) -> None:
    gateway = deployment.start_gateway(
        tracing={"endpoint": "http://127.0.0.1:9", "sample_ratio": 1.0}
    )
    internet = deployment.internet
    deployment.start_agent("alice", internet.device1)
    assert ping(internet.device1.namespace.name, internet.office.ipv4).lost == 0
    gateway.wait_for_output("trace_collector_down", SOON_S)
    assert deployment.gateway_status()["sessions"] == 1
    assert gateway.stop() == 0
