"""How a gateway starts: with the compiled programs of its last start, and without."""

from __future__ import annotations

from pathlib import Path

import pytest
from zgate_lab.deployment import Deployment
from zgate_lab.process import Process

COLD_START_S = 120.0
# Seen with SQLAlchemy, pydantic, pyroute2 and no compiler: 101 MB.
MOST_RESIDENT_KB = 150_000


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the gateway keeps compiled programs: nothing is there yet."""
    made = tmp_path / "cache"
    monkeypatch.setenv("CACHE_DIRECTORY", str(made))
    return made


def programs(cache: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in cache.iterdir()}


def resident_kb(process: Process) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def start(deployment: Deployment) -> Process:
    """A start that may have to compile, on a machine that is busy with other tests."""
    process = deployment.spawn_gateway()
    process.wait_for(lambda: deployment._is_ready(process), COLD_START_S, "ready")
    return process


def test_only_the_first_start_compiles(deployment: Deployment, cache: Path) -> None:
    start(deployment).stop()
    kept = programs(cache)
    assert sorted(name.split("-")[0] for name in kept) == ["edge", "policy", "steering"]
    assert cache.stat().st_mode & 0o777 == 0o700

    second = start(deployment)
    maps = Path(f"/proc/{second.pid}/maps").read_text()
    assert "libbpf" in maps
    assert "libbcc" not in maps
    assert "LLVM" not in maps
    assert resident_kb(second) < MOST_RESIDENT_KB
    assert programs(cache) == kept
    second.stop()

    damaged = {name: content for name, content in kept.items() if not name.startswith("policy")}
    for name, content in damaged.items():
        (cache / name).write_bytes(content[: len(content) // 2])
    third = start(deployment)
    told = third.output().count("is not used, the program is compiled: it is damaged")
    assert told == len(damaged) == 2
    assert programs(cache) == kept
