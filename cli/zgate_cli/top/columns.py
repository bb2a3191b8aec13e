"""The table of sessions: which columns a width has room for, and what is in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from rich.text import Text
from zgate_gateway.api import schemas

from zgate_cli.output import byte_text, cell, duration_text
from zgate_cli.top.history import Track, sparkline

_RATE_UNITS = ("", "k", "M", "G", "T", "P")
RATE_WIDTH = 5
_UP, _DOWN, _BAD, _DIM = "green", "cyan", "yellow", "dim"


def rate_text(bit_per_s: float | None) -> str:
    """Bits per second in five characters at most: ``950``, ``12.3k``, ``1.20G``."""
    if bit_per_s is None:
        return "-"
    value = bit_per_s
    for unit in _RATE_UNITS:
        if value < 999.5:
            if not unit:
                return f"{value:.0f}"
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f}{unit}"
        value /= 1000
    return ">999P"


def middle(text: str, width: int) -> str:
    """The text, or its two ends: an IPv6 address is known by both."""
    if len(text) <= width or width < 3:
        return text[: max(0, width)]
    head = (width - 1 + 1) // 2
    return text[:head] + "…" + text[len(text) - (width - 1 - head) :]


@dataclass(frozen=True, slots=True)
class Row:
    """One session, and what its rates have been."""

    session: schemas.Session
    track: Track
    blocks: str


@dataclass(frozen=True, slots=True)
class Column:
    """A column: `cell` makes what is in it, for a width."""

    name: str
    width: int
    cell: Callable[[Row, int], Text]
    is_number: bool = False


def _client(row: Row, width: int) -> Text:
    """Both ends of a long name: radiology-ws1 is not radiology-ws2."""
    return cell(middle(row.session.client, width))


def _address(row: Row, version: int) -> str:
    held = (one.partition("/")[0] for one in row.session.addresses)
    return next((one for one in held if (":" in one) is (version == 6)), "-")


def _host(row: Row, width: int) -> Text:
    """Without the port where there is no room for both."""
    peer = row.session.peer
    if len(peer) > width:
        peer = peer.rpartition(":")[0].strip("[]")
    return cell(middle(peer, width))


def _rate(is_up: bool) -> Callable[[Row, int], Text]:
    def make(row: Row, width: int) -> Text:
        rate = row.session.up_bit_per_s if is_up else row.session.down_bit_per_s
        values = row.track.up if is_up else row.track.down
        spark = sparkline(values, width - RATE_WIDTH - 1, row.blocks)
        number = f" {rate_text(rate):>{RATE_WIDTH}}"
        return Text.assemble((spark, _UP if is_up else _DOWN), (number, "" if rate else _DIM))

    return make


def _drops(row: Row, _: int) -> Text:
    count = row.session.counters.dropped_packets + sum(row.session.drops.values())
    return Text(_count_text(count), style=_BAD if count else _DIM)


def _count_text(count: int) -> str:
    return str(count) if count < 100_000 else rate_text(count)


def _rtt(row: Row, _: int) -> Text:
    rtt_ms = row.session.rtt_ms
    if rtt_ms is None:
        return Text("-", style=_DIM)
    text = f"{rtt_ms:.1f}" if rtt_ms < 99.95 else f"{rtt_ms:.0f}"
    return Text(text, style=_BAD if rtt_ms >= 300 else "")


def _idle(row: Row, _: int) -> Text:
    idle_s = row.session.idle_s
    return Text("-" if idle_s is None else duration_text(idle_s), style=_DIM)


def _bytes(row: Row, _: int) -> Text:
    counters = row.session.counters
    return Text(byte_text(counters.up_bytes + counters.down_bytes))


#: What 80 columns show: 12 + 15 + 15 + 11 + 11 + 5 + 5, and 6 between them.
_NARROW = (
    Column("client", 12, _client),
    Column("virtual IP", 15, lambda row, width: cell(middle(_address(row, 4), width))),
    Column("from", 15, _host),
    Column("up bit/s", 11, _rate(True), is_number=True),
    Column("down bit/s", 11, _rate(False), is_number=True),
    Column("drops", 5, _drops, is_number=True),
    Column("rtt", 5, _rtt, is_number=True),
)
#: What wider terminals show too, what matters most first.
_MORE = (
    Column("up for", 7, lambda row, _: Text(duration_text(row.session.age_s)), is_number=True),
    Column("idle", 7, _idle, is_number=True),
    Column("bytes", 9, _bytes, is_number=True),
    Column("IPv6", 24, lambda row, width: cell(middle(_address(row, 6), width))),
    Column("groups", 16, lambda row, _: cell(", ".join(row.session.groups))),
    Column("mtu", 5, lambda row, _: Text(str(row.session.mtu_bytes or "-")), is_number=True),
    Column("worker", 6, lambda row, _: Text(str(row.session.worker)), is_number=True),
)
#: How wide columns get before another one comes.
_COMFORT = {"client": 20, "from": 21, "up bit/s": 16, "down bit/s": 16}
_WIDEST = {"client": 40, "from": 47, "up bit/s": 46, "down bit/s": 46}


def _total(columns: list[Column]) -> int:
    return sum(one.width for one in columns) + len(columns) - 1


def columns_for(width: int) -> list[Column]:
    """The columns of a terminal that is so wide; what is too narrow for all loses the last."""
    columns = list(_NARROW)
    while len(columns) > 2 and _total(columns) > width:
        columns.pop()
    if len(columns) < len(_NARROW):
        return columns
    columns = _widened(columns, width, _COMFORT)
    for extra in _MORE:
        if _total([*columns, extra]) <= width:
            columns.append(extra)
    return _widened(columns, width, _WIDEST)


def _widened(columns: list[Column], width: int, limits: dict[str, int]) -> list[Column]:
    """What is left goes to those that can use it, a character each in turn, up to their limits."""
    columns = list(columns)
    while (room := width - _total(columns)) > 0:
        before = list(columns)
        for number, one in enumerate(columns):
            if room > 0 and one.width < limits.get(one.name, one.width):
                columns[number] = replace(one, width=one.width + 1)
                room -= 1
        if columns == before:
            break
    return columns


def line_of(columns: list[Column], cells: list[Text]) -> Text:
    """One line of the table, every cell cut or padded to its column."""
    line = Text(no_wrap=True)
    for number, (column, content) in enumerate(zip(columns, cells, strict=True)):
        if number:
            line.append(" ")
        content.truncate(column.width, overflow="ellipsis")
        missing = column.width - content.cell_len
        padding = " " * max(0, missing)
        line.append_text(Text(padding) + content if column.is_number else content + Text(padding))
    return line


def head(columns: list[Column]) -> Text:
    """The names of the columns."""
    line = line_of(columns, [Text(one.name) for one in columns])
    line.stylize("bold underline")
    return line


def row_line(columns: list[Column], row: Row) -> Text:
    """A session."""
    return line_of(columns, [one.cell(row, one.width) for one in columns])
