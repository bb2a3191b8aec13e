"""The screen as lines: numbers, columns, and that it fits whatever the size."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from zgate_cli.top import state as top
from zgate_cli.top.columns import columns_for, middle, rate_text
from zgate_cli.top.history import POINTS, History, sparkline
from zgate_cli.top.state import Answered, Failed, FlowsAnswered, Mode, State
from zgate_cli.top.view import lines_of
from zgate_gateway.api import schemas

CLOCK = datetime(2026, 3, 1, 3, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("bit_per_s", "text"),
    [
        (None, "-"), (0, "0"), (999.4, "999"), (999.6, "1.00k"), (9994, "9.99k"), (9996, "10.0k"),
        (12_340, "12.3k"), (99_960, "100k"), (999_600, "1.00M"), (1.2e9, "1.20G"), (3e18, ">999P"),
    ],
)  # fmt: skip
def test_rates_take_five_characters(bit_per_s: float | None, text: str) -> None:
    assert rate_text(bit_per_s) == text
    assert len(text) <= 5


def test_sparklines() -> None:
    assert sparkline([0, 1, 4, 7], 6) == "   ▂▄▆"
    assert sparkline([1] * 10, 3) == "▆▆▆"
    assert sparkline([], 3) == sparkline([0, 0], 3) == "   "
    assert sparkline([5], 0) == ""
    assert sparkline([0, 7], 2, "_.-=oO#@") == " O"


def test_both_ends_of_a_long_address() -> None:
    assert middle("2001:db8:1234:5678::1", 15) == "2001:db…5678::1"
    assert middle("short", 15) == "short"
    assert middle("abc", 1) == "a"


def test_wider_terminals_show_more() -> None:
    at = {width: [one.name for one in columns_for(width)] for width in (20, 60, 80, 120, 200)}
    assert at[80] == ["client", "virtual IP", "from", "up bit/s", "down bit/s", "drops", "rtt"]
    assert at[60] == at[80][:4] and at[20] == at[80][:2]
    assert at[120][:7] == at[80] and "up for" in at[120]
    assert {"IPv6", "groups", "worker"} <= set(at[200])
    for width in range(29, 400):
        columns = columns_for(width)
        assert sum(one.width for one in columns) + len(columns) - 1 <= width


def test_history_is_bounded(fake_gateway: Any) -> None:
    history = History()
    one = fake_gateway.up[0].model_copy(update={"up_bit_per_s": 5.0, "down_bit_per_s": 7.0})
    for number in range(5000):
        named = one.model_copy(update={"session_id": f"s{number}"})
        history.add(schemas.SessionList(sessions=[one, named], up_bit_per_s=1, down_bit_per_s=2))
    assert len(history._tracks) == 2000
    assert len(history.of(one.session_id).up) == POINTS == len(history.all.down)
    assert list(history.of("s4999").down) == [7.0]
    assert list(history.of("s1").up) == []


def filled(fake_gateway: Any, width: int = 80, height: int = 24) -> State:
    state = State(width=width, height=height)
    alerts = [
        schemas.Alert(
            name=f"map_{n}", text="is nearly full; raise limits.max_flows " * 4, since=CLOCK
        )
        for n in range(4)
    ]
    status = fake_gateway.status().model_copy(update={"alerts": alerts})
    names = ["client-1", "名前" * 9, "a\x1b[2J", "x" * 64]
    up = [
        fake_gateway._session("c").model_copy(
            update={
                "client": name, "session_id": name, "up_bit_per_s": 5e6, "down_bit_per_s": 1e9,
            }
        )
        for name in names
    ]  # fmt: skip
    sessions = schemas.SessionList(
        sessions=up * 10, total=40, matched=40, up_bit_per_s=1e9, down_bit_per_s=2e9
    )
    state.handle(Answered(state.query(), status, sessions), 1.0)
    return state


def draw(state: State, now: float = 2.0) -> list[str]:
    lines = lines_of(state, now, clock=CLOCK)
    assert len(lines) == state.height
    assert max(line.cell_len for line in lines) <= state.width
    assert all(one.isprintable() for line in lines for one in line.plain)
    return [line.plain for line in lines]


@pytest.mark.parametrize("mode", list(Mode))
def test_it_fits_every_size(fake_gateway: Any, mode: Mode) -> None:
    flow = schemas.FlowView(
        client="c", protocol=6, client_address="fd00::" + "1" * 4, client_port=1,
        remote_address="2001:db8:1234:5678:9abc:def0:1234:5678", remote_port=443,
        stage=schemas.FlowStage.ANSWERED, idle_s=1, revision=1,
    )  # fmt: skip
    for width in (1, 2, 10, 40, 79, 80, 81, 100, 132, 200, 300):
        for height in (1, 2, 3, 5, 24, 60):
            state = filled(fake_gateway, width, height)
            state.mode, state.flows_of = mode, "c"
            state.handle(FlowsAnswered("c", schemas.FlowList(flows=[flow], total=2)), 1.5)
            draw(state)
            state.handle(Failed("no answer " * 20), 1.6)
            draw(state)
            state.prompt = top.FilterPrompt("y" * 100)
            draw(state)


def test_alerts_come_first_and_say_how_many_more(fake_gateway: Any) -> None:
    lines = draw(filled(fake_gateway))
    assert lines[2].startswith("ALERT map_0: is nearly full")
    assert lines[3].startswith("ALERT map_1 (+2: i): ")
    assert lines[4].startswith("client ")


def test_rates_and_sparklines_are_shown(fake_gateway: Any) -> None:
    state = filled(fake_gateway)
    lines = draw(state)
    assert "1.00Gb/s" in lines[1] and "2.00Gb/s" in lines[1]
    assert "▆ 5.00M" in lines[5] and "▆ 1.00G" in lines[5]


def test_before_the_first_answer() -> None:
    assert draw(State())[0] == "zgate asking the gateway ..."


def test_drops_are_told_per_second(fake_gateway: Any) -> None:
    state = filled(fake_gateway)
    status = fake_gateway.status().model_copy(update={"drops": {"POLICY_RULE": 25, "X": 1}})
    assert state.status is not None and state.sessions is not None
    state.handle(Answered(state.query(), status, state.sessions), 3.0)
    assert "drops 10/s POLICY_RULE" in draw(state)[1]
    # 5 before, and X came: 21 in 2 s
    assert "map" not in draw(state)[1]
    state.width = 120
    assert "map flows 0%" in draw(state)[1]
    restarted = status.model_copy(update={"drops": {"POLICY_RULE": 1}})
    state.handle(Answered(state.query(), restarted, state.sessions), 5.0)
    assert "-" not in draw(state)[1].split("drops")[1].split()[0]
