"""Numbers as people read them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from zgate_host.text import size_text, span_text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e6, "2.5 MB"), (7e15, "7000.0 TB")],
)
def test_sizes(size_bytes: float, text: str) -> None:
    assert size_text(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (59, "59 s"), (125, "2 min 5 s"), (12000, "3 h 20 min")]
)
def test_spans(seconds: int, text: str) -> None:
    assert span_text(timedelta(seconds=seconds)) == text
