"""One JSON object per line, whatever is logged."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
from zgate_config.logs import configure_logging


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
    (line,) = capsys.readouterr().err.splitlines()
    record = json.loads(line)
    assert (record["level"], record["message"]) == ("info", "two\nlines: é")
    assert record["logger"] == "zgate_agent.x"


def test_a_traceback_stays_in_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info")
    try:
        raise ValueError("a bug")
    except ValueError:
        logging.getLogger("zgate_agent.x").exception("failed")
    (line,) = capsys.readouterr().err.splitlines()
    assert "ValueError: a bug" in json.loads(line)["exception"]


@pytest.mark.parametrize(("level", "expected"), [("info", "WARNING"), ("error", "ERROR")])
def test_libraries_are_no_louder_than_a_warning(level: str, expected: str) -> None:
    configure_logging(level)
    assert logging.getLevelName(logging.getLogger("http3").level) == expected
    # What aioquic warns of, refused certificates above all, is told better by us.
    assert logging.getLevelName(logging.getLogger("quic").level) == "ERROR"
