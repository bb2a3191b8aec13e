"""The gateway lets go of its clients."""

from __future__ import annotations

import asyncio

import pytest
from zgate_gateway.admission import Refusal
from zgate_gateway.drain import GatewayDrain, gateway_drain_in
from zgate_gateway.worker import messages
from zgate_protocol import goodbye

from ...loopback import eventually  # noqa: TID252
from .test_registry import World


class Drained:
    """A registry, and who is told."""

    def __init__(self) -> None:
        self.world = World()
        self.told: list[messages.Message] = []
        self.states: list[str] = []
        self.record: list[object] = []
        self.connectors: set[str] = set()
        self.drain = GatewayDrain(
            self.world.registry,
            self,
            self,
            self.states.append,
            lambda session_id: session_id in self.connectors,
        )

    def tell(self, message: messages.Message) -> None:
        self.told.append(message)

    def gateway_drained(self, *, deadline_s: float, sessions: int) -> None:
        self.record.append((deadline_s, sessions))

    def gateway_undrained(self) -> None:
        self.record.append("undone")


async def test_clients_are_told_and_nobody_is_let_in() -> None:
    subject = Drained()
    subject.world.admit("alice")
    assert gateway_drain_in(subject.drain) is None
    subject.drain.begin(30.0)
    assert subject.told == [messages.DrainAll(30_000)]
    assert (subject.states, subject.record) == (["draining"], [(30.0, 1)])
    with pytest.raises(Refusal, match="the gateway is draining"):
        subject.world.admit("bob")
    shown = gateway_drain_in(subject.drain)
    assert shown is not None
    assert (shown.sessions_left, shown.deadline_s, shown.is_over) == (1, 30.0, False)
    assert "alice" in subject.world.registry.by_client, "who is there works on"
    subject.drain.close()


async def test_at_the_deadline_clients_are_closed_and_connectors_are_not() -> None:
    subject = Drained()
    session, connector = subject.world.admit("alice"), subject.world.admit("site-a")
    subject.connectors.add(connector.session_id)
    subject.drain.begin(0.01)
    assert subject.drain.sessions_left == 1
    await eventually(lambda: subject.drain.state and subject.drain.state.is_over)
    assert subject.world.workers[0].told == [(session.session_id, goodbye.DRAINED)]
    shown = gateway_drain_in(subject.drain)
    assert shown is not None
    assert (shown.sessions_left, shown.closed_sessions) == (0, 1)
    assert subject.states == ["draining"], "it stays so until it is stopped"


async def test_it_can_be_undone() -> None:
    subject = Drained()
    assert not subject.drain.undo()
    subject.world.admit("alice")
    subject.drain.begin(0.05)
    assert subject.drain.undo()
    assert (subject.states, subject.record[-1]) == (["draining", "ready"], "undone")
    subject.world.admit("bob")
    await asyncio.sleep(0.1)
    assert set(subject.world.registry.by_client) == {"alice", "bob"}


async def test_another_deadline_replaces_the_first() -> None:
    subject = Drained()
    subject.world.admit("alice")
    subject.drain.begin(60.0)
    subject.drain.begin(0.01)
    await eventually(lambda: not subject.world.registry.by_client)
    assert subject.told == [messages.DrainAll(60_000), messages.DrainAll(10)]
