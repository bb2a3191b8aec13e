"""The metrics port of agents and connectors."""

from __future__ import annotations

import socket

import httpx
import pytest
from zgate_host.metrics_port import counter, gauge, serving_metrics


async def test_metrics_and_health() -> None:
    scraped = []

    def families() -> list[object]:
        scraped.append(1)
        return [
            gauge("zgate_test_level", "A level", values=[((), 3)]),
            counter("zgate_test_things", "Things", ["kind"], [(("odd",), 2)]),
        ]

    async with serving_metrics("127.0.0.1", 0, families) as port:  # type: ignore[arg-type]
        assert scraped == []
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            answer = await client.get("/metrics")
            assert answer.headers["content-type"].startswith("text/plain")
            assert "zgate_test_level 3.0" in answer.text
            assert 'zgate_test_things_total{kind="odd"} 2.0' in answer.text
            assert (await client.get("/health")).json() == {"ok": True}
            missing = await client.get("/v1/status")
            assert missing.status_code == 404
            assert missing.json()["detail"] == "there is only /metrics and /health"
            assert (await client.post("/metrics")).status_code == 405
    assert scraped == [1]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/metrics")


async def test_none_unless_it_is_configured() -> None:
    async with serving_metrics("127.0.0.1", None, list) as port:
        assert port is None


async def test_a_port_that_is_taken_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        async with serving_metrics("127.0.0.1", taken.getsockname()[1], list) as port:
            assert port is None
    assert "set metrics.address and metrics.port" in caplog.text
