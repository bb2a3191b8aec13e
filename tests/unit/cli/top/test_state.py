"""What keys and answers do, without a terminal and without a gateway."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zgate_cli.top.state import (
    SORTS,
    Answered,
    Ask,
    AskFlows,
    Failed,
    Key,
    Kick,
    Kicked,
    KickPrompt,
    Mode,
    Quit,
    Redraw,
    Resized,
    State,
    Tick,
)
from zgate_cli.top.view import lines_of
from zgate_gateway.api import schemas


class Gateway:
    """Answers what a state asks, from a list of so many sessions."""

    def __init__(self, fake_gateway: Any, count: int) -> None:
        self.status = fake_gateway.status()
        one = fake_gateway.up[0]
        self.up = [
            one.model_copy(update={"client": f"c{n}", "session_id": f"s{n}"}) for n in range(count)
        ]

    def answer(self, query: schemas.SessionQuery) -> Answered:
        assert query.limit is not None
        found = [one for one in self.up if query.filter in one.client]
        shown = found[query.offset : query.offset + query.limit]
        listed = schemas.SessionList(sessions=shown, total=len(self.up), matched=len(found))
        return Answered(query, self.status, listed)


class Session:
    """A state, and a gateway that answers it; a second passes with each thing that happens."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.state = State()
        self.now = 0.0
        self.others: list[object] = []
        self.do(Tick())

    def do(self, event: Any) -> None:
        self.now += 1.0
        self._carry_out(self.state.handle(event, self.now))

    def _carry_out(self, commands: list[Any]) -> None:
        for command in commands:
            if isinstance(command, Ask):
                answered = self.gateway.answer(command.query)
                self._carry_out(self.state.handle(answered, self.now))
            else:
                self.others.append(command)

    def press(self, *names: str) -> None:
        for name in names:
            self.do(Key(name))

    @property
    def chosen(self) -> str:
        assert self.state.chosen is not None
        return self.state.chosen.client


@pytest.fixture
def session(fake_gateway: Any) -> Session:
    return Session(Gateway(fake_gateway, 50))


def test_one_question_at_a_time_and_no_more_often_than_wanted() -> None:
    state = State(interval_s=2.0)
    (ask,) = state.handle(Tick(), 10.0)
    assert isinstance(ask, Ask) and ask.query.limit == 20
    assert state.handle(Tick(), 20.0) == []
    assert state.wake_at() is None
    state.handle(Failed("gone"), 20.0)
    assert state.wake_at() == 22.0
    assert state.handle(Tick(), 21.9) == []
    assert len(state.handle(Tick(), 22.0)) == 1


def test_paused_it_asks_only_for_what_somebody_wants_to_see(session: Session) -> None:
    session.press("p")
    session.gateway.up = session.gateway.up[10:]
    session.do(Tick())
    assert session.chosen == "c0" and session.state.wake_at() is None
    session.press("S")
    assert session.chosen == "c10"
    session.press("f")
    assert session.others[-1] == AskFlows("c10", session.state.rows)
    session.state.handle(Failed("gone"), session.now)
    session.do(Tick())
    assert len([one for one in session.others if isinstance(one, AskFlows)]) == 1
    session.press("p")
    assert len([one for one in session.others if isinstance(one, AskFlows)]) == 2


def test_the_cursor_and_the_window(session: Session) -> None:
    rows = session.state.rows
    assert session.chosen == "c0"
    session.press("down", "down")
    assert (session.chosen, session.state.offset) == ("c2", 0)
    session.press("up", "up", "up")
    assert session.chosen == "c0"
    session.press(*["down"] * rows)
    assert (session.state.offset, session.chosen) == (1, f"c{rows}")
    session.press("pgdn")
    assert session.state.offset == 1 + rows
    session.press("end")
    assert session.state.offset == 50 - rows
    assert session.chosen == "c49"
    session.press("down")
    assert session.chosen == "c49"
    session.press("home")
    assert (session.state.offset, session.chosen) == (0, "c0")


def test_the_chosen_one_stays_chosen_when_the_order_changes(session: Session) -> None:
    session.press("down", "down")
    session.gateway.up = session.gateway.up[::-1]
    session.gateway.up.insert(0, session.gateway.up.pop(session.gateway.up.index(
        next(one for one in session.gateway.up if one.client == "c2"))))  # fmt: skip
    session.do(Tick())
    assert (session.chosen, session.state.cursor) == ("c2", 0)


