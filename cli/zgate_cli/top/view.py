"""What ``zgatectl top`` looks like: a state in, exactly as many lines as the terminal has out."""

from __future__ import annotations

from datetime import UTC, datetime
from textwrap import wrap

from rich.text import Text
from zgate_gateway.api import schemas

from zgate_cli.flows import flow_cells
from zgate_cli.output import cell, duration_text, time_text
from zgate_cli.top.columns import Row, columns_for, head, rate_text, row_line
from zgate_cli.top.history import BLOCKS, sparkline
from zgate_cli.top.state import MAX_ALERT_LINES, FilterPrompt, KickPrompt, Mode, State

_STATE_STYLE = {schemas.GatewayState.READY: "bold green", schemas.GatewayState.STOPPED: "bold red"}
_WIDE = 120
#: Of a kernel's table, on a narrow screen.
_WORTH_A_WORD = 0.5
_FULL_STYLE = ((0.9, "bold red"), (0.8, "yellow"), (0.0, ""))
_KEYS = (
    ("↑ ↓ PgUp PgDn Home End", "choose a session"),
    ("s, S", "sort by the next thing, or the one before"),
    ("r", "the other way round"),
    ("/", "filter by part of a name, group or address; Esc takes it away"),
    ("Enter, f", "flows of the chosen session; Esc goes back"),
    ("k", "kick the chosen client, after a question"),
    ("i", "alerts, kernel maps, drops, pools and workers"),
    ("p, space", "pause, and go on"),
    ("Ctrl-L", "paint the screen anew"),
    ("q, Ctrl-C", "quit"),
)


def lines_of(state: State, now: float, *, clock: datetime, blocks: str = BLOCKS) -> list[Text]:
    """The screen, line by line, none wider than the terminal.

    :param clock: the time of day; with `now`, what the numbers are of.
    :param blocks: what sparklines are made of.
    """
    top = [_title(state, clock), _numbers(state, blocks), *_alerts(state)]
    if state.failure:
        top.append(_failure(state, now))
    room = max(0, state.height - len(top) - 1)
    body = _body(state, blocks)[:room]
    body += [Text()] * (room - len(body))
    lines = [*top, *body, _bottom(state)][: state.height]
    for line in lines:
        line.no_wrap = True
        line.truncate(state.width, overflow="ellipsis")
    return lines


# The lines above.


def _title(state: State, clock: datetime) -> Text:
    status, sessions = state.status, state.sessions
    line = Text.assemble(("zgate ", "bold"))
    if status is None:
        return line.append("asking the gateway ...", "yellow")
    line.append(status.state.value, _STATE_STYLE.get(status.state, "bold yellow"))
    if state.is_paused:
        line.append(" PAUSED", "bold yellow")
    count = sessions.total if sessions is not None else status.sessions
    parts = [
        f"{count:,}/{status.sessions_max:,} sessions",
        f"policy revision {status.policy.revision}",
        f"{clock:%T}Z",
        f"up {duration_text(status.uptime_s)}",
    ]
    if status.policy.not_in_force_because is not None:
        parts[1] += " (file refused)"
    line.append("  " + "  ".join(parts))
    if status.not_ready_because:
        line.append_text(cell("  " + "; ".join(status.not_ready_because), "yellow"))
    return line


