import asyncio
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from zgate_datapath.client import TunnelError
from zgate_lab.process import Process

from bench.errors import MeasurementFailed
from bench.load import sessions as load
from bench.sections import sessions


class Said:
    """A process that has printed this."""

    def __init__(self, **said: object):
        self._line = load.DONE + json.dumps(said)

    def wait_for_output(self, pattern: str, _timeout_s: float) -> re.Match[str]:
        found = re.search(pattern, self._line, re.MULTILINE)
        assert found
        return found


def _wait(**said: object) -> dict[str, float]:
    return sessions._wait(cast(Process, Said(**said)), 1.0)


def test_few_failures_are_told_and_many_are_a_failure() -> None:
    assert _wait(opened=1000, failed=9, failure="no")["opened"] == 1000
    with pytest.raises(MeasurementFailed, match="20 sessions failed: no"):
        _wait(opened=1000, failed=20, failure="no")
    with pytest.raises(MeasurementFailed, match="no session came up: refused"):
        _wait(opened=0, failed=1, failure="refused")


class FakeClient:
    def __init__(self, ended: list[str], name: str):
        self._ended, self._name = ended, name

    async def close(self, _reason: str) -> None:
        self._ended.append(self._name)


def _dialing(ended: list[str], fails: Callable[[str], bool]) -> Any:
    async def dial(config: Any) -> FakeClient:
        await asyncio.sleep(0)
        if fails(config.certificate_file):
            raise TunnelError("refused")
        return FakeClient(ended, config.certificate_file)

    return dial


def _dialer(count: int, concurrency: int) -> load.Dialer:
    configs = [load.config_of("192.0.2.1", "gateway", Path("/x"), one) for one in range(count)]
    return load.Dialer(configs, concurrency)


def test_holding_dials_each_identity_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr(load, "dial", _dialing(ended, lambda name: name == "/x/3.crt"))
    dialer = _dialer(10, 4)
    asyncio.run(dialer.hold())
    assert (dialer.opened, len(dialer.clients), dialer.failures) == (9, 9, ["refused"])
    assert ended == []


def test_the_rate_ends_what_it_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr(load, "dial", _dialing(ended, lambda _: False))
    dialer = _dialer(8, 4)
    start_s = time.monotonic()
    asyncio.run(dialer.rate(0.5))
    assert time.monotonic() - start_s < 5
    assert dialer.opened == len(ended) >= 8
    assert set(ended) == {f"/x/{one}.crt" for one in range(8)}


def test_pinning_leaves_a_core_to_the_gateway() -> None:
    every = os.sched_getaffinity(0)
    try:
        sessions._pin(os.getpid(), last=False)
        others = os.sched_getaffinity(0)
    finally:
        os.sched_setaffinity(0, every)
    assert others == (every - {max(every)} or every)
