"""How a gateway starts: with the compiled programs of its last start, and without."""

from __future__ import annotations

from pathlib import Path

import pytest
from zgate_lab.deployment import Deployment
from zgate_lab.process import Process

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


def test_the_second_start_compiles_nothing(deployment: Deployment, cache: Path) -> None:
    deployment.start_gateway().stop()
    kept = programs(cache)
    assert sorted(name.split("-")[0] for name in kept) == ["edge", "policy", "steering"]
    assert cache.stat().st_mode & 0o777 == 0o700

    second = deployment.start_gateway()
    maps = Path(f"/proc/{second.pid}/maps").read_text()
    assert "libbpf" in maps
    assert "libbcc" not in maps
    assert "LLVM" not in maps
    assert resident_kb(second) < MOST_RESIDENT_KB
    assert programs(cache) == kept


def test_a_damaged_cache_costs_a_compilation(deployment: Deployment, cache: Path) -> None:
    deployment.start_gateway().stop()
    kept = programs(cache)
    for name, content in kept.items():
        (cache / name).write_bytes(content[: len(content) // 2])
    second = deployment.start_gateway()
    assert second.output().count("is not used, the program is compiled: it is damaged") == len(kept)
    assert programs(cache) == kept


def test_a_foreign_cache_is_not_touched(deployment: Deployment, cache: Path) -> None:
    cache.mkdir(mode=0o777)
    cache.chmod(0o777)
    process = deployment.start_gateway()
    assert "others may write it: chmod go-w it" in process.output()
    assert programs(cache) == {}
