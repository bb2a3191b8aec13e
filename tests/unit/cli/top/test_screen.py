"""zgatectl top on a real pseudo-terminal: what is seen, and that nothing stays behind."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from zgate_gateway.api import schemas
from zgate_lab.screen import Screen, zgatectl

NO_QUERY_LARGER_THAN = 60


def many(fake_gateway: Any, count: int) -> None:
    one = fake_gateway.up[0]
    fake_gateway.up = [
        one.model_copy(update={"client": f"client-{n}", "session_id": f"s{n}"})
        for n in range(count)
    ]


def queries(fake_gateway: Any) -> list[schemas.SessionQuery]:
    return [call[1] for call in fake_gateway.calls if call[0] == "sessions"]


def test_what_is_seen_and_q_quits(open_top: Any) -> None:
    top = open_top()
    top.wait_for(lambda: "q quit" in top.text and "1-2 of 2" in top.text)
    lines = top.text.splitlines()
    assert lines[0].startswith("zgate ready  2/10,000 sessions  policy revision 7")
    assert lines[1].startswith("up ") and " drops " in lines[1]
    assert lines[2].split()[:3] == ["client", "virtual", "IP"]
    assert lines[3].split()[:2] == ["client-1", "10.100.0.2"]
    assert "1-2 of 2" in lines[23] and "q quit" in lines[23]
    assert top.display.is_alternate and top.display.cursor.hidden
    top.press("q")
    assert top.wait_ended() == 0
    top.assert_clean()


@pytest.mark.parametrize(
    ("how", "status"),
    [("\x03", 0), ("\x04", 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=["ctrl-c", "ctrl-d", "term", "hup"],
)
def test_every_end_is_clean(open_top: Any, how: str | signal.Signals, status: int) -> None:
    top = open_top()
    if isinstance(how, str):
        top.press(how)
    else:
        top.signal(how)
    assert top.wait_ended() == status
    top.assert_clean()


def test_a_bug_leaves_a_clean_terminal_and_its_trace(live_gateway: Any) -> None:
    script = (
        "from zgate_cli.top import driver\n"
        "drawn = iter(range(3))\n"
        "draw = driver.lines_of\n"
        "driver.lines_of = lambda *a, **k: next(drawn) + 1 and draw(*a, **k)\n"
        "from zgate_cli.main import cli\n"
        f"cli(['--socket', '{live_gateway.socket_path}', 'top', '-i', '0.2'])\n"
    )
    with Screen(sys.executable, "-c", script, width=200) as top:
        assert top.wait_ended() == 1
        assert "StopIteration" in top.text
        assert not top.display.is_alternate and not top.display.cursor.hidden


def test_another_size(open_top: Any) -> None:
    top = open_top()
    top.resize(200, 50)
    top.signal(signal.SIGWINCH)
    top.wait_for(lambda: "groups" in top.text and "1-2 of 2" in top.text.splitlines()[49])
    assert "fd7a:7a67" in top.text
    top.resize(30, 8)
    top.signal(signal.SIGWINCH)
    top.wait_for(lambda: "1-2 of 2" in top.text.splitlines()[7])
    top.press("q")
    assert top.wait_ended() == 0


def test_the_gateway_goes_away_and_comes_back(tmp_path: Path, live_gateway: Any) -> None:
    socket = tmp_path / "other.sock"
    with Screen(*zgatectl("--socket", socket, "top", "-i", "0.2"), width=250) as top:
        top.wait_for("NO ANSWER")
        top.wait_for("the gateway is not running")
        other = type(live_gateway)(socket)
        other.start()
        try:
            top.wait_for("client-1")
            assert "NO ANSWER" not in top.text
        finally:
            other.stop()
        top.wait_for("NO ANSWER")
        assert "client-1" in top.text  # what was true last, dimmed
        again = type(live_gateway)(socket)
        again.start()
        try:
            top.wait_for(lambda: "NO ANSWER" not in top.text)
        finally:
            again.stop()
        top.press("q")
        assert top.wait_ended() == 0
        top.assert_clean()


def test_ctrl_z_and_back(open_top: Any) -> None:
    top = open_top()
    top.press("\x1a")
    top.wait_for(top.is_stopped)
    top.read(0.2)
    top.assert_clean()
    top.signal(signal.SIGCONT)
    top.wait_for("client-1")
    assert top.display.is_alternate
    top.press("q")
    assert top.wait_ended() == 0
    top.assert_clean()


def test_keys(open_top: Any, fake_gateway: Any) -> None:
    many(fake_gateway, 3)
    top = open_top()
    top.press("/client-2")
    top.wait_for("filter: client-2")
    top.press("\r")
    top.wait_for(lambda: "client-1" not in top.text and "1-1 of 1" in top.text)
    top.press("f")
    top.wait_for("allow-https (lin")
    top.press("\x1b")
    top.wait_for("1-1 of 1")
    top.press("\x1b")
    top.wait_for("1-3 of 3")
    top.press("\x1b[Ak")  # from client-2, which is the chosen one still
    top.wait_for("Kick client-1? ")
    top.press("n")
    top.wait_for("nobody was kicked")
    assert not [call for call in fake_gateway.calls if call[0] == "kick"]
    top.press("ky")
    top.wait_for("closed 1 session of client-1")
    assert ("kick", "client-1", "kicked from zgatectl top") in fake_gateway.calls
    top.press("p")
    top.wait_for("PAUSED")
    before = len(fake_gateway.calls)
    time.sleep(0.5)
    top.read()
    assert len(fake_gateway.calls) <= before + 2  # what was under way
    top.press("?")
    top.wait_for("paint the screen anew")


def test_ten_thousand_sessions_are_never_fetched(open_top: Any, fake_gateway: Any) -> None:
    many(fake_gateway, 10_000)
    top = open_top()
    top.wait_for("1-20 of 10,000")
    top.press("\x1b[F")
    top.wait_for("9,981-10,000 of 10,000")
    assert "client-9999" in top.text
    top.press("\x1b[5~")
    top.wait_for("9,961-9,980 of 10,000")
    assert all(one.limit == 20 for one in queries(fake_gateway))
    top.press("q")
    assert top.wait_ended() == 0


def test_only_what_has_changed_is_written(open_top: Any) -> None:
    top = open_top()
    top.wait_for(lambda: "drops 0/s" in top.text)
    before = len(top.written)
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline:
        top.read()
    top.wait_for(lambda: len(top.written) > before)
    # The clock in the title, once a second: not the whole screen of about 2,000.
    assert 0 < len(top.written) - before < 800


def test_synchronized_updates_are_for_terminals_that_know_them(open_top: Any) -> None:
    top = open_top()
    assert b"\x1b[?2026$p" in top.written and b"\x1b[?2026h" not in top.written
    top.press("\x1b[?2026;2$y")
    top.press("i")
    top.wait_for(lambda: "Kernel maps" in top.text and top.written.endswith(b"\x1b[?2026l"))
    assert b"\x1b[?2026h" in top.written


def test_no_color(open_top: Any) -> None:
    top = open_top(NO_COLOR="1")
    styles = re.findall(rb"\x1b\[([0-9;]*)m", top.written)
    assert styles
    codes = {int(code or 0) for style in styles for code in style.split(b";")}
    assert codes <= {0, 1, 2, 4, 7}


def test_a_terminal_without_unicode(open_top: Any) -> None:
    top = open_top(LANG="C", LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert top.written.isascii()


def test_hostile_names_cannot_steer_the_terminal(open_top: Any, fake_gateway: Any) -> None:
    evil = fake_gateway._session("a\x1b[2Jb")
    fake_gateway.up = [evil.model_copy(update={"session_id": "x"})]
    top = open_top(text="a\ufffd[2Jb")
    top.press("k")
    top.wait_for("Kick a\ufffd[2Jb?")


def test_it_wants_a_terminal(live_gateway: Any) -> None:
    done = subprocess.run(
        [*map(str, zgatectl("--socket", live_gateway.socket_path, "top"))],
        capture_output=True, text=True, check=False, timeout=30, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "top needs a terminal; use --json" in done.stderr
