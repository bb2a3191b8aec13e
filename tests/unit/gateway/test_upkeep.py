"""What the parts of a gateway say of themselves, as problems. The parts are made up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from zgate_control.store import KeptStore, Lease
from zgate_gateway.net.errors import NetError
from zgate_gateway.problems import Problems
from zgate_gateway.upkeep import Upkeep
from zgate_gateway.worker.crew import WorkerState

NOW = datetime.now(UTC)
LEASE = Lease("alice", ip_address("10.100.0.2"), NOW, NOW)


class Clock:
    jump_s = jumped_by_s = 0.0

    def look(self) -> float:
        jump_s, self.jump_s = self.jump_s, 0.0
        return jump_s


class World:
    def __init__(self, folder: Path, store: KeptStore) -> None:
        self.problems = Problems()
        self.clock = Clock()
        self.down: list[WorkerState] = []
        self.recorded: list[float] = []
        self.reloads = 0
        self.written: list[int] = []
        revision: Any = SimpleNamespace(revision=7)
        self.policy = SimpleNamespace(
            error=None,
            path=folder / "policy.yaml",
            remembered=list,
            written=lambda done: self.written.extend(one.revision for one in done),
        )
        self.policy.path.write_text("")
        self.gateway: Any = SimpleNamespace(
            problems=self.problems,
            clock=self.clock,
            store=store,
            config=SimpleNamespace(state_dir=folder, runtime_dir=folder),
            audit=SimpleNamespace(
                path=folder / "audit.jsonl",
                last_error=None,
                lost=0,
                look=lambda: None,
                clock_jumped=lambda *, seconds: self.recorded.append(seconds),
            ),
            certificates=SimpleNamespace(reload=self._reload, keep=asyncio.Event().wait),
            dns=SimpleNamespace(problem=None),
            edge=SimpleNamespace(problem=None),
            crew=SimpleNamespace(not_ready=lambda: self.down),
            kernel=revision,
            policy=self.policy,
            pools=[SimpleNamespace(leases=lambda: [LEASE])],
            sessions=SimpleNamespace(by_client={}),
            services=SimpleNamespace(directory=SimpleNamespace(snapshot=dict)),
            api=SimpleNamespace(look=self._nothing, look_at_metrics_port=self._nothing),
            network=SimpleNamespace(look_at_state_file=self._refuse),
        )
        self.upkeep = Upkeep(self.gateway)

    def _reload(self) -> None:
        self.reloads += 1

    async def _nothing(self) -> None:
        return None

    def _refuse(self) -> None:
        raise NetError("the runtime directory is read-only")

    async def look(self, work: str = "looking at clock and parts") -> dict[str, str]:
        """Let one of the works go on for a moment; what lasts then."""
        works: dict[str, Callable[[], Awaitable[None]]] = dict(self.upkeep.works)
        task = asyncio.ensure_future(works[work]())
        for _ in range(5):  # a stall of the machine does not take all of it
            await asyncio.sleep(0.02)
        task.cancel()
        result = (await asyncio.gather(task, return_exceptions=True))[0]
        assert isinstance(result, asyncio.CancelledError)
        return {one.name: one.text for one in self.problems.active()}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("_LOOK_INTERVAL_S", "_AUDIT_INTERVAL_S", "_NAMES_INTERVAL_S"):
        monkeypatch.setattr(f"zgate_gateway.upkeep.{name}", 0.01)
    with KeptStore(tmp_path / "zgate.db") as store:
        yield World(tmp_path, store)


async def test_nothing_is_wrong(world: World) -> None:
    for work in ("looking at clock and parts", "looking at the audit log"):
        assert await world.look(work) == {}
    assert await world.look("looking at the API socket") == {}


async def test_parts_speak_for_themselves(world: World) -> None:
    world.gateway.dns.problem = "port 53 is taken"
    world.gateway.edge.problem = "no XDP"
    world.down = [WorkerState(1, None, 3, {})]
    found = await world.look()
    assert found["dns_down"] == "port 53 is taken" and found["edge_down"] == "no XDP"
    assert "worker 1 (started again 3 times)" in found["worker_restarting"]
    world.gateway.dns.problem = world.gateway.edge.problem = None
    world.down = []
    assert await world.look() == {}


async def test_a_policy_that_is_wrong_and_one_that_is_gone(world: World) -> None:
    world.policy.error = "line 3: no such action"
    found = await world.look()
    assert list(found) == ["policy_refused"] and "revision 7 stays" in found["policy_refused"]
    world.policy.path.unlink()
    assert list(await world.look()) == ["policy_missing"]
    world.policy.error = None
    assert await world.look() == {}


async def test_a_jump_is_recorded_once_and_lasts_as_long_as_it_is_not_believed(
    world: World,
) -> None:
    world.clock.jump_s = world.clock.jumped_by_s = -3600.0
    assert "3600 s back" in (await world.look())["clock_jumped"]
    assert (world.recorded, world.reloads) == ([-3600.0], 1)
    world.clock.jumped_by_s = 0.0
    assert await world.look() == {}


async def test_records_that_are_lost(world: World) -> None:
    world.gateway.audit.last_error, world.gateway.audit.lost = "No space left on device", 4
    found = await world.look("looking at the audit log")
    assert "4 records lost" in found["audit_not_written"]


async def test_what_is_known_is_written_into_a_lost_store(world: World, tmp_path: Path) -> None:
    (tmp_path / "zgate.db").unlink()
    work = world.upkeep.works["looking after the store"]
    task = asyncio.ensure_future(work())
    async with asyncio.timeout(10):
        while not (tmp_path / "zgate.db").exists() or world.gateway.store.lost is not None:
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert world.gateway.store.leases(4) == [LEASE]
