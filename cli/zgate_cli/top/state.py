"""What ``zgatectl top`` knows, and what keys and answers do to it: events in, commands out.

Sans-IO. Times are of a monotonic clock, in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from zgate_gateway.api import schemas
from zgate_gateway.api.schemas import SessionSort

from .history import History

#: What `s` goes through, in this order.
SORTS = (
    SessionSort.RATE, SessionSort.BYTES, SessionSort.DROPS, SessionSort.RTT, SessionSort.IDLE,
    SessionSort.AGE, SessionSort.CLIENT, SessionSort.PEER,
)  # fmt: skip
MAX_FILTER_CHARS = 100
MAX_ALERT_LINES = 2
_RETRY_S = 1.0
_MESSAGE_S = 6.0
_FLOWS_S = 2.0
#: Title, numbers, the table's head, the line of keys.
_FIXED_LINES = 4


class Mode(StrEnum):
    """What fills the screen."""

    SESSIONS = "sessions"
    FLOWS = "flows"
    DETAILS = "details"
    HELP = "help"


# Events.


@dataclass(frozen=True, slots=True)
class Key:
    """A key was pressed."""

    name: str


@dataclass(frozen=True, slots=True)
class Resized:
    """The terminal has another size."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The gateway's answer to `Ask`."""

    query: schemas.SessionQuery
    status: schemas.Status
    sessions: schemas.SessionList


@dataclass(frozen=True, slots=True)
class FlowsAnswered:
    """The gateway's answer to `AskFlows`."""

    client: str
    flows: schemas.FlowList


@dataclass(frozen=True, slots=True)
class Kicked:
    """What became of a `Kick`, for people."""

    text: str
    is_done: bool


@dataclass(frozen=True, slots=True)
class Failed:
    """The gateway did not answer what was asked last."""

    text: str


Event = Key | Resized | Tick | Answered | FlowsAnswered | Kicked | Failed


# Commands.


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask for status and sessions; one of these or `AskFlows` is under way at a time."""

    query: schemas.SessionQuery


@dataclass(frozen=True, slots=True)
class AskFlows:
    """Ask for the flows of a client."""

    client: str
    limit: int


@dataclass(frozen=True, slots=True)
class Kick:
    """Close a client's session."""

    client: str


@dataclass(frozen=True, slots=True)
class Redraw:
    """Paint everything: something else has written on the screen."""


@dataclass(frozen=True, slots=True)
class Quit:
    """The end."""


Command = Ask | AskFlows | Kick | Redraw | Quit


@dataclass(frozen=True, slots=True)
class FilterPrompt:
    """A filter is being typed."""

    text: str


@dataclass(frozen=True, slots=True)
class KickPrompt:
    """Shall this client be kicked? It is this one, whatever moves on the screen meanwhile."""

    client: str


@dataclass(slots=True)
class Drops:
    """Packets that were dropped between two answers."""

    per_s: float | None = None
    most: str = ""
    before: dict[str, int] = field(default_factory=dict)
    at: float | None = None

    def add(self, drops: dict[str, int], at: float) -> None:
        """The totals of an answer."""
        if self.at is not None and at > self.at:
            came = {name: count - self.before.get(name, 0) for name, count in drops.items()}
            if min(came.values(), default=0) >= 0:  # else it is another gateway process
                self.per_s = sum(came.values()) / (at - self.at)
                self.most = max(came, key=lambda name: came[name]) if self.per_s else ""
        self.before, self.at = dict(drops), at


