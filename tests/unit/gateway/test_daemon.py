"""The daemon's end, where a part of it fails. Its life as a whole: ``tests/e2e``."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from zgate_gateway.config import GatewayConfig
from zgate_gateway.daemon import Gateway


async def test_an_end_that_fails_takes_back_what_was_set_up(tmp_path: Path) -> None:
    async def fail() -> None:
        raise NotADirectoryError(20, "Not a directory")

    closed: list[str] = []

    def part(name: str) -> Any:
        return SimpleNamespace(close=lambda: closed.append(name))

    config = GatewayConfig(state_dir=tmp_path, runtime_dir=tmp_path)
    gateway = Gateway(config, part("port"), part("head start"), lambda: config)
    gateway.crew = SimpleNamespace(stop=fail)  # type: ignore[assignment]
    with pytest.raises(NotADirectoryError):
        await gateway._stop()
    assert closed == ["port", "head start"]
