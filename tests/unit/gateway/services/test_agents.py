"""Who registered last; and that nobody can have that told without end."""

from __future__ import annotations

import asyncio

import pytest
from zgate_gateway.admission import MAX_SESSION_SERVICES
from zgate_gateway.services import agents as module
from zgate_gateway.services.agents import Agents

from ....loopback import eventually  # noqa: TID252
from .conftest import World


async def test_the_services_of_a_session_are_bounded(world: World) -> None:
    agents = Agents(lambda service: None, asyncio.get_running_loop())
    session, other = world.session(), world.session()
    assert all(agents.register(session, f"s{number}") for number in range(MAX_SESSION_SERVICES))
    assert not agents.register(session, "one more")
    assert agents.addresses_of("one more") == ()
    # What it has, it may ask for again; and others have their own.
    assert agents.register(session, "s1") and agents.register(other, "one more")
    agents.ended(session)
    agents.ended(session)
    agents.ended(other)
    assert agents._sessions == agents._services == {}


async def test_of_many_changes_the_newest_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TOLD_BURST", 3)
    monkeypatch.setattr(module, "_LATER_S", 0.01)
    told: list[tuple[str, object]] = []
    agents = Agents(
        lambda service: told.append((service, agents.addresses_of(service))),
        asyncio.get_running_loop(),
    )
    one, other = world.session(), world.session()
    for _ in range(1000):
        agents.register(one, "pacs")
        agents.register(other, "pacs")
    assert len(told) <= 4
    agents.ended(one)
    agents.ended(other)
    await eventually(lambda: told[-1] == ("pacs", ()))
    assert len(told) <= 6
