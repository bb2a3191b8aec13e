"""The agent's life as a state machine: events in, commands out; no socket, no clock, no task.

                    ConnectFailed, lost, cannot program
      ┌────────────────────────────────────────────────────────┐
      │                                                        v
  CONNECTING ──TunnelUp──> CONNECTED ──TunnelClosed──────> BACKOFF
      ^                                                        │
      └──────────── WakeUp, PathChanged, ReconnectAsked ───────┘
                          StopAsked, from anywhere: STOPPED

Connected, a session is *renewed* when somebody asks for it: another one is made beside it, and only
when that is up does it take the first one's place. If that fails the first one stays.

Each attempt has a number, which its events carry: what an abandoned attempt still tells is not
heard. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from zgate_datapath.client import TunnelState
from zgate_host.backoff import Backoff
from zgate_protocol import goodbye

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
    """A new session is wanted now: SIGHUP, another certificate, a gateway that drains."""

    reason: str = "reconnecting on request"


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
class Renew:
    """The same beside the session that there is, which goes on."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Switch:
    """The renewed session carries the packets from now on; the one before is closed."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Abandon all attempts, and close the session, telling the gateway why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Drop:
    """Close the session only; the attempt beside it goes on."""

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


Command = Connect | Renew | Switch | Disconnect | Drop | Program | Withdraw | Rebind | Quit


class Machine:
    """Decides. Whoever owns it carries the commands out in order, and feeds it events.

    Attributes:
        state: where the agent is.
        since: when it got there.
        reason: the last trouble; empty while connected.
        wake_at: when to feed `WakeUp`: in BACKOFF, and while a renewal waits; else None.
        attempt: number of the current attempt, or of its session.
        renewal: number of the attempt beside the session; None: there is none.
        renewal_problem: why the session could not be renewed; empty once it was.
        reconnects: sessions after the first.
    """

    def __init__(self, backoff: Backoff, on_disconnect: OnDisconnect, now: float) -> None:
        self._backoff = backoff
        self._on_disconnect = on_disconnect
        self._sessions = 0
        self._attempts = 0
        self._renew_again = False
        self._is_replaced = False
        self.state = State.CONNECTING
        self.since = now
        self.reason = ""
        self.wake_at: float | None = None
        self.attempt = 0
        self.renewal: int | None = None
        self.renewal_problem = ""

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
                return self._wake(now) if is_due else []
            case TunnelUp(attempt, tunnel):
                return self._connected(attempt, tunnel, now)
            case TunnelChanged(attempt, tunnel):
                is_there = self.state is State.CONNECTED and attempt == self.attempt
                return [Program(attempt, tunnel)] if is_there else []
            case ConnectFailed(attempt, reason):
                return self._failed(attempt, reason, now)
            case TunnelClosed(attempt, reason):
                return self._closed(attempt, reason, now)
            case ProgramFailed(_, reason):
                return [Disconnect("the host's network failed"), *self._lost(reason, now)]
            case PathChanged(is_available):
                return self._path_changed(is_available, now)
            case ReconnectAsked(reason):
                return self._reconnect(reason, now)
            case StopAsked(reason, exit_code):
                self._enter(State.STOPPED, now)
                self.reason = reason
                return [Disconnect(reason), Withdraw(), Quit(exit_code)]

    def _is_stale(self, event: Event) -> bool:
        attempt: int | None = getattr(event, "attempt", None)
        if attempt is None:
            return False
        if self.state is State.BACKOFF:
            return True  # the attempt is over, whatever else it has to say
        if self.state is State.CONNECTED and isinstance(event, TunnelUp | ConnectFailed):
            # An attempt has one outcome: what is up does not come up, or fail to.
            return attempt != self.renewal
        return attempt not in (self.attempt, self.renewal)

    def _enter(self, state: State, now: float) -> None:
        self.state = state
        self.since = now
        self.wake_at = None
        self.renewal = None
        self.renewal_problem = ""
        self._renew_again = self._is_replaced = False

    def _next_attempt(self) -> int:
        self._attempts += 1
        return self._attempts

    def _connect(self, now: float) -> list[Command]:
        self._enter(State.CONNECTING, now)
        self.attempt = self._next_attempt()
        return [Connect(self.attempt)]

    def _connected(self, attempt: int, tunnel: TunnelState, now: float) -> list[Command]:
        self._sessions += 1
        if attempt == self.renewal:
            return self._renewed(attempt, tunnel)
        self._enter(State.CONNECTED, now)
        self.reason = ""
        return [Program(attempt, tunnel)]

    def _wake(self, now: float) -> list[Command]:
        return self._renew() if self.state is State.CONNECTED else self._connect(now)

    # Renewal: a second session beside the first.

    def _reconnect(self, reason: str, now: float) -> list[Command]:
        self._backoff.reset()
        if self.state is not State.CONNECTED:
            return [*self._abandon(reason), *self._connect(now)]
        if self.renewal is not None:
            # What has begun may have read the files of before.
            self._renew_again = True
            return []
        return self._renew()

    def _renew(self) -> list[Command]:
        self.wake_at = None
        self._renew_again = False
        self.renewal = self._next_attempt()
        return [Renew(self.renewal)]

    def _renewed(self, attempt: int, tunnel: TunnelState) -> list[Command]:
        self.attempt, self.renewal, self.renewal_problem = attempt, None, ""
        self._is_replaced = False
        self._backoff.reset()
        again = self._renew() if self._renew_again else []
        return [Switch(attempt), Program(attempt, tunnel), *again]

    def _failed(self, attempt: int, reason: str, now: float) -> list[Command]:
        if attempt != self.renewal:
            return self._back_off(reason, now)
        self.renewal = None
        if self._is_replaced:
            return [Disconnect(reason), *self._lost(reason, now)]
        if self._renew_again:
            return self._renew()
        self.renewal_problem = reason
        self.wake_at = now + self._backoff.next_delay_s(now)
        return []

    # The end of a session.

    def _closed(self, attempt: int, reason: str, now: float) -> list[Command]:
        if attempt == self.renewal:
            return []  # it was not up yet, and `ConnectFailed` says so
        renewal = self.renewal
        if renewal is None:
            return [Disconnect(reason), *self._lost(reason, now)]
        if reason == goodbye.REPLACED:
            self._is_replaced = True  # by our own, which will tell of itself
            return []
        self._enter(State.CONNECTING, now)
        self.attempt, self.reason = renewal, reason
        return [Drop(reason), *self._released()]

    def _lost(self, reason: str, now: float) -> list[Command]:
        if now - self.since >= STABLE_AFTER_S:
            self._backoff.reset()
        self._backoff.heed(reason, now)
        return [*self._back_off(reason, now), *self._released()]

    def _released(self) -> list[Command]:
        return [Withdraw()] if self._on_disconnect is OnDisconnect.RELEASE else []

    def _back_off(self, reason: str, now: float) -> list[Command]:
        self._enter(State.BACKOFF, now)
        self.reason = reason
        self.wake_at = now + self._backoff.next_delay_s(now)
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
