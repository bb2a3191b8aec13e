"""Spans of set-ups, sent in batches as OTLP over HTTP, in a thread of the worker's.

What the collector does not take is lost, and counted; nothing waits for it. The thread shares the
interpreter with the loop that carries packets, so a batch is small.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Sequence
from importlib.metadata import version

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.util.types import AttributeValue

from zgate_gateway.tracing.setup import Mark, Result, SetupTrace
from zgate_gateway.worker.messages import TracingSettings

logger = logging.getLogger(__name__)

_PATH = "/v1/traces"
_TIMEOUT_S = 5.0
_BATCH_SPANS = 64
_BATCH_INTERVAL_MS = 1000
#: Spans that may wait for the collector; more are lost.
_MOST_WAITING = 2048
_LAST_WORDS_S = 0.5

#: Name, the span above it, first and last moment. A span whose moments did not come is left out.
_PARTS = (
    ("handshake", "session.setup", Mark.BEGUN, Mark.PROVED),
    ("verify_certificate", "handshake", Mark.VERIFY_BEGUN, Mark.VERIFIED),
    ("request", "session.setup", Mark.REQUESTED, Mark.RESPONDED),
    ("admission", "request", Mark.APPLIED, Mark.ANSWERED),
    ("admission.leases", "admission", Mark.ADMIT_BEGUN, Mark.LEASED),
    ("admission.kernel", "admission", Mark.LEASED, Mark.ADMITTED),
    ("first_packet", "session.setup", Mark.RESPONDED, Mark.PACKET),
)


class SpanSink:
    """See the module's text (`zgate_gateway.tracing.watch.Sink`)."""

    def __init__(self, settings: TracingSettings, *, worker: int, engine: str) -> None:
        self._with_addresses = settings.client_addresses
        self._fixed: dict[str, AttributeValue] = {"zgate.worker": worker, "zgate.engine": engine}
        # What the library says of a collector that is down, it says for each attempt.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._exporter = CountingExporter(settings.endpoint)
        resource = Resource.create(
            {
                "service.name": "zgate-gateway",
                "service.version": version("zgate"),
                "service.instance.id": f"{socket.gethostname()}/{worker}",
            }
        )
        self._provider = TracerProvider(
            sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._exporter,
                max_queue_size=_MOST_WAITING,
                schedule_delay_millis=_BATCH_INTERVAL_MS,
                max_export_batch_size=_BATCH_SPANS,
            )
        )
        self._tracer = self._provider.get_tracer("zgate_gateway", version("zgate"))
        self._given = 0
        self._lost = 0

    def take(self, trace: SetupTrace) -> None:
        """See `Sink.take`."""
        marks = trace.marks
        parts = [part for part in _PARTS if part[2] in marks and part[3] in marks]
        count = len(parts) + 1
        if self._given + count - self._exporter.done > _MOST_WAITING:
            self._lost += count
            return
        self._given += count
        made: dict[str, Span] = {}
        root = made["session.setup"] = self._tracer.start_span(
            "session.setup",
            kind=SpanKind.SERVER,
            start_time=_ns(trace, marks[Mark.BEGUN]),
            attributes=self._attributes(trace),
        )
        if trace.result is not Result.ESTABLISHED:
            root.set_status(Status(StatusCode.ERROR, trace.reason))
        for name, above, first, last in parts:
            parent = made.get(above, root)
            span = made[name] = self._tracer.start_span(
                name,
                context=set_span_in_context(parent),
                start_time=_ns(trace, marks[first]),
            )
            span.end(_ns(trace, marks[last]))
        root.end(_ns(trace, max(marks.values())))

    def _attributes(self, trace: SetupTrace) -> dict[str, AttributeValue]:
        attributes = {
            **self._fixed,
            "zgate.result": str(trace.result),
            "zgate.client": trace.client,
            "zgate.dialect": trace.dialect,
            "zgate.session_id": trace.session_id,
            "zgate.reason": trace.reason,
            "http.response.status_code": trace.status,
        }
        if self._with_addresses:
            attributes["network.peer.address"] = trace.peer
        return {name: value for name, value in attributes.items() if value not in ("", 0)} | {
            "zgate.worker": self._fixed["zgate.worker"]
        }

    def counters(self) -> dict[str, int]:
        """See `Sink.counters`."""
        return {
            "spans_sent": self._exporter.sent,
            "spans_lost": self._exporter.lost + self._lost,
        }

    async def close(self) -> None:
        """See `Sink.close`."""
        if not self._exporter.is_taken or self._given <= self._exporter.done:
            return
        loop, is_flushed = asyncio.get_running_loop(), asyncio.Event()

        def flush() -> None:
            self._provider.force_flush()
            with contextlib.suppress(RuntimeError):  # the loop may be closed by then
                loop.call_soon_threadsafe(is_flushed.set)

        # Not one of the loop's own threads: at the end these are waited for.
        threading.Thread(target=flush, daemon=True).start()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(is_flushed.wait(), _LAST_WORDS_S)


class CountingExporter(SpanExporter):
    """Sends, and counts what arrived and what did not; says once that the collector is down.

    Attributes:
        sent, lost: spans.
        is_taken: whether the last batch arrived.
    """

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint.rstrip("/") + _PATH
        self._exporter = OTLPSpanExporter(endpoint=self._endpoint, timeout=_TIMEOUT_S)
        self.sent = 0
        self.lost = 0
        self.is_taken = True

    @property
    def done(self) -> int:
        """Spans that wait no more."""
        return self.sent + self.lost

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See `SpanExporter.export`; in the thread that sends."""
        try:
            result = self._exporter.export(spans)
        except Exception as error:
            logger.debug(
                "spans not sent: %(error)s", {"event": "spans_not_sent", "error": repr(error)}
            )
            result = SpanExportResult.FAILURE
        is_taken = result is SpanExportResult.SUCCESS
        if is_taken != self.is_taken:
            self._say(is_taken)
        if is_taken:
            self.sent += len(spans)
        else:
            self.lost += len(spans)
        return result

    def _say(self, is_taken: bool) -> None:
        self.is_taken = is_taken
        if is_taken:
            logger.info(
                "the trace collector takes spans again: %(endpoint)s",
                {"event": "trace_collector_back", "endpoint": self._endpoint},
            )
        else:
            logger.warning(
                "the trace collector takes no spans, they are lost: %(endpoint)s",
                {"event": "trace_collector_down", "endpoint": self._endpoint},
            )

    def shutdown(self) -> None:
        """See `SpanExporter.shutdown`."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """See `SpanExporter.force_flush`: nothing is held back."""
        return self._exporter.force_flush(timeout_millis)


def _ns(trace: SetupTrace, mark_s: float) -> int:
    """The time of day of a mark."""
    return round((trace.wall_s + mark_s) * 1e9)
