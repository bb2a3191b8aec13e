"""The agent's life as a state machine: events in, commands out; no socket, no clock, no task.

                    ConnectFailed, lost, cannot program
      ┌────────────────────────────────────────────────────────┐
      │                                                        v
  CONNECTING ──TunnelUp──> CONNECTED ──TunnelClosed──────> BACKOFF
      ^                                                        │
      └──────────── WakeUp, PathChanged, ReconnectAsked ───────┘
                          StopAsked, from anywhere: STOPPED

Each attempt has a number, which its events carry: what an abandoned attempt still tells is not
heard. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from zgate_datapath.client import TunnelState
from zgate_host.backoff import Backoff

from zgate_agent.config import OnDisconnect

STABLE_AFTER_S = 30.0
"""A session that held this long ends the trouble before it: the next delay is a short one."""


class State(StrEnum):
    """Where the agent is."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    BACKOFF = "backoff"
    STOPPED = "stopped"


# Events.


@dataclass(frozen=True, slots=True)
class Started:
    """The agent is to begin."""


@dataclass(frozen=True, slots=True)
class TunnelUp:
    """The session is there; nothing is programmed yet."""

    attempt: int
    tunnel: TunnelState


@dataclass(frozen=True, slots=True)
class ConnectFailed:
    """No address of the gateway gave a session."""

    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class TunnelChanged:
    """The gateway changed addresses or routes, or the path its MTU."""

    attempt: int
    tunnel: TunnelState


@dataclass(frozen=True, slots=True)
class TunnelClosed:
    """The session ended, and not because we asked."""

    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class ProgramFailed:
    """The host's network could not be set up; nothing of it is left behind."""

    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class WakeUp:
    """The time of `Machine.wake_at` may have come."""


@dataclass(frozen=True, slots=True)
class PathChanged:
    """The physical way to the gateway is another one, or there is none."""

    is_available: bool


@dataclass(frozen=True, slots=True)
class ReconnectAsked:
    """Somebody wants a new session now (SIGHUP)."""


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The agent is to end: somebody wants it (SIGTERM, SIGINT), or it cannot go on."""

    reason: str
    exit_code: int = 0


Event = (
    Started
    | TunnelUp
    | ConnectFailed
    | TunnelChanged
    | TunnelClosed
    | ProgramFailed
    | WakeUp
    | PathChanged
    | ReconnectAsked
    | StopAsked
)


# Commands.


@dataclass(frozen=True, slots=True)
class Connect:
    """Resolve the gateway's name and try its addresses, one after the other."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Abandon the attempt, or close the session, telling the gateway why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Program:
    """Give the host's network what the session says. Done again with the same, nothing changes."""

    attempt: int
    tunnel: TunnelState


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Take everything back that was programmed."""


@dataclass(frozen=True, slots=True)
class Rebind:
    """Let the session go on from a new socket (RFC 9000 section 9)."""


@dataclass(frozen=True, slots=True)
class Quit:
    """End the process."""

    exit_code: int


Command = Connect | Disconnect | Program | Withdraw | Rebind | Quit


class Machine:
    """Decides. Whoever owns it carries the commands out in order, and feeds it events.

    Attributes:
        state: where the agent is.
        since: when it got there.
        reason: the last trouble; empty while connected.
        wake_at: in BACKOFF: when to feed `WakeUp`; else None.
        attempt: number of the current attempt, or of its session.
        reconnects: sessions after the first.
    """

    def __init__(self, backoff: Backoff, on_disconnect: OnDisconnect, now: float) -> None:
        self._backoff = backoff
        self._on_disconnect = on_disconnect
        self._sessions = 0
        self.state = State.CONNECTING
        self.since = now
        self.reason = ""
        self.wake_at: float | None = None
        self.attempt = 0

    @property
    def reconnects(self) -> int:
        """Sessions after the first."""
        return max(0, self._sessions - 1)

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take in one event; returns what is to be done, in order."""
        if self.state is State.STOPPED or self._is_stale(event):
            return []
        match event:
            case Started():
                return self._connect(now)
            case WakeUp():
                is_due = self.wake_at is not None and now >= self.wake_at
                return self._connect(now) if is_due else []
            case TunnelUp(attempt, tunnel):
                return self._connected(attempt, tunnel, now)
            case TunnelChanged(attempt, tunnel):
                return [Program(attempt, tunnel)] if self.state is State.CONNECTED else []
            case ConnectFailed(_, reason):
                return self._back_off(reason, now)
            case TunnelClosed(_, reason):
                return [Disconnect(reason), *self._lost(reason, now)]
            case ProgramFailed(_, reason):
                return [Disconnect("the host's network failed"), *self._lost(reason, now)]
            case PathChanged(is_available):
                return self._path_changed(is_available, now)
            case ReconnectAsked():
                self._backoff.reset()
                return [*self._abandon("reconnecting on request"), *self._connect(now)]
            case StopAsked(reason, exit_code):
                self._enter(State.STOPPED, now)
                self.reason = reason
                return [Disconnect(reason), Withdraw(), Quit(exit_code)]

    def _is_stale(self, event: Event) -> bool:
        attempt = getattr(event, "attempt", self.attempt)
        # After a failure the attempt is over, whatever else it has to say.
        return attempt != self.attempt or (
            self.state is State.BACKOFF and hasattr(event, "attempt")
        )

    def _enter(self, state: State, now: float) -> None:
        self.state = state
        self.since = now
        self.wake_at = None

    def _connect(self, now: float) -> list[Command]:
        self._enter(State.CONNECTING, now)
        self.attempt += 1
        return [Connect(self.attempt)]

    def _connected(self, attempt: int, tunnel: TunnelState, now: float) -> list[Command]:
        self._enter(State.CONNECTED, now)
        self.reason = ""
        self._sessions += 1
        return [Program(attempt, tunnel)]

    def _lost(self, reason: str, now: float) -> list[Command]:
        if now - self.since >= STABLE_AFTER_S:
            self._backoff.reset()
        commands = self._back_off(reason, now)
        if self._on_disconnect is OnDisconnect.RELEASE:
            commands.append(Withdraw())
        return commands

    def _back_off(self, reason: str, now: float) -> list[Command]:
        self._enter(State.BACKOFF, now)
        self.reason = reason
        self.wake_at = now + self._backoff.next_delay_s()
        return []

    def _path_changed(self, is_available: bool, now: float) -> list[Command]:
        if not is_available:
            # The session may outlive it: the path can come back before the idle timeout.
            return []
        if self.state is State.CONNECTED:
            return [Rebind()]
        return [*self._abandon("the path has changed"), *self._connect(now)]

    def _abandon(self, reason: str) -> list[Command]:
        return [] if self.state is State.BACKOFF else [Disconnect(reason)]