def test_the_one_who_is_asked_about_is_the_one_who_is_kicked(session: Session) -> None:
    session.press("down", "k")
    assert session.state.prompt == KickPrompt("c1")
    session.gateway.up = session.gateway.up[5:]
    session.do(Tick())
    session.press("y")
    assert session.others == [Kick("c1")]
    session.do(Kicked("closed 1 session of c1", is_done=True))
    assert session.state.message == "closed 1 session of c1"
    for _ in range(8):
        session.do(Tick())
    assert session.state.message == ""


@pytest.mark.parametrize("key", ["n", "esc", "enter", "q", "k"])
def test_any_other_key_kicks_nobody(session: Session, key: str) -> None:
    session.press("k", key)
    assert session.others == [] and session.state.prompt is None


def test_sorting_and_filtering_begin_at_the_top(session: Session) -> None:
    session.press("end", "s")
    assert (session.state.sort, session.state.offset) == (SORTS[1], 0)
    session.press("S", "S")
    assert session.state.sort is SORTS[-1]
    session.press("r")
    assert session.state.reverse
    session.press("/", "c", "4", "q", "backspace", "enter")
    assert session.state.filter == "c4"
    assert session.state.sessions is not None
    assert session.state.sessions.matched == 11
    session.press("/", "x", "esc")
    assert session.state.filter == "c4"
    session.press("esc")
    assert session.state.filter == ""


def test_a_window_that_is_too_far_down_comes_back(session: Session) -> None:
    session.press("end")
    session.gateway.up = session.gateway.up[:3]
    session.do(Tick())
    session.do(Tick())
    assert (session.state.offset, session.chosen) == (0, "c0")


def test_pausing_asks_no_more(session: Session) -> None:
    session.press("p")
    assert session.state.wake_at() is None
    assert session.state.handle(Tick(), 1000.0) == []
    session.press("p")
    assert session.state.wake_at() is not None


def test_flows_of_the_chosen_one(session: Session) -> None:
    session.press("down", "enter")
    assert session.state.mode is Mode.FLOWS
    assert session.others == [AskFlows("c1", session.state.rows)]
    session.do(Failed("no"))
    session.press("esc")
    assert session.state.mode is Mode.SESSIONS


def test_quit_and_redraw(session: Session) -> None:
    session.press("redraw", "q")
    assert session.others == [Redraw(), Quit()]


KEYS = st.sampled_from(
    ["up", "down", "pgup", "pgdn", "home", "end", "s", "r", "/", "c", "1", "enter", "esc", "k", "y",
     "n", "p", "f", "i", "?", "backspace", "left", "clear", "tab"]
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        KEYS.map(Key)
        | st.just(Failed("gone"))
        | st.builds(Resized, st.integers(0, 200), st.integers(0, 60))
        | st.integers(0, 60),
        max_size=30,
    )
)
def test_any_course(events: list[Any]) -> None:
    """Nothing raises, the cursor is on a session if there is one, and the screen can be drawn."""
    from datetime import UTC, datetime

    fake = _fake()
    session = Session(Gateway(fake, 30))
    for event in events:
        if isinstance(event, int):
            session.gateway.up = Gateway(fake, event).up
            session.do(Tick())
        else:
            session.do(event)
        state = session.state
        assert 0 <= state.cursor <= max(0, len(state.shown) - 1)
        assert state.offset >= 0
        assert (state.chosen is None) == (not state.shown)
        lines = lines_of(state, session.now, clock=datetime.now(UTC))
        assert len(lines) == state.height


def _fake() -> Any:
    from types import SimpleNamespace

    status = schemas.Status(
        version="1", state=schemas.GatewayState.READY, started_at="2026-01-01T00:00:00Z",
        uptime_s=1, pid=1, listen=[], engine="python", tun_name="t", tun_mtu_bytes=1280, sessions=0,
        sessions_max=1, policy=schemas.PolicySummary(revision=1),
    )  # fmt: skip
    one = schemas.Session(
        client="c", session_id="s", peer="192.0.2.1:1", addresses=["10.0.0.1/32"],
        established_at="2026-01-01T00:00:00Z", age_s=1, mtu_bytes=1280, certificate_serial="1",
        certificate_not_after="2026-01-01T00:00:00Z",
    )  # fmt: skip
    return SimpleNamespace(status=lambda: status, up=[one])