@dataclass(slots=True)
class State:
    """See the module's text.

    :ivar offset, cursor: of the first session on the screen among all, and of the chosen one
        among those on the screen.
    :ivar shown_from: where the first session on the screen is among all; `offset` is wanted.
    :ivar is_wanted: somebody has asked for something else: it is asked for though paused.
    :ivar failure: why there is no answer; empty while there are answers.
    """

    interval_s: float = 1.0
    width: int = 80
    height: int = 24
    sort: SessionSort = SessionSort.RATE
    reverse: bool = False
    filter: str = ""
    offset: int = 0
    cursor: int = 0
    selected: str | None = None
    is_paused: bool = False
    mode: Mode = Mode.SESSIONS
    prompt: FilterPrompt | KickPrompt | None = None
    message: str = ""
    message_is_bad: bool = False
    message_until: float = 0.0
    status: schemas.Status | None = None
    sessions: schemas.SessionList | None = None
    shown_from: int = 0
    failure: str = ""
    failed_at: float = 0.0
    history: History = field(default_factory=History)
    drops: Drops = field(default_factory=Drops)
    flows: schemas.FlowList | None = None
    flows_of: str = ""
    is_asking: bool = False
    is_wanted: bool = False
    next_ask_at: float = 0.0

    # What follows from it.

    @property
    def alert_lines(self) -> int:
        """Lines that alerts take, above the table."""
        alerts = len(self.status.alerts) if self.status is not None else 0
        return min(alerts, MAX_ALERT_LINES)

    @property
    def rows(self) -> int:
        """Sessions that fit."""
        return max(1, self.height - _FIXED_LINES - self.alert_lines - bool(self.failure))

    @property
    def shown(self) -> list[schemas.Session]:
        """The sessions on the screen."""
        return self.sessions.sessions[: self.rows] if self.sessions is not None else []

    @property
    def chosen(self) -> schemas.Session | None:
        """The session under the cursor."""
        return self.shown[self.cursor] if self.cursor < len(self.shown) else None

    def query(self) -> schemas.SessionQuery:
        """What is asked for: as many as fit, never all."""
        return schemas.SessionQuery(
            sort=self.sort,
            reverse=self.reverse,
            filter=self.filter,
            limit=self.rows,
            offset=self.offset,
            rates=True,
        )

    def wake_at(self) -> float | None:
        """When something is to be done if nothing happens; None: never."""
        times = [self.message_until] if self.message else []
        if not self.is_asking and not self._is_still:
            times.append(self.next_ask_at)
        return min(times, default=None)

    @property
    def _is_still(self) -> bool:
        return self.is_paused and not self.is_wanted

    # Events.

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take in what has happened; what to do about it."""
        if self.message and now >= self.message_until:
            self.message = ""
        match event:
            case Key(name):
                commands = self._key(name, now)
            case Resized(width, height):
                self.width, self.height = max(1, width), max(1, height)
                self._ask_soon(now)
                commands = [Redraw()]
            case Tick():
                commands = []
            case _:
                self._answer(event, now)
                commands = []
        # Fewer rows may fit than before: the line of a failure takes one.
        self.cursor = max(0, min(self.cursor, len(self.shown) - 1))
        return commands + self._due(now)

    def _due(self, now: float) -> list[Command]:
        if self.is_asking or self._is_still or now < self.next_ask_at:
            return []
        self.is_asking, self.is_wanted = True, False
        if self.mode is Mode.FLOWS:
            self.next_ask_at = now + max(_FLOWS_S, self.interval_s)
            return [AskFlows(self.flows_of, max(1, self.rows))]
        self.next_ask_at = now + self.interval_s
        return [Ask(self.query())]

    def _ask_soon(self, now: float) -> None:
        self.next_ask_at, self.is_wanted = now, True

    def _answer(self, event: Answered | FlowsAnswered | Kicked | Failed, now: float) -> None:
        if isinstance(event, Kicked):
            self._say(event.text, now, is_bad=not event.is_done)
            self._ask_soon(now)
            return
        self.is_asking = False
        if isinstance(event, Failed):
            if not self.failure:
                self.failed_at = now
            self.failure = event.text
            self.next_ask_at = now + max(_RETRY_S, self.interval_s)
            return
        self.failure = ""
        if isinstance(event, FlowsAnswered):
            if event.client == self.flows_of:
                self.flows = event.flows
            return
        self.status = event.status
        self.drops.add(event.status.drops, now)
        self.history.add(event.sessions)
        if event.query != self.query():
            self._ask_soon(now)  # the question is another one by now
        self.shown_from = event.query.offset
        self._take(event.sessions)

    def _take(self, sessions: schemas.SessionList) -> None:
        self.sessions = sessions
        if not sessions.sessions and self.offset:
            self.offset = max(0, sessions.matched - self.rows)
            self._ask_soon(0.0)
        names = [one.session_id for one in self.shown]
        if self.selected in names:
            self.cursor = names.index(self.selected)
        self._choose(self.cursor)

    def _choose(self, cursor: int) -> None:
        self.cursor = max(0, min(cursor, len(self.shown) - 1))
        self.selected = self.chosen.session_id if self.chosen is not None else None

    def _say(self, text: str, now: float, *, is_bad: bool = False) -> None:
        self.message, self.message_is_bad = text, is_bad
        self.message_until = now + _MESSAGE_S

    # Keys.

    def _key(self, name: str, now: float) -> list[Command]:
        if name == "redraw":
            return [Redraw()]
        if isinstance(self.prompt, FilterPrompt):
            self._edit_filter(self.prompt.text, name, now)
            return []
        if isinstance(self.prompt, KickPrompt):
            client, self.prompt = self.prompt.client, None
            if name in {"y", "Y"}:
                self._say(f"closing the session of {client} ...", now)
                return [Kick(client)]
            self._say("nobody was kicked", now)
            return []
        if name in {"q", "Q", "eof"}:
            return [Quit()]
        if name in {"esc", "left", "backspace"}:
            self._back(now)
        elif name in {"p", " "}:
            self.is_paused = not self.is_paused
            if not self.is_paused:
                self._ask_soon(now)
        elif name in {"?", "h"}:
            self._show(Mode.HELP, now)
        elif name == "i":
            self._show(Mode.DETAILS, now)
        elif self.mode is Mode.SESSIONS:
            self._list_key(name, now)
        return []

    def _back(self, now: float) -> None:
        if self.mode is Mode.SESSIONS and self.filter:
            self.filter, self.offset = "", 0
            self._ask_soon(now)
        else:
            self._show(Mode.SESSIONS, now)

    def _show(self, mode: Mode, now: float) -> None:
        self.mode = Mode.SESSIONS if self.mode is mode else mode
        self._ask_soon(now)

    def _list_key(self, name: str, now: float) -> None:
        if name in {"s", "S"}:
            step = 1 if name == "s" else -1
            self.sort = SORTS[(SORTS.index(self.sort) + step) % len(SORTS)]
            self._from_the_top(now)
        elif name == "r":
            self.reverse = not self.reverse
            self._from_the_top(now)
        elif name == "/":
            self.prompt = FilterPrompt(self.filter)
        elif name == "k" and self.chosen is not None:
            self.prompt = KickPrompt(self.chosen.client)
        elif name in {"f", "enter", "right"} and self.chosen is not None:
            self.flows_of, self.flows = self.chosen.client, None
            self._show(Mode.FLOWS, now)
        else:
            self._move(name, now)

    def _from_the_top(self, now: float) -> None:
        self.offset = self.cursor = 0
        self.selected = None
        self._ask_soon(now)

    def _move(self, name: str, now: float) -> None:
        matched = self.sessions.matched if self.sessions is not None else 0
        last = max(0, matched - self.rows)
        steps = {
            "up": -1, "down": 1, "pgup": -self.rows, "pgdn": self.rows,
            "home": -matched, "end": matched,
        }  # fmt: skip
        if name not in steps:
            return
        step = steps[name]
        at = max(0, min(self.offset + self.cursor + step, matched - 1))
        # A line at a time moves the window no further than it must; a page moves all of it.
        lowest, highest = at - self.rows + 1, at
        offset = self.offset + step if abs(step) > 1 else self.offset
        offset = max(0, lowest, min(offset, highest, last))
        self._choose(at - offset)
        if offset != self.offset:
            self.offset, self.selected = offset, None
            self._ask_soon(now)

    def _edit_filter(self, text: str, name: str, now: float) -> None:
        if name == "enter":
            self.prompt, self.filter = None, text.strip()
            self._from_the_top(now)
        elif name == "esc":
            self.prompt = None
        elif name == "backspace":
            self.prompt = FilterPrompt(text[:-1])
        elif name == "clear":
            self.prompt = FilterPrompt("")
        elif len(name) == 1 and len(text) < MAX_FILTER_CHARS:
            self.prompt = FilterPrompt(text + name)
