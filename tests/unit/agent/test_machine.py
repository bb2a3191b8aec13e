"""The state machine, as scripts of events in and commands out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_agent.config import OnDisconnect
from zgate_agent.machine import (
    STABLE_AFTER_S,
    Command,
    Connect,
    ConnectFailed,
    Disconnect,
    Drop,
    Event,
    Machine,
    PathChanged,
    Program,
    ProgramFailed,
    Quit,
    Rebind,
    ReconnectAsked,
    Renew,
    Started,
    State,
    StopAsked,
    Switch,
    TunnelChanged,
    TunnelClosed,
    TunnelUp,
    WakeUp,
    Withdraw,
)
from zgate_host.backoff import Backoff
from zgate_protocol import goodbye

from .conftest import tunnel_state

UP = tunnel_state()
CHANGED = tunnel_state("10.100.0.9/32")

Step = tuple[float, Event, list[Command]]


def machine(on_disconnect: OnDisconnect = OnDisconnect.BLOCK) -> Machine:
    """A machine whose delays are 2, 4, 8, 16 and 30 seconds."""
    return Machine(Backoff(lambda: 1.0), on_disconnect, now=0.0)


def play(subject: Machine, *script: Step) -> Machine:
    for now, event, commands in script:
        assert subject.handle(event, now) == commands, f"{event} at {now}"
    return subject


START: Step = (0, Started(), [Connect(1)])
CONNECTED: tuple[Step, ...] = (START, (1, TunnelUp(1, UP), [Program(1, UP)]))


def test_it_dials_programs_and_is_connected() -> None:
    subject = play(machine(), *CONNECTED)
    assert (subject.state, subject.since, subject.reason) == (State.CONNECTED, 1, "")


def test_a_failed_attempt_waits_and_dials_again() -> None:
    subject = play(machine(), START, (5, ConnectFailed(1, "no answer"), []))
    assert (subject.state, subject.reason, subject.wake_at) == (State.BACKOFF, "no answer", 7)
    play(subject, (6.9, WakeUp(), []), (7, WakeUp(), [Connect(2)]))
    assert (subject.state, subject.wake_at) == (State.CONNECTING, None)
    assert subject.reason == "no answer", "why it is not connected is known while it dials"


def test_delays_grow_while_attempts_fail() -> None:
    subject = play(machine(), START)
    now, delays = 0.0, []
    for attempt in range(1, 7):
        subject.handle(ConnectFailed(attempt, "no"), now)
        assert subject.wake_at is not None
        delays.append(subject.wake_at - now)
        now = subject.wake_at
        assert subject.handle(WakeUp(), now) == [Connect(attempt + 1)]
    assert delays == [2, 4, 8, 16, 30, 30]


def test_a_lost_session_keeps_routes_and_addresses_by_default() -> None:
    subject = play(machine(), *CONNECTED, (100, TunnelClosed(1, "idle"), [Disconnect("idle")]))
    assert (subject.state, subject.reason) == (State.BACKOFF, "idle")


def test_a_lost_session_releases_them_when_so_configured() -> None:
    lost: Step = (100, TunnelClosed(1, "idle"), [Disconnect("idle"), Withdraw()])
    play(machine(OnDisconnect.RELEASE), *CONNECTED, lost)


def test_a_stable_session_resets_the_delay() -> None:
    subject = play(
        machine(),
        START,
        (0, ConnectFailed(1, "no"), []),
        (2, WakeUp(), [Connect(2)]),
        (2, ConnectFailed(2, "no"), []),
        (6, WakeUp(), [Connect(3)]),
        (10, TunnelUp(3, UP), [Program(3, UP)]),
        (10 + STABLE_AFTER_S, TunnelClosed(3, "lost"), [Disconnect("lost")]),
    )
    assert subject.wake_at == 10 + STABLE_AFTER_S + 2


def test_a_short_session_does_not() -> None:
    subject = play(
        machine(),
        START,
        (0, ConnectFailed(1, "no"), []),
        (2, WakeUp(), [Connect(2)]),
        (3, TunnelUp(2, UP), [Program(2, UP)]),
        (4, TunnelClosed(2, "replaced"), [Disconnect("replaced")]),
    )
    assert subject.wake_at == 4 + 4


def test_changes_of_the_session_are_programmed() -> None:
    play(machine(), *CONNECTED, (2, TunnelChanged(1, CHANGED), [Program(1, CHANGED)]))


def test_a_network_that_cannot_be_programmed_ends_the_session() -> None:
    failed: Step = (2, ProgramFailed(1, "no way"), [Disconnect("the host's network failed")])
    subject = play(machine(), *CONNECTED, failed)
    assert (subject.state, subject.reason) == (State.BACKOFF, "no way")


def test_a_new_path_moves_the_session() -> None:
    subject = play(machine(), *CONNECTED, (2, PathChanged(True), [Rebind()]))
    assert subject.state is State.CONNECTED


def test_a_lost_path_leaves_the_session_alone() -> None:
    subject = play(machine(), *CONNECTED, (2, PathChanged(False), []))
    assert subject.state is State.CONNECTED


def test_a_new_path_ends_the_wait() -> None:
    play(
        machine(),
        START,
        (0, ConnectFailed(1, "unreachable"), []),
        (0.1, PathChanged(False), []),
        (0.2, PathChanged(True), [Connect(2)]),
    )


def test_a_new_path_makes_a_hanging_attempt_begin_again() -> None:
    again: list[Command] = [Disconnect("the path has changed"), Connect(2)]
    play(machine(), START, (3, PathChanged(True), again))


def test_reconnecting_on_request() -> None:
    again: list[Command] = [Disconnect("reconnecting on request"), Connect(2)]
    play(machine(), START, (2, ReconnectAsked(), again))


# Renewal.

RENEWING: tuple[Step, ...] = (*CONNECTED, (10, ReconnectAsked("another certificate"), [Renew(2)]))


def test_a_session_is_renewed_beside_the_first() -> None:
    subject = play(machine(), *RENEWING)
    assert (subject.state, subject.attempt, subject.renewal) == (State.CONNECTED, 1, 2)
    play(
        subject,
        (10.1, TunnelChanged(1, CHANGED), [Program(1, CHANGED)]),
        (10.2, TunnelUp(2, UP), [Switch(2), Program(2, UP)]),
        (10.3, TunnelClosed(1, "renewed"), []),
        (10.4, TunnelChanged(1, UP), []),
        (10.5, TunnelChanged(2, CHANGED), [Program(2, CHANGED)]),
    )
    assert (subject.state, subject.since, subject.reconnects) == (State.CONNECTED, 1, 1)
    assert (subject.attempt, subject.renewal, subject.wake_at) == (2, None, None)


def test_a_renewal_that_fails_leaves_the_session_and_is_tried_again() -> None:
    subject = play(machine(), *RENEWING, (11, ConnectFailed(2, "refused"), []))
    assert (subject.state, subject.reason, subject.attempt) == (State.CONNECTED, "", 1)
    assert (subject.renewal_problem, subject.wake_at) == ("refused", 13)
    play(
        subject,
        (12.9, WakeUp(), []),
        (13, WakeUp(), [Renew(3)]),
        (14, ConnectFailed(3, "refused again"), []),
    )
    assert (subject.renewal_problem, subject.wake_at) == ("refused again", 18)
    play(subject, (18, WakeUp(), [Renew(4)]), (19, TunnelUp(4, UP), [Switch(4), Program(4, UP)]))
    assert subject.renewal_problem == ""


def test_what_changes_during_a_renewal_asks_for_another() -> None:
    once_more: list[Command] = [Switch(2), Program(2, UP), Renew(3)]
    play(
        machine(),
        *RENEWING,
        (10.1, ReconnectAsked(), []),
        (10.2, ReconnectAsked(), []),
        (10.3, TunnelUp(2, UP), once_more),
        (10.4, TunnelUp(3, UP), [Switch(3), Program(3, UP)]),
    )
    play(
        machine(),
        *RENEWING,
        (10.1, ReconnectAsked(), []),
        (10.3, ConnectFailed(2, "half a file"), [Renew(3)]),
    )


def test_a_session_that_ends_during_its_renewal() -> None:
    subject = play(machine(), *RENEWING, (11, TunnelClosed(1, "idle"), [Drop("idle")]))
    assert (subject.state, subject.attempt, subject.reason) == (State.CONNECTING, 2, "idle")
    play(subject, (12, TunnelUp(2, UP), [Program(2, UP)]))
    assert (subject.state, subject.reconnects) == (State.CONNECTED, 1)
    lost: list[Command] = [Drop("idle"), Withdraw()]
    released = machine(OnDisconnect.RELEASE)
    play(released, *RENEWING, (11, TunnelClosed(1, "idle"), lost), (12, ConnectFailed(2, "x"), []))
    assert released.state is State.BACKOFF


def test_a_gateway_that_closes_the_first_when_it_sees_the_second() -> None:
    subject = play(
        machine(),
        *RENEWING,
        (11, TunnelClosed(1, goodbye.REPLACED), []),
        (11.1, TunnelUp(2, UP), [Switch(2), Program(2, UP)]),
    )
    assert subject.state is State.CONNECTED
    subject = play(
        machine(),
        *RENEWING,
        (11, TunnelClosed(1, goodbye.REPLACED), []),
        (11.1, ConnectFailed(2, "no"), [Disconnect("no")]),
    )
    assert (subject.state, subject.reason) == (State.BACKOFF, "no")


def test_a_renewed_session_that_cannot_be_programmed() -> None:
    failed: Step = (12, ProgramFailed(2, "no way"), [Disconnect("the host's network failed")])
    subject = play(machine(), *RENEWING, (11, TunnelUp(2, UP), [Switch(2), Program(2, UP)]), failed)
    assert subject.state is State.BACKOFF


# Goodbyes.


@pytest.mark.parametrize("reason", [goodbye.STOPPING, goodbye.CONNECTION_LOST])
def test_a_gateway_that_is_started_anew_is_dialled_at_once(reason: str) -> None:
    subject = play(machine(), *CONNECTED, (100, TunnelClosed(1, reason), [Disconnect(reason)]))
    now, attempt = 100.0, 1
    while now < 114:
        assert subject.wake_at is not None
        assert 0 < subject.wake_at - now < 0.71
        now, attempt = subject.wake_at, attempt + 1
        assert subject.handle(WakeUp(), now) == [Connect(attempt)]
        subject.handle(ConnectFailed(attempt, "nobody listens"), now)
    play(subject, (200, WakeUp(), [Connect(attempt + 1)]))
    subject.handle(ConnectFailed(attempt + 1, "nobody listens"), 200)
    assert subject.wake_at == 202, "from then on as after any fault"


def test_who_is_replaced_by_somebody_else_begins_no_fight() -> None:
    subject, now = machine(), 0.0
    subject.handle(Started(), now)
    delays = []
    for attempt in range(1, 9):
        subject.handle(TunnelUp(attempt, UP), now)
        subject.handle(TunnelClosed(attempt, goodbye.REPLACED), now)
        assert subject.wake_at is not None
        delays.append(subject.wake_at - now)
        now = subject.wake_at
        assert subject.handle(WakeUp(), now) == [Connect(attempt + 1)]
    assert delays == [75, 150, 300, 600, 1200, 2400, 4500, 4500]


def test_reconnecting_on_request_ends_the_wait() -> None:
    subject = play(
        machine(), START, (0, ConnectFailed(1, "no"), []), (1, ReconnectAsked(), [Connect(2)])
    )
    subject.handle(ConnectFailed(2, "no"), 1)
    assert subject.wake_at == 3, "and begins the delays anew"


@pytest.mark.parametrize("before", [(START,), CONNECTED, (START, (0, ConnectFailed(1, "no"), []))])
def test_stopping_works_from_anywhere(before: tuple[Step, ...]) -> None:
    end: list[Command] = [Disconnect("SIGTERM"), Withdraw(), Quit(0)]
    subject = play(machine(), *before, (5, StopAsked("SIGTERM"), end))
    assert (subject.state, subject.reason) == (State.STOPPED, "SIGTERM")


def test_it_can_stop_because_it_failed() -> None:
    subject = play(machine(), *CONNECTED)
    assert subject.handle(StopAsked("TUN gone", 1), 2)[-1] == Quit(1)


def test_an_abandoned_attempt_is_not_heard() -> None:
    subject = play(
        machine(), START, (1, ReconnectAsked(), [Disconnect("reconnecting on request"), Connect(2)])
    )
    for event in (
        TunnelUp(1, UP),
        ConnectFailed(1, "x"),
        TunnelClosed(1, "x"),
        ProgramFailed(1, "x"),
    ):
        assert subject.handle(event, 2) == []
    assert (subject.state, subject.reason) == (State.CONNECTING, "")


@pytest.mark.parametrize("event", [TunnelUp(1, UP), ConnectFailed(1, "x")], ids=["up", "failed"])
def test_an_attempt_has_one_outcome(event: Event) -> None:
    """Whatever is said of the first one again, the renewal beside it goes on."""
    switched = [Switch(2), Program(2, UP)]
    subject = play(machine(), *RENEWING, (10.1, event, []), (10.2, TunnelUp(2, UP), switched))
    assert (subject.state, subject.reconnects) == (State.CONNECTED, 1)


def test_a_failure_is_told_once() -> None:
    subject = play(
        machine(),
        *CONNECTED,
        (2, ProgramFailed(1, "no way"), [Disconnect("the host's network failed")]),
        (2, TunnelClosed(1, "the host's network failed"), []),
    )
    assert subject.reason == "no way"


def test_sessions_after_the_first_are_counted() -> None:
    subject = machine()
    assert subject.reconnects == 0
    play(subject, *CONNECTED)
    assert subject.reconnects == 0
    subject.handle(ReconnectAsked(), 2)
    subject.handle(TunnelUp(2, UP), 3)
    assert subject.reconnects == 1


def events() -> st.SearchStrategy[Event]:
    attempt = st.integers(0, 6)
    text = st.sampled_from(["a", "b"])
    return st.one_of(
        st.builds(TunnelUp, attempt, st.just(UP)),
        st.builds(TunnelChanged, attempt, st.just(CHANGED)),
        st.builds(ConnectFailed, attempt, text),
        st.builds(TunnelClosed, attempt, text),
        st.builds(ProgramFailed, attempt, text),
        st.builds(PathChanged, st.booleans()),
        st.just(WakeUp()),
        st.just(ReconnectAsked()),
        st.builds(StopAsked, text),
    )


@given(st.lists(st.tuples(events(), st.floats(0, 40)), max_size=60), st.sampled_from(OnDisconnect))
def test_whatever_happens(script: list[tuple[Event, float]], on_disconnect: OnDisconnect) -> None:
    """One attempt, and one beside a session at most; it waits exactly while it backs off, or to
    renew; after the end, silence."""
    subject, now, open_lines = machine(on_disconnect), 0.0, set[int]()
    for event, later in [(Started(), 0.0), *script]:
        now += later
        was_stopped = subject.state is State.STOPPED
        before = subject.attempt
        under_way = subject.renewal if subject.state is State.CONNECTED else before
        commands = subject.handle(event, now)
        assert not (was_stopped and commands)
        if isinstance(event, ConnectFailed) and event.attempt == under_way:
            open_lines.discard(event.attempt)
        for command in commands:
            match command:
                case Disconnect():
                    open_lines.clear()
                case Drop():
                    open_lines.discard(before)
                case Connect(attempt):
                    assert not open_lines, "the earlier attempt was not abandoned"
                    open_lines.add(attempt)
                case Renew(attempt):
                    assert open_lines == {subject.attempt}
                    open_lines.add(attempt)
                case Switch(attempt):
                    assert attempt in open_lines
                    open_lines.discard(before)
        is_there = subject.state in (State.CONNECTING, State.CONNECTED)
        there = {subject.attempt, subject.renewal} - {None} if is_there else set()
        assert open_lines == there
        assert subject.renewal is None or subject.state is State.CONNECTED
        waits_to_renew = bool(subject.renewal_problem) and subject.renewal is None
        assert (subject.wake_at is not None) == (subject.state is State.BACKOFF or waits_to_renew)
        if subject.wake_at is not None and subject.state is State.BACKOFF:
            assert 1 <= subject.wake_at - subject.since <= 30
