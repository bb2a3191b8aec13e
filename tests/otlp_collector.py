"""A trace collector for tests: OTLP over HTTP, decoded with the protocol's own definitions."""

from __future__ import annotations

import gzip
import socket
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True)
class ReceivedSpan:
    """One span, in plain words; times in seconds since the epoch."""

    name: str
    trace_id: bytes
    span_id: bytes
    parent_span_id: bytes
    began_s: float
    ended_s: float
    attributes: dict[str, Any]
    resource: dict[str, Any]
    is_error: bool

    @property
    def duration_s(self) -> float:
        return self.ended_s - self.began_s


class OtlpCollector:
    """Listens on `sock`, or on a port of loopback; `status` is what it answers."""

    def __init__(self, sock: socket.socket | None = None) -> None:
        self.spans: list[ReceivedSpan] = []
        self.status = 200
        self.requests = 0
        if sock is None:
            sock = socket.create_server(("127.0.0.1", 0))
        self._server = ThreadingHTTPServer(sock.getsockname(), None, bind_and_activate=False)  # type: ignore[arg-type]
        self._server.socket.close()
        self._server.socket = sock
        self._server.daemon_threads = True
        self._server.RequestHandlerClass = self._handler()
        self.endpoint = "http://{}:{}".format(*sock.getsockname())
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.headers["content-type"] == "application/x-protobuf"
                collector.take(self.path, body)
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(collector.status)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:
                return None

        return Handler

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, path: str, body: bytes) -> None:
        """A request."""
        self.requests += 1
        assert path == "/v1/traces"
        if self.status != 200:
            return
        request = ExportTraceServiceRequest.FromString(body)
        for of_resource in request.resource_spans:
            resource = _plain(of_resource.resource.attributes)
            for of_scope in of_resource.scope_spans:
                self.spans += [_span(one, resource) for one in of_scope.spans]

    def traces(self) -> list[dict[str, ReceivedSpan]]:
        """What has come, by trace, each by the spans' names."""
        found: dict[bytes, dict[str, ReceivedSpan]] = {}
        for span in list(self.spans):
            found.setdefault(span.trace_id, {})[span.name] = span
        return list(found.values())

    def whole(self) -> list[dict[str, ReceivedSpan]]:
        """Those of which the outermost span has come, which is the last to end."""
        return [one for one in self.traces() if "session.setup" in one]


def _span(span: Any, resource: dict[str, Any]) -> ReceivedSpan:
    return ReceivedSpan(
        name=span.name,
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=span.parent_span_id,
        began_s=span.start_time_unix_nano / 1e9,
        ended_s=span.end_time_unix_nano / 1e9,
        attributes=_plain(span.attributes),
        resource=resource,
        is_error=span.status.code == span.status.STATUS_CODE_ERROR,
    )


def _plain(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
