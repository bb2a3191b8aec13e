"""One JSON object per line, whatever is logged."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from zgate_config.logs import configure_logging, set_level


@pytest.fixture(autouse=True)
def root_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_line_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info")
    logging.getLogger("zgate_agent.x").info("two\nlines: %s", "é")
    logging.getLogger("zgate_agent.x").debug("left out")
    (line,) = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert (record["level"], record["message"]) == ("info", "two\nlines: é")
    assert record["logger"] == "zgate_agent.x"


def test_a_traceback_stays_in_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info")
    try:
        raise ValueError("a bug")
    except ValueError:
        logging.getLogger("zgate_agent.x").exception("failed")
    (line,) = capsys.readouterr().out.splitlines()
    assert "ValueError: a bug" in json.loads(line)["exception"]


@pytest.mark.parametrize(("level", "expected"), [("info", "WARNING"), ("error", "ERROR")])
def test_libraries_are_no_louder_than_a_warning(level: str, expected: str) -> None:
    configure_logging(level)
    assert logging.getLevelName(logging.getLogger("http3").level) == expected
    # What aioquic warns of, refused certificates above all, is told better by us.
    assert logging.getLevelName(logging.getLogger("quic").level) == "ERROR"


def test_an_event_and_its_fields_stand_beside_the_words(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("info")
    logger = logging.getLogger("zgate_agent.x")
    logger.info(
        "session up with %(address)s in %(time_s).1f s",
        {
            "event": "session_up",
            "address": ip_address("192.0.2.1"),
            "time_s": 0.25,
            "all": (1, "a"),
        },
    )
    logger.info("stopped", {"event": "stopped"})
    up, stopped = map(json.loads, capsys.readouterr().out.splitlines())
    assert up["message"] == "session up with 192.0.2.1 in 0.2 s"
    assert (up["event"], up["address"], up["time_s"]) == ("session_up", "192.0.2.1", 0.25)
    assert up["all"] == [1, "a"]
    assert (stopped["event"], stopped["message"]) == ("stopped", "stopped")


def test_a_name_that_is_no_text_costs_no_line() -> None:
    said = r"""
import logging, os
from zgate_config.logs import configure_logging
configure_logging("info", "json")
name = os.fsdecode(b"\xff") + "\u00e9"
logging.getLogger("zgate_x").info("%(path)s", {"event": "x", "path": name})
"""
    environment = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-c", said],
        capture_output=True,
        env={**os.environ, **environment},
        check=True,
    )
    assert done.stderr == b""
    assert json.loads(done.stdout)["path"] == "\udcff\u00e9"


def test_what_a_library_says_has_no_event_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info")
    logging.getLogger("library").warning("%s of %d", "one", 2)
    logging.getLogger("library").warning("%(a)s", {"a": 1})
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["event"] for one in lines] == ["library", "library"]
    assert [one["message"] for one in lines] == ["one of 2", "1"]


def test_the_level_changes_while_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("warning")
    logger = logging.getLogger("zgate_agent.x")
    logger.debug("first", {"event": "first"})
    set_level("debug")
    logger.debug("second", {"event": "second"})
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["event"] == "second"
    assert logging.getLogger("http3").level == logging.WARNING


_TO_THE_JOURNAL = """
import logging, os, socket, subprocess, sys
from pathlib import Path
from zgate_config.logs import configure_logging
subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
Path("/run/systemd/journal").mkdir(parents=True)
journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
journal.settimeout(10)
journal.bind("/run/systemd/journal/socket")
found = os.fstat(1)
os.environ["JOURNAL_STREAM"] = f"{found.st_dev}:{found.st_ino}"
configure_logging("info")
try:
    raise ValueError("a bug")
except ValueError:
    logging.getLogger("zgate_x").exception(
        "%(what)s\\nraised", {"event": "fault", "what": "it", "count": 3, "path": "\\udcff"})
sys.stdout.buffer.write(journal.recv(65536))
"""


@pytest.mark.privileged
def test_journald_gets_fields() -> None:
    """By its own protocol, to a socket where its own would be."""
    pytest.importorskip("systemd.journal", reason="python3-systemd is not installed")
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", _TO_THE_JOURNAL],
        capture_output=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        check=True,
    )
    said = done.stdout
    for field in (b"PRIORITY=3", b"ZGATE_EVENT=fault", b"ZGATE_WHAT=it", b"ZGATE_COUNT=3"):
        assert field + b"\n" in said
    assert b"LOGGER=zgate_x\n" in said and b"ZGATE_PATH=\\udcff\n" in said
    assert b"it\nraised\nTraceback" in said and b"ValueError: a bug" in said