def _numbers(state: State, blocks: str) -> Text:
    track, width = state.history.all, max(6, min(24, (state.width - 64) // 2))
    line = Text()
    for name, values, style in (("up", track.up, "green"), ("down", track.down, "cyan")):
        rate = rate_text(values[-1] if values else None)
        line.append(f"{name} ").append(sparkline(values, width, blocks), style)
        line.append(f" {rate:>5}b/s  ")
    for name, use in _fullest(state):
        line.append_text(cell(f"map {name} {_full(use):.0%}", _full_style(use))).append("  ")
    drops = state.drops
    text = f"drops {rate_text(drops.per_s)}/s" + (f" {drops.most}" if drops.most else "")
    return line.append_text(cell(text, "yellow" if drops.per_s else ""))


def _fullest(state: State) -> list[tuple[str, schemas.MapUse]]:
    """The kernel's tables that there is something to say of, and where there is room, one more."""
    maps = state.status.kernel_maps if state.status is not None else {}
    fullest = sorted(maps.items(), key=lambda item: -_full(item[1]))
    worth = [item for item in fullest if _full(item[1]) >= _WORTH_A_WORD]
    return worth[:2] or fullest[: int(state.width >= _WIDE)]


def _full(use: schemas.MapUse) -> float:
    return use.used / use.size if use.size else 0.0


def _full_style(use: schemas.MapUse) -> str:
    return next(style for bound, style in _FULL_STYLE if _full(use) >= bound)


def _alerts(state: State) -> list[Text]:
    alerts = state.status.alerts if state.status is not None else []
    lines = []
    for number, alert in enumerate(alerts[:MAX_ALERT_LINES]):
        more = len(alerts) - MAX_ALERT_LINES
        tail = f" (+{more}: i)" if number == MAX_ALERT_LINES - 1 and more > 0 else ""
        text = cell(f"ALERT {alert.name}{tail}: {alert.text}", "bold red")
        lines.append(text)
    return lines


def _failure(state: State, now: float) -> Text:
    since = duration_text(max(0.0, now - state.failed_at))
    return cell(f"NO ANSWER for {since}, trying again: {state.failure}", "bold red")


# What is between.


def _body(state: State, blocks: str) -> list[Text]:
    match state.mode:
        case Mode.HELP:
            return _help()
        case Mode.DETAILS:
            return _details(state)
        case Mode.FLOWS:
            return _flows(state)
        case Mode.SESSIONS:
            return _sessions(state, blocks)


def _sessions(state: State, blocks: str) -> list[Text]:
    columns = columns_for(state.width)
    lines = [head(columns)]
    for number, session in enumerate(state.shown):
        line = row_line(columns, Row(session, state.history.of(session.session_id), blocks))
        if state.failure:
            line.stylize("dim")  # these were true once
        # Colours that are reversed, too, are hard to read.
        lines.append(Text(line.plain, "reverse") if number == state.cursor else line)
    if state.sessions is not None and not state.shown:
        found = "No session fits the filter." if state.filter else "No session is up."
        lines.append(Text(found, style="dim"))
    return lines


def _flows(state: State) -> list[Text]:
    lines = [cell(f"Flows of {state.flows_of}", "bold")]
    if state.flows is None:
        return [*lines, Text("asking ...", style="dim")]
    widths = _flow_widths(state.width)
    lines.append(_flow_line(("protocol", "from", "to", "state", "idle", "rule"), widths))
    lines[-1].stylize("bold underline")
    lines += [_flow_line(flow_cells(flow), widths) for flow in state.flows.flows]
    left_out = state.flows.total - len(state.flows.flows)
    if not state.flows.flows:
        lines.append(Text("No flow is open.", style="dim"))
    elif left_out > 0:
        lines.insert(1, Text(f"the newest {len(state.flows.flows)} of {state.flows.total}"))
    return lines


def _flow_widths(width: int) -> list[int]:
    """Two ends and the rule share what the rest leaves."""
    each = max(8, (width - 8 - 10 - 6 - 5) // 3)
    return [8, each, each, 10, 6, each]


def _flow_line(cells: tuple[str, ...], widths: list[int]) -> Text:
    line = Text()
    for number, (content, width) in enumerate(zip(cells, widths, strict=True)):
        shown = cell(content)
        shown.truncate(width, overflow="ellipsis", pad=True)
        line.append(" " if number else "").append_text(shown)
    return line


def _details(state: State) -> list[Text]:
    status = state.status
    if status is None:
        return [Text("nothing is known yet", style="dim")]
    lines = [Text("Alerts", style="bold")]
    for alert in status.alerts:
        told = cell(f"{alert.name} since {time_text(alert.since)}: {alert.text}", "red")
        lines += _folded(told, state.width)
    if not status.alerts:
        lines.append(Text("  none", style="green"))
    lines.append(Text("Dropped packets since start", style="bold"))
    most = sorted(status.drops.items(), key=lambda item: -item[1])
    dropped = ", ".join(f"{name} {count:,}" for name, count in most if count) or "none"
    lines += _folded(cell(dropped), state.width)
    lines.append(Text("Workers and pools", style="bold"))
    for one in status.workers:
        what = f"pid {one.pid}" if one.pid is not None else "ended, being started again"
        text = f"  worker {one.worker}: {what}, {one.sessions:,} sessions, {one.restarts} restarts"
        lines.append(cell(text, "" if one.pid is not None else "yellow"))
    for pool in status.pools:
        lines.append(cell(f"  {pool.network}: {pool.leased:,} of {pool.capacity:,} leased"))
    return lines + _maps(status)


def _maps(status: schemas.Status) -> list[Text]:
    lines = [Text("Kernel maps", style="bold")]
    for name, use in sorted(status.kernel_maps.items(), key=lambda item: -_full(item[1])):
        filled = "#" * round(_full(use) * 20)
        text = f"  {name:<16} {filled:<20} {_full(use):>4.0%}  {use.used:,} of {use.size:,}"
        lines.append(cell(text, _full_style(use)))
    return lines


def _folded(text: Text, width: int) -> list[Text]:
    """Folded at words, what follows indented as the first line is."""
    lines = wrap(text.plain, max(10, width), initial_indent="  ", subsequent_indent="    ")
    return [Text(one, style=text.style) for one in lines]


def _help() -> list[Text]:
    lines = [Text("Keys", style="bold")]
    lines += [Text.assemble((f"  {keys:<24}", "bold"), text) for keys, text in _KEYS]
    lines += [
        Text(),
        Text("Rates are bits per second inside the tunnel, up is from the client. Drops are"),
        Text("packets of the session that nobody passed on. RTT is in milliseconds."),
    ]
    return lines


# The line below.


def _bottom(state: State) -> Text:
    if isinstance(state.prompt, FilterPrompt):
        return cell(f"filter: {state.prompt.text}").append("█").append("  Enter, Esc", "dim")
    if isinstance(state.prompt, KickPrompt):
        question = f"Kick {state.prompt.client}? It keeps its address, and may come back. y/n "
        return cell(question, "bold yellow")
    if state.message:
        return cell(state.message, "bold red" if state.message_is_bad else "bold")
    line = Text()
    if state.mode is not Mode.SESSIONS:
        return line.append("Esc back  p pause  ? help  q quit", "dim")
    arrow = "▲" if state.reverse else "▼"
    line.append(f"by {state.sort.value}{arrow} ", "bold").append(_position(state))
    if state.filter:
        line.append_text(cell(f'  filter "{state.filter}"', "yellow"))
    return line.append("  ? help  s sort  / filter  f flows  k kick  i info  q quit", "dim")


def _position(state: State) -> str:
    sessions = state.sessions
    if sessions is None or not sessions.matched:
        return "0 of 0"
    first = state.shown_from
    return f"{first + 1:,}-{first + len(state.shown):,} of {sessions.matched:,}"


def clock_now() -> datetime:
    """The time of day that the title shows."""
    return datetime.now(UTC)
