"""Spans, as a collector gets them."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Iterator

import pytest
from zgate_gateway.tracing.exporter import SpanSink
from zgate_gateway.tracing.setup import Mark, Result, SetupTrace
from zgate_gateway.worker.messages import TracingSettings

from ....loopback import eventually  # noqa: TID252
from ....otlp_collector import OtlpCollector  # noqa: TID252


@pytest.fixture
def collector() -> Iterator[OtlpCollector]:
    with OtlpCollector() as made:
        yield made


@pytest.fixture(autouse=True)
def _level_as_before() -> Iterator[None]:
    before = logging.getLogger("opentelemetry").level
    yield
    logging.getLogger("opentelemetry").setLevel(before)


def sink_for(endpoint: str, *, client_addresses: bool = False) -> SpanSink:
    return SpanSink(TracingSettings(endpoint, 1.0, client_addresses), worker=0, engine="native")


def established() -> SetupTrace:
    trace = SetupTrace("198.51.100.7:40000", lambda _: None)
    began_s = trace.marks[Mark.BEGUN]
    trace.client, trace.dialect, trace.session_id = "alice", "connect-ip", "s1"
    for number, mark in enumerate(Mark):
        trace.marks[mark] = began_s + number / 1000
    trace.result = Result.ESTABLISHED
    return trace


async def test_a_set_up_with_all_its_parts(collector: OtlpCollector) -> None:
    sink = sink_for(collector.endpoint)
    trace = established()
    sink.take(trace)
    await eventually(lambda: len(collector.spans) == 8)
    [spans] = collector.traces()
    root = spans["session.setup"]
    assert root.attributes == {
        "zgate.worker": 0,
        "zgate.engine": "native",
        "zgate.result": "established",
        "zgate.client": "alice",
        "zgate.dialect": "connect-ip",
        "zgate.session_id": "s1",
    }
    assert root.resource["service.name"] == "zgate-gateway"
    assert root.resource["service.instance.id"].endswith("/0")
    assert not root.is_error
    assert abs(root.began_s - time.time()) < 60
    above = {name: span.parent_span_id for name, span in spans.items()}
    names = {span.span_id: name for name, span in spans.items()}
    assert {name: names.get(parent) for name, parent in above.items()} == {
        "session.setup": None,
        "handshake": "session.setup",
        "verify_certificate": "handshake",
        "request": "session.setup",
        "admission": "request",
        "admission.leases": "admission",
        "admission.kernel": "admission",
        "first_packet": "session.setup",
    }
    milliseconds = {name: round(span.duration_s * 1000) for name, span in spans.items()}
    assert milliseconds == {
        "session.setup": 11,
        "handshake": 3,
        "verify_certificate": 1,
        "request": 6,
        "admission": 4,
        "admission.leases": 1,
        "admission.kernel": 1,
        "first_packet": 1,
    }
    await eventually(lambda: sink.counters() == {"spans_sent": 8, "spans_lost": 0})
    await sink.close()


async def test_a_refusal_is_an_error_with_its_reason(collector: OtlpCollector) -> None:
    sink = sink_for(collector.endpoint, client_addresses=True)
    trace = SetupTrace("198.51.100.7:40000", lambda _: None)
    trace.refused(Result.REFUSED, "no room", 503)
    sink.take(trace)
    await eventually(lambda: len(collector.spans) == 1)
    [root] = collector.spans
    assert root.is_error
    assert root.attributes["zgate.result"] == "refused"
    assert root.attributes["zgate.reason"] == "no room"
    assert root.attributes["http.response.status_code"] == 503
    assert root.attributes["network.peer.address"] == "198.51.100.7:40000"


async def test_what_is_left_is_sent_at_the_end(
    collector: OtlpCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zgate_gateway.tracing.exporter._LAST_WORDS_S", 10.0)
    sink = sink_for(collector.endpoint)
    sink.take(established())
    await sink.close()
    assert len(collector.spans) == 8


async def test_a_collector_that_is_down_loses_spans_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        endpoint = "http://{}:{}".format(*sock.getsockname())
    sink = sink_for(endpoint)
    began_s = time.monotonic()
    for _ in range(1000):
        sink.take(established())
    assert time.monotonic() - began_s < 10, "nobody waits for a collector"
    lost = sink.counters()["spans_lost"]
    assert lost >= 8000 - 2048 - 64, "what has no room is lost at once"
    await eventually(lambda: sink.counters()["spans_lost"] > lost, 30.0)
    told = [record for record in caplog.records if record.name.startswith("zgate")]
    assert [record.args["event"] for record in told] == ["trace_collector_down"]  # type: ignore[index,call-overload]
    began_s = time.monotonic()
    await sink.close()
    assert time.monotonic() - began_s < 2


def test_a_collector_that_never_answers_holds_no_end_up() -> None:
    async def live(sink: SpanSink) -> None:
        sink.take(established())
        await sink.close()

    with socket.create_server(("127.0.0.1", 0)) as silent:
        began_s = time.monotonic()
        # As a worker's process does: the loop's own end is part of it.
        asyncio.run(live(sink_for("http://{}:{}".format(*silent.getsockname()))))
        assert time.monotonic() - began_s < 4.5  # it would wait for 5


async def test_a_collector_that_comes_back_is_told_of(
    collector: OtlpCollector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sink = sink_for(collector.endpoint)
    collector.status = 400
    sink.take(established())
    await eventually(lambda: sink.counters()["spans_lost"] == 8)
    collector.status = 200
    sink.take(established())
    await eventually(lambda: sink.counters() == {"spans_sent": 8, "spans_lost": 8})
    events = [one.args["event"] for one in caplog.records if one.name.startswith("zgate")]  # type: ignore[index,call-overload]
    assert events == ["trace_collector_down", "trace_collector_back"]
