"""Whether OpenTelemetry is there: it is an extra (`pip install zgate[otel]`)."""

from __future__ import annotations

from importlib.util import find_spec

_NEEDED = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter")


def is_installed() -> bool:
    """Whether traces can be sent. Imports no more than the packages above the modules."""
    try:
        return all(find_spec(name) is not None for name in _NEEDED)
    except ImportError:  # a package above it is missing
        return False
